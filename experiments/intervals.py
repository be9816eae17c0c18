"""Differences over seeds and items, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000


def over_seeds(columns: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean with a 95 % percentile interval that resamples seeds and items.

    Args:
        columns: Of each seed, a paired difference for every item; the same items in all of them.
    """
    from regrow.evaluate.seeds import two_way_means
    from regrow.evaluate.stats import percentile_interval

    each = [np.asarray(c, dtype=np.float64) for c in columns]
    means = [float(c.mean()) for c in each]
    found = percentile_interval(float(np.mean(means)), two_way_means(each, RESAMPLES, 0, crossed=True), 0.95)
    return {"value": found.value, "ci": [found.low, found.high], "seeds": means}


def told(found: dict[str, Any], digits: int = 3) -> str:
    low, high = found["ci"]
    return f"{found['value']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
