"""How well a score tells members from others: AUC, balanced accuracy, true positives at few false ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def auc(members: npt.ArrayLike, others: npt.ArrayLike) -> float:
    """Probability that a random member scores above a random other, ties counted half (the area under the ROC curve,
    as the Mann-Whitney statistic)."""
    a, b = np.asarray(members, dtype=np.float64), np.sort(np.asarray(others, dtype=np.float64))
    below = np.searchsorted(b, a, side="left") + np.searchsorted(b, a, side="right")
    return float(below.sum() / (2 * len(a) * len(b)))


def best_accuracy(members: npt.ArrayLike, others: npt.ArrayLike) -> float:
    """The best balanced accuracy of any threshold: the largest (TPR + 1 - FPR) / 2. Chosen on the data it is measured
    on, so it flatters."""
    tpr, fpr = _curve(members, others)
    return float(((tpr + 1 - fpr) / 2).max())


def tpr_at(members: npt.ArrayLike, others: npt.ArrayLike, fpr: float) -> float:
    """The largest share of members above a threshold that at most ``fpr`` of the others exceed."""
    found, false = _curve(members, others)
    return float(found[false <= fpr + 1e-12].max())


def threshold(others: npt.ArrayLike, fpr: float) -> float:
    """The lowest of the others' scores that at most ``fpr`` of them exceed; what lies above it is flagged."""
    falling = np.sort(np.asarray(others, dtype=np.float64))[::-1]
    return float(falling[int(fpr * len(falling) + 1e-9)])


def _curve(members: npt.ArrayLike, others: npt.ArrayLike) -> tuple[Floats, Floats]:
    """True and false positive rate of every threshold "score above t"."""
    a, b = (np.sort(np.asarray(x, dtype=np.float64)) for x in (members, others))
    cuts = np.concatenate([[-np.inf], np.unique(np.concatenate([a, b]))])
    return (1 - np.searchsorted(a, cuts, side="right") / len(a), 1 - np.searchsorted(b, cuts, side="right") / len(b))


@dataclass(frozen=True, slots=True)
class Separation:
    """How a score separates members from others, with the AUC's percentile interval over resampled texts."""

    auc: float
    low: float
    high: float
    best_accuracy: float
    tpr: float


def separation(
    members: npt.ArrayLike, others: npt.ArrayLike, *, fpr: float, confidence: float, resamples: int, seed: int
) -> Separation:
    """All of the above; both groups are resampled for the interval."""
    a, b = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    rng = np.random.default_rng(seed)
    draws = [auc(rng.choice(a, len(a)), rng.choice(b, len(b))) for _ in range(resamples)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Separation(auc(a, b), float(low), float(high), best_accuracy(a, b), tpr_at(a, b, fpr))
