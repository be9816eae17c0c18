"""The key-value cache of a decoding batch that sequences leave and enter.

One buffer a layer, ``(rows, heads, columns, head size)``. All rows write the next token into the same column, so a
prompt of length L enters right-aligned, in the L columns before it, whatever the others' lengths are; keys already
carry their positions (rotary embedding), so the column itself means nothing. A row that leaves is overwritten by the
last one. Columns left of every row's start are not read.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class _Window:
    """What all layers share: rows in use, first column read, next column written."""

    def __init__(self, first: int) -> None:
        self.rows = 0
        self.low = first
        self.high = first


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


class BatchCache(Cache):  # type: ignore[misc]
    """A cache for at most ``rows`` sequences, each at most ``width`` tokens long.

    Args:
        like: The cache of a prefilled prompt, for the number of layers and their shapes.
        rows: Most sequences at once.
        longest_prompt: In tokens.
        width: Longest prompt plus completion, in tokens.
    """

    def __init__(self, like: Cache, rows: int, longest_prompt: int, width: int) -> None:
        self.window = _Window(longest_prompt)
        self.longest_prompt = longest_prompt
        # Half as much again: sliding everything to the left is then rare.
        self.columns = longest_prompt + width + width // 2

        def buffer(t: torch.Tensor) -> torch.Tensor:
            return t.new_zeros((rows, t.shape[1], self.columns, t.shape[3]))

        super().__init__(layers=[_Layer(self.window, buffer(x.keys), buffer(x.values)) for x in like.layers])
        self.starts: list[int] = []

    def add(self, source: Cache, row: int, length: int, copies: int) -> None:
        """Append ``copies`` sequences that have the first ``length`` tokens of ``source``'s row as their prompt."""
        w = self.window
        new = slice(w.rows, w.rows + copies)
        columns = slice(w.high - length, w.high)
        for mine, theirs in zip(self.layers, source.layers, strict=True):
            mine.keys[new, :, columns] = theirs.keys[row, :, :length]
            mine.values[new, :, columns] = theirs.values[row, :, :length]
        w.rows += copies
        self.starts += [columns.start] * copies
        w.low = min(self.starts)

    def remove(self, row: int) -> None:
        """Drop a sequence; the last one takes its place."""
        last = self.window.rows - 1
        if row != last:
            for layer in self.layers:
                layer.keys[row] = layer.keys[last]
                layer.values[row] = layer.values[last]
            self.starts[row] = self.starts[last]
        self.starts.pop()
        self.window.rows = last

    def advance(self) -> None:
        """Count the column that the last forward pass wrote; slide left when the next would not fit."""
        w = self.window
        w.high += 1
        w.low = min(self.starts, default=w.high)
        if w.high < self.columns:
            return
        shift = min(w.low, w.high - self.longest_prompt)
        for layer in self.layers:
            for t in (layer.keys, layer.values):
                t[: w.rows, :, w.low - shift : w.high - shift] = t[: w.rows, :, w.low : w.high].clone()
        w.low, w.high = w.low - shift, w.high - shift
        self.starts = [s - shift for s in self.starts]

    def mask(self) -> torch.Tensor:
        """int64 ``(rows, columns read and the one about to be written)``; 1 where a row has a token."""
        w = self.window
        columns = torch.arange(w.low, w.high + 1)
        mask = (columns[None, :] >= torch.tensor(self.starts)[:, None]).long()
        return mask.to(self.layers[0].keys.device)
