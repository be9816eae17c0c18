"""Paired statistics over items: bootstrap intervals, McNemar's test, Holm, power, recovery.

All arms of a suite are resampled with the same draws, so differences and ratios between arms stay paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

POWER = 0.8
"""With which the smallest detectable difference is found."""
_CELLS = 4_000_000
"""Resample counts held at once (32 MB)."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its percentile interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def bootstrap_means(values: npt.ArrayLike, resamples: int, seed: int) -> Floats:
    """Means of resampled items.

    Args:
        values: ``(n, k)``: n items, k quantities measured on each (metrics, arms). A vector counts as ``(n, 1)``.
        resamples: Number of resamples b.
        seed: Same seed and n, same resamples, whatever k is.

    Returns:
        ``(b, k)``. Each row is the mean over one resample of n items with replacement; all columns use the same one.

    Raises:
        ValueError: No items.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim == 1:
        table = table[:, None]
    n = len(table)
    if n == 0:
        raise ValueError("no items to resample")
    rng = np.random.default_rng(seed)
    out = np.empty((resamples, table.shape[1]))
    step = max(1, _CELLS // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        picks = rng.integers(0, n, (rows, n))
        picks += np.arange(rows)[:, None] * n
        counts = np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n)
        out[start : start + rows] = counts.astype(np.float64) @ table / n
    return out


def percentile_interval(value: float, draws: npt.ArrayLike, confidence: float) -> Interval:
    """The percentile interval (Efron & Tibshirani 1993, ch. 13) of bootstrap ``draws`` around an estimate."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(draws, dtype=np.float64), [tail, 1 - tail])
    # A constant column comes out of the matrix product with rounding; an interval must not exclude its estimate by it.
    eps = 1e-12 * max(1.0, abs(value))
    low, high = float(low), float(high)
    return Interval(float(value), value if abs(low - value) < eps else low, value if abs(high - value) < eps else high)


