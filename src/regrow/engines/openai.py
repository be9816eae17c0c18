"""The engine that asks a server: vLLM, SGLang, llama.cpp, Ollama, TGI, or anything else with ``/v1/completions``."""

from __future__ import annotations

import hashlib
import math
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from regrow.engines.base import Completion, EngineInfo, Request, SampleParams, Score, ScoreRow
from regrow.engines.client import Client, Refused
from regrow.engines.config import ServerConfig
from regrow.engines.dialects import Choice, Malformed, Reply, dialect_of
from regrow.engines.request_cache import RequestCache, request_key
from regrow.engines.stopping import check_request, completion, decode
from regrow.errors import EngineError
from regrow.progress import note

if TYPE_CHECKING:
    from regrow.models.load import ResolvedModel

_PROBE_TEXT = "The capital of France is"
_PROBE_SEED = 20_240_611
_PROBE_TOKENS = 12
_MOST_SIBLINGS = 128
_SAME_NATS = 0.02
"""Two log-probabilities of one token at two temperatures agree to this when the temperature does not enter them:
more than the rounding of bfloat16 kernels, far less than what halving the temperature does."""


@dataclass(slots=True)
class _Job:
    """Continuations ``first .. first + count`` of one request."""

    request: int
    first: int
    count: int


class OpenAIEngine:
    """Samples raw completions from a server; the server's chat template is never used.

    What the server can do is tried at the start, with three or four requests of a few tokens:

    - whether it takes token ids as the prompt. Else it gets the decoded text, and must count as many tokens in it as
      our tokenizer (so it has the same tokenizer and adds nothing). This is checked on every reply, in both ways.
    - whether ``n`` gives siblings, and siblings that differ. Else they are asked for one by one. A reply with fewer
      choices later on has the missing ones asked for again.
    - whether its log-probabilities are the model's at temperature 1: the likeliest next tokens must have the same ones
      at temperature 0.5. Else, and where the server returns no token ids to lay them beside, ``logprobs`` is None and
      ``info.gives_logprobs`` False.

    Tokens. ``token_ids`` are the sampled ones where the server returns them. Else the text is encoded again: the ids
    then spell the same text, but another sequence of tokens may have been sampled, and special tokens that the server
    does not print are lost.

    Stops. Stop tokens are sent by id or as text, and enforced here on what comes back. Some servers also stop at end
    tokens of their own that were not asked for (see `regrow.engines.dialects`); that counts as ``stop``.

    Randomness. Each HTTP request carries a seed made of ``request.seed`` and the index of its first continuation.
    What the server makes of it is its own affair: vLLM and llama.cpp draw the same tokens again, up to rounding (see
    `regrow.engines.hf.TransformersEngine`); a server that draws others is named at the start. The cache keeps a
    resumed run the same in any case.

    Order. Requests are sent sorted by ``Request.key``, so that the prefix cache of the server is warm; at most
    ``max_concurrency`` are in flight. When one fails for good no more are sent, those in flight are waited for and
    yielded, and the error is raised.

    Args:
        model: Whose tokenizer it is. The server must serve the same model; its vocabulary is all that can be checked.
        server: Address and limits.
        key: The key; None takes it from the environment variable that ``server.api_key_env`` names.
        name: For the provenance.
        home: What stands for the server in the cache; None is its address.
        on_close: Called at the end (stops a server that was started for this engine).

    Raises:
        EngineError: The server cannot be reached, refuses, does not serve the model or has another tokenizer.
        MissingExtra: The client's packages are not installed.
    """

    info: EngineInfo

    def __init__(
        self,
        model: ResolvedModel,
        server: ServerConfig,
        *,
        key: str | None = None,
        name: str = "openai",
        home: str | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        from transformers import AutoConfig

        from regrow.models.load import load_tokenizer

        if server.url is None:
            raise EngineError("no server is given", where="grow.server.url", hint="--url http://127.0.0.1:8000")
        self._config, self._on_close = server, on_close
        self._tokenizer = load_tokenizer(model.path, trust_remote_code=model.trust_remote_code)
        config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code).get_text_config()
        self._vocabulary = max(len(self._tokenizer), int(config.vocab_size))
        self._special = frozenset(self._tokenizer.all_special_ids)
        self._stop_text: Callable[[int], str] = lru_cache(maxsize=None)(lambda i: decode(self._tokenizer, [i]))
        self._client = Client(server.url, key if key is not None else api_key(server), server)
        self._cache: RequestCache | None = None
        try:
            entry = self._find_model(self._client.call(self._client.get("/v1/models")))
            self._model = str(entry["id"])
            self._dialect = dialect_of(entry)
            meta = entry.get("meta") or {}
            contexts = (
                getattr(config, "max_position_embeddings", None), entry.get("max_model_len"), meta.get("n_ctx"),
            )  # fmt: skip
            self._context = min((int(c) for c in contexts if c), default=None)
            self._siblings, self._logprobs = 1, 0
            self._as_ids, self._strip = True, ""
            properties = self._properties()
            self._probe(int(properties.get("total_slots") or _MOST_SIBLINGS))
            if server.cache:
                from regrow.models.cache import cache_dir

                self._cache = RequestCache(cache_dir() / "requests.sqlite")
        except BaseException:
            self._client.close()
            raise
        served = {k: entry.get(k) for k in ("id", "root", "owned_by")} | {"size": meta.get("size")}
        self._identity = [home or server.url, served, model.revision]
        version = " ".join(str(x) for x in (self._dialect.name, properties.get(self._dialect.version)) if x)
        dtype = str(meta.get("ftype") or "as served")
        self.info = EngineInfo(name, version, self._model, model.revision, dtype, bool(self._logprobs), False)

    # -- what the server can do ---------------------------------------------------------------------------------

    def _find_model(self, listed: Any) -> dict[str, Any]:
        entries = [e for e in (listed.get("data") or []) if isinstance(e, dict)] if isinstance(listed, dict) else []
        names = [str(e.get("id")) for e in entries]
        wanted = self._config.model
        if wanted is None and len(entries) == 1:
            return entries[0]
        for entry in entries:
            if entry.get("id") == wanted or wanted in (entry.get("aliases") or []):
                return entry
        shown = ", ".join(names[:10]) or "none"
        raise EngineError(
            f"the server does not serve '{wanted}'" if wanted else f"the server serves {len(names)} models",
            where="grow.server.model",
            hint=f"It serves: {shown}",
        )

    def _properties(self) -> dict[str, Any]:
        """What the server says about itself; empty where it does not."""
        if self._dialect.about is None:
            return {}
        try:
            found = self._client.call(self._client.get(self._dialect.about))
        except Refused:
            return {}
        return found if isinstance(found, dict) else {}

    def _probe(self, most_siblings: int) -> None:
        ids = self._probe_ids()
        params = SampleParams(_PROBE_TOKENS, temperature=1.0)
        reply = self._probe_prompt(ids, params)
        if self._dialect.gives_ids and reply.choices[0].token_ids is None:
            note(f"server: {self._dialect.name} returns no token ids; completions are encoded again")
        colder = self._try(ids, 1, replace(params, temperature=0.5), 5)
        aligned = reply.choices[0].token_ids is not None and reply.choices[0].logprobs is not None
        if aligned and colder is not None and _same_logprobs(reply.choices[0].top, colder.choices[0].top):
            self._logprobs = 1
        two = self._try(ids, 2, replace(params, temperature=2.0), 0)
        if two is not None and len(two.choices) == 2:
            first, second = two.choices
            if (first.text, first.token_ids) != (second.text, second.token_ids):
                self._siblings = most_siblings
        if self._siblings == 1:
            note(f"server: {self._dialect.name} does not give siblings by n; they are asked for one by one")
        again = self._try(ids, 1, params, 0)
        if again is not None and again.choices[0].text != reply.choices[0].text:
            note(f"server: {self._dialect.name} does not draw the same tokens from the same seed")

    def _probe_ids(self) -> tuple[int, ...]:
        """A prompt with the model's special tokens in it, if it has a chat template: they must arrive as such."""
        if self._tokenizer.chat_template:
            message = [{"role": "user", "content": _PROBE_TEXT}]
            text = self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        else:
            text = (self._tokenizer.bos_token or "") + _PROBE_TEXT
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _probe_prompt(self, ids: tuple[int, ...], params: SampleParams) -> Reply:
        """Ids if the server takes them, else text, with and without the opening token that it may add itself."""
        reply = self._try(ids, 1, params, 5)
        if reply is not None and reply.prompt_tokens == len(ids):
            return reply
        self._as_ids = False
        counts: list[Any] = []
        opening = self._tokenizer.bos_token or ""
        for strip in dict.fromkeys(("", opening)):
            self._strip = strip
            # Refused twice: the third time the error may pass, it says why.
            reply = self._try(ids, 1, params, 5) or self._call(self._body(ids, 1, _PROBE_SEED, params, 0))
            if reply.prompt_tokens == self._count(ids):
                return reply
            counts.append(reply.prompt_tokens)
        raise EngineError(
            f"the server counts {counts[0]} tokens in a prompt of {self._count(ids)}: it has another tokenizer, or "
            "puts a template of its own around prompts",
            where=self._client.url,
            hint="Serve the model that is tuned, without a template (docs: how-to, servers).",
        )

    def _try(self, ids: tuple[int, ...], n: int, params: SampleParams, logprobs: int) -> Reply | None:
        """A probe that may be refused; then log-probabilities are left out, then it is given up."""
        for k in dict.fromkeys((logprobs, 0)):
            try:
                return self._call(self._body(ids, n, _PROBE_SEED, params, k))
            except Refused as error:
                if error.status in (401, 403, 404):
                    raise
        return None

    def _call(self, body: dict[str, Any]) -> Reply:
        return self._client.call(self._client.post(self._dialect.path, body, self._read))

    # -- sampling -----------------------------------------------------------------------------------------------

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        """See `regrow.engines.base.Engine.sample`."""
        for request in requests:
            check_request(request, self._context)
            if request.params.top_k and not self._dialect.top_k:
                raise EngineError(
                    f"{self._dialect.name} takes no top_k",
                    where=f"request {request.key}",
                    hint="Set grow.question.top_k and grow.answer.top_k to 0.",
                )
        return self._sample(requests)

    def _sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        for i, r in enumerate(requests):
            if r.n == 0 or r.params.max_new_tokens == 0:
                nothing = np.zeros(0, np.float32) if self.info.gives_logprobs else None
                yield i, [Completion([], "", "length", nothing) for _ in range(r.n)]
        done: queue.SimpleQueue[tuple[int, list[Completion]] | None] = queue.SimpleQueue()
        work = self._client.start(self._all(requests, self._jobs(requests), done.put))
        work.add_done_callback(lambda _: done.put(None))
        try:
            while (item := done.get()) is not None:
                yield item
            work.result()
        except CancelledError:
            raise EngineError("the engine was closed", where=self._client.url) from None
        finally:
            work.cancel()

    def _jobs(self, requests: Sequence[Request]) -> list[_Job]:
        """In the order in which they are sent."""
        order = sorted(range(len(requests)), key=lambda i: (requests[i].key, i))
        jobs: list[_Job] = []
        for i in order:
            r = requests[i]
            if r.n and r.params.max_new_tokens:
                size = 1 if r.params.temperature == 0 else self._siblings
                count = 1 if r.params.temperature == 0 else r.n
                jobs += [_Job(i, first, min(size, count - first)) for first in range(0, count, size)]
        return jobs

    async def _all(
        self,
        requests: Sequence[Request],
        jobs: Sequence[_Job],
        deliver: Callable[[tuple[int, list[Completion]]], None],
    ) -> None:
        import asyncio

        found: list[dict[int, Completion]] = [{} for _ in requests]
        queue_ = iter(jobs)
        failures: list[EngineError] = []

        async def worker() -> None:
            for job in queue_:
                if failures:
                    return
                request, mine = requests[job.request], found[job.request]
                try:
                    mine.update(await self._do(request, job))
                except EngineError as error:
                    failures.append(error)
                    return
                if request.params.temperature == 0:
                    one = mine[0]
                    mine.update(
                        {
                            k: Completion(list(one.token_ids), one.text, one.finish, one.logprobs)
                            for k in range(request.n)
                        }
                    )
                if len(mine) == request.n:
                    deliver((job.request, [mine[k] for k in range(request.n)]))
                    found[job.request] = {}

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._config.max_concurrency, len(jobs))):
                group.create_task(worker())
        if failures:
            raise failures[0]

    async def _do(self, request: Request, job: _Job) -> dict[int, Completion]:
        """One job: one HTTP request, and more when the server returns fewer choices than asked for."""
        missing = list(range(job.first, job.first + job.count))
        mine: dict[int, Completion] = {}
        while missing:
            size = min(len(missing), self._siblings)
            seed = _seed(request.seed, missing[0], self._dialect.seed_bits)
            body = self._body(request.prompt_ids, size, seed, request.params, self._logprobs)
            reply = await self._ask(request, body)
            if len(reply.choices) < size and self._siblings > 1:
                self._siblings = 1
                note(f"server: {len(reply.choices)} of {size} siblings came back; from now on one by one")
            for index, choice in zip(missing[:size], reply.choices, strict=False):
                mine[index] = self._completion(request, choice)
            missing = missing[min(size, len(reply.choices)) :]
        return mine

    async def _ask(self, request: Request, body: dict[str, Any]) -> Reply:
        key = request_key(self._identity, body) if self._cache is not None else b""
        if self._cache is not None and (known := self._cache.get(key)) is not None:
            return self._read(known)
        data: list[Any] = []

        def read(raw: Any) -> Reply:
            data.append(raw)
            return self._read(raw)

        reply = await self._client.post(self._dialect.path, body, read)
        expected = self._count(request.prompt_ids)
        if reply.prompt_tokens != expected:
            raise EngineError(
                f"the server counts {reply.prompt_tokens} tokens in a prompt of {expected}",
                where=f"{self._client.url}, request {request.key}",
                hint="It has another tokenizer, cuts prompts, or adds to them.",
            )
        if self._cache is not None:
            self._cache.put(key, data[-1])
        return reply

    def _read(self, data: Any) -> Reply:
        reply = self._dialect.read(data)
        if not reply.choices:
            raise Malformed("a reply without choices")
        return reply

    def _body(self, ids: Sequence[int], n: int, seed: int, params: SampleParams, logprobs: int) -> dict[str, Any]:
        stops = [text for i in params.stop_token_ids if (text := self._stop_text(i))]
        prompt = ids if self._as_ids else self._text(ids)
        return self._dialect.body(self._model, prompt, n, seed, params, stops, logprobs)

    def _text(self, ids: Sequence[int]) -> str:
        return decode(self._tokenizer, ids).removeprefix(self._strip)

    def _count(self, ids: Sequence[int]) -> int:
        """Tokens that the server must see. Of a text: as our tokenizer cuts it, which need not be how it was
        sampled."""
        if self._as_ids:
            return len(ids)
        return len(self._tokenizer.encode(decode(self._tokenizer, ids), add_special_tokens=False))

    def _completion(self, request: Request, choice: Choice) -> Completion:
        stops, finish = request.params.stop_token_ids, choice.finish
        ids = choice.token_ids
        if ids is None:
            ids = list(self._tokenizer.encode(choice.text, add_special_tokens=False))
        if ids and max(ids) >= self._vocabulary:
            raise EngineError(
                f"the server sampled token {max(ids)} of a vocabulary of {self._vocabulary}",
                where=self._client.url,
                hint="It serves another model than the one that is tuned.",
            )
        end = next((i for i, token in enumerate(ids) if token in stops), None)
        if end is None and finish == "stop" and ids and choice.token_ids and ids[-1] in self._special:
            end = len(ids) - 1  # an end token of the server's own
        if end is not None:
            ids, finish = ids[:end], "stop"
        values = choice.logprobs if self._logprobs else None
        if values is not None and len(values) >= len(ids) and choice.token_ids is not None:
            values = values[: len(ids)]
        else:
            values = None
        result = completion(self._tokenizer, ids, finish, values, stop_strings=request.params.stop_strings)
        if result.logprobs is not None and not np.isfinite(result.logprobs).all():
            result.logprobs = None
        return result

    def score(self, rows: Sequence[ScoreRow], top_k: int = 0) -> Iterator[Score]:
        """Always refused: few servers return log-probabilities of given tokens, and none entropies.

        Raises:
            EngineError: Score with the transformers engine.
        """
        raise EngineError(f"the {self.info.name} engine cannot score given tokens", hint="engine: transformers")

    def close(self) -> None:
        """Drop what is in flight, and stop the server if it was started for this engine. Idempotent."""
        self._client.close()
        if self._cache is not None:
            self._cache.close()
        if self._on_close is not None:
            self._on_close()
            self._on_close = None


def api_key(server: ServerConfig) -> str | None:
    """The key that the recipe's environment variable holds.

    Raises:
        EngineError: The variable is not set.
    """
    if server.api_key_env is None:
        return None
    key = os.environ.get(server.api_key_env, "").strip()
    if not key:
        raise EngineError(f"the environment variable {server.api_key_env} is not set", where="grow.server.api_key_env")
    return key


def _seed(seed: int, first: int, bits: int) -> int:
    """The seed of continuations ``first ...`` of a request, spread over ``bits`` bits."""
    digest = hashlib.blake2b(f"{seed}/{first}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & ((1 << bits) - 1)


def _same_logprobs(warm: dict[str, float], cold: dict[str, float]) -> bool:
    """Whether the first token's log-probabilities are untouched by the temperature; two tokens must be there."""
    both = [(warm[token], cold[token]) for token in warm if token in cold]
    return len(both) > 1 and all(math.isfinite(a) and abs(a - b) < _SAME_NATS for a, b in both)
