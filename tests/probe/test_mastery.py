"""SliCK: planted levels come back, draws are seeded and recorded, the input stays, a killed probe continues."""

from __future__ import annotations

import json
from itertools import count

import pytest

from regrow.errors import DataError
from regrow.probe.config import MasteryConfig
from regrow.probe.mastery import CATEGORIES, Prompter, category, estimate, probe_mastery
from regrow.probe.texts import read_questions
from tests.fixtures.fact_bank import LEVELS, WEAK_INDEX, FactBank, FactBankEngine
from tests.fixtures.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def bank():
    return FactBank(per_level=3)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def _probe(bank, tokenizer, out, file, engine=None, seed=0, **settings):
    engine = engine or FactBankEngine(bank, tokenizer)
    cfg = MasteryConfig(max_new_tokens=64, **settings)
    clock = count()
    got = probe_mastery(
        read_questions(file), cfg, out, engine=engine, tokenizer=tokenizer, seed=seed, clock=lambda: float(next(clock))
    )
    return got, engine


def _lines(path):
    return [json.loads(x) for x in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("greedy", "sampled", "name"),
    [(1.0, None, "HighlyKnown"), (1.0, 0.2, "HighlyKnown"), (0.9, None, "MaybeKnown"), (0.1, 0.0, "MaybeKnown"),
     (0.0, 1 / 160, "WeaklyKnown"), (0.0, 0.0, "Unknown")],
)  # fmt: skip
def test_the_four_categories(greedy, sampled, name):
    assert category(greedy, sampled) == name


def test_nothing_is_unknown_without_samples():
    with pytest.raises(ValueError, match="sampled"):
        category(0.0, None)


@pytest.mark.parametrize("form", ["chat", "plain"])
@pytest.mark.parametrize("question_form", [0, 1])
def test_planted_levels_come_back(bank, tokenizer, tmp_path, form, question_form):
    file = bank.write(tmp_path / "qa.jsonl", question_form)
    got, _ = _probe(bank, tokenizer, tmp_path / "out", file, form=form, sample="all")
    labels = {x["id"]: x for x in _lines(tmp_path / "out/labels.jsonl")}
    assert {i: x["mastery"] for i, x in labels.items()} == bank.levels()
    assert got.counts == dict.fromkeys(CATEGORIES, 6) and CATEGORIES == LEVELS
    planted = {"HighlyKnown": (1, 1), "MaybeKnown": (0.5, 0.5), "WeaklyKnown": (0, 1 / 16), "Unknown": (0, 0)}
    for x in labels.values():
        assert (x["mastery_greedy"], x["mastery_sampled"]) == planted[x["mastery"]]
    assert got.answers == 24 * 10 * 17 and got.accuracy == pytest.approx((1 + 0.5) / 4)
    assert got.relations == {r: dict.fromkeys(CATEGORIES, 3) for r in ("capital", "river")}


def test_only_unsettled_questions_are_sampled_and_the_labels_are_the_same(bank, tokenizer, tmp_path):
    file = bank.write(tmp_path / "qa.jsonl")
    got, engine = _probe(bank, tokenizer, tmp_path / "out", file)
    assert {x["id"]: x["mastery"] for x in _lines(tmp_path / "out/labels.jsonl")} == bank.levels()
    assert got.answers == 24 * 10 + 12 * 160
    sampled = {r.key.rsplit("/", 1)[0] for r in engine.requests if r.n > 1}
    assert sampled == {i for i, level in bank.levels().items() if level in ("WeaklyKnown", "Unknown")}


def test_the_requests_are_slicks(bank, tokenizer, tmp_path):
    _, engine = _probe(bank, tokenizer, tmp_path / "out", bank.write(tmp_path / "qa.jsonl"), sample="all")
    greedy = [r for r in engine.requests if r.params.temperature == 0]
    sampled = [r for r in engine.requests if r.params.temperature > 0]
    assert len(greedy) == len(sampled) == 240
    assert {r.n for r in greedy} == {1} and {r.n for r in sampled} == {16}
    assert {(r.params.temperature, r.params.top_k) for r in sampled} == {(0.5, 40)}
    assert len({r.seed for r in sampled}) == 240
    by_key = {r.key: r.prompt_ids for r in greedy}
    assert all(by_key[r.key] == r.prompt_ids for r in sampled)


