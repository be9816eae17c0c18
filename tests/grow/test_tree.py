from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from regrow.engines.base import Request
from regrow.errors import RunError
from regrow.grow.corpus import corpus_facts, read_dialogues, read_nodes
from regrow.grow.rounds import budget, deficits
from regrow.grow.script import ChatScript, prompt_ids, root_prompt
from regrow.grow.stage import estimate_cost, grow
from tests.grow.helpers import HashEncoder, ScriptedEngine, run, sentence, settings, snapshot, tiny, tokenizer_of


def kept(out: Path) -> list[tuple[str, int]]:
    return [(n.id, n.layer) for n in read_nodes(out, ["id", "layer", "kept"]) if n.kept]


def test_full_tree_counts(tiny_model_dir: Path, tmp_path: Path) -> None:
    cfg = settings(shape=[3, 2, 2, 2], dialogues="all", topics=["rivers", "tea"], oversample=1)
    done = run(tiny_model_dir, tmp_path, cfg)
    assert Counter(layer for _, layer in kept(tmp_path)) == {1: 6, 2: 12, 3: 24, 4: 48}
    assert (done.dialogues, done.kept, done.candidates, done.trees, done.rounds) == (48, 90, 90, 2, 1)
    cost = estimate_cost(cfg)
    assert (cost.dialogues, cost.kept_nodes, cost.trees) == (48, 90, 2)
    dialogues = read_dialogues(tmp_path)
    assert {len(d.node_ids) for d in dialogues} == {4}
    assert dialogues[0].node_ids == ["t00/0", "t00/0/0", "t00/0/0/0", "t00/0/0/0/0"]
    assert [m["role"] for m in dialogues[0].messages] == ["user", "assistant"] * 2
    nodes = {n.id: n for n in read_nodes(tmp_path)}
    assert nodes["t00/1"].n_paths == 8 and nodes["t01/2/1/0/1"].n_paths == 1
    assert all(n.parent == n.id.rsplit("/", 1)[0] for n in nodes.values())


def test_oversampling_and_retries(tiny_model_dir: Path, tmp_path: Path) -> None:
    """n = ceil(oversample * needed); a parent that gets nothing is asked `retries` times more, then keeps fewer."""
    engine = ScriptedEngine(
        tokenizer_of(tiny_model_dir), lambda r, i: sentence(r.seed * 64 + i) if r.key != "t00/1" else ""
    )
    cfg = settings(shape=[3, 2], dialogues="all", oversample=2.5, retries=2)
    done = run(tiny_model_dir, tmp_path, cfg, engine)
    assert Counter((r.key, r.n) for r in engine.requests) == {
        ("t00", 8): 1,
        ("t00/0", 5): 1,
        ("t00/1", 5): 3,
        ("t00/2", 5): 1,
    }
    assert len({r.seed for r in engine.requests if r.key == "t00/1"}) == 3
    assert done.dialogues == 4
    nodes = {n.id: n for n in read_nodes(tmp_path)}
    assert (nodes["t00/1"].kept, nodes["t00/1"].reason) == (False, "barren")
    assert done.dropped == {"empty": 15, "surplus": 11, "barren": 1}


