"""Regrowth on a tiny model: what is grown is what is missing, budgets are equal, and a killed loop ends the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from regrow.grow.corpus import WATCHED, read_dialogues
from regrow.loops.config import RegrowthConfig
from regrow.train.stage import train
from tests.loops import ground as laid
from tests.loops.ground import Ground, lay_out, script_the_measurements
from tests.train.helpers import largest_difference, log_lines


@pytest.fixture(scope="module")
def ground(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return lay_out(tiny_model_dir, tmp_path_factory.mktemp("ground"))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    from regrow.train import monitor

    monkeypatch.setattr(monitor.HeldOut, "measure", monitor.HeldOut.measure)  # put back afterwards
    script_the_measurements()


@pytest.fixture(scope="module")
def whole(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted loop."""
    from regrow.train import monitor

    measure, out = monitor.HeldOut.measure, tmp_path_factory.mktemp("whole")
    script_the_measurements()
    try:
        ground.go(out)
    finally:
        monitor.HeldOut.measure = measure  # type: ignore[method-assign]
    return out


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_what_is_grown_is_what_the_forgotten_topics_will_be_asked_for(whole: Path, ground: Ground) -> None:
    told = read(whole / "regrowth.json")
    first, second = told["rounds"]
    assert set(first["grown"]) == {"bees", "law"} and first["after_step"] == 4
    assert set(second["grown"]) == {"bees"} and second["after_step"] == 12, "law has recovered"
    for number in (1, 2):
        paused = read(whole / f"regrowth/{number:02d}/plan.json")["paused"]
        p = paused["initial"]
        both = p["bees"] + p["law"]
        shares = {"bees": p["bees"] / both, "law": p["law"] / both} if number == 1 else {"bees": 1.0, "law": 0.0}
        assert paused["shares"] == pytest.approx({"iron": 0.0} | shares), "tilt 1, and both forgotten alike"
        for topic, share in shares.items():
            lacking = max(0.0, share * paused["left"] - paused["fresh"][topic]) if share > p[topic] else 0.0
            assert paused["missing"][topic] == pytest.approx(lacking)
    assert told["spent"] == sum(told["grown"].values()) <= told["budget"] == 6000


def test_at_equal_replay_tokens(whole: Path, ground: Ground) -> None:
    drawn, mixed = read(whole / "regrowth.json")["drawn"], read(ground.mix / "mix.json")
    longest = 256
    assert abs(sum(drawn.values()) - mixed["replay"]["tokens"]) <= longest / 2
    assert drawn["iron"] < min(drawn["bees"], drawn["law"])
    last = log_lines(whole)[-1]
    assert last["tokens"] == sum(drawn.values()) + mixed["domain"]["tokens"]


def test_new_branches_join_the_stream_and_none_was_held_out(whole: Path, ground: Ground) -> None:
    import pyarrow.parquet as pq

    held = {d.node_ids[0] for d in read_dialogues(ground.folder / "corpus", WATCHED)}
    held |= {json.loads(line)["id"].rsplit("/", 3)[0] for line in
             (ground.folder / "corpus/own_dialogues.jsonl").read_text().splitlines()}  # fmt: skip
    assert len(held) >= 5
    corpus = whole / "regrowth/corpus"
    assert read_dialogues(corpus, WATCHED) == read_dialogues(ground.folder / "corpus", WATCHED)
    assert (corpus / "own_dialogues.jsonl").read_text() == (ground.folder / "corpus/own_dialogues.jsonl").read_text()
    kept = {d.id for d in read_dialogues(corpus)}
    assert {d.id for d in read_dialogues(ground.folder / "corpus")} < kept
    assert not {d.node_ids[0] for d in read_dialogues(corpus)} & held
    rows = pq.read_table(ground.mix / "train.parquet")
    laid_out = {i for i, s in zip(rows["id"].to_pylist(), rows["source"].to_pylist(), strict=True) if s == "replay"}
    joined: list[str] = []
    for part in sorted((whole / "regrowth").glob("*/rows.parquet")):
        joined += pq.read_table(part)["id"].to_pylist()
    assert len(joined) == len(set(joined)) and not laid_out & set(joined)
    assert laid_out | set(joined) == kept


def test_no_budget_grows_nothing_and_still_follows_the_forgetting(
    ground: Ground, tmp_path: Path, scripted: None
) -> None:
    ground.go(tmp_path, RegrowthConfig(tokens=0))
    told = read(tmp_path / "regrowth.json")
    assert told["rounds"] == [] and told["spent"] == 0
    assert told["drawn"]["iron"] < min(told["drawn"]["bees"], told["drawn"]["law"])
    assert not (tmp_path / "regrowth/grown").exists()


