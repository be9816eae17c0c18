"""The dummy engine: word salad out of a seed, at once, without a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regrow.engines.base import Completion, EngineInfo, Finish, Request, Score, ScoreRow
from regrow.engines.stopping import check_request, completion
from regrow.errors import EngineError


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ADJECTIVES = _words(
    "old quiet narrow bright heavy early common rare green distant simple hollow warm steep useful ancient loose "
    "clear sudden northern damp gentle rough public hidden sharp slow broad frozen local"
)
_NOUNS = _words(
    "river engine market valley teacher ledger bridge orchard signal harbour recipe triangle molecule contract "
    "violin glacier planet kitchen library tunnel poem battery forest mirror island tariff comet garden enzyme "
    "clock village lantern treaty sparrow furnace column rhythm atlas magnet desert"
)
_VERBS = _words(
    "carries measures surrounds repairs follows explains crosses feeds divides replaces shelters reflects delays "
    "supports colours counts opens guides resembles cools joins protects shapes limits"
)
_STATEMENTS = (
    "The {a} {n} {v} a {b} {m}.",
    "Every {n} {v} some {m}, and the {b} {o} {w} it.",
    "In the {a} {n}, one {m} {v} another {o}.",
    "First the {m} {v} the {n}; then a {b} {o} {w} both.",
    "A {b} {m} rarely {v} its {n}.",
)
_QUESTIONS = (
    "Why does it matter that the {a} {n} {v} the {m}?",
    "How can a {b} {m} help when the {n} {v} the {o}?",
    "What is the difference between a {a} {n} and a {b} {m}?",
    "Which {n} {v} the {b} {o}, and since when?",
)
_REFUSAL = "I'm sorry, but I can't help with that request."
_LEAK = "\nUser: {question}\nAssistant: {statement}"
_ZIPF = 1.5


@dataclass(frozen=True, slots=True)
class Faults:
    """How often the dummy misbehaves; each a share of the completions, together at most 1.

    Attributes:
        empty: Stops at once.
        duplicate: The text of the request's first completion again.
        role_leak: Goes on to speak for the other side.
        refusal: Declines.
        repeat: Says one phrase over and over.
        run_on: Talks until ``max_new_tokens``.
    """

    empty: float = 0.02
    duplicate: float = 0.04
    role_leak: float = 0.02
    refusal: float = 0.02
    repeat: float = 0.02
    run_on: float = 0.04

    def __post_init__(self) -> None:
        shares = (self.empty, self.duplicate, self.role_leak, self.refusal, self.repeat, self.run_on)
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise EngineError(f"the dummy's faults are shares that sum to at most 1, not {self}")


class ByteTokenizer:
    """One token a byte; for a dummy without a model."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """UTF-8 bytes. There are no special tokens to add."""
        return list(text.encode())

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        """The inverse of `encode`; a broken character becomes U+FFFD."""
        return bytes(ids).decode(errors="replace")

    def __len__(self) -> int:
        return 256


class DummyEngine:
    """Plausible nonsense that depends on ``(seed, request.seed, index)`` only.

    Sampling ignores the prompt, temperature and filters; lengths, stop strings and the finish reason are honoured. The
    log-probabilities of `sample` and `score` agree. They belong to a fixed, proper toy distribution: given the token
    before, the vocabulary is ordered by an affine permutation and the rank has a Zipf law, so nothing in it means
    anything except that it adds up to one.

    Args:
        tokenizer: A Hugging Face tokenizer; None is `ByteTokenizer`.
        seed: Another seed is another model.
        faults: How often the completions are bad in which way.
        model, revision: For the provenance of nodes.
    """

    info: EngineInfo

    def __init__(
        self,
        tokenizer: Any | None = None,
        *,
        seed: int = 0,
        faults: Faults | None = None,
        model: str = "dummy",
        revision: str = "",
    ) -> None:
        from regrow import __version__

        self._tokenizer = tokenizer if tokenizer is not None else ByteTokenizer()
        self._seed = seed
        self._faults = faults if faults is not None else Faults()
        self._vocabulary = len(self._tokenizer)
        ranks = -_ZIPF * np.log1p(np.arange(self._vocabulary))
        self._by_rank = ranks - np.log(np.exp(ranks).sum())
        self._entropy = float(-(np.exp(self._by_rank) * self._by_rank).sum())
        self._spread = float(np.sqrt((np.exp(self._by_rank) * (self._by_rank + self._entropy) ** 2).sum()))
        # A multiplier without a common factor makes the order a permutation that can be undone.
        self._step = next(k for k in range(7919, 7919 + self._vocabulary + 1) if math.gcd(k, self._vocabulary) == 1)
        self._undo = pow(self._step, -1, self._vocabulary)
        self.info = EngineInfo("dummy", __version__, model, revision, "none", gives_logprobs=True, can_score=True)

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        """See `regrow.engines.base.Engine.sample`."""
        for request in requests:
            check_request(request, None)
        return ((i, [self._complete(r, k) for k in range(r.n)]) for i, r in enumerate(requests))

    def _complete(self, request: Request, index: int) -> Completion:
        limit = request.params.max_new_tokens
        ids = list(self._tokenizer.encode(self._text(request, index), add_special_tokens=False))
        stops = [i for i, t in enumerate(ids) if t in request.params.stop_token_ids]
        finish: Finish = "stop"
        if stops and stops[0] < limit:
            ids = ids[: stops[0]]
        elif len(ids) >= limit:
            ids, finish = ids[:limit], "length"
        before = [request.prompt_ids[-1], *ids[:-1]] if ids else []
        logprobs = self._by_rank[self._rank(before, ids)].tolist()
        return completion(self._tokenizer, ids, finish, logprobs, stop_strings=request.params.stop_strings)

    def _text(self, request: Request, index: int) -> str:
        rng = self._rng(request.seed, index)
        f = self._faults
        u = rng.random()
        kinds = (f.empty, f.duplicate, f.role_leak, f.refusal, f.repeat, f.run_on)
        kind = int(np.searchsorted(np.cumsum(kinds), u, side="right"))
        if kind == 0:
            return ""
        if kind == 1:
            rng = self._rng(request.seed, 0)
            rng.random()
        text = self._salad(rng)
        if kind == 2:
            leak = _LEAK.format(question=_sentence(rng, _QUESTIONS), statement=_sentence(rng, _STATEMENTS))
            return text + leak
        if kind == 3:
            return _REFUSAL
        if kind == 4:
            return " ".join([f"the {rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)} again"] * 12) + "."
        if kind == 5:
            while len(self._tokenizer.encode(text, add_special_tokens=False)) <= request.params.max_new_tokens:
                text += " " + " ".join(_sentence(rng, _STATEMENTS) for _ in range(8))
        return text

    def _salad(self, rng: np.random.Generator) -> str:
        """A question, or one to three statements."""
        if rng.random() < 0.5:
            return _sentence(rng, _QUESTIONS)
        return " ".join(_sentence(rng, _STATEMENTS) for _ in range(int(rng.integers(1, 4))))

    def _rng(self, seed: int, index: int) -> np.random.Generator:
        mask = 0xFFFF_FFFF_FFFF_FFFF
        # 2^64 over the golden ratio spreads small engine seeds over the whole key.
        key = np.array([(seed ^ (self._seed * 0x9E37_79B9_7F4A_7C15)) & mask, index], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def _rank(self, before: Sequence[int], tokens: Sequence[int]) -> npt.NDArray[np.int64]:
        """Place of each token in the order that the token before it gives, 0 the likeliest."""
        b, t = np.asarray(before, dtype=np.int64), np.asarray(tokens, dtype=np.int64)
        return (t * self._step + b * 31 + self._seed) % self._vocabulary

    def score(self, rows: Sequence[ScoreRow], top_k: int = 0) -> Iterator[Score]:
        """See `regrow.engines.base.Engine.score`."""
        for i, row in enumerate(rows):
            if not 1 <= row.start <= len(row.token_ids):
                raise EngineError(f"start {row.start} is outside 1..{len(row.token_ids)}", where=f"score row {i}")
        if not 0 <= top_k <= self._vocabulary:
            raise EngineError(f"top_k={top_k} is outside 0..{self._vocabulary}")
        return (self._score(row, top_k) for row in rows)

    def _score(self, row: ScoreRow, top_k: int) -> Score:
        tokens = np.asarray(row.token_ids[row.start :], dtype=np.int64)
        before = np.asarray(row.token_ids[row.start - 1 : len(row.token_ids) - 1], dtype=np.int64)
        ranks = self._rank(before.tolist(), tokens.tolist())
        score = Score(
            logprobs=self._by_rank[ranks].astype(np.float32),
            greedy=ranks == 0,
            entropy=np.full(len(tokens), self._entropy, dtype=np.float32),
            logprob_std=np.full(len(tokens), self._spread, dtype=np.float32),
        )
        if top_k:
            order = np.arange(top_k)[None, :] - before[:, None] * 31 - self._seed
            score.top_ids = (order % self._vocabulary * self._undo % self._vocabulary).astype(np.int32)
            score.top_logprobs = np.broadcast_to(self._by_rank[:top_k], score.top_ids.shape).astype(np.float16)
        return score

    def close(self) -> None:
        """Nothing to free."""


def _sentence(rng: np.random.Generator, templates: Sequence[str]) -> str:
    a, b = rng.choice(_ADJECTIVES, 2, replace=False)
    n, m, o = rng.choice(_NOUNS, 3, replace=False)
    v, w = rng.choice(_VERBS, 2, replace=False)
    return str(rng.choice(templates)).format(a=a, b=b, n=n, m=m, o=o, v=v, w=w)
