"""Grows a corpus slowly, in a process of its own, to be killed by a test."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from regrow.engines.base import Completion, Request
from regrow.engines.dummy import DummyEngine
from regrow.grow.stage import grow
from regrow.models.load import load_tokenizer
from tests.grow.helpers import HashEncoder, settings, tiny


class SlowDummy(DummyEngine):
    """The dummy engine, with a rest after each request."""

    rest = 0.0

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        for index, completions in super().sample(requests):
            time.sleep(self.rest)
            yield index, completions


def configured(**keys: object) -> object:
    return settings(dialogues=50, topics=["a", "b", "c"], encoder="minilm", batch_nodes=24, **keys)


def child(model: Path, out: Path, rest: float) -> None:
    """What the doomed process does."""
    engine = SlowDummy(load_tokenizer(model), seed=3)
    engine.rest = rest
    grow(configured(), tiny(model), out, seed=11, engine=engine, encoder=HashEncoder())  # type: ignore[arg-type]