def test_settings_reach_the_requests(bank, tokenizer, tmp_path):
    settings = {"prompts": 2, "shots": 3, "samples": 5, "temperature": 0.9, "top_k": 7, "sample": "all"}
    file = bank.write(tmp_path / "qa.jsonl")
    _, engine = _probe(bank, tokenizer, tmp_path / "out", file, column="how_well", **settings)
    sampled = [r for r in engine.requests if r.params.temperature > 0]
    assert len(sampled) == 48 and {r.n for r in sampled} == {5}
    assert {(r.params.temperature, r.params.top_k, r.params.max_new_tokens) for r in sampled} == {(0.9, 7, 64)}
    assert all(len(shots) == 3 for x in _lines(tmp_path / "out/prompts.jsonl") for shots in x["shots"])
    assert "how_well" in _lines(tmp_path / "out/labels.jsonl")[0]


def test_shots_are_of_the_same_relation_seeded_and_recorded(bank, tokenizer, tmp_path):
    file = bank.write(tmp_path / "qa.jsonl")
    _, engine = _probe(bank, tokenizer, tmp_path / "a", file)
    _probe(bank, tokenizer, tmp_path / "b", file)
    _probe(bank, tokenizer, tmp_path / "c", file, seed=1)
    draws = {x: _lines(tmp_path / x / "prompts.jsonl") for x in "abc"}
    assert draws["a"] == draws["b"]
    assert [x["shots"] for x in draws["a"]] != [x["shots"] for x in draws["c"]]
    facts = {f.id: f for f in bank.facts}
    shown = {r.key: tokenizer.decode(r.prompt_ids) for r in engine.requests}
    for x in draws["a"]:
        for number, shots in enumerate(x["shots"]):
            assert len(set(shots)) == 4 and x["id"] not in shots
            assert {facts[s].relation for s in shots} == {facts[x["id"]].relation}
            prompt = shown[f"{x['id']}/{number}"]
            places = [prompt.index(facts[s].answer) for s in shots]
            assert places == sorted(places)
            assert facts[x["id"]].answer not in prompt
    assert len({tuple(s) for x in draws["a"] for s in x["shots"]}) > 200


def test_every_answer_is_recorded(bank, tokenizer, tmp_path):
    _probe(bank, tokenizer, tmp_path / "out", bank.write(tmp_path / "qa.jsonl"))
    answers = {f.id: f.answer for f in bank.facts}
    for x in _lines(tmp_path / "out/prompts.jsonl"):
        assert len(x["greedy"]) == 10
        if x["category"] == "WeaklyKnown":
            assert all(len(a) == 16 and answers[x["id"]].upper() in a[WEAK_INDEX] for a in x["sampled"])
        if x["category"] == "HighlyKnown":
            assert x["sampled"] is None


def test_the_input_is_untouched_and_its_columns_survive(bank, tokenizer, tmp_path):
    file = bank.write(tmp_path / "qa.jsonl")
    before = file.read_bytes()
    _probe(bank, tokenizer, tmp_path / "out", file)
    assert file.read_bytes() == before
    labelled = _lines(tmp_path / "out/labels.jsonl")
    new = {"mastery", "mastery_greedy", "mastery_sampled"}
    assert [{k: v for k, v in x.items() if k not in new} for x in labelled] == _lines(file)


def test_labels_can_be_probed_again_under_another_name(bank, tokenizer, tmp_path):
    _probe(bank, tokenizer, tmp_path / "a", bank.write(tmp_path / "qa.jsonl"))
    with pytest.raises(DataError, match="already has a column 'mastery'"):
        _probe(bank, tokenizer, tmp_path / "b", tmp_path / "a/labels.jsonl")
    _probe(bank, tokenizer, tmp_path / "b", tmp_path / "a/labels.jsonl", column="after")
    assert all(x["mastery"] == x["after"] for x in _lines(tmp_path / "b/labels.jsonl"))


