"""Log-probabilities of given tokens from a forward pass, in batches that bound the memory of the logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from regrow.engines.base import Score, ScoreRow
from regrow.errors import EngineError

_MAX_TOKENS = 8192
"""Padded tokens in one forward pass."""
_WINDOW_ROWS = 512
"""Rows sorted by length together. Scores come out in order, so this many wait in memory at most."""
_LOGIT_COPIES = 4
"""float32 matrices as large as the logits that live at once while a chunk is reduced."""
_FLOOR = -1e4
"""Stands for a log-probability of minus infinity where it is multiplied with the probability 0."""


def score_rows(
    model: Any,
    rows: Sequence[ScoreRow],
    top_k: int,
    *,
    head: Any | None,
    context: int | None,
    vocabulary: int,
    memory: int,
) -> Iterator[Score]:
    """Score rows in order.

    Rows of a window are sorted by length and right-padded: a causal model never looks at what comes later, so padding
    changes a score by rounding at most. The vocabulary head runs on the scored positions only, in chunks.

    Args:
        model: A causal language model in evaluation mode.
        rows: Token rows.
        top_k: How many of the likeliest tokens to return a position; 0 for none.
        head: The output embedding when the logits are a plain product with it, else None: then rows go through the
            whole model in batches small enough for all their logits.
        context: Longest row, in tokens, or None.
        vocabulary: Number of logits a position.
        memory: Bytes for the logits.

    Raises:
        EngineError: A row is empty, has a start outside ``1 <= start <= len``, or is longer than the context;
            ``top_k`` exceeds the vocabulary.
    """
    for i, row in enumerate(rows):
        n = len(row.token_ids)
        if not 1 <= row.start <= n:
            raise EngineError(f"start {row.start} is outside 1..{n}", where=f"score row {i}")
        if context is not None and n > context:
            raise EngineError(f"{n} tokens exceed the context of {context}", where=f"score row {i}")
    if not 0 <= top_k <= vocabulary:
        raise EngineError(f"top_k={top_k} is outside 0..{vocabulary}")
    return _windows(model, rows, top_k, head, vocabulary, memory)


def _windows(
    model: Any, rows: Sequence[ScoreRow], top_k: int, head: Any | None, vocabulary: int, memory: int
) -> Iterator[Score]:
    chunk = max(1, memory // 4 // (_LOGIT_COPIES * 4 * vocabulary))
    budget = _MAX_TOKENS if head is not None else min(_MAX_TOKENS, chunk)
    for first in range(0, len(rows), _WINDOW_ROWS):
        window = rows[first : first + _WINDOW_ROWS]
        scores: dict[int, Score] = {}
        order = sorted(range(len(window)), key=lambda i: (-len(window[i].token_ids), i))
        while order:
            longest = len(window[order[0]].token_ids)
            take = max(1, budget // longest)
            batch, order = order[:take], order[take:]
            scores.update(zip(batch, _batch(model, [window[i] for i in batch], top_k, head, chunk), strict=True))
        for i in range(len(window)):
            yield scores.pop(i)


def _batch(model: Any, rows: list[ScoreRow], top_k: int, head: Any | None, chunk: int) -> list[Score]:
    device = model.device
    ids = np.zeros((len(rows), max(len(r.token_ids) for r in rows)), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row.token_ids)] = row.token_ids
    inputs = torch.from_numpy(ids).to(device)
    at_row = np.concatenate([np.full(len(r.token_ids) - r.start, i) for i, r in enumerate(rows)])
    at_column = np.concatenate([np.arange(r.start - 1, len(r.token_ids) - 1) for r in rows])
    targets = torch.from_numpy(ids[at_row, at_column + 1]).to(device)
    here = torch.from_numpy(at_row).to(device), torch.from_numpy(at_column).to(device)
    parts: list[tuple[torch.Tensor, ...]] = []
    with torch.inference_mode():
        if head is not None:
            states = model.get_decoder()(input_ids=inputs, use_cache=False).last_hidden_state[here]
        else:
            states = model(input_ids=inputs, use_cache=False).logits[here]
        for start in range(0, len(targets), chunk):
            part = states[start : start + chunk]
            logits = (head(part) if head is not None else part).float()
            parts.append(_reduce(logits, targets[start : start + chunk], top_k))
    sizes = [len(r.token_ids) - r.start for r in rows]
    if not parts:
        return [_score([x[:0] for x in _nothing(top_k)], top_k) for _ in rows]
    columns = [torch.cat(c).cpu() for c in zip(*parts, strict=True)]
    split = [torch.split(c, sizes) for c in columns]
    return [_score([s[i] for s in split], top_k) for i in range(len(rows))]


def _nothing(top_k: int) -> tuple[torch.Tensor, ...]:
    flat = torch.zeros(0), torch.zeros(0, dtype=torch.bool), torch.zeros(0), torch.zeros(0)
    return (*flat, torch.zeros(0, top_k, dtype=torch.int32), torch.zeros(0, top_k)) if top_k else flat


def _reduce(logits: torch.Tensor, targets: torch.Tensor, top_k: int) -> tuple[torch.Tensor, ...]:
    """Log-probability, greedy flag, entropy, spread and the likeliest tokens of ``(positions, vocabulary)`` logits."""
    logp = logits.log_softmax(-1)
    chosen = logp.gather(-1, targets[:, None]).squeeze(-1)
    p = logp.exp()
    entropy = torch.special.entr(p).sum(-1)
    # Centred first: E[x²] - E[x]² cancels where the distribution is flat. A masked token (-inf) has no weight.
    spread = (logp + entropy[:, None]).clamp_(min=_FLOOR).square_().mul_(p).sum(-1).sqrt()
    greedy = logits.argmax(-1) == targets
    if not top_k:
        return chosen, greedy, entropy, spread
    top, ids = logp.topk(top_k)
    return chosen, greedy, entropy, spread, ids.int(), top.half()


def _score(columns: list[torch.Tensor], top_k: int) -> Score:
    arrays = [c.numpy() for c in columns]
    if not top_k:
        return Score(arrays[0], arrays[1], arrays[2], logprob_std=arrays[3])
    return Score(arrays[0], arrays[1], arrays[2], arrays[4], arrays[5].astype(np.float16), arrays[3])
