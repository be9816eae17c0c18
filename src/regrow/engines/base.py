"""The contract of a text-generation engine: sample continuations of token prefixes, score token rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Finish = Literal["stop", "length"]
Keep = Literal["nothing", "prompt", "completions"]

RAY = "ray:"
"""Before the name of an engine that runs in the workers of a Ray cluster."""


@dataclass(frozen=True, slots=True)
class SampleParams:
    """How to sample. ``temperature=0`` is greedy; ``top_k=0`` and ``top_p=1`` switch the filters off.

    ``stop_token_ids`` and ``stop_strings`` end a completion and are not part of it.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One prefix and how many continuations of it are wanted.

    Attributes:
        key: The node's path in the tree (``topic/3/0``); engines may sort by it so that prefixes are shared.
        prompt_ids: Token ids, special tokens included; nothing is added to them.
        n: Number of independent continuations.
        seed: 63-bit; all randomness of these continuations comes from it, whatever else is in the batch.
        keep: What may come again as the beginning of a prompt: the prompt, or its completions too. A hint to engines
            that keep caches alive (`KeepsPrefixes`); it changes no answer.
    """

    key: str
    prompt_ids: tuple[int, ...]
    n: int
    seed: int
    params: SampleParams
    keep: Keep = "nothing"


@dataclass(slots=True)
class Completion:
    """One continuation.

    ``token_ids`` excludes the stop token; ``text`` is their decoding without special tokens removed by us.
    ``logprobs`` are natural-log probabilities of the sampled tokens under the model at temperature 1 with no filter,
    shape ``(len(token_ids),)``, or None where the engine cannot tell.
    """

    token_ids: list[int]
    text: str
    finish: Finish
    logprobs: npt.NDArray[np.float32] | None = None


@dataclass(slots=True)
class ScoreRow:
    """A token row to score. Positions ``start <= t < len(token_ids)`` are scored given all before them; start >= 1."""

    token_ids: Sequence[int]
    start: int = 1


@dataclass(slots=True)
class Score:
    """Scores of one row; natural logs; m = len(token_ids) - start.

    Attributes:
        logprobs: ``(m,)`` log-probability of each scored token.
        greedy: ``(m,)`` bool, whether the scored token is the arg-max.
        top_ids, top_logprobs: ``(m, k)`` the k likeliest tokens in falling order, when asked for.
        entropy: ``(m,)`` nats; minus the mean log-probability of a token drawn at that position.
        logprob_std: ``(m,)`` standard deviation of that log-probability, nats; None where the engine cannot tell.
    """

    logprobs: npt.NDArray[np.float32]
    greedy: npt.NDArray[np.bool_]
    entropy: npt.NDArray[np.float32]
    top_ids: npt.NDArray[np.int32] | None = None
    top_logprobs: npt.NDArray[np.float16] | None = None
    logprob_std: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What goes into the provenance of every node.

    Attributes:
        name: Of the engine; ``ray:NAME`` when it runs in the workers of a Ray cluster.
        workers: Processes that sample side by side.
    """

    name: str
    version: str
    model: str
    revision: str
    dtype: str
    gives_logprobs: bool
    can_score: bool
    workers: int = 1

    @property
    def sampler(self) -> str:
        """The engine that draws, wherever it runs: ``name`` without the cluster around it."""
        return self.name.removeprefix(RAY)


@runtime_checkable
class Engine(Protocol):
    """A generation engine. Implementations: `transformers`, `openvino`, `ray`, `dummy`."""

    info: EngineInfo

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        """Yield ``(index into requests, n completions)`` as requests finish, in any order, each exactly once.

        Raises:
            EngineError: The engine died or refused a request; what was yielded before stays valid.
        """
        ...

    def score(self, rows: Sequence[ScoreRow], top_k: int = 0) -> Iterator[Score]:
        """Yield one `Score` a row, in order. Raises EngineError when ``info.can_score`` is False."""
        ...

    def close(self) -> None:
        """Free memory and processes. Idempotent."""
        ...


@dataclass(slots=True)
class EngineStats:
    """What an engine did since it was opened.

    Attributes:
        prefill_tokens: Prompt tokens that were run through the model.
        reused_tokens: Prompt tokens whose caches were there already, so that they were not.
        sampled_tokens: Tokens drawn.
        evicted_tokens: Tokens whose caches were thrown away for lack of memory; run again if they are needed.
        prefix_bytes: Most memory that kept caches took.
    """

    prefill_tokens: int = 0
    reused_tokens: int = 0
    sampled_tokens: int = 0
    evicted_tokens: int = 0
    prefix_bytes: int = 0


@runtime_checkable
class KeepsPrefixes(Protocol):
    """What an engine offers besides when it keeps the caches of prompts and completions (`Request.keep`) alive.

    Whoever samples a tree says which branches go on; without that the least recently used caches make room.
    """

    stats: EngineStats

    def retain(self, key: str, prompt_ids: Sequence[int], continued: Sequence[Sequence[int]]) -> None:
        """The requests with this key are answered for good. Free what was kept for them but does not lead to
        ``continued``, the prefixes (prompt included) from which sampling will go on."""
        ...

    def crowded(self) -> bool:
        """Whether caches will soon be thrown away: time to finish branches rather than to begin new ones."""
        ...

    def forget(self) -> None:
        """Free all caches that were kept."""
        ...
