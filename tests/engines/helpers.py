"""Requests for the tiny model."""

from __future__ import annotations

import numpy as np

from regrow.engines.base import Request, SampleParams


def prompts(count, vocabulary, *, shared=20, seed=0):
    """Ragged prompts of ordinary tokens that begin alike."""
    rng = np.random.default_rng(seed)
    start = tuple(rng.integers(3, vocabulary, shared).tolist())
    return [start + tuple(rng.integers(3, vocabulary, int(rng.integers(1, 30))).tolist()) for _ in range(count)]


def requests(found, *, n=4, seed=1000, params=None):
    """One request a prompt."""
    params = params or SampleParams(12, stop_token_ids=(2, 5, 9))
    return [Request(f"t/{i}", p, n + i % 3, seed + i, params) for i, p in enumerate(found)]


def ids(answers):
    """Token ids of every completion, by request."""
    return {i: [c.token_ids for c in cs] for i, cs in dict(answers).items()}
