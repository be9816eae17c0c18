"""Key-value caches in few large blocks: of the decoding batch, which sequences leave and enter, and of a prefill.

Keys and values of all layers that have the same shape lie in one block,
``(stacked, rows, heads, columns, head size)``, so that moving a sequence is one copy and not two a layer. Keys already
carry their positions (rotary embedding), so the column itself means nothing, and what was computed in one cache can be
copied to any columns of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

Blocks = list[torch.Tensor]
"""Keys and values of a stretch of one sequence, ``(stacked, heads, tokens, head size)`` for each block."""


class Layout:
    """Which layer's keys and values lie where in the blocks.

    Args:
        like: A filled cache of the model.
    """

    def __init__(self, like: Cache) -> None:
        shapes: dict[tuple[int, int], int] = {}
        self.counts: list[int] = []
        self.places: list[tuple[tuple[int, int], tuple[int, int]]] = []
        """For each layer the ``(block, index)`` of its keys and of its values."""
        for layer in like.layers:
            pair = []
            for t in (layer.keys, layer.values):
                block = shapes.setdefault((t.shape[1], t.shape[3]), len(shapes))
                if block == len(self.counts):
                    self.counts.append(0)
                pair.append((block, self.counts[block]))
                self.counts[block] += 1
            self.places.append((pair[0], pair[1]))
        self.shapes = list(shapes)
        self.dtype, self.device = like.layers[0].keys.dtype, like.layers[0].keys.device
        numbers = sum(n * heads * size for n, (heads, size) in zip(self.counts, self.shapes, strict=True))
        self.bytes_per_token: int = numbers * self.dtype.itemsize

    def zeros(self, rows: int, columns: int) -> Blocks:
        """Empty blocks. Zeros, because a masked column still meets its weight of 0, and 0 times NaN is NaN."""
        return [
            torch.zeros((n, rows, heads, columns, size), dtype=self.dtype, device=self.device)
            for n, (heads, size) in zip(self.counts, self.shapes, strict=True)
        ]


@dataclass(slots=True)
class _Window:
    """What all layers share: rows in use, first column read, next column written."""

    rows: int
    low: int
    high: int


class _Layer(DynamicLayer):  # type: ignore[misc]
    def __init__(self, window: _Window, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.window, self.keys, self.values = window, keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        w = self.window
        end = w.high + key_states.shape[-2]
        self.keys[: w.rows, :, w.high : end] = key_states
        self.values[: w.rows, :, w.high : end] = value_states
        return self.keys[: w.rows, :, w.low : end], self.values[: w.rows, :, w.low : end]

    def get_seq_length(self) -> int:
        return self.window.high - self.window.low


class _BlockCache(Cache):  # type: ignore[misc]
    def __init__(self, layout: Layout, window: _Window, rows: int, columns: int) -> None:
        self.window, self.columns = window, columns
        self.blocks = layout.zeros(rows, columns)
        super().__init__(
            layers=[_Layer(window, self.blocks[kb][ki], self.blocks[vb][vi]) for (kb, ki), (vb, vi) in layout.places]
        )

    def copy(self, row: int, start: int, end: int) -> Blocks:
        """A copy of these columns of a row."""
        return [block[:, row, :, start:end].clone() for block in self.blocks]


class PrefillCache(_BlockCache):
    """The cache of a wave of prompts: what is known of each ends at column ``known``, and the rest is run from there.

    Args:
        layout: Of the model.
        prefixes: For each prompt the stretches of its beginning that are known, each with the tokens of it to take.
        width: Most tokens that are run for a prompt.
    """

    def __init__(self, layout: Layout, prefixes: Sequence[Sequence[tuple[Blocks, int]]], width: int) -> None:
        self.lengths = [sum(used for _, used in pieces) for pieces in prefixes]
        self.known = max(self.lengths)
        rows = len(prefixes)
        super().__init__(layout, _Window(rows, 0, self.known), rows, self.known + width)
        for row, pieces in enumerate(prefixes):
            at = self.known - self.lengths[row]
            for blocks, used in pieces:
                for mine, theirs in zip(self.blocks, blocks, strict=True):
                    mine[:, row, :, at : at + used] = theirs[:, :, :used]
                at += used

    def mask(self, width: int) -> torch.Tensor | None:
        """int64 ``(rows, known + width)``, 1 where a row has a token; None where all prompts know equally much."""
        if min(self.lengths) == self.known:
            return None
        columns = torch.arange(self.known + width)
        starts = torch.tensor([self.known - n for n in self.lengths])
        return (columns[None, :] >= starts[:, None]).long().to(self.blocks[0].device)


class BatchCache(_BlockCache):
    """The cache of at most ``rows`` sequences that decode together.

    All rows write the next token into the same column, so a prompt of length L enters right-aligned, in the L columns
    before it, whatever the others' lengths are. A row that leaves is overwritten by the last one. Columns left of
    every row's start are not read.

    Args:
        layout: Of the model.
        rows: Most sequences at once.
        longest_prompt: In tokens.
        width: Longest prompt plus completion, in tokens.
    """

    def __init__(self, layout: Layout, rows: int, longest_prompt: int, width: int) -> None:
        self.longest_prompt = longest_prompt
        super().__init__(layout, _Window(0, longest_prompt, longest_prompt), rows, self.columns_for(width))
        self.starts: list[int] = []

    @staticmethod
    def columns_for(width: int) -> int:
        """Columns of the buffer. A quarter more than a sequence needs: sliding everything to the left is then rare."""
        return width + width // 4 + 1

    def add(self, source: PrefillCache, row: int, length: int, copies: int) -> None:
        """Append ``copies`` sequences whose prompt is the one in ``source``'s row, ``length`` tokens long."""
        w = self.window
        new, start = slice(w.rows, w.rows + copies), w.high - length
        at = source.known - source.lengths[row]
        for mine, theirs in zip(self.blocks, source.blocks, strict=True):
            mine[:, new, :, start : w.high] = theirs[:, row : row + 1, :, at : at + length]
        w.rows += copies
        self.starts += [start] * copies
        w.low = min(self.starts)

    def remove(self, row: int) -> None:
        """Drop a sequence; the last one takes its place."""
        w = self.window
        last = w.rows - 1
        if row != last:
            columns = slice(self.starts[last], w.high)
            for block in self.blocks:
                block[:, row, :, columns] = block[:, last, :, columns]
            self.starts[row] = self.starts[last]
        self.starts.pop()
        w.rows = last

    def advance(self) -> None:
        """Count the column that the last forward pass wrote; slide left when the next would not fit."""
        w = self.window
        w.high += 1
        w.low = min(self.starts, default=w.high)
        if w.high < self.columns:
            return
        shift = min(w.low, w.high - self.longest_prompt)
        for block in self.blocks:
            for t in block:  # one layer at a time, so that the copy it takes stays small
                t[: w.rows, :, w.low - shift : w.high - shift] = t[: w.rows, :, w.low : w.high].clone()
        w.low, w.high = w.low - shift, w.high - shift
        self.starts = [s - shift for s in self.starts]

    def mask(self) -> torch.Tensor:
        """int64 ``(rows, columns read and the one about to be written)``; 1 where a row has a token."""
        w = self.window
        columns = torch.arange(w.low, w.high + 1)
        mask = (columns[None, :] >= torch.tensor(self.starts)[:, None]).long()
        return mask.to(self.blocks[0].device)
