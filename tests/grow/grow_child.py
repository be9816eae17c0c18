"""Grows a corpus slowly, to be killed by a test: ``python -m tests.grow.grow_child MODEL OUT SLEEP``."""

from __future__ import annotations

import sys
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


def main() -> None:
    model, out, rest = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    engine = SlowDummy(load_tokenizer(model), seed=3)
    engine.rest = rest
    print("ready", flush=True)
    grow(configured(), tiny(model), out, seed=11, engine=engine, encoder=HashEncoder())  # type: ignore[arg-type]
    print("done", flush=True)


if __name__ == "__main__":
    main()
