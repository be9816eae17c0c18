"""Growing through a server: the same corpus whatever goes wrong on the way, and nothing paid for twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from regrow.engines.asking import PROBE_SEED
from regrow.engines.dummy import DummyEngine
from regrow.errors import EngineError
from regrow.grow.corpus import corpus_facts, read_nodes
from tests.fixtures.completions_server import CompletionsServer, Fault
from tests.grow.helpers import settings, snapshot, tiny, tokenizer_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGROW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(tiny_model_dir: Path) -> Any:
    tokenizer = tokenizer_of(tiny_model_dir)
    with CompletionsServer(DummyEngine(tokenizer, seed=3), tokenizer) as server:
        yield server


def configured(url: str, **server: Any) -> Any:
    return settings(
        engine="openai",
        server={"url": url, "retries": 8} | server,
        topics=["a", "b", "c", "d"],
        dialogues=60,
        shape=[8, 2],
        question={"max_new_tokens": 200, "top_k": 0},
        batch_nodes=32,
    )


def grow(model: Path, out: Path, cfg: Any) -> Any:
    from regrow.grow.stage import grow

    return grow(cfg, tiny(model), out, seed=11)


def repeated(bodies: list[Any]) -> list[str]:
    counts = Counter(json.dumps(b, sort_keys=True) for b in bodies)
    return [body for body, n in counts.items() if n > 1]


def replies(cache: Path) -> int:
    """How many answers the request cache holds, read beside its writer."""
    with contextlib.closing(sqlite3.connect(cache / "requests.sqlite", timeout=60)) as db:
        return int(db.execute("SELECT count(*) FROM replies").fetchone()[0])


def test_a_corpus_grown_through_a_server(tiny_model_dir: Path, tmp_path: Path, server: CompletionsServer) -> None:
    done = grow(tiny_model_dir, tmp_path / "c", configured(server.url))
    assert done.engine == "openai" and done.dialogues == 60
    facts = corpus_facts(tmp_path / "c")
    assert facts["engine"].startswith("openai vLLM") and facts["token log-probabilities"] == "yes"
    nodes = list(read_nodes(tmp_path / "c"))
    assert all(n.token_logprobs is not None and len(n.token_logprobs) == len(n.token_ids) for n in nodes)
    assert any(b.get("n", 1) > 1 for b in server.sampled())
    assert not repeated(server.sampled())


def test_a_server_without_logprobs_is_named_in_the_corpus(
    tiny_model_dir: Path, tmp_path: Path, server: CompletionsServer
) -> None:
    server.owner = "someone"
    grow(tiny_model_dir, tmp_path / "c", configured(server.url))
    assert corpus_facts(tmp_path / "c")["token log-probabilities"] == "no: the engine openai gives none"
    assert all(n.token_logprobs is None for n in read_nodes(tmp_path / "c"))


def test_trouble_changes_nothing(
    tiny_model_dir: Path, tmp_path: Path, server: CompletionsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regrow.engines import client

    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.01)
    grow(tiny_model_dir, tmp_path / "calm", configured(server.url, cache=False))
    dice = random.Random(5)

    def misbehave(number: int, body: Any) -> Fault | None:
        kinds = [Fault(500), Fault(429), Fault(cut=True), Fault(text="garbage"), None, None, None]
        return dice.choice(kinds)

    server.misbehave = misbehave
    grow(tiny_model_dir, tmp_path / "rough", configured(server.url, cache=False, retries=50))
    assert snapshot(tmp_path / "rough") == snapshot(tmp_path / "calm")


def test_after_a_dead_server_the_same_command_goes_on(
    tiny_model_dir: Path, tmp_path: Path, server: CompletionsServer
) -> None:
    grow(tiny_model_dir, tmp_path / "calm", configured(server.url, cache=False))
    server.bodies.clear()
    server.misbehave = lambda number, body: Fault(500, text="out of memory") if number > 20 else None
    with pytest.raises(EngineError, match="500 out of memory"):
        grow(tiny_model_dir, tmp_path / "c", configured(server.url, retries=0))
    answered = server.bodies[:21]
    server.misbehave = lambda number, body: None
    server.bodies.clear()
    done = grow(tiny_model_dir, tmp_path / "c", configured(server.url))
    assert done.resumed_nodes > 0
    assert snapshot(tmp_path / "c") == snapshot(tmp_path / "calm")
    again = {json.dumps(b, sort_keys=True) for b in answered if b["seed"] != PROBE_SEED}
    assert not again & {json.dumps(b, sort_keys=True) for b in server.sampled()}


def test_a_killed_run_pays_for_nothing_twice(tiny_model_dir: Path, tmp_path: Path, server: CompletionsServer) -> None:
    """kill -9 in the middle of a batch: what was answered but not committed comes out of the cache."""
    grow(tiny_model_dir, tmp_path / "calm", configured(server.url, cache=False))
    server.bodies.clear()
    gate, waiting = threading.Event(), threading.Event()

    def misbehave(number: int, body: Any) -> Fault | None:
        if number < 24:
            return None
        waiting.set()
        return Fault(hold=gate)

    server.misbehave = misbehave
    code = (
        "import sys; from pathlib import Path; from tests.grow.test_server import configured, grow\n"
        "grow(Path(sys.argv[1]), Path(sys.argv[2]), configured(sys.argv[3]))\n"
    )
    path = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    doomed = subprocess.Popen(
        [sys.executable, "-c", code, str(tiny_model_dir), str(tmp_path / "c"), server.url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert waiting.wait(120)
    answered = [b for b in server.bodies[:24] if b["seed"] != PROBE_SEED]
    deadline = time.monotonic() + 60
    while (stored := replies(tmp_path / "cache")) < len(answered) and time.monotonic() < deadline:
        time.sleep(0.02)
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    assert stored == len(answered) > 15
    server.misbehave = lambda number, body: None
    gate.set()
    while server.active:
        pass
    server.bodies.clear()
    grow(tiny_model_dir, tmp_path / "c", configured(server.url))
    assert snapshot(tmp_path / "c") == snapshot(tmp_path / "calm")
    paid = {json.dumps(b, sort_keys=True) for b in answered}
    assert not paid & {json.dumps(b, sort_keys=True) for b in server.sampled()}


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_concurrency", 1), ("model", "nobody"), ("retries", 0), ("requests_per_minute", 6e6), ("timeout", 1.5)],
)
def test_server_settings_reach_the_engine(
    tiny_model_dir: Path, tmp_path: Path, server: CompletionsServer, key: str, value: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from regrow.engines.openai import OpenAIEngine

    seen: list[Any] = []
    real = OpenAIEngine.__init__

    def watch(self: OpenAIEngine, model: Any, config: Any, **keys: Any) -> None:
        seen.append(config)
        real(self, model, config, **keys)

    monkeypatch.setattr(OpenAIEngine, "__init__", watch)
    cfg = configured(server.url, **{key: value})
    if key == "model":
        with pytest.raises(EngineError, match="does not serve 'nobody'"):
            grow(tiny_model_dir, tmp_path / "c", cfg)
    else:
        grow(tiny_model_dir, tmp_path / "c", cfg)
    assert getattr(seen[0], key) == value


def test_serve_settings_reach_the_server(tiny_model_dir: Path, tmp_path: Path) -> None:
    for engine, key in (("vllm", "python"), ("llama.cpp", "binary")):
        with pytest.raises(EngineError, match="/nowhere/at/all"):
            grow(tiny_model_dir, tmp_path / "c", settings(engine=engine, serve={key: "/nowhere/at/all"}))


def test_the_cost_is_measured_on_the_server_and_not_on_the_cache(
    tiny_model_dir: Path, server: CompletionsServer
) -> None:
    from regrow.cost import _grow_speed
    from regrow.recipe import Recipe

    recipe = Recipe(grow=configured(server.url))
    for times in (1, 2):
        speed, name = _grow_speed(recipe, tiny(tiny_model_dir))
        assert speed > 0 and name == "openai" and len(server.sampled()) == 16 * times


def test_another_address_goes_on_with_the_same_corpus(
    tiny_model_dir: Path, tmp_path: Path, server: CompletionsServer
) -> None:
    done = grow(tiny_model_dir, tmp_path / "c", configured(server.url))
    tokenizer = tokenizer_of(tiny_model_dir)
    with CompletionsServer(DummyEngine(tokenizer, seed=3), tokenizer) as other:
        again = grow(tiny_model_dir, tmp_path / "c", configured(other.url, max_concurrency=2))
    assert again.resumed_nodes == done.candidates


def test_the_engine_needs_an_address() -> None:
    with pytest.raises(ValueError, match="needs the address of a server"):
        settings(engine="openai")
