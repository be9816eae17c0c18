from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="regrow[ui] is not installed: pip install 'regrow[ui]'")

from regrow.pipeline import run
from regrow.recipe import parse_recipe
from tests.report.fixture_run import make_run

RECIPE = """
seed: 3
compare: false
model: {{ model_name_or_path: "{model}" }}
data: {{ path: "{data}", test_size: 4 }}
grow: {{ engine: dummy, encoder: none, dialogues: 8, turns: 1, topics: [rivers, birds] }}
curate: {{ dedup_method: minhash, embedding_threshold: null, holdout_dialogues: 1 }}
mix: {{ replay_ratio: 0.3 }}
train: {{ num_train_epochs: 1, learning_rate: 1.0e-3, logging_steps: 1 }}
evaluate: {{ suites: [heldout], generate_samples: 2, bootstrap: 100, max_new_tokens: 4, noise_floor: false }}
"""

HOLD = """
import signal, sys, time
from regrow.cli import _interrupt
from regrow.progress import note, task
from regrow.runs import open_run
def work(folder):
    note("holding")
    with task("holding", 9, "hours") as bar:
        bar.advance(3)
        time.sleep(120)
signal.signal(signal.SIGTERM, _interrupt)
with open_run(sys.argv[-1]) as run:
    run.stage("grow", {"a": 1}, work)
"""
"""Works on a run, the last argument, until it is stopped."""


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    rows = [{"prompt": f"What is the number {i}?", "completion": f"It is {i}."} for i in range(20)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture(scope="session")
def real_runs(tiny_model_dir: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run that went through every stage, on a tiny model."""
    folder = tmp_path_factory.mktemp("real")
    run(parse_recipe(RECIPE.format(model=tiny_model_dir, data=data_file)), folder / "first")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with two synthetic runs, the second of which has not been evaluated."""
    make_run(tmp_path / "runs/good")
    make_run(tmp_path / "runs/group/early", seed=1, evaluated=False)
    return tmp_path / "runs"


@pytest.fixture
def holding() -> Iterator[Callable[[Path], subprocess.Popen[bytes]]]:
    """Starts a process that works on a run, and returns once it does."""
    children = []

    def start(path: Path) -> subprocess.Popen[bytes]:
        children.append(subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stderr=subprocess.DEVNULL))
        events = path / "events.jsonl"
        wait_for(lambda: events.exists() and "holding" in events.read_text())
        return children[-1]

    yield start
    for child in children:
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
        child.wait()


def wait_for(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)
