"""Several runs that differ in their seed: the seed as a random effect beside the items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from regrow.errors import RunError
from regrow.evaluate.saved import Saved
from regrow.evaluate.stats import Floats, bootstrap_means, percentile_interval


def two_way_means(columns: Sequence[Floats], resamples: int, seed: int, *, crossed: bool) -> Floats:
    """Bootstrap draws of a mean over seeds and items, both resampled.

    Seeds are drawn with replacement and items within them: the same items for all seeds where every seed has the same
    (crossed; the pigeonhole bootstrap of Owen, Annals of Applied Statistics 1(2), 2007), else each its own (nested).
    With few seeds K, drawing them understates their spread by (K - 1)/K, so the spread is scaled by the root of the
    inverse (Rao & Wu, JASA 83, 1988). What scaling cannot mend is that two or three seeds tell little about the tails.

    Args:
        columns: One vector of item values a seed, of one length where ``crossed``.
        resamples: Number of draws b.
        seed: Of the resampling.
        crossed: Whether the k-th value is of the same item under every seed.

    Returns:
        ``(b,)`` draws of the mean over seeds of the mean over items.

    Raises:
        ValueError: Fewer than two seeds, or no items.
    """
    k = len(columns)
    if k < 2:
        raise ValueError("a random effect of the seed needs two seeds or more")
    if crossed:
        means = bootstrap_means(np.stack(columns, axis=1), resamples, seed)
    else:
        each = [bootstrap_means(column, resamples, seed + 1 + i)[:, 0] for i, column in enumerate(columns)]
        means = np.stack(each, axis=1)
    picks = np.random.default_rng([seed, k]).integers(0, k, (resamples, k))
    drawn = np.take_along_axis(means, picks, axis=1).mean(axis=1)
    centre = means.mean(axis=1)
    scaled: Floats = centre + np.sqrt(k / (k - 1)) * (drawn - centre)
    return scaled


def over_seeds(runs: Sequence[Saved]) -> dict[str, Any]:
    """Differences from the base over several runs, with seeds and items as random effects.

    Args:
        runs: Finished evaluations of runs that differ in their seed: same arms, same suites with the same metrics.

    Returns:
        ``seeds``, ``arms`` and ``suites``: name -> ``kind``, ``selected``, ``metric``, ``unit``, ``higher_is_better``,
        ``n`` (items a seed), ``crossed`` and ``differences``: arm -> ``vs_base`` with ``diff``, ``ci`` (over seeds and
        items), ``ci_items`` (over items alone) and ``by_seed``.

    Raises:
        RunError: Fewer than two runs, or runs that do not fit together; names the run.
    """
    if len(runs) < 2:
        raise RunError("one run has one seed", where=str(runs[0].folder) if runs else None, hint="Give several runs.")
    first = runs[0]
    seeds: dict[Any, Saved] = {}
    for run in runs:
        number = run.results["settings"].get("seed")
        if number in seeds:
            raise RunError(f"has the seed {number}, like {seeds[number].folder}", where=str(run.folder),
                           hint="Runs over which the seed varies need different seeds.")  # fmt: skip
        seeds[number] = run
        if run.results["arms"] != first.results["arms"]:
            raise RunError(f"has other arms than {first.folder}", where=str(run.folder))
        if _shape(run) != _shape(first):
            raise RunError(f"has other suites or metrics than {first.folder}", where=str(run.folder))
    values = [_values(run) for run in runs]
    settings = first.results["settings"]
    suites = {}
    for name, suite in first.results["suites"].items():
        found = [v[name] for v in values]
        crossed = all(set(f) == set(found[0]) for f in found)
        differences = {}
        for arm in first.results["arms"][1:]:
            columns = [_column(f, found[0] if crossed else f, arm, suite["metric"]) for f in found]
            differences[arm] = {"vs_base": _difference(columns, settings, crossed)}
        suites[name] = {
            **{key: suite[key] for key in ("kind", "selected", "metric", "unit", "higher_is_better")},
            "n": min(len(f) for f in found),
            "crossed": crossed,
            "differences": differences,
        }
    return {"seeds": list(seeds), "arms": first.results["arms"], "suites": suites}


def _shape(run: Saved) -> dict[str, Any]:
    return {name: (s["metric"], s["kind"], s["unit"]) for name, s in run.results["suites"].items()}


def _values(run: Saved) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Suite -> item -> arm -> metrics."""
    out: dict[str, dict[str, dict[str, dict[str, float]]]] = defaultdict(lambda: defaultdict(dict))
    for r in run.records():
        out[r.suite][r.item_id][r.arm] = r.metrics
    if missing := set(run.results["suites"]) - set(out):
        raise RunError(f"eval/records.jsonl has no items of {sorted(missing)[0]}", where=str(run.folder))
    return out


def _column(found: dict[str, dict[str, dict[str, float]]], order: dict[str, Any], arm: str, metric: str) -> Floats:
    return np.array([found[i][arm][metric] - found[i]["base"][metric] for i in order], dtype=np.float64)


def _difference(columns: list[Floats], settings: dict[str, Any], crossed: bool) -> dict[str, Any]:
    level, resamples, seed = settings["confidence"], settings["bootstrap"], settings["seed"]
    by_seed = [float(c.mean()) for c in columns]
    value = float(np.mean(by_seed))
    both = percentile_interval(value, two_way_means(columns, resamples, seed, crossed=crossed), level)
    if crossed:
        items = bootstrap_means(np.stack(columns, axis=1).mean(axis=1), resamples, seed)[:, 0]
    else:
        items = np.mean([bootstrap_means(c, resamples, seed + 1 + i)[:, 0] for i, c in enumerate(columns)], axis=0)
    alone = percentile_interval(value, items, level)
    return {"diff": value, "ci": [both.low, both.high], "ci_items": [alone.low, alone.high], "by_seed": by_seed}
