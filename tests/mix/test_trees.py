"""Tree packing in the mix: the same dialogues, next to each other, and what that saves."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regrow.mix.config import MixConfig
from regrow.mix.grown import GrownPath
from regrow.mix.stage import mix
from regrow.mix.trees import alone, bundle, shared_tokens
from tests.mix.test_stage import domain_rows, grow_corpus, read


def beginnings(row: dict[str, Any]) -> list[tuple[int, ...]]:
    return [tuple(row["input_ids"][: i + 1]) for i in range(row["n_tokens"])]


def trees_of(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of the stream by tree: a row that shares nothing with the one before it begins a new one."""
    out: list[list[dict[str, Any]]] = []
    for row in rows:
        if row["n_shared"]:
            out[-1].append(row)
        else:
            out.append([row])
    return out


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Path:
    return tiny_model_dir


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.sampled_from([(2, 2), (3, 1, 2, 2), (1, 3, 2, 1), (4, 2, 1, 3)]), seed=st.integers(0, 50),
       ratio=st.floats(0.3, 0.9), loss=st.sampled_from(["paths", "once"]), limit=st.sampled_from([90, 200, 1024]),
       text=st.booleans())  # fmt: skip
def test_the_same_rows_stand_together_and_are_cut_at_max_length(
    model: Path, tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], seed: int, ratio: float, loss: str,
    limit: int, text: bool,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("trees")
    corpus = grow_corpus(folder / "corpus", shape, 3, top_k=2, seed=seed, text=text)
    made = {}
    for packed in (False, True):
        cfg = MixConfig(replay_ratio=ratio, tree_loss=loss, max_length=limit, max_repeats=2, tree_packing=packed)
        made[packed] = mix(domain_rows(20), corpus, model, cfg, folder / str(packed), seed=seed)
    plain, packed_rows = read(folder / "False"), read(folder / "True")
    assert all(row["n_shared"] == 0 for row in plain)

    def bare(row: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in row.items() if k != "n_shared"}

    # The same rows, token by token and weight by weight; your rows in the same order.
    assert {r["id"]: bare(r) for r in plain} == {r["id"]: bare(r) for r in packed_rows}
    domain = [[r["id"] for r in rows if r["source"] == "domain"] for rows in (plain, packed_rows)]
    assert domain[0] == domain[1]
    computed = 0
    for tree in trees_of(packed_rows):
        for one, two in itertools.pairwise(tree):
            assert two["source"] == "replay"
            assert one["input_ids"][: two["n_shared"]] == two["input_ids"][: two["n_shared"]]
            assert one["id"].split("/")[:2] == two["id"].split("/")[:2], "a tree has one first question"
            assert ("#" in one["id"]) == ("#" in two["id"]), "a second use is another pass"
        unique = sum(r["n_tokens"] - r["n_shared"] for r in tree)
        assert unique <= limit
        if tree[0]["source"] == "replay":
            computed += unique
    # The summary counts what is there, and says the same before packing.
    summary = made[True].trees
    assert {**made[False].trees, "packed": True} == summary
    assert json.loads((folder / "True/mix.json").read_text())["trees"] == summary
    assert summary["path_tokens"] == made[True].replay["tokens"] == made[False].replay["tokens"]
    assert summary["unique_tokens"] == computed
    assert summary["unique_tokens_unlimited"] <= computed
    assert summary["bundles"] == sum(len(t) > 1 for t in trees_of(packed_rows))
    assert summary["bundled"] == sum(len(t) for t in trees_of(packed_rows) if len(t) > 1)
    # The ratio asked for is of paths, and so are the realised ones but for the one that says otherwise.
    for key in ("tokens", "train_tokens", "rows"):
        assert made[True].realised[key] == made[False].realised[key]
    assert made[False].realised["computed_tokens"] == made[False].realised["tokens"]
    mine = made[True].domain["tokens"]
    assert made[True].realised["computed_tokens"] == pytest.approx(computed / (computed + mine))


def test_packing_is_off_unless_asked_for_and_said_when_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = grow_corpus(tmp_path / "corpus", (1, 2, 1, 3), trees=1)
    cfg = {"replay_ratio": 0.9, "max_repeats": 1}
    off = mix(domain_rows(60), corpus, model, MixConfig(**cfg), tmp_path / "off", seed=0)
    assert "trees" not in capsys.readouterr().err
    assert [len(t) for t in trees_of(read(tmp_path / "off"))] == [1] * (60 + 6)
    assert off.trees["packed"] is False
    on = mix(domain_rows(60), corpus, model, MixConfig(**cfg, tree_packing=True), tmp_path / "on", seed=0)
    assert sorted(len(t) for t in trees_of(read(tmp_path / "on"))) == [1] * 60 + [6]
    said = capsys.readouterr().err
    assert "6 of 6 replay dialogues stand in 1 trees" in said
    assert f"{on.trees['path_tokens']:,} replay tokens, which replay_ratio counts" in said
    # By hand: the beginning up to each node once.
    rows = [r for r in read(tmp_path / "on") if r["source"] == "replay"]
    assert on.trees["unique_tokens"] == on.trees["unique_tokens_unlimited"]
    assert on.trees["unique_tokens"] >= len({start for r in rows for start in beginnings(r)})
    assert on.trees["unique_tokens"] < 0.7 * on.trees["path_tokens"]


def path(name: str, nodes: str, sizes: list[int], system: str | None = None) -> GrownPath:
    starts = [10 + sum(sizes[:i]) for i in range(len(sizes))]
    return GrownPath(name, "topic", tuple(nodes.split()), False, system, False, tuple(starts), 10 + sum(sizes))


def test_bundles_worked_out_by_hand() -> None:
    paths = [
        path("a", "q r s a", [5, 20, 5, 30]),
        path("x", "z y", [5, 20]),
        path("b", "q r s b", [5, 20, 5, 25]),
        path("c", "q r t c", [5, 20, 5, 30]),
        path("d", "q r", [5, 20]),
    ]
    assert [shared_tokens(paths[0], p) for p in paths] == [70, 0, 40, 35, 35]
    everything = bundle(paths, [0, 1, 2, 3, 4], float("inf"))
    assert [[m[0] for m in b.members] for b in everything] == [[4, 0, 2, 3], [1]]
    assert (everything[0].tokens, everything[0].unique_tokens) == (35 + 70 + 65 + 70, 35 + 35 + 25 + 35)
    # Room for 95: the tree is cut before c, which brings its own beginning along.
    cut = bundle(paths, [0, 1, 2, 3, 4], 95)
    assert [([m[0] for m in b.members], b.unique_tokens) for b in cut] == [([4, 0, 2], 95), ([1], 35), ([3], 70)]
    # Chosen twice: the second use is a bundle of its own, at its own time.
    twice = bundle(paths, [2, 1, 0, 2, 0], float("inf"))
    assert [b.members for b in twice] == [[(0, 0), (2, 0)], [(1, 0)], [(0, 1), (2, 1)]]
    assert [b.members for b in alone(paths, [2, 1, 2])] == [[(2, 0)], [(1, 0)], [(2, 1)]]
    other = path("e", "q r", [5, 20], system="Be brief.")
    assert shared_tokens(paths[4], other) == 0, "another system prompt is another beginning"