def test_a_dead_branch_is_made_up_for_by_its_siblings(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Two of three first questions can be had; the eight dialogues of twelve still come out of this tree."""
    engine = ScriptedEngine(
        tokenizer_of(tiny_model_dir), lambda r, i: sentence(r.seed * 64 + i) if r.key != "t00" or i < 2 else ""
    )
    cfg = settings(shape=[3, 2, 2, 1], dialogues=8, oversample=1, retries=0)
    done = run(tiny_model_dir, tmp_path, cfg, engine)
    assert (done.dialogues, done.trees, done.rounds) == (8, 1, 1)


def test_refill_meets_the_budget(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A third of all answers is refused. New trees make up for it."""
    engine = ScriptedEngine(
        tokenizer_of(tiny_model_dir),
        lambda r, i: "I'm sorry, no." if r.key.count("/") % 2 and r.seed % 3 == 0 else sentence(r.seed + i),
    )
    done = run(
        tiny_model_dir, tmp_path, settings(dialogues=40, topics=["a", "b"], retries=0, oversample=1), engine, seed=1
    )
    assert done.dialogues == 40 and done.short == 0 and done.rounds > 1
    short = run(
        tiny_model_dir,
        tmp_path / "none",
        settings(dialogues=40, topics=["a", "b"], retries=0, oversample=1, refill_rounds=0),
        engine,
    )
    assert 0 < short.dialogues < 40 and short.short == 40 - short.dialogues


def test_nothing_survives(tiny_model_dir: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(tokenizer_of(tiny_model_dir), lambda r, i: "no")
    with pytest.raises(RunError, match=r"not one dialogue survived: too short \d+"):
        run(tiny_model_dir, tmp_path, settings(dialogues=4), engine)


def test_a_silent_topic_gives_its_share_away() -> None:
    cfg = settings(topics=["a", "b"], dialogues=10)
    assert deficits(cfg, ["a", "b"], 10, {}, 2) == {0: {2: 5}, 1: {2: 5}}
    assert deficits(cfg, ["a", "b"], 10, {(0, 4): 3}, 2) == {0: {2: 7}}
    assert deficits(cfg, ["a", "b"], 10, {(0, 4): 4, (1, 4): 5}, 2) == {0: {2: 1}}
    assert deficits(cfg, ["a", "b"], 10, {(0, 4): 5, (1, 4): 5}, 2) == {}


def test_mixed_deficits_keep_the_histogram() -> None:
    cfg = settings(shape="mixed-turns", dialogues=100)
    finished = {(0, 2): 13, (0, 4): 37, (0, 6): 20, (0, 8): 13}
    assert deficits(cfg, ["a"], 100, finished, 2) == {0: {3: 17}}


def test_prompts_are_the_parents_tokens(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A prompt is opening + contents + markers, in ids; and it decodes to what the chat template renders."""
    tokenizer = tokenizer_of(tiny_model_dir)
    engine = ScriptedEngine(tokenizer)
    cfg = settings(shape=[2, 2, 1, 1], dialogues="all")
    run(tiny_model_dir, tmp_path, cfg, engine)
    nodes = {n.id: n for n in read_nodes(tmp_path)}
    script = ChatScript(cfg, tokenizer)
    system = {"role": "system", "content": root_prompt(cfg, "rivers")}
    assert "rivers" in system["content"]
    for request in engine.requests:
        steps = request.key.split("/")[1:]
        path = [nodes["/".join(["t00", *steps[: i + 1]])] for i in range(len(steps))]
        assert request.prompt_ids == prompt_ids(script, system["content"], [n.token_ids for n in path])
        messages = [system, *({"role": n.role, "content": n.text} for n in path)]
        if len(path) % 2:
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            rendered = tokenizer.apply_chat_template([*messages, {"role": "user", "content": "X!X"}], tokenize=False)
            rendered = rendered[: rendered.index("X!X")]
        assert tokenizer.decode(request.prompt_ids) == rendered


def test_roles_caps_and_stops(tiny_model_dir: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(tokenizer_of(tiny_model_dir))
    cfg = settings(
        shape=[1] * 6, dialogues="all",
        question={"max_new_tokens": 33, "temperature": 1.2, "top_p": 0.8, "top_k": 7, "stop": ["@@"]},
        answer={"max_new_tokens": [100, 200], "temperature": 0.4, "top_p": 0.7, "top_k": 3},
    )  # fmt: skip
    run(tiny_model_dir, tmp_path, cfg, engine)
    params = [r.params for r in engine.requests]
    assert [p.max_new_tokens for p in params] == [33, 100, 33, 200, 33, 200]
    assert [(p.temperature, p.top_p, p.top_k) for p in params[:2]] == [(1.2, 0.8, 7), (0.4, 0.7, 3)]
    assert "@@" in params[0].stop_strings and "@@" not in params[1].stop_strings
    assert all(2 in p.stop_token_ids for p in params)


def test_wide_is_independent(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Every dialogue has its own draw from the root: one candidate a request, all seeds distinct, no choice among
    siblings."""
    encoder, same = HashEncoder(), "What does every river carry to the sea?"
    engine = ScriptedEngine(tokenizer_of(tiny_model_dir), lambda r, i: same if "/" in r.key else sentence(r.seed + i))
    cfg = settings(shape="wide", dialogues=20, topics=["a", "b"], encoder="minilm")
    done = run(tiny_model_dir, tmp_path, cfg, engine, encoder=encoder)
    assert (done.dialogues, done.candidates) == (20, 80), "four generations a dialogue, equal texts kept"
    assert all(r.n == 1 for r in engine.requests)
    assert len({r.seed for r in engine.requests}) == 80
    assert encoder.seen == []
    assert all(n.n_paths == 1 for n in read_nodes(tmp_path))


def test_wide_asks_again(tiny_model_dir: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(tokenizer_of(tiny_model_dir), lambda r, i: "" if r.seed % 2 else sentence(r.seed))
    done = run(tiny_model_dir, tmp_path, settings(shape="wide", turns=1, dialogues=16, retries=6), engine)
    assert done.dialogues == 16
    assert all(n.reason == "empty" and n.n_paths == 0 for n in read_nodes(tmp_path) if not n.kept)


def test_mixed_turns(tiny_model_dir: Path, tmp_path: Path) -> None:
    run(tiny_model_dir, tmp_path, settings(shape="mixed-turns", dialogues=60))
    lengths = Counter(len(d.messages) // 2 for d in read_dialogues(tmp_path))
    assert lengths == {1: 8, 2: 22, 3: 22, 4: 8}


def test_mmr_chooses_the_children(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Six questions in three near-duplicate pairs: one of each pair is kept, and a fourth is asked for again."""
    said = dict(
        enumerate(
            [
                "alpha beta gamma delta",
                "alpha beta gamma delta alpha",
                "one two three four",
                "one two three four one",
                "red green blue black",
                "red green blue black red",
            ]
        )
    )
    later = "up down left right"

    def say(request: Request, i: int) -> str:
        if request.key != "t00":
            return sentence(request.seed + i)
        return said[i] if request.n == 8 and i in said else ("x" if request.n == 8 else later)

    encoder = HashEncoder()
    engine = ScriptedEngine(tokenizer_of(tiny_model_dir), say)
    cfg = settings(
        shape=[4, 2],
        dialogues="all",
        encoder="minilm",
        oversample=2,
        max_similarity=0.85,
        topic_sentence="red and {topic}",
        topics=["blue"],
    )
    run(tiny_model_dir, tmp_path, cfg, engine, encoder=encoder)
    nodes = {n.id: n for n in read_nodes(tmp_path)}
    assert encoder.seen[0][0] == "red and blue", "relevance of first questions is to the topic sentence"
    assert nodes["t00/0"].text in (said[4], said[5]), "the most relevant comes first"
    assert {nodes[f"t00/{i}"].text[:3] for i in range(4)} == {"alp", "one", "red", "up "}
    reasons = Counter(n.reason for n in nodes.values() if n.layer == 1 and not n.kept)
    assert reasons == {"too similar": 3, "too short": 2, "duplicate": 1}
    answers = [seen for seen in encoder.seen if seen[0] == nodes["t00/0"].text]
    assert len(answers) == 1, "answers are compared with their question"


def test_lambda_counts(tiny_model_dir: Path, tmp_path: Path) -> None:
    texts = ["tea tea cup milk", "tea tea cup sugar", "tea tea cup water", "moon star sun sky"]

    def first(lam: float) -> set[str]:
        engine = ScriptedEngine(
            tokenizer_of(tiny_model_dir), lambda r, i: texts[i] if r.key == "t00" else sentence(r.seed + i)
        )
        out = tmp_path / str(lam)
        cfg = settings(
            shape=[2, 1],
            dialogues="all",
            encoder="minilm",
            mmr_lambda=lam,
            topic_sentence="tea cup {topic}",
            topics=["tea"],
        )
        run(tiny_model_dir, out, cfg, engine, encoder=HashEncoder())
        return {n.text for n in read_nodes(out) if n.kept and n.layer == 1}

    assert texts[3] in first(0.1)
    assert texts[3] not in first(1.0)


def test_duplicate_siblings(tiny_model_dir: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(
        tokenizer_of(tiny_model_dir), lambda r, i: "Why do rivers bend?" if i % 2 else sentence(r.seed + i)
    )
    run(tiny_model_dir, tmp_path, settings(shape=[4, 1], dialogues="all", oversample=2), engine)
    assert Counter(n.reason for n in read_nodes(tmp_path) if n.layer == 1 and not n.kept)["duplicate"] == 3


@pytest.mark.parametrize("mode", ["drop", "trim"])
def test_truncated_answers(tiny_model_dir: Path, tmp_path: Path, mode: str) -> None:
    engine = ScriptedEngine(
        tokenizer_of(tiny_model_dir),
        lambda r, i: (
            "Rivers bend on flat ground. They also carry…"
            if "/" in r.key
            else sentence(r.seed + i) + ("…" if i else "")
        ),
    )
    cfg = settings(shape=[2, 1], dialogues="all", truncated=mode, retries=0, oversample=1)
    if mode == "drop":
        with pytest.raises(RunError, match="truncated"):
            run(tiny_model_dir, tmp_path, cfg, engine)
        return
    run(tiny_model_dir, tmp_path, cfg, engine)
    nodes = {n.id: n for n in read_nodes(tmp_path)}
    answer = nodes["t00/0/0"]
    assert (answer.text, answer.finish) == ("Rivers bend on flat ground.", "length")
    assert tokenizer_of(tiny_model_dir).decode(answer.token_ids) == answer.text
    assert len(answer.token_logprobs or []) == len(answer.token_ids)
    assert nodes["t00/x1"].reason == "truncated", "a question is never trimmed"


def test_blank_ends_are_cut_with_their_tokens(tiny_model_dir: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(tokenizer_of(tiny_model_dir), lambda r, i: f"\n\n{sentence(r.seed + i)}\n \n")
    run(tiny_model_dir, tmp_path, settings(shape=[1, 1], dialogues="all"), engine)
    for node in read_nodes(tmp_path):
        assert tokenizer_of(tiny_model_dir).decode(node.token_ids) == node.text == node.text.strip()


def test_order_of_completion_does_not_matter(tiny_model_dir: Path, tmp_path: Path) -> None:
    def say(request: Request, i: int) -> str:
        return "" if (request.seed + i) % 4 == 0 else sentence(request.seed * 64 + i)

    results = []
    for name, order, batch in (("a", None, 256), ("b", random.Random(5).sample, 256), ("c", None, 7)):
        shuffled = (lambda xs, f=order: f(xs, len(xs))) if order else None
        engine = ScriptedEngine(tokenizer_of(tiny_model_dir), say, order=shuffled)
        cfg = settings(dialogues=24, topics=["a", "b", "c"], batch_nodes=batch, encoder="minilm", retries=1)
        run(tiny_model_dir, tmp_path / name, cfg, engine, encoder=HashEncoder())
        results.append(snapshot(tmp_path / name))
        assert max(engine.calls) <= max(batch, 8) + 8
    assert results[0] == results[1] == results[2]
    for file in ("nodes.parquet", "dialogues.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_first_batches_are_small(tiny_model_dir: Path, tmp_path: Path) -> None:
    """So that the first dialogue is soon there."""
    for workers in (1, 2):
        engine = ScriptedEngine(tokenizer_of(tiny_model_dir))
        engine.info = replace(engine.info, workers=workers)
        run(tiny_model_dir, tmp_path / str(workers), settings(shape="wide", dialogues=500, batch_nodes=100), engine)
        assert engine.calls[:3] == [32 * workers, 64 * workers, 100 * workers]


def test_a_batch_grows_with_the_workers_and_a_corpus_moves_to_a_cluster(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The same corpus, and the one that one process began is gone on with by many."""
    calls = []
    for name, workers in (("one", 1), ("many", 3)):
        engine = ScriptedEngine(tokenizer_of(tiny_model_dir))
        engine.info = replace(engine.info, workers=workers, name="ray:scripted" if workers > 1 else "scripted")
        run(tiny_model_dir, tmp_path / name, settings(shape="wide", dialogues=40, batch_nodes=8), engine)
        calls.append(engine.calls[0])
        again = run(tiny_model_dir, tmp_path / "one", settings(shape="wide", dialogues=40, batch_nodes=8), engine)
    assert calls == [8, 24]
    assert again.resumed_nodes == again.candidates and again.engine == "ray:scripted"
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "many")


def test_the_cluster_of_the_recipe_reaches_the_engine(tiny_model_dir: Path, tmp_path: Path, monkeypatch) -> None:
    seen = {}

    def record(name, model, **options):
        seen.update(options, name=name)
        return ScriptedEngine(tokenizer_of(tiny_model_dir))

    monkeypatch.setattr("regrow.engines.choose.make_engine", record)
    cfg = settings(engine="ray", ray={"address": "10.0.0.1:6379", "engine": "dummy"}, dialogues=2)
    grow(cfg, tiny(tiny_model_dir), tmp_path, seed=5)
    assert (seen["name"], seen["ray"], seen["seed"]) == ("ray", cfg.ray, 5)


def test_seed_counts(tiny_model_dir: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        run(tiny_model_dir, tmp_path / str(seed), settings(dialogues=8), seed=seed)
    assert snapshot(tmp_path / "0") != snapshot(tmp_path / "1")


def test_quota_and_topics_file(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text("# fields\nrivers  # wet\n\ntea\nrivers\n", encoding="utf-8")
    cfg = settings(topics=[], topics_file=str(tmp_path / "topics.txt"), quota={"rivers": 3, "tea": 1}, dialogues=12)
    run(tiny_model_dir, tmp_path / "out", cfg)
    assert Counter(d.topic for d in read_dialogues(tmp_path / "out")) == {"rivers": 9, "tea": 3}


def test_token_budget(tiny_model_dir: Path, tmp_path: Path) -> None:
    done = run(tiny_model_dir, tmp_path, settings(tokens=5000, topics=["a", "b"]))
    assert 5000 <= done.kept_tokens <= 7000
    assert done.wanted == 0
    assert budget(settings(), ["a"]) == 1000, "the default"


def test_small_shape_plants_more_trees(tiny_model_dir: Path, tmp_path: Path) -> None:
    done = run(tiny_model_dir, tmp_path, settings(shape=[2, 1, 2, 1], dialogues=10))
    assert (done.trees, done.dialogues) == (3, 10)


def test_balance_is_grown_lazily(tiny_model_dir: Path, tmp_path: Path) -> None:
    done = run(tiny_model_dir, tmp_path, settings(shape="balance", dialogues=12, oversample=1))
    assert done.dialogues == 12 and done.candidates <= 4 * 12


def test_keep_system_and_prompts(tiny_model_dir: Path, tmp_path: Path) -> None:
    import json

    cfg = settings(dialogues=2, keep_system=True, system_prompt="Two people talk.", topic_sentence="About {topic}.")
    run(tiny_model_dir, tmp_path / "a", cfg)
    message = read_dialogues(tmp_path / "a")[0].messages[0]
    assert message == {"role": "system", "content": "Two people talk. About rivers."}
    assert json.loads((tmp_path / "a" / "trees.json").read_text())[0]["root"] == message["content"]
    run(
        tiny_model_dir,
        tmp_path / "b",
        settings(dialogues=2, topics=["*"], world_sentence="About anything.", keep_system=True),
    )
    assert read_dialogues(tmp_path / "b")[0].messages[0]["content"].endswith(" About anything.")
    run(tiny_model_dir, tmp_path / "c", settings(dialogues=2))
    assert read_dialogues(tmp_path / "c")[0].messages[0]["role"] == "user"


def test_asking_the_model_for_topics(tiny_model_dir: Path, tmp_path: Path) -> None:
    lists = ["1. Astronomy\n2. astronomy\n3. Cooking: of food\n4. **Law**\nand so on", "1. Music - all kinds\n2. Law"]
    engine = ScriptedEngine(
        tokenizer_of(tiny_model_dir), lambda r, i: lists[i % 2] if r.key == "topics" else sentence(r.seed + i)
    )
    cfg = settings(topics=[], ask_topics=4, dialogues=4)
    run(tiny_model_dir, tmp_path, cfg, engine)
    assert {d.topic for d in read_dialogues(tmp_path)} == {"astronomy", "cooking", "law", "music"}
    prompt = tokenizer_of(tiny_model_dir).decode(next(r for r in engine.requests if r.key == "topics").prompt_ids)
    assert "List 4 different fields" in prompt and prompt.endswith("<|im_start|>assistant\n")


def test_facts_and_engine_name(tiny_model_dir: Path, tmp_path: Path) -> None:
    run(
        tiny_model_dir,
        tmp_path / "a",
        settings(dialogues=2),
        ScriptedEngine(tokenizer_of(tiny_model_dir), logprobs=False),
    )
    facts = corpus_facts(tmp_path / "a")
    assert facts["seed"] == 0 and facts["engine"].startswith("scripted 1")
    assert "gives none" in facts["token log-probabilities"]
    assert all(n.token_logprobs is None and n.logprob is None for n in read_nodes(tmp_path / "a"))


def test_engine_by_name(tiny_model_dir: Path, tmp_path: Path) -> None:
    from regrow.grow.stage import grow
    from tests.grow.helpers import tiny

    done = grow(settings(dialogues=4), tiny(tiny_model_dir), tmp_path, seed=0)
    assert (done.engine, done.dialogues) == ("dummy", 4)


def test_cost_before_growing(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Nodes of the estimate are those grown; candidates are near; a token budget is what is estimated for it."""
    for shape in ("auto", "wide", "mixed-turns", [6, 4, 2, 2]):
        cfg = settings(shape=shape, dialogues=40, topics=["a", "b"])
        cost, out = estimate_cost(cfg), tmp_path / str(shape)
        done = run(tiny_model_dir, out, cfg)
        if shape != "mixed-turns":  # its branches share turns in a way that the estimate leaves out
            assert cost.kept_nodes == pytest.approx(done.kept, rel=0.1)
            assert cost.generations * 0.8 == pytest.approx(done.candidates, rel=0.2)
        assert cost.dialogues == 40 and cost.trees == 2
    assert estimate_cost(settings(tokens=30_000)).kept_tokens == 30_000
    assert estimate_cost(settings(tokens=30_000)).sampled_tokens > 30_000
    assert estimate_cost(settings(shape="balance", dialogues="all")).kept_nodes == 37_408


def test_a_single_child_is_drawn_once(tiny_model_dir: Path, tmp_path: Path) -> None:
    encoder = HashEncoder()
    engine = ScriptedEngine(tokenizer_of(tiny_model_dir), lambda r, i: sentence(r.seed + i) if r.seed % 3 else "")
    cfg = settings(shape=[6, 1, 1, 1], dialogues="all", encoder="minilm", oversample=3)
    run(tiny_model_dir, tmp_path, cfg, engine, encoder=encoder)
    below = [r.n for r in engine.requests if r.key != "t00"]
    assert set(below) == {1, 3}, "one, and the oversampled number only in retries"
    assert len(encoder.seen) <= 3, "only first questions have siblings"