def mean_interval(
    values: npt.ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """The mean of items and its bootstrap interval."""
    table = np.asarray(values, dtype=np.float64)
    return percentile_interval(float(table.mean()), bootstrap_means(table, resamples, seed)[:, 0], confidence)


def paired_difference(
    after: npt.ArrayLike, before: npt.ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of ``after - before`` item by item, with its bootstrap interval over items."""
    diff = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return mean_interval(diff, confidence=confidence, resamples=resamples, seed=seed)


def mean_stderr(values: Sequence[float]) -> float:
    """Standard error of a mean: sample standard deviation over the root of n.

    Raises:
        ValueError: Fewer than two values.
    """
    if len(values) < 2:
        raise ValueError("one value has no spread")
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def sign_flip_p(differences: npt.ArrayLike, *, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of paired differences by Fisher's randomisation test (The Design of Experiments, 1935, §21).

    If nothing changed, each item's difference is as likely to have the other sign. All ``2^n`` signs are tried where
    there are no more than ``resamples``, else that many are drawn and the observed ones counted among them. Unlike a
    p-value out of bootstrap draws it does not come out too small for few items: six can give no less than 2/64.

    Args:
        differences: ``(n,)``, one an item.
        resamples: Number of sign vectors.
        seed: Of those that are drawn.

    Raises:
        ValueError: No items.
    """
    diff = np.asarray(differences, dtype=np.float64)
    n = len(diff)
    if n == 0:
        raise ValueError("no items to compare")
    observed = abs(diff.sum()) * (1 - 1e-12)  # rounding must not make a mirror image smaller than the original
    if 2**n <= resamples:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ diff) >= observed).mean())
    rng = np.random.default_rng(seed)
    as_far, step = 1, max(1, _CELLS // n)
    for start in range(0, resamples, step):
        signs = 1 - 2 * rng.integers(0, 2, (min(step, resamples - start), n), dtype=np.int8)
        as_far += int((np.abs(signs @ diff) >= observed).sum())
    return as_far / (resamples + 1)


def mcnemar_midp(after: npt.ArrayLike, before: npt.ArrayLike) -> float:
    """Two-sided mid-p value of McNemar's test (Psychometrika 12, 1947) on paired 0/1 results.

    Only items on which the two differ count; under the null hypothesis each goes either way with probability 1/2. The
    mid-p version takes half the probability of the observed split (Fagerland, Lydersen and Laake, BMC Medical Research
    Methodology 13:91, 2013, who recommend it): the exact test rejects too rarely, and a test that finds losses too
    rarely errs on the wrong side here.
    """
    a, b = np.asarray(after) > 0.5, np.asarray(before) > 0.5
    won, lost = int((a & ~b).sum()), int((~a & b).sum())
    n, least = won + lost, min(won, lost)
    if won == lost:
        return 1.0
    ways = 2 * sum(math.comb(n, k) for k in range(least)) + math.comb(n, least)
    return ways / 2**n if n < 1000 else math.exp(math.log(ways) - n * math.log(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are (Holm, Scandinavian Journal of Statistics 6, 1979), in their order.

    Rejecting those at or below a level keeps the chance of any false rejection at that level, however the tests depend
    on one another.
    """
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    out = [1.0] * len(p_values)
    worst = 0.0
    for rank, k in enumerate(order):
        worst = max(worst, (len(p_values) - rank) * p_values[k])
        out[k] = min(1.0, worst)
    return out


def unseen_change(n: int, confidence: float) -> float:
    """The largest share of changes that ``n`` items without any allow.

    Where no item changed, resampling finds nothing but that; yet a share p of changes goes unseen with probability
    ``(1 - p)^n``, which is ``(1 - confidence) / 2`` at about 3.7 / n for 95 % (the exact binomial bound).
    """
    return float(1 - ((1 - confidence) / 2) ** (1 / n))


def detectable_change(n: int, discordance: float, *, confidence: float = 0.95, power: float = POWER) -> float | None:
    """The smallest difference of two accuracies on the same ``n`` items that McNemar's test finds, known beforehand.

    Solves Connor's sample size for paired proportions (Biometrics 43, 1987) for the difference d, with z_a two-sided:
    ``n d^2 = (z_a sqrt(c) + z_b sqrt(c - d^2))^2``.

    Args:
        n: Items.
        discordance: c, the assumed share of items whose result changes in either direction. No difference is larger
            than that, so where the assumption is too small for any to be found, c = d is taken.
        confidence: 1 - level of the test.
        power: With which the difference is found.

    Returns:
        A share (0..1), or None when not even the loss of every item would be found.
    """
    normal = NormalDist()
    za, zb = normal.inv_cdf((1 + confidence) / 2), normal.inv_cdf(power)

    def found(d: float) -> bool:
        c = max(discordance, d)
        return math.sqrt(n) * d >= za * math.sqrt(c) + zb * math.sqrt(max(0.0, c - d * d))

    if n < 1 or not found(1.0):
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def minimum_detectable_difference(
    differences: npt.ArrayLike, *, confidence: float = 0.95, power: float = POWER
) -> float | None:
    """The smallest mean difference that this many items find with the given power, from the spread of the differences.

    ``(z_{(1+confidence)/2} + z_power) * sd / sqrt(n)``, the normal approximation. None for fewer than two items.
    """
    diff = np.asarray(differences, dtype=np.float64)
    if len(diff) < 2:
        return None
    normal = NormalDist()
    z = normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(power)
    return float(z * diff.std(ddof=1) / math.sqrt(len(diff)))


def recovery_interval(arm: npt.ArrayLike, sft: npt.ArrayLike, base: npt.ArrayLike, confidence: float,
                      draws: tuple[Floats, Floats, Floats]) -> Interval:  # fmt: skip
    """Share of plain SFT's loss that an arm does not have: (arm - sft) / (base - sft).

    Args:
        arm, sft, base: ``(n,)`` values of the same items. Only meaningful when base and sft differ significantly.
        confidence: Level of the interval.
        draws: Bootstrap means of the three, from the same resamples. Numerator and denominator vary together.

    Raises:
        ValueError: Plain SFT has the base's mean; the ratio does not exist.
    """
    a, s, b = (float(np.mean(np.asarray(x, dtype=np.float64))) for x in (arm, sft, base))
    if b == s:
        raise ValueError("base and plain SFT have the same mean; recovery is undefined")
    top, bottom = draws[0] - draws[1], draws[2] - draws[1]
    ratio = top[bottom != 0] / bottom[bottom != 0]
    return percentile_interval((a - s) / (b - s), ratio, confidence)
