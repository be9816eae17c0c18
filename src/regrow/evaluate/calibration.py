"""Whether a model is right as often as it is sure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def expected_calibration_error(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 10) -> float:
    """Expected calibration error (Guo et al., ICML 2017, eq. 3): mean over bins of |accuracy - confidence|.

    Args:
        confidence: ``(n,)`` in 0..1, the probability the model gives to what it picked.
        correct: ``(n,)`` 0/1.
        bins: M bins of equal width, the m-th ``((m-1)/M, m/M]``; each counts by its share of the items.

    Raises:
        ValueError: No items, arrays of different lengths, or a confidence outside 0..1.
    """
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if sure.ndim != 1 or sure.shape != right.shape or not len(sure):
        raise ValueError(f"expected two vectors of one length, found {sure.shape} and {right.shape}")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError("a confidence lies outside 0..1")
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(place, right - sure, minlength=bins)
    return float(np.abs(gap).sum() / len(sure))
