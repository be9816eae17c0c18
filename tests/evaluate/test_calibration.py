"""Expected calibration error: exact cases, and against a plain loop over bins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.evaluate.calibration import expected_calibration_error


def test_the_fixture_is_a_quarter_exactly() -> None:
    """Guo et al. (2017), eq. 3, by hand: half the items at .75 and right half the time, half at .5 and right one time
    in four: .5 |.5 - .75| + .5 |.25 - .5| = .25."""
    sure = [0.75] * 4 + [0.5] * 4
    right = [1, 1, 0, 0, 1, 0, 0, 0]
    assert expected_calibration_error(sure, right) == 0.25


def test_over_and_underconfidence_in_different_bins_do_not_cancel() -> None:
    assert expected_calibration_error([0.75, 0.75, 0.25, 0.25], [1, 0, 1, 0]) == 0.25
    assert expected_calibration_error([0.75, 0.75, 0.25, 0.25], [1, 0, 1, 0], bins=1) == 0
    assert expected_calibration_error([1.0, 1.0], [1, 1]) == 0
    assert expected_calibration_error([0.0], [1]) == 1


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 15))
def test_it_is_the_weighted_gap_of_the_bins(items: list[tuple[float, bool]], bins: int) -> None:
    expected = 0.0
    for m in range(bins):
        inside = [(c, r) for c, r in items if m == min(bins - 1, max(0, int(np.ceil(c * bins)) - 1))]
        if inside:
            gap = np.mean([r for _, r in inside]) - np.mean([c for c, _ in inside])
            expected += len(inside) / len(items) * abs(gap)
    found = expected_calibration_error([c for c, _ in items], [float(r) for _, r in items], bins)
    assert found == pytest.approx(expected, abs=1e-12)


def test_what_is_no_confidence_is_an_error() -> None:
    for sure, right in (([], []), ([0.5], [1, 0]), ([1.2], [1]), ([float("nan")], [1])):
        with pytest.raises(ValueError):
            expected_calibration_error(sure, right)
