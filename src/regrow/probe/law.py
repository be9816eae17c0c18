"""The linear law of fitted facts: accuracy rises with known facts that were learned, and falls with unknown ones.

Gekhman et al. (arXiv 2405.05904): over trainings and epochs,

    accuracy = b0 + b_known * N_known / |D| + b_unknown * N_unknown / |D|,

where N counts the trained facts that the model answers (fitted facts), by whether it knew them before: HighlyKnown,
MaybeKnown and WeaklyKnown are known. There |D| is the same for all points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MIN_POINTS = 6
"""Twice the coefficients, our choice: with three points R² is 1 whatever the points are."""
MAX_CORRELATION = 0.999
"""Of the two shares, in size; above it the coefficients are made of rounding. Our choice."""


@dataclass(frozen=True, slots=True)
class LawPoint:
    """A model on its way: ``accuracy`` and the shares of fitted facts, all between 0 and 1."""

    accuracy: float
    known: float
    unknown: float


@dataclass(frozen=True, slots=True)
class Law:
    """The fit, or why there is none.

    Attributes:
        points: How many models.
        refused: Why nothing was fitted; None when it was.
        intercept, known, unknown: The coefficients, as shares of 1.
        r2: Share of the variance explained; it has no p-value here, as the epochs of one training are no independent
            points.
    """

    points: int
    refused: str | None = None
    intercept: float | None = None
    known: float | None = None
    unknown: float | None = None
    r2: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON shape."""
        return asdict(self)


def linear_law(points: Sequence[LawPoint]) -> Law:
    """Least squares over the points; refused where they cannot carry three coefficients."""
    n = len(points)
    if n < MIN_POINTS:
        return Law(n, f"{n} points are too few for three coefficients; {MIN_POINTS} are needed (more epochs, or arms)")
    table = np.array([[1.0, p.known, p.unknown] for p in points])
    accuracy = np.array([p.accuracy for p in points])
    for column, name in ((1, "known"), (2, "unknown")):
        if np.ptp(table[:, column]) < 1e-9:
            return Law(n, f"the share of fitted {name} facts is the same in all points, so its effect cannot be told")
    if np.ptp(accuracy) < 1e-9:
        return Law(n, "the accuracy is the same in all points")
    if abs(float(np.corrcoef(table[:, 1], table[:, 2])[0, 1])) > MAX_CORRELATION:
        return Law(n, "fitted known and unknown facts grow in step, so their effects cannot be told apart")
    found = np.linalg.lstsq(table, accuracy, rcond=None)[0]
    left = accuracy - table @ found
    r2 = 1.0 - float(left @ left) / float(((accuracy - accuracy.mean()) ** 2).sum())
    return Law(n, None, float(found[0]), float(found[1]), float(found[2]), r2)
