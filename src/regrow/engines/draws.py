"""Random numbers that belong to a completion, and the choice of a token by one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from regrow.engines.base import SampleParams

_FIRST_LOOK = 1024
"""Tokens sorted at first for top-p alone; a row whose nucleus is larger is sorted in full."""


def uniforms(seed: int, index: int, count: int) -> npt.NDArray[np.float64]:
    """The first ``count`` uniforms in [0, 1) of completion ``index`` of a request.

    They come from a counter-based stream of their own (Philox-4x64 keyed with ``(seed, index)``, Salmon et al. 2011),
    so they do not depend on what else is sampled, when, or in what batch.

    Returns:
        float64 ``(count,)``.
    """
    key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def draw(logits: torch.Tensor, uniform: torch.Tensor, params: SampleParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token a row by inverting the cumulative filtered distribution at the row's uniform.

    Temperature first, then ``top_k``, then ``top_p`` on what is left and renormalised (the order of transformers and
    vLLM). ``top_p`` keeps the smallest set of likeliest tokens whose probability reaches it.

    Args:
        logits: float32 ``(rows, vocabulary)``, unfiltered, at temperature 1.
        uniform: float64 ``(rows,)`` in [0, 1); ignored when the temperature is 0.

    Returns:
        Token ids, int64 ``(rows,)``, and their log-probabilities at temperature 1 without filters, float32
        ``(rows,)``.
    """
    import torch

    if params.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        scaled = logits if params.temperature == 1 else logits / params.temperature
        k = min(params.top_k, logits.shape[-1]) if params.top_k else 0
        if k:
            values, ids = scaled.topk(k)
            tokens = _from_sorted(values, ids, uniform, params.top_p, values.logsumexp(-1, keepdim=True))
        elif params.top_p < 1:
            tokens = _nucleus(scaled, uniform, params.top_p)
        else:
            tokens = _invert(torch.exp(scaled - scaled.amax(-1, keepdim=True)), uniform)
    chosen = logits.gather(-1, tokens[:, None]).squeeze(-1)
    return tokens, chosen - logits.logsumexp(-1)


def _nucleus(scaled: torch.Tensor, uniform: torch.Tensor, top_p: float) -> torch.Tensor:
    import torch

    total = scaled.logsumexp(-1, keepdim=True)
    values, ids = scaled.topk(min(_FIRST_LOOK, scaled.shape[-1]))
    tokens = _from_sorted(values, ids, uniform, top_p, total)
    wide = torch.exp(values - total).sum(-1, dtype=torch.float64) < top_p
    if values.shape[-1] < scaled.shape[-1] and bool(wide.any()):
        values, ids = scaled[wide].sort(-1, descending=True)
        tokens[wide] = _from_sorted(values, ids, uniform[wide], top_p, total[wide])
    return tokens


def _from_sorted(
    values: torch.Tensor, ids: torch.Tensor, uniform: torch.Tensor, top_p: float, total: torch.Tensor
) -> torch.Tensor:
    """Draw from the likeliest tokens; ``values`` fall along the row, ``total`` is the log of their whole mass."""
    import torch

    weights = torch.exp(values - total)
    if top_p < 1:
        before = weights.cumsum(-1, dtype=torch.float64) - weights
        kept = before < top_p
        kept[:, 0] = True
        weights = weights * kept
    return ids.gather(-1, _invert(weights, uniform)[:, None]).squeeze(-1)


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first position whose cumulative weight exceeds ``uniform`` times the total; never one of weight 0."""
    import torch

    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = torch.minimum(uniform.to(cumulative)[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)