def test_stops_change_nothing(ground: Ground, tmp_path: Path) -> None:
    """With measurements that ask for nothing to be grown (real ones, tilt 0), the loop is a plain training."""
    mixture = {"controller": "forgetting", "update_steps": 2, "tilt": 0.0}
    looped = ground.go(tmp_path / "looped", mixture=mixture)
    plain = train(
        ground.model,
        ground.mix,
        laid.train_config(mixture=mixture),
        tmp_path / "plain",
        seed=laid.SEED,
        label="regrow",
    )
    assert largest_difference(looped.model_path, plain.model_path) == 0


def test_without_a_word_on_when_it_looks_at_every_second_measurement(
    ground: Ground, tmp_path: Path, scripted: None
) -> None:
    mixture = {"controller": "forgetting", "tilt": 1.0}
    ground.go(tmp_path, laid.REGROWTH.model_copy(update={"every_steps": None}), mixture=mixture)
    rounds = read(tmp_path / "regrowth.json")["rounds"]
    measured = [json.loads(line)["step"] for line in (tmp_path / "monitor.jsonl").read_text().splitlines()]
    assert len(rounds) >= 2, "the second one begins from the checkpoint of the first"
    assert measured == [*range(0, 22, 3), 22]
    assert {r["after_step"] for r in rounds} <= set(measured[2:-1:2])


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 400},
        pytest.param({"every_steps": 9}, marks=pytest.mark.slow),
        pytest.param({"min_tokens": 10**6}, marks=pytest.mark.slow),
    ],
)
def test_each_key_matters(change: dict[str, int], whole: Path, ground: Ground, tmp_path: Path, scripted: None) -> None:
    ground.go(tmp_path, laid.REGROWTH.model_copy(update=change))
    one, two = read(whole / "regrowth.json"), read(tmp_path / "regrowth.json")
    assert one["rounds"] != two["rounds"]
    if "tokens" in change:
        a_dialogue = max(d.n_tokens for d in read_dialogues(tmp_path / "regrowth/corpus"))
        assert two["spent"] <= 400 + a_dialogue


def doomed(ground: Ground, out: Path, where: str) -> None:
    """What the child does until it is killed."""
    import regrow.curate.stage as curate
    import regrow.grow.store as store
    import regrow.loops.regrowth as loop
    import regrow.train.trainer as trainer

    def die(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    script_the_measurements()
    if where == "between pause and plan":
        loop._write = lambda path, value, write=loop._write: die() if path.name == loop.PLAN else write(path, value)
    elif where == "while growing":
        commit, left = store.Store.commit, [3]

        def count(self: Any, expansion: Any) -> None:
            left[0] -= 1
            die() if left[0] == 0 else commit(self, expansion)

        store.Store.commit = count  # type: ignore[method-assign]
    elif where == "while curating":
        curate.write_curated = die  # type: ignore[assignment]
    elif where == "before the second round's mark":
        loop._write = lambda path, value, write=loop._write: (
            die() if path.name == loop.ROUND and path.parent.name == "02" else write(path, value)
        )
    elif where == "in the second leg":
        save = trainer.SFTTrainer._save_checkpoint
        trainer.SFTTrainer._save_checkpoint = lambda self, *a: die() if self.state.global_step == 9 else save(self, *a)
    ground.go(out)


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("between pause and plan", marks=pytest.mark.slow),
        "while growing",
        pytest.param("while curating", marks=pytest.mark.slow),
        pytest.param("before the second round's mark", marks=pytest.mark.slow),
        "in the second leg",
    ],
)
def test_killed_and_continued_equals_uninterrupted(
    where: str, ground: Ground, whole: Path, tmp_path: Path, scripted: None
) -> None:
    child = multiprocessing.get_context("fork").Process(target=doomed, args=(ground, tmp_path, where))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "train.json").exists()
    ground.go(tmp_path)
    assert read(tmp_path / "regrowth.json") == read(whole / "regrowth.json")
    assert largest_difference(tmp_path / "model", whole / "model") == 0
    assert (tmp_path / "monitor.jsonl").read_text() == (whole / "monitor.jsonl").read_text()
    assert [d.id for d in read_dialogues(tmp_path / "regrowth/corpus")] == [
        d.id for d in read_dialogues(whole / "regrowth/corpus")
    ]
