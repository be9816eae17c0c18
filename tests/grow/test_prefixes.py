"""Growing with the transformers engine on the tiny model: no token of a path is run twice, whatever the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regrow.engines.base import Completion, Engine, Request, SampleParams
from regrow.engines.hf import TransformersEngine
from regrow.grow.corpus import read_nodes
from regrow.grow.frontier import Frontier, Open
from regrow.grow.script import ChatScript
from regrow.grow.stage import grow
from regrow.grow.tree import Parent
from regrow.models.load import load_model
from tests.grow.helpers import run, settings, snapshot, tiny, tokenizer_of

ANYTHING = {
    "min_words": 1, "max_repeated_4gram": 1.0, "scripts": [], "refusals": [], "role_leaks": False,
    "question_form": False,
}  # fmt: skip


class Recording:
    """Passes everything on to a transformers engine and counts what a perfect cache would have to run.

    Known is a trie of all tokens that went through the model: prompts, and completions but for a last token that ended
    them.
    """

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine, self.info, self.stats = engine, engine.info, engine.stats
        self.known: dict[int, Any] = {}
        self.needed = self.whole = 0
        self.calls: list[set[int]] = []

    def _add(self, ids: Sequence[int]) -> int:
        node, new = self.known, 0
        for token in ids:
            new += token not in node
            node = node.setdefault(token, {})
        return new

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        self.calls.append({r.key.count("/") for r in requests})
        for r in requests:
            self.needed += max(1, self._add(r.prompt_ids))
            self.whole += len(r.prompt_ids)
        for index, completions in self.engine.sample(requests):
            for c in completions:
                self._add([*requests[index].prompt_ids, *c.token_ids[: -1 if c.finish == "length" else None]])
            yield index, completions

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def retain(self, *args: Any) -> None:
        self.engine.retain(*args)

    def crowded(self) -> bool:
        return self.engine.crowded()

    def forget(self) -> None:
        self.engine.forget()


@pytest.fixture
def chatty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model hardly ever ends a turn by its own end token: let a twelfth of the vocabulary end turns."""
    plain = ChatScript.params

    def params(self: ChatScript, layer: int) -> SampleParams:
        found = plain(self, layer)
        return replace(found, stop_token_ids=(*found.stop_token_ids, *range(5, 600, 12)))

    monkeypatch.setattr(ChatScript, "params", params)


def engine_of(folder: Path, **options: Any) -> TransformersEngine:
    """With clear preferences among the tokens: of two that are equally likely to rounding, another batch may draw the
    other."""
    import torch

    model = load_model(folder)
    torch.manual_seed(1)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) / 4)
    return TransformersEngine.from_model(model, tokenizer_of(folder), **options)


@pytest.mark.usefixtures("chatty")
def test_no_token_of_a_path_is_run_twice(tiny_model_dir: Path, tmp_path: Path) -> None:
    engine = Recording(engine_of(tiny_model_dir, batch_size=16))
    cfg = settings(
        shape=[4, 3, 2, 2], dialogues="all", screen=ANYTHING, retries=2,
        question={"max_new_tokens": 20, "stop": []}, answer={"max_new_tokens": [24]},
    )  # fmt: skip
    done = grow(cfg, tiny(tiny_model_dir), tmp_path, seed=0, engine=engine)
    assert done.dialogues > 20
    # Beyond the oracle: a completion that begins with blanks is kept without them, so it stands at other positions.
    assert engine.stats.prefill_tokens == engine.needed
    assert engine.whole > 5 * engine.needed
    assert done.prefill == {"run": engine.needed, "reused": engine.stats.reused_tokens, "evicted": 0}
    assert engine.engine._prefixes.bytes == 0 and engine.engine._prefixes._owned == {}


