"""An engine that says what a test tells it to, and a sentence encoder that needs no model."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regrow.engines.base import Completion, EngineInfo, Request, Score, ScoreRow
from regrow.grow.config import GrowConfig
from regrow.grow.stage import GrowSummary, grow
from regrow.models.load import ResolvedModel, resolve_model

NOUNS = [
    "river",
    "engine",
    "market",
    "valley",
    "teacher",
    "ledger",
    "bridge",
    "orchard",
    "signal",
    "harbour",
    "recipe",
    "molecule",
    "glacier",
    "planet",
]
VERBS = [
    "carries",
    "measures",
    "surrounds",
    "repairs",
    "follows",
    "explains",
    "crosses",
    "feeds",
    "divides",
    "replaces",
    "shelters",
]


def sentence(seed: int, words: int = 9) -> str:
    """A sentence out of a seed; distinct seeds give distinct sentences."""
    rng = random.Random(seed)
    body = " ".join(rng.choice(NOUNS if i % 2 else VERBS) for i in range(words))
    return f"What {body} {rng.randrange(10**9)} times?"


class ScriptedEngine:
    """Says ``say(request, i)``; a text that ends in ``…`` counts as cut at the cap. Yields in ``order``."""

    def __init__(
        self,
        tokenizer: Any,
        say: Callable[[Request, int], str] | None = None,
        *,
        order: Callable[[list[int]], list[int]] | None = None,
        can_score: bool = False,
        logprobs: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.say = say or (lambda request, i: sentence(request.seed * 64 + i))
        self.order = order or (lambda indices: indices)
        self.requests: list[Request] = []
        self.calls: list[int] = []
        self.scored: list[ScoreRow] = []
        self.info = EngineInfo("scripted", "1", "m", "r", "none", logprobs, can_score)

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        self.requests += requests
        self.calls.append(sum(r.n for r in requests))
        for index in self.order(list(range(len(requests)))):
            request = requests[index]
            out = []
            for i in range(request.n):
                text = self.say(request, i)
                ids = self.tokenizer.encode(text.rstrip("…"), add_special_tokens=False)
                logprobs = -0.5 * np.ones(len(ids), dtype=np.float32) if self.info.gives_logprobs else None
                out.append(Completion(ids, text.rstrip("…"), "length" if text.endswith("…") else "stop", logprobs))
            yield index, out

    def score(self, rows: Sequence[ScoreRow], top_k: int = 0) -> Iterator[Score]:
        """The token at each position first, then its neighbours: easy to check where a row came from."""
        for row in rows:
            self.scored.append(row)
            ids = np.asarray(row.token_ids[row.start :], dtype=np.int32)
            top = ids[:, None] + np.arange(top_k, dtype=np.int32)[None]
            falling = np.broadcast_to(-np.arange(1, top_k + 1, dtype=np.float16), top.shape)
            zeros = np.zeros(len(ids), dtype=np.float32)
            yield Score(zeros, zeros.astype(bool), zeros, top, falling)

    def close(self) -> None:
        pass


class HashEncoder:
    """Bags of hashed words as unit vectors: the same words are the same vector."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def encode(self, texts: Sequence[str], **options: Any) -> np.ndarray[Any, Any]:
        self.seen.append(list(texts))
        out = np.zeros((len(texts), 256), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                out[row, int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big") % 256] += 1
        norm = np.linalg.norm(out, axis=1, keepdims=True)
        return out / np.where(norm == 0, 1, norm)


def tiny(folder: Path) -> ResolvedModel:
    return resolve_model(str(folder))


def tokenizer_of(folder: Path) -> Any:
    from regrow.models.load import load_tokenizer

    return load_tokenizer(folder)


def settings(**keys: Any) -> GrowConfig:
    """A configuration for tests: no encoder, one topic, caps that the dummy's talk fits."""
    base: dict[str, Any] = {
        "engine": "dummy",
        "encoder": "none",
        "topics": ["rivers"],
        "question": {"max_new_tokens": 200},
        "answer": {"max_new_tokens": [600]},
    }
    return GrowConfig(**(base | keys))


def run(
    folder: Path, out: Path, cfg: GrowConfig, engine: Any = None, *, seed: int = 0, encoder: Any = None
) -> GrowSummary:
    """`grow` with a scripted engine by default."""
    return grow(
        cfg, tiny(folder), out, seed=seed, engine=engine or ScriptedEngine(tokenizer_of(folder)), encoder=encoder
    )


def snapshot(out: Path) -> dict[str, tuple[Any, ...]]:
    """Everything a corpus says about each node; raises on a node that is there twice."""
    from regrow.grow.corpus import read_nodes

    found: dict[str, tuple[Any, ...]] = {}
    for n in read_nodes(out):
        assert n.id not in found
        found[n.id] = (
            n.parent,
            n.layer,
            n.role,
            tuple(n.token_ids),
            n.text,
            n.kept,
            n.reason,
            n.seed,
            n.n_paths,
            n.finish,
        )
    return found
