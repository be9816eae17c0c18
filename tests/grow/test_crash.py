"""Real processes, really killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from regrow.errors import EngineError, RunError
from regrow.grow.corpus import read_dialogues
from regrow.grow.stage import grow
from regrow.grow.store import STORE_NAME, Store
from tests.grow.grow_child import SlowDummy, child, configured
from tests.grow.helpers import HashEncoder, snapshot, tiny, tokenizer_of


def start(model: Path, out: Path, rest: float) -> BaseProcess:
    """A forked process, so that nothing is spent on imports; it is killed for real."""
    process = multiprocessing.get_context("fork").Process(target=child, args=(model, out, rest))
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def committed(out: Path) -> int:
    if not (out / STORE_NAME).is_file():
        return 0
    try:
        with Store.open_reader(out) as store:
            return store.totals().expansions
    except RunError as error:
        assert "only just" in str(error)
        return 0


def finish(model: Path, out: Path) -> None:
    engine = SlowDummy(tokenizer_of(model), seed=3)
    grow(configured(), tiny(model), out, seed=11, engine=engine, encoder=HashEncoder())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, tuple[object, ...]], list[str], int]:
    out = tmp_path_factory.mktemp("whole")
    finish(tiny_model_dir, out)
    return snapshot(out), [d.id for d in read_dialogues(out)], committed(out)


@pytest.mark.parametrize("moment", range(6))
def test_kill_and_resume(
    tiny_model_dir: Path, tmp_path: Path, whole: tuple[dict[str, tuple[object, ...]], list[str], int], moment: int
) -> None:
    """Killed at a random moment of its growth, a run goes on to the same nodes, none twice."""
    nodes, dialogues, expansions = whole
    goal = random.Random(moment).randrange(1, expansions - 3)
    process = start(tiny_model_dir, tmp_path, 0.01)
    while committed(tmp_path) < goal and process.is_alive():
        time.sleep(0.003)
    kill(process)
    assert goal <= committed(tmp_path) < expansions
    assert not (tmp_path / "nodes.parquet").exists()
    finish(tiny_model_dir, tmp_path)
    assert snapshot(tmp_path) == nodes
    assert [d.id for d in read_dialogues(tmp_path)] == dialogues
    assert committed(tmp_path) == expansions


@pytest.mark.slow
def test_a_hundred_kills(
    tiny_model_dir: Path, tmp_path: Path, whole: tuple[dict[str, tuple[object, ...]], list[str], int]
) -> None:
    """Runs killed again and again, at any moment from their start on, until a hundred kills are done."""
    rng, kills, runs = random.Random(0), 0, 0
    while kills < 100:
        out = tmp_path / str(runs)
        while kills < 100:
            process = start(tiny_model_dir, out, 0.05)
            time.sleep(rng.uniform(0.02, 0.5))
            if not process.is_alive():
                break  # through to its end between two kills; the next run takes the others
            kill(process)
            kills += 1
        finish(tiny_model_dir, out)
        assert snapshot(out) == whole[0], f"run {runs}, after {kills} kills"
        runs += 1


def test_a_second_writer_is_refused_and_a_reader_is_not(tiny_model_dir: Path, tmp_path: Path) -> None:
    process = start(tiny_model_dir, tmp_path, 0.05)
    try:
        while committed(tmp_path) < 2:
            time.sleep(0.01)
        with pytest.raises(RunError, match="another process is growing"):
            finish(tiny_model_dir, tmp_path)
        with Store.open_reader(tmp_path) as store:
            assert store.totals().candidates > 0
    finally:
        kill(process)


def test_an_engine_that_dies(
    tiny_model_dir: Path, tmp_path: Path, whole: tuple[dict[str, tuple[object, ...]], list[str], int]
) -> None:
    class Dying(SlowDummy):
        left = 9

        def sample(self, requests):  # type: ignore[no-untyped-def]
            for item in super().sample(requests):
                if not self.left:
                    raise EngineError("the engine died")
                self.left -= 1
                yield item

    engine = Dying(tokenizer_of(tiny_model_dir), seed=3)
    with pytest.raises(EngineError, match="died"):
        grow(configured(), tiny(tiny_model_dir), tmp_path, seed=11, engine=engine, encoder=HashEncoder())  # type: ignore[arg-type]
    assert committed(tmp_path) > 0
    finish(tiny_model_dir, tmp_path)
    assert snapshot(tmp_path) == whole[0]