@pytest.mark.usefixtures("chatty")
def test_reuse_and_memory_change_no_node(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Trimmed answers, stop strings inside tokens, retries, several trees: the corpus is that of whole prompts."""
    cfg = settings(
        shape=[4, 2, 2, 2], dialogues=24, topics=["a", "bees", "the sea"], screen=ANYTHING, retries=1,
        question={"max_new_tokens": 24, "stop": ["th", "e"]}, answer={"max_new_tokens": [12, 20]},
    )  # fmt: skip
    ways: dict[str, tuple[dict[str, Any], int]] = {
        "off": ({"reuse": False}, 256),
        "on": ({}, 256),
        "small batches": ({"batch_size": 5}, 9),
        "little memory": ({"batch_size": 8, "memory_gib": 0.0006}, 40),
        "no memory": ({"batch_size": 2, "memory_gib": 0.0001}, 40),
    }
    found, run_ = {}, {}
    for name, (options, batch) in ways.items():
        engine = engine_of(tiny_model_dir, **options)
        mine = cfg.model_copy(update={"batch_nodes": batch})
        done = grow(mine, tiny(tiny_model_dir), tmp_path / name, seed=3, engine=engine)
        found[name], run_[name] = snapshot(tmp_path / name), done.prefill
        assert engine.stats.prefix_bytes <= engine._memory
    assert all(nodes == found["off"] for nodes in found.values())
    nodes = list(read_nodes(tmp_path / "on"))
    assert {n.finish for n in nodes if n.kept and n.role == "assistant"} == {"stop", "length"}, "some were trimmed"
    assert run_["on"]["run"] < run_["off"]["run"] / 2
    assert run_["on"]["evicted"] == run_["small batches"]["evicted"] == 0
    assert run_["little memory"]["evicted"] > 0
    assert run_["on"]["run"] < run_["little memory"]["run"]
    assert run_["no memory"]["reused"] == 0


@pytest.mark.usefixtures("chatty")
def test_depth_first_in_full_batches(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Layers take turns instead of following one another, so few nodes wait at once."""
    cfg = settings(
        shape=[6, 2, 2, 2], dialogues="all", topics=[f"t{i}" for i in range(4)], screen=ANYTHING, batch_nodes=16,
        question={"max_new_tokens": 8, "stop": []}, answer={"max_new_tokens": [8]}, truncated="trim",
    )  # fmt: skip
    peaks = []
    for batch in (16, 100_000):
        engine = Recording(engine_of(tiny_model_dir, batch_size=32))
        mine = cfg.model_copy(update={"batch_nodes": batch})
        grow(mine, tiny(tiny_model_dir), tmp_path / str(batch), seed=0, engine=engine)
        assert all(len(layers) == 1 for layers in engine.calls), "a batch is of one layer"
        order = [layer for layers in engine.calls for layer in layers]
        assert (order == sorted(order)) == (batch > 16)
        peaks.append(engine.stats.prefix_bytes)
    assert peaks[0] < peaks[1] / 2
    assert snapshot(tmp_path / "16") == snapshot(tmp_path / "100000")


def test_the_next_layer() -> None:
    frontier = Frontier(iter([]), 4)
    assert frontier.next_layer(8, False) is None
    for layer, sizes in ((1, [4, 4, 4]), (2, [4, 4]), (3, [4])):
        for i, size in enumerate(sizes):
            frontier.push(layer, Open(f"{layer}/{i}", 0, {2: 1}, size))
    assert frontier.next_layer(8, False) == 2, "the deepest that fills a batch"
    assert frontier.next_layer(8, True) == 3, "short of memory: the deepest"
    first = frontier.pop(2)
    assert first is not None and first.id == "2/0"
    assert frontier.next_layer(8, False) == 1
    frontier.pop(1), frontier.pop(1)
    assert frontier.next_layer(8, False) == 1, "none fills a batch: the shallowest"
    again = Parent("x", "x", None, 3, [], (), "")  # type: ignore[arg-type]
    frontier.push_again(3, again, 4)
    assert frontier.next_layer(8, False) == 3
    assert frontier.pop_again(3) is again and frontier.pop_again(3) is None


def test_an_engine_without_prefixes_grows_as_before(tiny_model_dir: Path, tmp_path: Path) -> None:
    done = run(tiny_model_dir, tmp_path, settings(dialogues=4))
    assert done.prefill == {} and done.dialogues == 4


def test_speed_counts_this_round_alone(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round has a bar of its own; tokens of the rounds before must not enter its tokens a second."""
    import regrow.grow.tree as tree
    from regrow.progress import Task
    from tests.grow.helpers import ScriptedEngine, sentence

    now = [0.0]
    monkeypatch.setattr(tree.time, "monotonic", lambda: now[0])
    seen: list[tuple[Task, int, float]] = []
    plain = Task.advance

    def advance(self: Task, amount: float = 1, **stats: Any) -> None:
        if "tok_s" in stats:
            seen.append((self, stats["tokens"], stats["tok_s"]))
        plain(self, amount, **stats)

    def say(request: Request, i: int) -> str:
        now[0] += 1.0
        return "I'm sorry, no." if request.key.count("/") % 2 and request.seed % 3 == 0 else sentence(request.seed + i)

    monkeypatch.setattr(Task, "advance", advance)
    cfg = settings(dialogues=40, topics=["a", "b"], retries=0, oversample=1)
    done = run(tiny_model_dir, tmp_path, cfg, ScriptedEngine(tokenizer_of(tiny_model_dir), say), seed=1)
    assert done.rounds > 1
    bars = list(dict.fromkeys(task for task, _, _ in seen))
    assert len(bars) == done.rounds
    before = 0
    for bar in bars:
        mine = [(tokens, speed) for task, tokens, speed in seen if task is bar]
        for tokens, speed in mine[-1:]:
            assert speed == pytest.approx((tokens - before) / (now_at(seen, bar, now) - bar.started), rel=0.5)
        before = mine[-1][0]


def now_at(seen: list[tuple[Any, int, float]], bar: Any, now: list[float]) -> float:
    """The clock when the bar was last moved: where the next one began."""
    bars = list(dict.fromkeys(task for task, _, _ in seen))
    at = bars.index(bar)
    return float(bars[at + 1].started) if at + 1 < len(bars) else now[0]


def test_the_recording_engine_is_one(tiny_model_dir: Path) -> None:
    assert isinstance(Recording(engine_of(tiny_model_dir)), Engine)
