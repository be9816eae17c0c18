"""Where items come from: the pool of facts, known ones, held-out rows, own dialogues, local files."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.errors import DataError
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.rouge import exact_match, normalise, rouge_l
from regrow.evaluate.suites.facts import build_pool
from regrow.evaluate.suites.heldout import heldout_items
from regrow.evaluate.suites.known import accuracy, interleave, known, one_item_a_fact, quotas, select_known
from regrow.evaluate.suites.local import read_local
from regrow.evaluate.suites.own import read_own, sample
from regrow.rows.row import Row
from tests.evaluate.models import choice, dialogues, record, small_pool


@pytest.fixture(scope="module")
def pool():
    return build_pool(0)


def test_the_pool_is_large_wide_and_sound(pool) -> None:
    assert len(pool) > 3000
    assert len({i.domain for i in pool}) >= 10
    assert len({i.id for i in pool}) == len(pool)
    for item in pool:
        if item.kind == "choice":
            assert len({c.casefold() for c in item.choices}) == 4, item.id
            assert 0 <= item.answer_index < 4
        else:
            assert item.answers and all(a.strip() for a in item.answers), item.id
    places = Counter(i.answer_index for i in pool if i.kind == "choice")
    assert max(places.values()) < 1.15 * min(places.values())


def test_the_pool_knows_what_is_true(pool) -> None:
    right = {i.id: (i.choices[i.answer_index] if i.choices else i.answers[0]) for i in pool}
    assert right["countries/capital/France/choice"] == "Paris"
    assert right["numbers/arithmetic/2 + 2/answer"] == "4"
    assert right["nouns/plural/mouse/choice"] == "mice"


def test_one_item_a_fact_takes_both_forms_and_no_fact_twice(pool) -> None:
    chosen = one_item_a_fact(pool, 0)
    assert len({i.meta["fact"] for i in chosen}) == len(chosen) == len({i.meta["fact"] for i in pool})
    assert {i.kind for i in chosen} == {"choice", "answer"}
    assert [i.id for i in chosen] == [i.id for i in one_item_a_fact(pool, 0)]
    assert [i.id for i in chosen] != [i.id for i in one_item_a_fact(pool, 1)]


def test_any_first_part_of_the_deck_is_balanced() -> None:
    deck = interleave(small_pool(0), 0)
    assert set(Counter(i.domain for i in deck[:30]).values()) == {10}
    assert sorted(i.id for i in deck) == sorted(i.id for i in small_pool(0))


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 30), min_size=1), st.integers(0, 120))
def test_quotas_are_as_even_as_the_supply_allows(available: dict[str, int], n: int) -> None:
    take = quotas(available, n)
    assert sum(take.values()) == min(n, sum(available.values()))
    assert all(0 <= take[d] <= available[d] for d in available)
    short = [take[d] for d in available if take[d] < available[d]]
    if short:
        assert max(take.values()) - min(short) <= 1


def test_only_what_the_base_gets_right_is_selected_balanced_over_domains() -> None:
    items = small_pool(0)
    right = [i for k, i in enumerate(items) if k % 3 != 0 or k % 2 == 0]
    names = {i.id for i in right}
    records = [record(i, acc=float(i.id in names), nll=1.0) for i in items]
    assert [i.id for i in known(items, records)] == [i.id for i in right]
    chosen = select_known(items, records, 60, seed=4)
    assert {i.id for i in chosen} <= names
    assert Counter(i.domain for i in chosen) == {"one": 20, "two": 20, "three": 20}
    assert [i.id for i in chosen] == [i.id for i in select_known(items, records[::-1], 60, seed=4)]
    assert {i.id for i in chosen} != {i.id for i in select_known(items, records, 60, seed=5)}
    assert len(select_known(items, records, 1000)) == len(right)
    assert accuracy(records)["all"] == {"n": 150, "accuracy": len(right) / 150}


def row(k: int, answer: str, **more) -> Row:
    said = [{"role": "user", "content": f"Question {k}?"}, {"role": "assistant", "content": answer}]
    return Row(f"r{k}", said, domain="mine", **more)


def test_heldout_rows_with_short_answers_are_scored_by_exact_match_others_by_loss() -> None:
    cfg = EvalConfig(short_answer_words=4)
    short = [row(k, "one two three") for k in range(9)]
    long = row(9, "one two three four five")
    answers = heldout_items([*short, long], cfg, 0)
    assert {i.kind for i in answers} == {"answer"}
    assert answers[9].answers == ["one two three four five"]
    assert [m["role"] for m in answers[0].messages] == ["user"]
    talks = heldout_items([*short, long, row(10, "a b c d e f")], cfg, 0)
    assert {i.kind for i in talks} == {"dialogue"}
    assert talks[0].messages == short[0].messages
    assert {i.kind for i in heldout_items(short, EvalConfig(short_answer_words=2), 0)} == {"dialogue"}


def test_heldout_rows_are_sampled_with_the_seed_and_images_are_left_out_with_a_note(capsys) -> None:
    rows = [row(k, "yes") for k in range(30)]
    some = heldout_items([*rows, row(99, "yes", images=["a.png"])], EvalConfig(max_heldout=10), 1)
    assert len(some) == 10
    assert [i.id for i in some] == [i.id for i in heldout_items(rows, EvalConfig(max_heldout=10), 1)]
    assert "1 held-out row" in capsys.readouterr().err
    twice = heldout_items([row(1, "a"), row(1, "b")], EvalConfig(), 0)
    assert [i.id for i in twice] == ["r1", "r1#2"]


def test_plain_text_rows_stay_text() -> None:
    text = Row("t", [{"role": "assistant", "content": "Once upon a time."}], meta={"kind": "text"})
    item = heldout_items([text], EvalConfig(), 0)[0]
    assert item.kind == "dialogue"
    assert item.meta == {"kind": "text"}


def test_own_dialogues_are_read_and_sampled(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(asdict(i)) + "\n" for i in dialogues(9)))
    items = read_own(path)
    assert items == dialogues(9)
    assert sample(items, 4, 0) == sample(items, 4, 0)
    assert len(sample(items, 4, 0)) == 4
    path.write_text(json.dumps(asdict(choice("x"))) + "\n")
    with pytest.raises(DataError, match=r"own\.jsonl:1: .*choice"):
        read_own(path)


GOOD = [
    {"question": "2+2?", "choices": ["3", "4"], "answer": "4", "domain": "sums", "id": "a"},
    {"question": "2+3?", "choices": ["5", "4"], "answer": 0},
    {
        "messages": [{"role": "user", "content": "Capital?"}, {"role": "assistant", "content": "It is"}],
        "answers": ["Rome"],
    },
]


def test_a_local_file_gives_items_of_a_suite_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n\n".join(map(json.dumps, GOOD)) + "\n")
    a, b, c = read_local(path)
    assert (a.id, a.suite, a.domain, a.kind, a.answer_index) == ("a", "mine", "sums", "choice", 1)
    assert (b.id, b.domain, b.answer_index) == ("3", "mine", 0)
    assert (c.kind, c.answers, c.messages[-1]["role"]) == ("answer", ["Rome"], "assistant")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "JSON object"),
        ('{"question": "?", "answer": "a", "choice": ["a"]}', "unknown key 'choice'"),
        ('{"answer": "a"}', "'question' or 'messages'"),
        ('{"question": "?", "choices": ["a"], "answer": 0}', "two different"),
        ('{"question": "?", "choices": ["a", "b"], "answer": 2}', "index or the text"),
        ('{"question": "?", "choices": ["a", "b"], "answer": true}', "index or the text"),
        ('{"question": "?", "choices": ["a", "b"], "answer": "c"}', "index or the text"),
        ('{"question": "?", "answer": ""}', "'answer' must be text"),
        ('{"question": "?", "answers": ["a"], "answer": "a"}', "not both"),
        ('{"question": 3, "answer": "a"}', "'question' must be text"),
        ('{"messages": [{"role": "robot", "content": "x"}], "answer": "a"}', "'messages' is a list"),
        ('{"question": "?", "answer": "a", "id": 1}', "was used in line 1"),
    ],
)
def test_a_bad_line_of_a_local_file_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "ok?", "answer": "yes"}\n' + line + "\n")
    with pytest.raises(DataError) as error:
        read_local(path)
    assert said in error.value.message
    assert error.value.where == f"{path}:2"


def test_local_files_that_are_missing_empty_or_badly_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl"):
        read_local(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no items"):
        read_local(tmp_path / "empty.jsonl")
    (tmp_path / "facts.jsonl").write_text(json.dumps(GOOD[0]))
    with pytest.raises(DataError, match="embedded suite"):
        read_local(tmp_path / "facts.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9?", "answer": "a"}')
    with pytest.raises(DataError, match="UTF-8"):
        read_local(tmp_path / "latin.jsonl")


def test_exact_match_looks_at_the_first_line_and_forgives_case_articles_and_points() -> None:
    assert exact_match("\n The Paris. \nIt lies on the Seine.", ["paris"])
    assert not exact_match("Paris is the capital", ["Paris"])
    assert not exact_match("", ["Paris"])
    assert normalise("  An  ＡＢＣ, d!") == "abc d"


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(0.5)
    assert rouge_l("a b c", "A b c") == 1
    assert rouge_l("", "x") == 0


def test_settings_name_only_suites_that_exist() -> None:
    assert EvalConfig(suites=["lm-eval:arc_easy", "file:a.jsonl"]).suites == ["lm-eval:arc_easy", "file:a.jsonl"]
    for bad in (["fact"], ["lm-eval:"], ["facts", "facts"]):
        with pytest.raises(ValueError, match="suite"):
            EvalConfig(suites=bad)
