from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regrow.errors import DataError
from regrow.grow.corpus import Dialogue, Node, write_corpus
from regrow.mix.config import MixConfig
from regrow.mix.grown import stored_k
from regrow.mix.stage import count_tokens, mix, replay_tokens_wanted
from regrow.models.load import load_tokenizer
from regrow.models.turns import derive_turns
from regrow.rows.row import Row

END = 2  # <|im_end|> of the tiny tokenizer


def domain_rows(n: int, turns: int = 1) -> list[Row]:
    def turn(i: int, t: int) -> list[dict[str, Any]]:
        asked, said = f"What is number {i} at {t}?", f"It is {i * i}."
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]

    return [Row(f"row{i}", [m for t in range(turns) for m in turn(i, t)], domain="numbers") for i in range(n)]


def grow_corpus(folder: Path, shape: tuple[int, ...], trees: int = 2, *, tokens: int = 5, top_k: int = 0,
                text: bool = False, seed: int = 0, finish: str = "stop") -> Path:  # fmt: skip
    """Full trees with ``shape[i]`` children in layer i; token ids are distinct a node."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = []
    dialogues: list[Dialogue] = []

    def visit(path: list[Node], tree: int) -> None:
        layer = len(path) + 1
        if layer > len(shape):
            said = [{"role": n.role, "content": n.text} for n in path]
            if text:
                said = [{"role": "assistant", "content": "".join(n.text for n in path)}]
            size = sum(len(n.token_ids) for n in path)
            dialogues.append(Dialogue(path[-1].id, said, [n.id for n in path], path[0].topic, tree, size))
            return
        parent = path[-1].id if path else f"t{tree:02d}"
        for child in range(shape[layer - 1]):
            n = int(rng.integers(1, 2 * tokens))
            role = "text" if text else ("user" if layer % 2 else "assistant")
            positions = n + (0 if role == "user" else 1)
            node = Node(
                f"{parent}/{child}", parent, tree, f"topic {tree}", layer, role, rng.integers(300, 500, n).tolist(),
                f"{parent}/{child}", -1.0 * n, None, finish, True, None, 0, 1,
                rng.integers(0, 500, positions * top_k).tolist() if top_k else None,
                (-rng.random(positions * top_k)).tolist() if top_k else None,
            )  # fmt: skip
            nodes.append(node)
            visit([*path, node], tree)

    for tree in range(trees):
        visit([], tree)
    write_corpus(folder, nodes, dialogues, {"model": "made up"})
    return folder


def read(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "train.parquet").to_pylist()


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Path:
    return tiny_model_dir


def test_columns_and_summary_agree(model: Path, tmp_path: Path) -> None:
    corpus = grow_corpus(tmp_path / "corpus", (3, 2, 2, 1), top_k=4)
    done = mix(domain_rows(40), corpus, model, MixConfig(replay_ratio=0.3), tmp_path / "mix", seed=0)
    rows = read(tmp_path / "mix")
    assert json.loads((tmp_path / "mix/mix.json").read_text()) == done.to_dict()
    assert sorted(p.name for p in (tmp_path / "mix").iterdir()) == ["mix.json", "train.parquet"]
    for source, counts in (("domain", done.domain), ("replay", done.replay)):
        mine = [r for r in rows if r["source"] == source]
        assert counts["rows"] == len(mine)
        assert counts["tokens"] == sum(len(r["input_ids"]) for r in mine)
        assert counts["train_tokens"] == sum(sum(w > 0 for w in r["loss_weights"]) for r in mine)
    for row in rows:
        assert len(row["input_ids"]) == len(row["loss_weights"]) == row["n_tokens"]
        assert row["n_train_tokens"] == sum(w > 0 for w in row["loss_weights"])
        k = 4 if row["source"] == "replay" else 0
        assert row["topk_k"] == k
        assert len(row["topk_ids"]) == len(row["topk_logprobs"]) == k * row["n_train_tokens"]
    assert done.topk == 4
    assert done.realised["tokens"] == pytest.approx(0.3, abs=0.02)
    assert len({r["id"] for r in rows}) == len(rows)


def test_replay_tokens_are_the_nodes_own_and_top_k_stays_aligned(model: Path, tmp_path: Path) -> None:
    from regrow.grow.corpus import read_nodes

    corpus = grow_corpus(tmp_path / "corpus", (2, 2, 1, 2), top_k=3)
    nodes = {n.id: n for n in read_nodes(corpus)}
    tokenizer = load_tokenizer(model)
    turns = derive_turns(tokenizer)
    mix(domain_rows(30), corpus, model, MixConfig(replay_ratio=0.5), tmp_path / "mix", seed=0)
    replay = [r for r in read(tmp_path / "mix") if r["source"] == "replay"]
    assert replay
    for row in replay:
        parts = row["id"].split("#")[0].split("/")
        path = [nodes["/".join(parts[: i + 2])] for i in range(4)]
        wanted = turns.encode(tokenizer, turns.opening, first=True)
        for i, node in enumerate(path):
            wanted += node.token_ids
            marker = turns.assistant_open if i % 2 == 0 else turns.assistant_close + (turns.user_open if i < 3 else "")
            wanted += turns.encode(tokenizer, marker, first=False)
        assert row["input_ids"] == wanted
        trained = [t for t, w in zip(row["input_ids"], row["loss_weights"], strict=True) if w > 0]
        assert trained == [*path[1].token_ids, END, *path[3].token_ids, END]
        assert row["topk_ids"] == [*path[1].top_ids, *path[3].top_ids]
        assert row["topk_logprobs"] == pytest.approx([*path[1].top_logprobs, *path[3].top_logprobs])


def test_an_end_token_that_was_not_scored_is_marked(model: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from regrow.grow.corpus import read_dialogues, read_nodes

    full = grow_corpus(tmp_path / "full", (3, 1), top_k=2)
    nodes = [replace(n, top_ids=n.top_ids[: 2 * len(n.token_ids)], top_logprobs=n.top_logprobs[: 2 * len(n.token_ids)])
             for n in read_nodes(full)]  # fmt: skip
    write_corpus(tmp_path / "cut", nodes, read_dialogues(full), {})
    mix(domain_rows(5), tmp_path / "cut", model, MixConfig(replay_ratio=0.5), tmp_path / "mix", seed=0)
    for row in (r for r in read(tmp_path / "mix") if r["source"] == "replay"):
        ids = np.reshape(row["topk_ids"], (-1, 2))
        assert (ids[-1] == -1).all()
        assert (ids[:-1] >= 0).all()
        assert np.isneginf(row["topk_logprobs"][-2:]).all()


def test_domain_rows_are_the_same_in_every_arm(model: Path, tmp_path: Path) -> None:
    corpus = grow_corpus(tmp_path / "corpus", (8, 2))
    arms = {}
    for name, ratio, folder in (("plain", 0.2, None), ("less", 0.1, corpus), ("more", 0.4, corpus)):
        mix(domain_rows(25), folder, model, MixConfig(replay_ratio=ratio), tmp_path / name, seed=7, epochs=2)
        arms[name] = [(r["id"], r["input_ids"]) for r in read(tmp_path / name) if r["source"] == "domain"]
    assert arms["plain"] == arms["less"] == arms["more"]
    assert len(arms["plain"]) == 50
    assert arms["plain"][:25] != [(r["id"], r["input_ids"]) for r in read(tmp_path / "plain")][25:]
    summary = json.loads((tmp_path / "plain/mix.json").read_text())
    assert summary["asked"]["replay_ratio"] == 0
    assert summary["replay"]["rows"] == summary["realised"]["tokens"] == 0


def test_the_seed_decides(model: Path, tmp_path: Path) -> None:
    corpus = grow_corpus(tmp_path / "corpus", (8, 2))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        mix(domain_rows(20), corpus, model, MixConfig(), tmp_path / name, seed=seed)
    assert (tmp_path / "a/train.parquet").read_bytes() == (tmp_path / "b/train.parquet").read_bytes()
    assert read(tmp_path / "a") != read(tmp_path / "c")


def test_the_ratio_counts_rows_on_request(model: Path, tmp_path: Path) -> None:
    corpus = grow_corpus(tmp_path / "corpus", (30, 1), tokens=40)
    done = mix(domain_rows(40), corpus, model, MixConfig(replay_ratio=0.2, replay_unit="rows"), tmp_path / "m", seed=0)
    assert done.replay["rows"] == 10
    assert done.realised["rows"] == pytest.approx(0.2)
    assert done.realised["tokens"] > 0.25


def test_the_weight_with_which_replay_is_as_much_of_the_loss_as_of_the_tokens(model: Path, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": " ".join(f"number {i}" for i in range(60))}]
    short = [Row(f"row{i}", [*asked, {"role": "assistant", "content": "yes"}], domain="n") for i in range(40)]
    corpus = grow_corpus(tmp_path / "corpus", (30, 1), tokens=40)
    done = mix(short, corpus, model, MixConfig(replay_ratio=0.3), tmp_path / "a", seed=0)
    d, r = done.domain, done.replay
    even = done.even_weight
    assert even * r["train_tokens"] / (even * r["train_tokens"] + d["train_tokens"]) == pytest.approx(
        r["tokens"] / (r["tokens"] + d["tokens"])
    )
    assert mix(short, None, model, MixConfig(), tmp_path / "c", seed=0).even_weight == 1.0


def test_a_small_corpus_is_repeated_and_said_so(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = grow_corpus(tmp_path / "corpus", (1, 1))
    cfg = MixConfig(replay_ratio=0.5, max_repeats=3)
    done = mix(domain_rows(40), corpus, model, cfg, tmp_path / "mix", seed=0)
    assert (done.replay["rows"], done.replay["distinct"]) == (6, 2)
    assert done.realised["tokens"] < 0.4
    assert "more dialogues, or a lower mix.replay_ratio, would meet it" in capsys.readouterr().err
    ids = [r["id"] for r in read(tmp_path / "mix")]
    assert len(set(ids)) == len(ids)
    assert "t00/0/0#3" in ids


def weights_by_node(rows: list[dict[str, Any]], model: Path) -> dict[str, float]:
    """Total loss weight of each assistant node per token, over the stream."""
    totals: dict[str, float] = defaultdict(float)
    for row in rows:
        if row["source"] == "replay":
            parts = row["id"].split("#")[0].split("/")
            runs: list[set[float]] = []
            previous = 0.0
            for w in row["loss_weights"]:
                if w > 0 and previous == 0:
                    runs.append(set())
                if w > 0:
                    runs[-1].add(round(w, 6))
                previous = w
            for turn, run in enumerate(runs):
                assert len(run) == 1, "content and end token of a node weigh the same"
                totals["/".join(parts[: 2 * turn + 3])] += run.pop()
    return totals


@pytest.mark.parametrize("tree_loss", ["paths", "once"])
def test_loss_over_a_toy_tree_has_the_weights_worked_out_by_hand(model: Path, tmp_path: Path, tree_loss: str) -> None:
    # One question, two answers; below each a question with three answers: six paths. Each first answer lies on three
    # of them, each second answer on one.
    corpus = grow_corpus(tmp_path / "corpus", (1, 2, 1, 3), trees=1)
    cfg = MixConfig(replay_ratio=0.9, max_repeats=1, tree_loss=tree_loss)
    mix(domain_rows(60), corpus, model, cfg, tmp_path / "mix", seed=0)
    rows = read(tmp_path / "mix")
    assert sum(r["source"] == "replay" for r in rows) == 6
    totals = weights_by_node(rows, model)
    by_hand = {"t00/0/0": 3.0, "t00/0/1": 3.0} if tree_loss == "paths" else {"t00/0/0": 1.0, "t00/0/1": 1.0}
    by_hand |= {f"t00/0/{a}/0/{b}": 1.0 for a in range(2) for b in range(3)}
    assert totals == pytest.approx(by_hand, abs=1e-5)
    if tree_loss == "once":
        first = next(r["loss_weights"] for r in rows if r["source"] == "replay")
        assert sorted({round(w, 4) for w in first if w}) == [0.3333, 1.0]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.sampled_from([(2, 2), (3, 1, 2, 2), (1, 3, 2, 1), (4, 2, 1, 3)]), seed=st.integers(0, 50),
       ratio=st.floats(0.05, 0.8), trees=st.integers(1, 3))  # fmt: skip
def test_once_counts_each_assistant_token_once(
    model: Path, tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], seed: int, ratio: float, trees: int
) -> None:
    folder = tmp_path_factory.mktemp("once")
    corpus = grow_corpus(folder / "corpus", shape, trees, seed=seed)
    cfg = MixConfig(replay_ratio=ratio, tree_loss="once", max_repeats=1)
    done = mix(domain_rows(10), corpus, model, cfg, folder / "mix", seed=seed)
    from regrow.grow.corpus import read_dialogues, read_nodes

    size = {n.id: len(n.token_ids) for n in read_nodes(corpus) if n.role == "assistant"}
    replay = [r for r in read(folder / "mix") if r["source"] == "replay"]
    used = {r["id"] for r in replay}
    nodes = {n for d in read_dialogues(corpus) if d.id in used for n in d.node_ids if n in size}
    assert sum(sum(r["loss_weights"]) for r in replay) == pytest.approx(sum(size[n] + 1 for n in nodes), rel=1e-4)
    assert done.replay["distinct"] == len(used)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.integers(1, 4), min_size=1, max_size=6), limit=st.integers(16, 120), seed=st.integers(0, 5))
def test_nothing_is_lost(
    model: Path, tmp_path_factory: pytest.TempPathFactory, turns: list[int], limit: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("lost")
    rows = [Row(f"r{i}", domain_rows(1, n)[0].messages) for i, n in enumerate(turns)]
    corpus = grow_corpus(folder / "corpus", (2, 1, 2, 1), trees=1, seed=seed)
    cfg = MixConfig(replay_ratio=0.97, max_length=limit, max_repeats=1)
    try:
        done = mix(rows, corpus, model, cfg, folder / "mix", seed=seed)
    except DataError:
        return
    dropped = defaultdict(int)
    for reason, n in done.dropped.items():
        dropped["replay" if reason.startswith("replay") else "domain"] += n
    assert done.domain["distinct"] + dropped["domain"] == done.domain["given"] == len(rows)
    assert done.replay["given"] == 4
    assert done.replay["distinct"] + dropped["replay"] <= 4
    written = read(folder / "mix")
    assert all(r["n_tokens"] <= limit for r in written)
    assert sum(r["source"] == "domain" for r in written) == done.domain["distinct"]


def test_long_dialogues_lose_their_last_turns(model: Path, tmp_path: Path) -> None:
    corpus = grow_corpus(tmp_path / "corpus", (2, 1, 3, 1), trees=1, tokens=6)
    full = mix(domain_rows(50), corpus, model, MixConfig(replay_ratio=0.9, max_repeats=1), tmp_path / "a", seed=0)
    assert full.dropped == full.shortened == {}
    limit = min(r["n_tokens"] for r in read(tmp_path / "a") if r["source"] == "replay") - 1
    done = mix(domain_rows(50), corpus, model, MixConfig(replay_ratio=0.9, max_repeats=1, max_length=limit),
               tmp_path / "b", seed=0)  # fmt: skip
    # Three dialogues of a bush become the same first turn: one stays.
    assert done.shortened == {"replay dialogues that lost their last turns": 2}
    assert done.dropped == {"replay dialogues equal to another one after the cut to max_length": 4}
    cut = [r for r in read(tmp_path / "b") if r["source"] == "replay"]
    assert len(cut) == 2
    assert all(r["input_ids"].count(END) == 3 for r in cut), "system, question, answer: one turn"
    with pytest.raises(DataError, match="no dialogue"):
        mix(domain_rows(50, 1), grow_corpus(tmp_path / "long", (1, 1), tokens=400, seed=2), model,
            MixConfig(max_length=60), tmp_path / "c", seed=0)  # fmt: skip


def test_rows_that_cannot_be_used_are_counted(model: Path, tmp_path: Path) -> None:
    rows = [
        *domain_rows(3),
        Row("question", [{"role": "user", "content": "Why?"}]),
        Row("open", [*domain_rows(1)[0].messages, {"role": "user", "content": "And then?"}]),
        Row("long", [{"role": "user", "content": "word " * 400}, {"role": "assistant", "content": "no"}]),
        Row("turns", domain_rows(1, 12)[0].messages),
    ]
    done = mix(rows, None, model, MixConfig(max_length=120), tmp_path / "mix", seed=0)
    assert done.dropped == {"your rows longer than max_length": 1, "your rows without an answer to train on": 1}
    assert done.shortened == {"your rows that lost their last turns": 1}
    assert done.domain["given"] == 7
    by_id = {r["id"]: r for r in read(tmp_path / "mix")}
    assert by_id["open"]["input_ids"] == by_id["row0"]["input_ids"]


def test_malformed_rows_are_named(model: Path, tmp_path: Path) -> None:
    said = [{"role": role, "content": "well"} for role in ("user", "user", "assistant")]
    twice = Row("r9", said, meta={"file": "mine.jsonl", "line": 12})
    with pytest.raises(DataError, match=r"mine\.jsonl:12"):
        mix([*domain_rows(2), twice], None, model, MixConfig(), tmp_path / "mix", seed=0)
    image = Row("pic", [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "A cat."}])
    with pytest.raises(DataError, match="'pic'"):
        mix([image], None, model, MixConfig(), tmp_path / "mix", seed=0)
    with pytest.raises(DataError, match="none of your rows"):
        mix([Row("q", [{"role": "user", "content": "Why?"}])], None, model, MixConfig(), tmp_path / "mix", seed=0)
    assert not (tmp_path / "mix/train.parquet").exists()


def test_loss_on_every_token_of_your_rows_on_request(model: Path, tmp_path: Path) -> None:
    corpus = grow_corpus(tmp_path / "corpus", (4, 1))
    mix(domain_rows(20), corpus, model, MixConfig(assistant_only_loss=False), tmp_path / "mix", seed=0)
    for row in read(tmp_path / "mix"):
        if row["source"] == "domain":
            assert row["loss_weights"] == [0.0] + [1.0] * (row["n_tokens"] - 1)
        else:
            assert 0 < row["n_train_tokens"] < row["n_tokens"] - 5


def test_the_system_prompt_is_rendered(model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model)
    corpus = grow_corpus(tmp_path / "corpus", (4, 1))
    own = Row("own", [{"role": "system", "content": "My own."}, *domain_rows(1)[0].messages])
    mix([*domain_rows(5), own], corpus, model, MixConfig(system_prompt="Speak plainly."), tmp_path / "mix", seed=0)
    for row in read(tmp_path / "mix"):
        said = tokenizer.decode(row["input_ids"])
        assert said.startswith(
            f"<|im_start|>system\n{'My own.' if row['id'] == 'own' else 'Speak plainly.'}<|im_end|>\n"
        )


def test_plain_text(model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model)
    long = "The rain in the plains falls mainly. " * 12
    rows = [Row("doc", [{"role": "assistant", "content": long}], meta={"kind": "text"})]
    corpus = grow_corpus(tmp_path / "corpus", (2, 2), text=True, top_k=2)
    done = mix(rows, corpus, model, MixConfig(max_length=64, replay_ratio=0.2), tmp_path / "mix", seed=0)
    written = read(tmp_path / "mix")
    pieces = sorted((r for r in written if r["source"] == "domain"), key=lambda r: (len(r["id"]), r["id"]))
    assert len(pieces) > 1
    assert tokenizer.decode([t for r in pieces for t in r["input_ids"]]) == long + tokenizer.eos_token
    assert done.shortened == {"your texts cut into pieces of max_length": 1}
    replay = [r for r in written if r["source"] == "replay"]
    assert replay and all(r["input_ids"][-1] == END for r in replay)
    cut = grow_corpus(tmp_path / "cut", (2, 2), text=True, finish="length")
    mix(rows, cut, model, MixConfig(max_length=64), tmp_path / "mix2", seed=0)
    replay = [r for r in read(tmp_path / "mix2") if r["source"] == "replay"]
    assert replay and not any(END in r["input_ids"] for r in replay), "a text that its cap ended has no end to learn"


def test_a_trimmed_answer_teaches_no_end(model: Path, tmp_path: Path) -> None:
    for finish in ("stop", "length"):
        corpus = grow_corpus(tmp_path / finish, (2, 2), top_k=2, finish=finish)
        mix(domain_rows(10), corpus, model, MixConfig(), tmp_path / f"mix-{finish}", seed=0)
        for row in read(tmp_path / f"mix-{finish}"):
            if row["source"] == "replay":
                ends = [w for t, w in zip(row["input_ids"], row["loss_weights"], strict=True) if t == END]
                assert ends[-1] == (1.0 if finish == "stop" else 0.0)
                assert max(row["loss_weights"]) == 1.0, "the answer itself is trained either way"


def test_counts_for_planning(model: Path, tmp_path: Path) -> None:
    cfg = MixConfig(replay_ratio=0.25)
    done = mix(domain_rows(10), None, model, cfg, tmp_path / "mix", seed=0)
    assert count_tokens(domain_rows(10), model, cfg) == done.domain["tokens"]
    assert replay_tokens_wanted(domain_rows(10), model, cfg, epochs=3) == done.domain["tokens"]


@pytest.mark.parametrize(
    ("sizes", "k"),
    [
        ([], 0),
        ([[3, 0]], 0),
        ([[3, 6]], 2),
        ([[3, 8]], 2),
        ([[1, 64], [7, 256]], 32),
        ([[3, 12], [5, 20]], 4),
        ([[3, 128]], 32),
    ],
)
def test_k_is_read_off_the_sizes(sizes: list[list[int]], k: int) -> None:
    assert stored_k(np.array(sizes, np.int64).reshape(-1, 2), "here") == k


def test_mixed_k_is_an_error() -> None:
    with pytest.raises(DataError, match="same number"):
        stored_k(np.array([[3, 6], [3, 9]]), "here")


def test_a_corpus_whose_dialogues_name_other_nodes_is_refused(model: Path, tmp_path: Path) -> None:
    from regrow.grow.corpus import read_dialogues, read_nodes

    corpus = grow_corpus(tmp_path / "corpus", (2, 1))
    write_corpus(tmp_path / "torn", list(read_nodes(corpus))[:-1], read_dialogues(corpus), {})
    with pytest.raises(DataError, match="t01/1/0"):
        mix(domain_rows(3), tmp_path / "torn", model, MixConfig(), tmp_path / "mix", seed=0)
