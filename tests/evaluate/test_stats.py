"""Statistics against scipy, exact cases and coverage."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from regrow.evaluate.stats import (
    bootstrap_means,
    detectable_change,
    holm,
    mcnemar_midp,
    mean_interval,
    minimum_detectable_difference,
    paired_difference,
    percentile_interval,
    recovery_interval,
    sign_flip_p,
)


def test_interval_agrees_with_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=200)
    ours = mean_interval(values, resamples=20_000, seed=1)
    theirs = reference.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_resamples_follow_the_seed_and_are_shared_by_all_columns() -> None:
    table = np.random.default_rng(0).normal(size=(50, 3))
    together = bootstrap_means(table, 300, seed=5)
    assert np.allclose(together[:, 1], bootstrap_means(table[:, 1], 300, seed=5)[:, 0])
    assert np.array_equal(together, bootstrap_means(table, 300, seed=5))
    assert not np.array_equal(together, bootstrap_means(table, 300, seed=6))


def test_bootstrap_of_many_items_runs_in_slices() -> None:
    values = np.random.default_rng(0).normal(size=50_000)
    draws = bootstrap_means(values, 200, seed=0)[:, 0]
    assert draws.std() == pytest.approx(values.std() / np.sqrt(len(values)), rel=0.2)


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 5, 300)
    before, after = hard + rng.normal(0, 0.1, 300), hard + 0.2 + rng.normal(0, 0.1, 300)
    paired = paired_difference(after, before)
    assert paired.excludes_zero
    assert paired.high - paired.low < 0.06
    assert paired.low < 0.2 < paired.high + 0.02


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for k in range(300):
        found = mean_interval(rng.normal(1.0, 2.0, 80), resamples=600, seed=k)
        hits += found.low <= 1.0 <= found.high
    assert 0.90 <= hits / 300 <= 0.98


def test_constant_values_have_an_interval_without_width() -> None:
    found = mean_interval(np.full(37, 0.1), resamples=200)
    assert found.low == found.value == found.high


def test_no_items_is_an_error() -> None:
    with pytest.raises(ValueError, match="no items"):
        bootstrap_means(np.empty((0, 2)), 10, 0)


def scipy_midp(won: int, lost: int) -> float:
    """Fagerland, Lydersen and Laake (2013): the exact p-value less the probability of the observed split."""
    n, k = won + lost, min(won, lost)
    return min(1.0, 2 * reference.binom.cdf(k, n, 0.5) - reference.binom.pmf(k, n, 0.5)) if n else 1.0


def pairs(won: int, lost: int, both: int = 0, none: int = 0) -> tuple[list[float], list[float]]:
    """``after`` and ``before`` with so many items of each kind."""
    after = [1.0] * won + [0.0] * lost + [1.0] * both + [0.0] * none
    return after, [0.0] * won + [1.0] * lost + [1.0] * both + [0.0] * none


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20), st.integers(0, 20))
def test_mcnemar_is_the_mid_p_binomial_test_of_the_discordant_pairs(won: int, lost: int, both: int, none: int) -> None:
    found = mcnemar_midp(*pairs(won, lost, both, none))
    assert found == pytest.approx(scipy_midp(won, lost), rel=1e-9)
    assert found <= (reference.binomtest(won, won + lost).pvalue if won + lost else 1.0) + 1e-12, "never above exact"


def test_mcnemar_of_thousands_of_pairs_does_not_overflow() -> None:
    assert mcnemar_midp(*pairs(1600, 1500)) == pytest.approx(scipy_midp(1600, 1500), rel=1e-6)
    assert 0 <= mcnemar_midp(*pairs(0, 3000)) < 1e-300


def test_mcnemar_rejects_a_true_null_hypothesis_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    won = rng.binomial(40, 0.5, 4000)
    rejected = np.mean([mcnemar_midp(*pairs(int(w), 40 - int(w))) <= 0.05 for w in won])
    assert 0.03 < rejected < 0.055, "the exact test would reject in 2.6 % or less of such pairs"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni(p_values: list[float]) -> None:
    """Independent of the step-down form: p_i is the largest Bonferroni p-value of any set with i in it."""
    sets = [s for size in range(1, len(p_values) + 1) for s in combinations(range(len(p_values)), size)]
    for i, adjusted in enumerate(holm(p_values)):
        expected = max(len(s) * min(p_values[k] for k in s) for s in sets if i in s)
        assert adjusted == pytest.approx(min(1.0, expected))
        assert adjusted >= p_values[i]


def test_holm_on_a_worked_case() -> None:
    """By hand: 4 x .005, 3 x .011, 2 x .02, then monotone."""
    assert holm([0.02, 0.005, 0.04, 0.011]) == pytest.approx([0.04, 0.02, 0.04, 0.033])
    assert holm([]) == []


@pytest.mark.parametrize(("n", "discordance"), [(600, 0.15), (240, 0.1), (2000, 0.3)])
def test_the_difference_stated_before_scoring_is_found_with_the_power_it_names(n: int, discordance: float) -> None:
    size = detectable_change(n, discordance)
    assert size is not None
    rng = np.random.default_rng(0)
    lost = rng.multinomial(n, [(discordance + size) / 2, (discordance - size) / 2, 1 - discordance], 2000)
    power = np.mean([scipy_midp(int(won), int(gone)) <= 0.05 for gone, won, _ in lost])
    assert 0.76 < power < 0.84


def test_more_items_or_fewer_changes_see_smaller_differences() -> None:
    assert detectable_change(600, 0.15) == pytest.approx(0.0443, abs=5e-4), "2.80 sqrt(.15/600), less the d^2 term"
    sizes = [detectable_change(n, 0.15) for n in (100, 400, 1600)]
    assert sizes == sorted(sizes, reverse=True)
    assert detectable_change(600, 0.05) < detectable_change(600, 0.3)
    assert detectable_change(600, 0.001) == pytest.approx(2.8016**2 / 600, rel=0.02), "all in one direction"
    assert detectable_change(2, 0.15) is None


def test_sign_flips_agree_with_the_permutation_test_of_scipy() -> None:
    rng = np.random.default_rng(3)
    few = rng.normal(0.4, 1.0, 9)
    exact = reference.permutation_test((few,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(few) == pytest.approx(exact.pvalue, abs=1e-12)
    many = rng.normal(0.15, 1.0, 200)
    assert sign_flip_p(many, resamples=20_000) == pytest.approx(reference.ttest_1samp(many, 0).pvalue, abs=0.02)
    assert sign_flip_p(np.full(6, 0.3)) == 2 / 64, "six items cannot give less, however equal they are"
    assert sign_flip_p(np.zeros(500)) == 1.0
    assert sign_flip_p(np.full(999, 2.0), resamples=999) == pytest.approx(1 / 1000)
    with pytest.raises(ValueError, match="no items"):
        sign_flip_p([])


def test_minimum_detectable_difference_has_the_power_it_names() -> None:
    rng = np.random.default_rng(0)
    n, sd = 400, 0.5
    mdd = minimum_detectable_difference(rng.normal(0, sd, n))
    assert mdd == pytest.approx(2.8016 * sd / np.sqrt(n), rel=0.1)
    assert mdd is not None
    found = sum(reference.ttest_1samp(rng.normal(mdd, sd, n), 0).pvalue < 0.05 for _ in range(500))
    assert 0.7 < found / 500 < 0.9
    assert minimum_detectable_difference([1.0]) is None


def test_recovery_is_the_ratio_of_differences_with_a_paired_interval() -> None:
    rng = np.random.default_rng(0)
    base = np.ones(500)
    sft = (rng.random(500) > 0.4).astype(float)
    arm = np.maximum(sft, (rng.random(500) > 0.25).astype(float))
    draws = bootstrap_means(np.stack([arm, sft, base], axis=1), 2000, 0)
    found = recovery_interval(arm, sft, base, 0.95, (draws[:, 0], draws[:, 1], draws[:, 2]))
    assert found.value == pytest.approx((arm.mean() - sft.mean()) / (1 - sft.mean()))
    assert found.low < found.value < found.high < 1
    whole = recovery_interval(base, sft, base, 0.95, (draws[:, 2], draws[:, 1], draws[:, 2]))
    assert (whole.low, whole.value, whole.high) == (1, 1, 1)
    with pytest.raises(ValueError, match="undefined"):
        recovery_interval(arm, base, base, 0.95, (draws[:, 0], draws[:, 2], draws[:, 2]))


def test_percentile_interval_takes_the_level_it_is_given() -> None:
    draws = np.arange(1001.0)
    found = percentile_interval(500, draws, 0.8)
    assert (found.low, found.high) == pytest.approx((100, 900))
