"""Running prompts: each token once, on top of whatever is known of their beginnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from regrow.engines.base import EngineStats
from regrow.engines.kv import PrefillCache
from regrow.engines.network import Network
from regrow.engines.prefixes import Piece, PrefixStore, common_length

WAVE_TOKENS = 4096
"""Prompt tokens in one forward pass: enough to fill any arithmetic unit, little memory."""
SHARED = 16
"""What several prompts have in common is run on its own from this many tokens on."""


@dataclass(slots=True)
class Prefilled:
    """A prompt that has been run: its row in ``cache``, and the end of it in the store, if it was to be kept there."""

    cache: PrefillCache
    row: int
    length: int
    end: list[Piece] | None


class Prefill:
    """Runs waves of prompts and keeps what is asked for.

    Args:
        network: The model.
        store: Where beginnings are found and kept.
        stats: Counts the tokens that were run and those that were found.
    """

    def __init__(self, network: Network, store: PrefixStore, stats: EngineStats) -> None:
        self.network, self.store, self.stats = network, store, stats

    def fresh(self, prompt: Sequence[int]) -> int:
        """Tokens of ``prompt`` that would have to be run: at least the last one, for the logits after it."""
        return len(prompt) - min(_length(self.store.find(prompt)), len(prompt) - 1)

    def run(
        self, prompts: Sequence[tuple[int, ...]], owners: Sequence[str | None]
    ) -> tuple[torch.Tensor, list[Prefilled]]:
        """Run one wave.

        Args:
            prompts: Token ids.
            owners: For each prompt the key to keep it under; None does not keep it.

        Returns:
            float32 logits ``(prompts, vocabulary)`` after each prompt's last token, and where the prompts are.
        """
        while heads := self._heads(prompts):
            if not any(p.end for p in self._pass(heads, [""] * len(heads))[1]):
                break  # no room to keep them: each prompt is run by itself
        return self._pass(prompts, owners)

    def _heads(self, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Beginnings that several prompts share and the store lacks, the outermost ones; each leaves every prompt at
        least one token."""
        order = sorted(prompts)
        runs: list[tuple[tuple[int, ...], int]] = []
        last: tuple[int, ...] | None = None
        for a, b in pairwise(order):
            shared = min(common_length(a, b), len(a) - 1, len(b) - 1)
            known = min(_length(self.store.find(a)), _length(self.store.find(b)))
            if shared - known < SHARED:
                last = None
            elif last is a:
                runs[-1] = (runs[-1][0], min(runs[-1][1], shared))
                last = b
            else:
                runs.append((a, shared))
                last = b
        return [prompt[:length] for prompt, length in runs if self.fresh(prompt[:length]) > 1]

    def _pass(
        self, prompts: Sequence[tuple[int, ...]], owners: Sequence[str | None]
    ) -> tuple[torch.Tensor, list[Prefilled]]:
        found = [self.store.find(p) for p in prompts]
        known = [_trim(pieces, len(p) - 1) for pieces, p in zip(found, prompts, strict=True)]
        sizes = [len(p) - _length(pieces) for pieces, p in zip(known, prompts, strict=True)]
        together = [list(range(len(prompts)))]
        if not self.network.direct:  # the logits after the last column only: rows of one length
            together = [[i for i, n in enumerate(sizes) if n == size] for size in sorted(set(sizes))]
        logits: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
        done: list[Prefilled | None] = [None] * len(prompts)
        for places in together:
            some = [prompts[i] for i in places]
            rows, cache = self._forward(some, [known[i] for i in places], [sizes[i] for i in places])
            for row, i in enumerate(places):
                logits[i], done[i] = rows[row], Prefilled(cache, row, len(prompts[i]), None)
        for i, prefilled in enumerate(done):
            assert prefilled is not None
            self.stats.prefill_tokens += sizes[i]
            self.stats.reused_tokens += len(prompts[i]) - sizes[i]
            owner = owners[i]
            if owner is not None:
                prefilled.end = self._keep(prompts[i], found[i], prefilled, owner)
        return torch.stack(logits), [p for p in done if p is not None]

    def _keep(self, prompt: tuple[int, ...], found: list[Piece], p: Prefilled, owner: str) -> list[Piece] | None:
        at = _length(found)
        if at == len(prompt):
            return found
        start = p.cache.known - p.cache.lengths[p.row]
        end = self.store.add(found, prompt[at:], p.cache.copy(p.row, start + at, start + len(prompt)), owner)
        return None if end is None else [*found, end]

    def _forward(
        self, prompts: Sequence[tuple[int, ...]], known: Sequence[list[Piece]], sizes: Sequence[int]
    ) -> tuple[torch.Tensor, PrefillCache]:
        """Run the last ``sizes`` tokens of the prompts; right-padded, which a causal model cannot see."""
        width = max(sizes)
        pieces = [[(stretch.blocks, used) for stretch, used in mine] for mine in known]
        cache = PrefillCache(self.network.layout, pieces, width)
        ids = torch.zeros((len(prompts), width), dtype=torch.int64)
        positions = torch.zeros_like(ids)
        for i, (prompt, n) in enumerate(zip(prompts, sizes, strict=True)):
            ids[i, :n] = torch.tensor(prompt[-n:])
            # Padding keeps the last position: a learned table has no row past the context.
            positions[i] = torch.arange(len(prompt) - n, len(prompt) - n + width).clamp(max=len(prompt) - 1)
        last = torch.tensor(sizes) - 1
        return self.network.logits(ids, positions, cache, cache.mask(width), last), cache


def _length(pieces: Sequence[Piece]) -> int:
    return sum(used for _, used in pieces)


def _trim(pieces: list[Piece], most: int) -> list[Piece]:
    """The first ``most`` tokens of a prefix."""
    kept: list[Piece] = []
    for stretch, used in pieces:
        take = min(used, most)
        if take <= 0:
            break
        kept.append((stretch, take))
        most -= take
    return kept
