"""Seeds as a random effect: against variance components, coverage, and runs that do not fit together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regrow.errors import RunError
from regrow.evaluate.saved import load_evaluation
from regrow.evaluate.seeds import over_seeds, two_way_means
from regrow.evaluate.stats import percentile_interval
from tests.evaluate.saved import ones, records, write_evaluation


def world(rng: np.random.Generator, seeds: int, items: int, between: float, within: float = 1.0) -> list[np.ndarray]:
    """Item values a seed: an effect of the seed, and noise."""
    return [rng.normal(0, between) + rng.normal(0, within, items) for _ in range(seeds)]


@pytest.mark.parametrize("crossed", [False, True])
def test_the_spread_is_that_of_the_variance_components(crossed: bool) -> None:
    """Var(mean) = s_seed^2 / K, of the means as observed: it holds the noise of the items already."""
    columns = world(np.random.default_rng(3), 6, 400, between=0.5)
    draws = two_way_means(columns, 20_000, 0, crossed=crossed)
    expected = np.var([c.mean() for c in columns], ddof=1) / 6
    within = np.mean([c.var() for c in columns]) / 400 / 6
    assert draws.var() == pytest.approx(expected + within, rel=0.12)
    assert draws.mean() == pytest.approx(np.mean(columns), abs=0.02)


def test_seeds_that_agree_leave_the_interval_over_items() -> None:
    column = np.random.default_rng(0).normal(0, 1, 300)
    draws = two_way_means([column, column, column], 5000, 0, crossed=True)
    assert draws.std() == pytest.approx(column.std() / np.sqrt(300), rel=0.05)


def test_the_interval_covers_where_one_over_items_does_not() -> None:
    rng = np.random.default_rng(1)
    both = items = 0
    for k in range(200):
        columns = world(rng, 8, 100, between=0.3)
        found = percentile_interval(0.0, two_way_means(columns, 600, k, crossed=False), 0.95)
        both += found.low <= 0 <= found.high
        pooled = np.concatenate(columns)
        items += abs(pooled.mean()) <= 1.96 * pooled.std() / np.sqrt(len(pooled))
    assert both / 200 >= 0.86, "percentile intervals of eight seeds fall a little short of 95 %"
    assert items / 200 < 0.7


def test_one_seed_has_no_spread() -> None:
    with pytest.raises(ValueError, match="two seeds"):
        two_way_means([np.ones(3)], 10, 0, crossed=True)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three seeds that lose 10, 20 and 30 of 200 items; other held-out rows under each."""
    out = []
    for seed in range(3):
        found = records("facts-pool", "acc", {"base": ones(200, 0), "regrow": ones(200, 10 * (seed + 1))})
        held = records("heldout", "nll", {"base": np.full(50, 2.0), "regrow": np.full(50, 1.0 + 0.1 * seed)})
        for r in held:
            r.item_id = f"{seed}/{r.item_id}"
        out.append(write_evaluation(tmp_path / f"s{seed}", found + held, ("base", "regrow"), seed=seed))
    return out


def test_differences_over_runs(runs: list[Path]) -> None:
    found = over_seeds([load_evaluation(r) for r in runs])
    pool = found["suites"]["facts-pool"]
    diff = pool["differences"]["regrow"]["vs_base"]
    assert found["seeds"] == [0, 1, 2] and pool["crossed"] and not found["suites"]["heldout"]["crossed"]
    assert diff["by_seed"] == pytest.approx([-0.05, -0.1, -0.15]) and diff["diff"] == pytest.approx(-0.1)
    wide, narrow = (np.ptp(diff[k]) for k in ("ci", "ci_items"))
    assert wide > 1.3 * narrow
    assert found["suites"]["heldout"]["differences"]["regrow"]["vs_base"]["diff"] == pytest.approx(-0.9)


def test_runs_that_do_not_fit_together_are_named(runs: list[Path], tmp_path: Path) -> None:
    one = records("facts-pool", "acc", {"base": ones(9, 0), "regrow": ones(9, 1)})
    same = write_evaluation(tmp_path / "same", one, ("base", "regrow"), seed=9)
    plain = records("news", "acc", {"base": ones(9, 0), "sft": ones(9, 1)})
    other = write_evaluation(tmp_path / "other", plain, ("base", "sft"), seed=8)
    load = load_evaluation
    with pytest.raises(RunError, match="has the seed 0, like"):
        over_seeds([load(runs[0]), load(runs[0])])
    with pytest.raises(RunError, match="other suites"):
        over_seeds([load(runs[0]), load(same)])
    with pytest.raises(RunError, match="other arms"):
        over_seeds([load(runs[0]), load(other)])
    with pytest.raises(RunError, match="one seed"):
        over_seeds([load(runs[0])])


def test_damaged_evaluations_are_named(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        load_evaluation(tmp_path / "none")
    with pytest.raises(RunError, match="no finished evaluation"):
        load_evaluation(tmp_path)
    (runs[0] / "eval/records.jsonl").write_text('{"item_id": 1}\n')
    with pytest.raises(RunError, match=r"records\.jsonl:1"):
        load_evaluation(runs[0]).records()
    (runs[1] / "eval/results.json").write_text("{")
    with pytest.raises(RunError, match=r"results\.json: cannot be read"):
        load_evaluation(runs[1])
    (runs[2] / "eval/results.json").write_text('{"arms": []}')
    with pytest.raises(RunError, match="not of this version"):
        load_evaluation(runs[2])
