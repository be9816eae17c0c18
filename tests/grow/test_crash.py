"""Real processes, really killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regrow.grow.corpus import read_dialogues
from regrow.grow.stage import grow
from regrow.grow.store import STORE_NAME, Store
from tests.grow.grow_child import SlowDummy, configured
from tests.grow.helpers import HashEncoder, snapshot, tiny, tokenizer_of

ROOT = Path(__file__).resolve().parents[2]


def start(model: Path, out: Path, rest: float) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.grow.grow_child", str(model), str(out), str(rest)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline().strip() == "ready"
    return child


def committed(out: Path) -> int:
    if not (out / STORE_NAME).is_file():
        return 0
    with Store.open_reader(out) as store:
        return store.totals().expansions


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
    child = start(tiny_model_dir, tmp_path, 0.01)
    while committed(tmp_path) < goal and child.poll() is None:
        time.sleep(0.003)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
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
    """The same run killed again and again, at any moment from its start on."""
    rng, kills = random.Random(0), 0
    while kills < 100:
        child = start(tiny_model_dir, tmp_path, 0.02)
        time.sleep(rng.uniform(0, 0.4))
        os.kill(child.pid, signal.SIGKILL)
        if child.wait() == 0:
            break
        kills += 1
    finish(tiny_model_dir, tmp_path)
    assert snapshot(tmp_path) == whole[0]


def test_a_second_writer_is_refused_and_a_reader_is_not(tiny_model_dir: Path, tmp_path: Path) -> None:
    from regrow.errors import RunError

    child = start(tiny_model_dir, tmp_path, 0.05)
    try:
        while committed(tmp_path) < 2:
            time.sleep(0.01)
        with pytest.raises(RunError, match="another process is growing"):
            finish(tiny_model_dir, tmp_path)
        with Store.open_reader(tmp_path) as store:
            assert store.totals().candidates > 0
    finally:
        child.kill()
        child.wait()


def test_an_engine_that_dies(
    tiny_model_dir: Path, tmp_path: Path, whole: tuple[dict[str, tuple[object, ...]], list[str], int]
) -> None:
    from regrow.errors import EngineError

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
