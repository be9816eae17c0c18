"""One call of the transformers engine's ``sample``: a batch that sequences enter and leave while it decodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from regrow.engines.base import Completion, EngineStats, Finish, Request, SampleParams
from regrow.engines.draws import draw, uniforms
from regrow.engines.kv import BatchCache
from regrow.engines.network import Network
from regrow.engines.prefill import WAVE_TOKENS, Prefill
from regrow.engines.prefixes import Piece, PrefixStore
from regrow.engines.stopping import completion, ends_with_stop


@dataclass(frozen=True, slots=True)
class Room:
    """What the memory holds: sequences at once, their longest prompt and prompt plus completion, columns of a wave."""

    places: int
    longest: int
    width: int
    wave_columns: int


@dataclass(slots=True)
class _Group:
    """Continuations ``first .. first + count`` of one request, admitted together."""

    request: int
    first: int
    count: int


@dataclass(slots=True)
class _Row:
    """A sequence in the decoding batch."""

    request: int
    index: int
    params: SampleParams
    prompt: int
    """Tokens of the prompt."""
    end: list[Piece] | None
    """Where the prompt ends in the store, when the completion shall be kept there."""
    draws: npt.NDArray[np.float64]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Decoding:
    """Answers requests; see `regrow.engines.hf.TransformersEngine` for the order in which things happen.

    Args:
        network: The model.
        tokenizer: Its tokenizer, for stop strings.
        requests: All with ``n > 0`` and ``max_new_tokens > 0``, in the order in which they shall enter.
        store: Of prefixes.
        stats: Counts.
        room: What fits.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Any,
        requests: Sequence[Request],
        store: PrefixStore,
        stats: EngineStats,
        room: Room,
    ) -> None:
        self.network, self.tokenizer, self.requests = network, tokenizer, requests
        self.store, self.stats, self.room = store, stats, room
        self.prefill = Prefill(network, store, stats)
        self.queue = deque(
            _Group(i, first, min(room.places, r.n - first))
            for i, r in enumerate(requests)
            for first in range(0, r.n, room.places)
        )
        self.rows: list[_Row] = []
        self.cache = BatchCache(network.layout, room.places, room.longest, room.width)
        self.finished: list[tuple[_Row, Finish]] = []

    def run(self) -> Iterator[tuple[int, list[Completion]]]:
        """Yield the number of a request and its completions, as they finish."""
        done: list[dict[int, Completion]] = [{} for _ in self.requests]
        places = self.room.places
        while self.queue or self.rows:
            self.finished = []
            free = places - len(self.rows)
            enough = free >= max(1, places // 4) and bool(self.queue) and self.queue[0].count <= free
            if self.queue and (not self.rows or enough):
                self._admit(free)
            else:
                self._decode()
            self.stats.prefix_bytes, self.stats.evicted_tokens = self.store.peak, self.store.evicted_tokens
            for row, finish in self.finished:
                r = self.requests[row.request]
                mine = done[row.request]
                mine[row.index] = completion(
                    self.tokenizer, row.ids, finish, row.logprobs, stop_strings=r.params.stop_strings
                )
                if len(mine) == r.n:
                    done[row.request] = {}
                    yield row.request, [mine[k] for k in range(r.n)]

    # -- prompts ----------------------------------------------------------------------------------------------------

    def _wave(self, free: int) -> list[_Group]:
        """The next groups that fit the free places and one forward pass."""
        groups: list[_Group] = []
        tokens = known = run = 0
        while self.queue and self.queue[0].count <= free:
            prompt = self.requests[self.queue[0].request].prompt_ids
            fresh = self.prefill.fresh(prompt)
            known, run = max(known, len(prompt) - fresh), max(run, fresh)
            columns = (len(groups) + 1) * (known + run)
            if groups and (tokens + fresh > WAVE_TOKENS or columns > self.room.wave_columns):
                break
            free -= self.queue[0].count
            tokens += fresh
            groups.append(self.queue.popleft())
        return groups

    def _admit(self, free: int) -> None:
        """Run the next prompts, draw their first tokens, and let the sequences that go on enter the batch."""
        groups = self._wave(free)
        asked = [self.requests[g.request] for g in groups]
        logits, prompts = self.prefill.run(
            [r.prompt_ids for r in asked], [None if r.keep == "nothing" else r.key for r in asked]
        )
        fresh: list[_Row] = []
        for g, r, prompt in zip(groups, asked, prompts, strict=True):
            end = prompt.end if r.keep == "completions" else None
            fresh += [
                _Row(g.request, k, r.params, prompt.length, end, uniforms(r.seed, k, r.params.max_new_tokens))
                for k in range(g.first, g.first + g.count)
            ]
        counts = torch.tensor([g.count for g in groups], device=logits.device)
        ends = self._step(fresh, logits.repeat_interleave(counts, dim=0))
        at = 0
        for g, prompt in zip(groups, prompts, strict=True):
            staying = []
            for row, finish in zip(fresh[at : at + g.count], ends[at : at + g.count], strict=True):
                if finish:
                    self.finished.append((row, finish))
                else:
                    staying.append(row)
            at += g.count
            if staying:
                self.cache.add(prompt.cache, prompt.row, prompt.length, len(staying))
                self.rows += staying

    # -- one token for all -------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        """One token for every row; those that end leave the batch."""
        rows, cache = self.rows, self.cache
        ids = torch.tensor([[row.ids[-1]] for row in rows])
        positions = torch.tensor([[row.prompt + len(row.ids) - 1] for row in rows])
        last = torch.zeros(len(rows), dtype=torch.int64)
        logits = self.network.logits(ids, positions, cache, cache.mask(), last)
        cache.advance()
        ends = self._step(rows, logits)
        for place in range(len(rows) - 1, -1, -1):
            finish = ends[place]
            if finish:
                self._keep(place)
                self.finished.append((rows[place], finish))
                cache.remove(place)
                rows[place] = rows[-1]
                rows.pop()

    def _keep(self, place: int) -> None:
        """Hand the completion's caches to the store. A last token that ended the row was never run; it has none."""
        row, cache = self.rows[place], self.cache
        if row.end is None:
            return
        start = cache.starts[place] + row.prompt
        ids = row.ids[: cache.window.high - start]
        self.store.add(row.end, ids, cache.copy(place, start, cache.window.high), self.requests[row.request].key)

    def _step(self, rows: list[_Row], logits: torch.Tensor) -> list[Finish | None]:
        """Draw a token for each row and say which rows end with it."""
        if logits.device.type == "mps":  # has no float64
            logits = logits.cpu()
        tokens = np.zeros(len(rows), dtype=np.int64)
        logprobs = np.zeros(len(rows), dtype=np.float32)
        by_params: dict[SampleParams, list[int]] = {}
        for i, row in enumerate(rows):
            by_params.setdefault(row.params, []).append(i)
        with torch.inference_mode():
            for params, places in by_params.items():
                u = torch.tensor([rows[i].draws[len(rows[i].ids)] for i in places], dtype=torch.float64)
                mine = logits if len(places) == len(rows) else logits[torch.tensor(places, device=logits.device)]
                drawn, lp = draw(mine, u.to(logits.device), params)
                tokens[places] = drawn.cpu().numpy()
                logprobs[places] = lp.cpu().numpy()
        self.stats.sampled_tokens += len(rows)
        ends: list[Finish | None] = []
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            if token in row.params.stop_token_ids:
                ends.append("stop")
                continue
            row.ids.append(token)
            row.logprobs.append(logprob)
            if ends_with_stop(self.tokenizer, row.ids, row.params.stop_strings):
                ends.append("stop")
            else:
                ends.append("length" if len(row.ids) == row.params.max_new_tokens else None)
        return ends
