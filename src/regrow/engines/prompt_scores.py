"""Log-probabilities of given tokens from a server, where it has a way to give them.

Three ways, tried on the server itself:

- ``prompt``: vLLM's ``prompt_logprobs``, by token id.
- ``echo``: OpenAI's old ``echo`` with ``logprobs``: the prompt comes back with a log-probability for each token. Many
  servers take the field and ignore it; then the reply has too few.
- ``steps``: llama.cpp gives the likeliest next tokens of a prompt, as many as asked for. Each scored token is one
  request; its prefix is in the server's cache. When the token is not among the first `FIRST_TOP`, the whole vocabulary
  is asked for.

A way counts only if the log-probabilities are the model's at temperature 1: they must not change with the temperature
that is asked for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from regrow.engines.base import SampleParams
from regrow.engines.client import Client, Refused
from regrow.engines.dialects import LLAMA_CPP, VLLM, Dialect, Malformed
from regrow.errors import EngineError

Way = Literal["prompt", "echo", "steps"]

FIRST_TOP = 64
_SEED = 20_240_611
_SAME_NATS = 0.02
_PATH = "/v1/completions"


@dataclass(slots=True)
class PromptScore:
    """Scores of the asked-for positions of a prompt, in their order; natural logs.

    Attributes:
        logprobs: ``(m,)`` log-probability of each token given those before it.
        margins: ``(m,)`` that minus the log-probability of the likeliest other token.
        greedy_ids: ``(m,)`` the likeliest token; with ``echo``, which names tokens by text, the first token of that
            text.
    """

    logprobs: npt.NDArray[np.float32]
    margins: npt.NDArray[np.float32]
    greedy_ids: npt.NDArray[np.int64]


@dataclass(slots=True)
class _Place:
    """One position: the token's log-probability, and the likeliest tokens (ids, or texts of them) with theirs."""

    logprob: float
    top: dict[int | str, float]


