"""The linear law: coefficients that were planted, R² against its definition, and what cannot be fitted."""

from __future__ import annotations

import numpy as np
import pytest

from regrow.probe.law import MIN_POINTS, LawPoint, linear_law

SHARES = [(0.0, 0.0), (0.2, 0.0), (0.5, 0.1), (0.6, 0.3), (0.7, 0.2), (0.7, 0.4), (0.3, 0.05)]


def points(noise: float = 0.0) -> list[LawPoint]:
    rng = np.random.default_rng(0)
    return [LawPoint(0.36 + 0.07 * k - 0.08 * u + noise * rng.normal(), k, u) for k, u in SHARES]


def test_planted_coefficients_come_back():
    found = linear_law(points())
    assert found.refused is None and found.points == 7
    assert (found.intercept, found.known, found.unknown) == pytest.approx((0.36, 0.07, -0.08))
    assert found.r2 == pytest.approx(1.0)


def test_with_noise_it_is_least_squares():
    given = points(0.01)
    found = linear_law(given)
    x = np.array([[1, p.known, p.unknown] for p in given])
    y = np.array([p.accuracy for p in given])
    normal = np.linalg.solve(x.T @ x, x.T @ y)
    assert (found.intercept, found.known, found.unknown) == pytest.approx(tuple(normal))
    assert found.r2 == pytest.approx(1 - np.var(y - x @ normal) / np.var(y)) and 0 < found.r2 < 1


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (points()[: MIN_POINTS - 1], "5 points are too few"),
        ([LawPoint(0.1 * i, 0.1 * i, 0.0) for i in range(8)], "fitted unknown facts is the same"),
        ([LawPoint(0.1 * i, 0.3, 0.1 * i) for i in range(8)], "fitted known facts is the same"),
        ([LawPoint(0.1 * i * i, 0.1 * i, 0.05 * i) for i in range(8)], "in step"),
        ([LawPoint(0.5, k, u) for k, u in SHARES], "accuracy is the same"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_the_reason(given, why):
    found = linear_law(given)
    assert found.refused is not None and why in found.refused
    assert (found.intercept, found.known, found.unknown, found.r2) == (None, None, None, None)