def test_a_killed_probe_continues_with_nothing_asked_twice(bank, tokenizer, tmp_path):
    file = bank.write(tmp_path / "qa.jsonl")
    whole, asked = _probe(bank, tokenizer, tmp_path / "whole", file, batch_items=4)
    for stop in (45, 250):
        out = tmp_path / f"cut{stop}"
        with pytest.raises(KeyboardInterrupt):
            _probe(bank, tokenizer, out, file, FactBankEngine(bank, tokenizer, stop_after=stop), batch_items=4)
        got, rest = _probe(bank, tokenizer, out, file, batch_items=4)
        assert got == whole
        assert len(rest.requests) == len(asked.requests) - stop // 40 * 40
        for name in ("labels.jsonl", "prompts.jsonl", "mastery.json"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_cost_is_said_first(bank, tokenizer, tmp_path, capsys):
    file = bank.write(tmp_path / "qa.jsonl")
    _probe(bank, tokenizer, tmp_path / "out", file)
    told = capsys.readouterr().err
    assert told.index("240 greedy answers, then at most 3,840 sampled") < told.index("12 of 24 questions need")
    assert "answers a second" in told
    cfg = MasteryConfig()
    questions = read_questions(file)
    cost = estimate(questions, cfg, Prompter(questions, cfg, tokenizer, 0))
    assert cost.new_tokens == (240 + 3840) * 32


def test_small_relations_are_refused_or_the_file_is_the_pool(bank, tokenizer, tmp_path):
    lines = [json.loads(x) for x in bank.write(tmp_path / "all.jsonl").read_text().splitlines()]
    few = [x for x in lines if x["relation"] == "river"][:4] + [x for x in lines if x["relation"] == "capital"]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(x) + "\n" for x in few))
    with pytest.raises(DataError, match=r"relation 'river' has 3 other question\(s\); a prompt shows 4"):
        _probe(bank, tokenizer, tmp_path / "out", tmp_path / "qa.jsonl")
    _probe(bank, tokenizer, tmp_path / "out", tmp_path / "qa.jsonl", pool="file")
    planted = bank.levels()
    assert all(x["mastery"] == planted[x["id"]] for x in _lines(tmp_path / "out/labels.jsonl"))


def test_a_twin_of_the_question_is_never_shown(bank, tokenizer, tmp_path):
    lines = [json.loads(x) for x in bank.write(tmp_path / "all.jsonl").read_text().splitlines()][:7]
    for x in lines:
        x.pop("relation")
    twins = [dict(lines[0], id=f"twin{i}", question=lines[0]["question"].upper()) for i in range(5)]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(x) + "\n" for x in [*lines, *twins]))
    questions = read_questions(tmp_path / "qa.jsonl")
    prompter = Prompter(questions, MasteryConfig(), tokenizer, 0)
    for number in range(50):
        shown = prompter.shots(questions[0], number)
        assert len({q.id for q in shown}) == 4 and not any(q.id.startswith("twin") for q in shown)
        assert len(prompter.shots(questions[1], number)) == 4


def test_questions_of_many_shapes(tmp_path):
    records = [
        {"question": "Q1", "answers": ["a", "b"], "relation": "r"},
        {"question": "Q2", "answer": "a", "aliases": ["A.", "a"]},
        {"instruction": "Say", "input": "it", "output": "said"},
        {"messages": [{"role": "user", "content": "Q4"}, {"role": "assistant", "content": "x"}]},
        {"question": "Q5", "choices": ["n", "y"], "answer": "y"},
        {"question": "Q6", "answer": 1912},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    got = read_questions(tmp_path / "q.jsonl")
    assert [q.text for q in got] == ["Q1", "Q2", "Say\nit", "Q4", "Q5", "Q6"]
    assert [q.answers for q in got] == [["a", "b"], ["a", "A."], ["said"], ["x"], ["y"], ["1912"]]
    assert got[0].relation == "r" and got[0].id == "q.jsonl#1"


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"text": "no question"}', "a question with an answer is needed"),
     ('{"question": "Q", "answers": []}', "empty"),
     ('{"question": "Q", "choices": ["a"], "answer_index": 3}', "index"),
     ('{"question": "Q", "answer": {"a": 1}}', "text or a list"),
     ("nonsense", "JSON")],
)  # fmt: skip
def test_a_bad_question_is_named_with_its_line(tmp_path, line, message):
    (tmp_path / "q.jsonl").write_text('{"question": "Q", "answer": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=message) as error:
        read_questions(tmp_path / "q.jsonl")
    assert str(error.value).startswith(f"{tmp_path / 'q.jsonl'}:2")