class PromptScorer:
    """Scores prompts on one server.

    Args:
        client, dialect: Its connection and kind.
        model: The name of the model there.
        tokenizer: Ours.
        vocabulary: Tokens of the model.
        raw: Whether the log-probabilities of tokens that it samples are the model's (found out by the engine).
        concurrency: Most requests at once.

    Attributes:
        way: How it is asked.

    Raises:
        EngineError: It has no way that can be used; says so.
    """

    def __init__(
        self,
        client: Client,
        dialect: Dialect,
        model: str,
        tokenizer: Any,
        *,
        vocabulary: int,
        raw: bool,
        concurrency: int,
    ) -> None:
        self._client, self._dialect, self._model, self._tokenizer = client, dialect, model, tokenizer
        self._vocabulary, self._concurrency = vocabulary, concurrency
        self.way: Way
        if dialect is LLAMA_CPP:
            if not raw:
                raise self._cannot("its log-probabilities are not the model's")
            self.way = "steps"
            return
        self.way = "prompt" if dialect is VLLM else "echo"
        self._check()

    def _cannot(self, why: str) -> EngineError:
        return EngineError(
            f"{self._dialect.name} gives no log-probabilities of a prompt that can be used: {why}",
            where=self._client.url,
            hint="Suites that are written work: instructions, refusals, recipe: with inferencer generate.",
        )

    def _check(self) -> None:
        ids = self._tokenizer.encode("The capital of France is Paris.", add_special_tokens=False)
        try:
            warm, cold = (self._client.call(self._whole(ids, temperature)) for temperature in (1.0, 0.5))
        except Refused as error:
            raise self._cannot(error.message) from error
        except EngineError as error:
            raise self._cannot("the reply does not have them") from error
        pairs = [(a.logprob, b.logprob) for a, b in zip(warm, cold, strict=True)]
        if not all(math.isfinite(a) and a <= 0 and abs(a - b) < _SAME_NATS for a, b in pairs):
            raise self._cannot("they change with the temperature")

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[PromptScore]:
        """Score rows, many at once.

        Args:
            rows: Token ids, and the positions to score, each at least 1.

        Raises:
            EngineError: The server fails for good, or counts other tokens than we do.
        """
        return self._client.call(self._rows(rows))

    async def _rows(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[PromptScore]:
        gate = asyncio.Semaphore(self._concurrency)

        async def one(ids: Sequence[int], targets: Sequence[int]) -> PromptScore:
            if self.way == "steps":
                places = [await self._step(ids[:t], ids[t], gate) for t in targets]
            else:
                async with gate:
                    whole = await self._whole(ids, 1.0)
                places = [whole[t - 1] for t in targets]
            return self._score([ids[t] for t in targets], places)

        tasks = [asyncio.ensure_future(one(ids, targets)) for ids, targets in rows]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for t in tasks:
                t.cancel()

    def _score(self, tokens: Sequence[int], places: Sequence[_Place]) -> PromptScore:
        margins, greedy = [], []
        for token, place in zip(tokens, places, strict=True):
            named = any(isinstance(k, int) for k in place.top)
            first, best = max(place.top.items(), key=lambda kv: kv[1])
            if named:
                others = [v for k, v in place.top.items() if k != token]
                wins = first == token
            else:  # texts do not name tokens for certain, but no two tokens share the highest value
                wins = place.logprob >= best - 1e-6
                others = sorted(place.top.values(), reverse=True)[1:] if wins else [best]
            margins.append(place.logprob - max(others, default=-math.inf))
            greedy.append(token if wins else self._id(first, token))
        return PromptScore(
            np.array([p.logprob for p in places], np.float32),
            np.array(margins, np.float32),
            np.array(greedy, np.int64),
        )

    def _id(self, name: int | str, token: int) -> int:
        if isinstance(name, int):
            return name
        found = self._tokenizer.encode(name, add_special_tokens=False)
        return int(found[0]) if found else token

    # -- asking -------------------------------------------------------------------------------------------------

    async def _whole(self, ids: Sequence[int], temperature: float) -> list[_Place]:
        """Every position of a prompt but the first."""
        body: dict[str, Any] = {
            "model": self._model, "prompt": list(ids), "max_tokens": 1, "temperature": temperature, "seed": _SEED,
            "stream": False,
        }  # fmt: skip
        if self.way == "prompt":
            body |= {"prompt_logprobs": 2, "add_special_tokens": False}
        else:
            body |= {"echo": True, "logprobs": 2}

        def read(data: Any) -> list[_Place]:
            try:
                count = int(data["usage"]["prompt_tokens"])
                choice = data["choices"][0]
                places = _of_vllm(ids, choice) if self.way == "prompt" else _of_echo(ids, choice)
            except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
                raise Malformed(f"no log-probabilities of the prompt ({type(error).__name__}: {error})") from error
            if count != len(ids):
                raise Malformed(f"the server counts {count} tokens in a prompt of {len(ids)}")
            return places

        return await self._client.post(_PATH, body, read)

    async def _step(self, prefix: Sequence[int], token: int, gate: asyncio.Semaphore) -> _Place:
        params = SampleParams(1, temperature=1.0)
        for k in (FIRST_TOP, self._vocabulary):
            body = self._dialect.body(self._model, prefix, 1, _SEED, params, (), k)
            async with gate:
                reply = await self._client.post(self._dialect.path, body, self._dialect.read)
            if reply.prompt_tokens != len(prefix):
                raise EngineError(
                    f"the server counts {reply.prompt_tokens} tokens in a prompt of {len(prefix)}",
                    where=self._client.url,
                    hint="It has another tokenizer, cuts prompts, or adds to them.",
                )
            top: dict[int | str, float] = {int(i): v for i, v in reply.choices[0].top.items()}
            if token in top and len(top) > 1:
                return _Place(top[token], top)
        raise self._cannot(f"token {token} is not among {len(top)} next tokens")


def _of_vllm(ids: Sequence[int], choice: Any) -> list[_Place]:
    found = choice["prompt_logprobs"]
    if len(found) != len(ids):
        raise ValueError(f"{len(found)} positions of {len(ids)}")
    out = []
    for token, entry in zip(ids[1:], found[1:], strict=True):
        top: dict[int | str, float] = {int(k): float(v["logprob"]) for k, v in entry.items()}
        out.append(_Place(top[token], top))
    return out


def _of_echo(ids: Sequence[int], choice: Any) -> list[_Place]:
    values, tops = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
    if not len(ids) <= len(values) <= len(ids) + 1 or len(tops) != len(values):
        raise ValueError(f"{len(values)} positions of {len(ids)}")
    out = []
    for value, top in zip(values[1 : len(ids)], tops[1 : len(ids)], strict=True):
        out.append(_Place(float(value), {str(k): float(v) for k, v in top.items()}))
        if len(out[-1].top) < 2:
            raise ValueError("fewer than two likeliest tokens")
    return out
