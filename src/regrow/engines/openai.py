"""The engine that asks a server: vLLM, SGLang, llama.cpp, Ollama, TGI, or anything else with ``/v1/completions``."""

from __future__ import annotations

import hashlib
import json
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from regrow.engines.asking import Asker
from regrow.engines.base import Completion, EngineInfo, Request, Score, ScoreRow
from regrow.engines.client import Client, Refused
from regrow.engines.config import ServerConfig
from regrow.engines.dialects import Choice, Reply, dialect_of
from regrow.engines.prompt_scores import PromptScorer
from regrow.engines.request_cache import RequestCache, request_key
from regrow.engines.stopping import check_request, completion
from regrow.errors import EngineError
from regrow.progress import note

if TYPE_CHECKING:
    from regrow.models.load import ResolvedModel

_MOST_SIBLINGS = 128


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
        self._client = Client(server.url, key if key is not None else api_key(server), server)
        self._cache: RequestCache | None = None
        try:
            entry = self._find_model(self._client.call(self._client.get("/v1/models")))
            self._dialect = dialect_of(entry)
            meta = entry.get("meta") or {}
            contexts = (
                getattr(config, "max_position_embeddings", None), entry.get("max_model_len"), meta.get("n_ctx"),
            )  # fmt: skip
            self._context = min((int(c) for c in contexts if c), default=None)
            properties = self._properties()
            most = int(properties.get("total_slots") or _MOST_SIBLINGS)
            self._asker = Asker(self._client, self._dialect, str(entry["id"]), self._tokenizer, most)
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
        self.info = EngineInfo(name, version, str(entry["id"]), model.revision, dtype, self._asker.logprobs, False)

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
                size = 1 if r.params.temperature == 0 else self._asker.siblings
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
                    mine.update({k: replace(mine[0], token_ids=list(mine[0].token_ids)) for k in range(request.n)})
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
            size = min(len(missing), self._asker.siblings)
            seed = _seed(request.seed, missing[0], self._dialect.seed_bits)
            body = self._asker.body(request.prompt_ids, size, seed, request.params)
            reply = await self._ask(request, body)
            if len(reply.choices) < size and self._asker.siblings > 1:
                self._asker.siblings = 1
                note(f"server: {len(reply.choices)} of {size} siblings came back; from now on one by one")
            for index, choice in zip(missing[:size], reply.choices, strict=False):
                mine[index] = self._completion(request, choice)
            missing = missing[min(size, len(reply.choices)) :]
        return mine

    async def _ask(self, request: Request, body: dict[str, Any]) -> Reply:
        key = request_key(self._identity, body) if self._cache is not None else b""
        if self._cache is not None and (known := self._cache.get(key)) is not None:
            return self._asker.read(known)
        data: list[Any] = []

        def read(raw: Any) -> Reply:
            data.append(raw)
            return self._asker.read(raw)

        reply = await self._client.post(self._dialect.path, body, read)
        expected = self._asker.count(request.prompt_ids)
        if reply.prompt_tokens != expected:
            raise EngineError(
                f"the server counts {reply.prompt_tokens} tokens in a prompt of {expected}",
                where=f"{self._client.url}, request {request.key}",
                hint="It has another tokenizer, cuts prompts, or adds to them.",
            )
        if self._cache is not None:
            self._cache.put(key, data[-1])
        return reply

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
        values = choice.logprobs if self._asker.logprobs else None
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

    def prompt_scorer(self) -> PromptScorer:
        """What scores given tokens on this server, for whoever needs no entropies.

        Raises:
            EngineError: The server has no way to give log-probabilities of a prompt.
        """
        return PromptScorer(
            self._client,
            self._dialect,
            self.info.model,
            self._tokenizer,
            vocabulary=self._vocabulary,
            raw=self.info.gives_logprobs,
            concurrency=self._config.max_concurrency,
        )

    @property
    def identity(self) -> str:
        """A hash of the server's address and of what it says it serves, with our tokenizer's revision. It does not
        know the weights: another model behind the same address and name has the same."""
        return hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:16]

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
