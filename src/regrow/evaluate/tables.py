"""Records of a suite as arrays: one row an item, one column an arm, so that arms are compared paired."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import Record
from regrow.evaluate.stats import Floats, bootstrap_means, percentile_interval, unseen_change
from regrow.evaluate.suites.own import SUITE as OWN

LOWER_IS_BETTER = ("nll", "kl")
SHARES = ("acc", "exact_match", "contains", "rouge_l", "followed", "followed_share", "answered", "refused")
NATS = ("nll", "kl", "margin")
PREFERRED = ("acc", "nll", "exact_match")


@dataclass(slots=True)
class SuiteTable:
    """A suite's results.

    Attributes:
        name: The suite.
        ids, domains: Of its n items, in their order.
        arms: Column names, base first.
        metrics: Metric -> ``(n, arms)``; NaN where an item has no such metric (only some are generated).
        higher: Metric -> whether higher is better, where the suite says so itself.
        judged_by: The metric that the suite says it is about, if it does.
    """

    name: str
    ids: list[str]
    domains: list[str]
    arms: list[str]
    metrics: dict[str, Floats]
    higher: dict[str, bool]
    judged_by: str | None = None

    def whole(self, metric: str) -> bool:
        """Whether every item has the metric under every arm."""
        return metric in self.metrics and not bool(np.isnan(self.metrics[metric]).any())

    @property
    def primary(self) -> str:
        """The metric that verdicts are about: the suite's own choice, else KL for the base's own dialogues, else
        accuracy, else token loss."""
        if self.judged_by is not None:
            return self.judged_by
        order = ("kl", *PREFERRED) if self.name == OWN else PREFERRED
        rest = sorted(m for m in self.metrics if m not in ("tokens", "margin", "confidence"))
        found: str = next(m for m in (*order, *rest) if self.whole(m))
        return found

    def higher_is_better(self, metric: str) -> bool:
        """The direction of a metric."""
        return self.higher.get(metric, metric not in LOWER_IS_BETTER)

    def unit(self, metric: str) -> str:
        """``share``, ``nats`` or ``score``."""
        if metric in NATS:
            return "nats"
        values = self.metrics[metric]
        known = metric in SHARES or metric.startswith(("acc", "exact_match"))
        return "share" if known and np.nanmin(values) >= 0 and np.nanmax(values) <= 1 else "score"

    def binary(self, metric: str) -> bool:
        """Whether all values are 0 or 1."""
        return bool(np.isin(self.metrics[metric], (0.0, 1.0)).all())

    def column(self, arm: str, metric: str | None = None) -> Floats:
        """One arm's values of a metric, the primary one by default."""
        return self.metrics[metric or self.primary][:, self.arms.index(arm)]


def tables(
    records: Sequence[Record],
    arms: Sequence[str],
    higher: dict[str, dict[str, bool]] | None = None,
    judged_by: dict[str, str] | None = None,
) -> list[SuiteTable]:
    """One table a suite, in the order of first appearance.

    Args:
        records: Every item once under every arm.
        arms: Names, base first.
        higher: Suite -> metric -> whether higher is better, for metrics that are not ours.
        judged_by: Suite -> its primary metric, where that is not by our order.

    Raises:
        ValueError: An item is missing under an arm, or is there twice.
    """
    grouped: dict[str, dict[str, dict[str, Record]]] = defaultdict(lambda: defaultdict(dict))
    for r in records:
        if r.arm in grouped[r.suite][r.item_id]:
            raise ValueError(f"two records of {r.suite}:{r.item_id} under {r.arm}")
        grouped[r.suite][r.item_id][r.arm] = r
    out = []
    for suite, items in grouped.items():
        for name, found in items.items():
            if set(found) != set(arms):
                raise ValueError(f"{suite}:{name} has records of {sorted(found)}, expected {sorted(arms)}")
        names = dict.fromkeys(m for found in items.values() for r in found.values() for m in r.metrics)
        metrics = {
            m: np.array(
                [[found[a].metrics.get(m, np.nan) for a in arms] for found in items.values()], dtype=np.float64
            )
            for m in names
        }
        domains = [found[arms[0]].domain for found in items.values()]
        directions, metric = (higher or {}).get(suite, {}), (judged_by or {}).get(suite)
        out.append(SuiteTable(suite, list(items), domains, list(arms), metrics, directions, metric))
    return out


def paired(t: SuiteTable, arm: str, other: str, sign: float, cfg: EvalConfig, seed: int) -> dict[str, Any]:
    """``sign`` times the mean difference of two arms over the same items, with its interval."""
    change = sign * (t.column(arm) - t.column(other))
    draws = bootstrap_means(change, cfg.bootstrap, seed)[:, 0]
    interval = percentile_interval(float(change.mean()), draws, cfg.confidence)
    low, high = interval.low + 0.0, interval.high + 0.0
    if low == high == 0 and t.unit(t.primary) == "share":
        high = unseen_change(len(change), cfg.confidence)
        low = -high
    return {"value": interval.value + 0.0, "ci": [low, high]}
