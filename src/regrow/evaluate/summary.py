"""From records to ``results.json``: intervals, differences, gain, forgetting, recovery, what was lost.

The schema is ``docs/reference/results.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from regrow.arms import BASE, PLAIN
from regrow.evaluate.calibration import expected_calibration_error
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import Record
from regrow.evaluate.stats import (
    Floats,
    Interval,
    bootstrap_means,
    detectable_change,
    holm,
    mcnemar_midp,
    minimum_detectable_difference,
    percentile_interval,
    recovery_interval,
    sign_flip_p,
)
from regrow.evaluate.suites.facts.fact import SUITE as FACTS
from regrow.evaluate.suites.own import SUITE as OWN
from regrow.evaluate.tables import SuiteTable, tables

FACTS_POOL = "facts-pool"
SELECTED = (FACTS,)
"""Suites whose items were chosen because the base gets them right: a change in them can only be a loss."""


def summarise(
    records: Sequence[Record],
    arms: Sequence[str],
    cfg: EvalConfig,
    *,
    seed: int,
    noise: Sequence[Record] = (),
    pool: dict[str, Any] | None = None,
    higher: dict[str, dict[str, bool]] | None = None,
    judged_by: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Everything in ``results.json`` that follows from the records alone.

    Args:
        records: Every item under every arm; suites in the order they are to be shown.
        arms: Names, ``base`` first.
        cfg: Resamples, confidence, which suites are gain suites.
        seed: Of the resampling.
        noise: The base's records of a second pass in other batches; suites without them have no noise floor.
        pool: Facts about the candidate pool of suite ``facts``.
        higher, judged_by: See `tables`.
    """
    found = tables(records, arms, higher, judged_by)
    floors = {t.name: t for t in tables(noise, [BASE])}
    resamples = _resamples(cfg, len(found))
    draws = {t.name: bootstrap_means(t.metrics[t.primary], resamples, seed) for t in found}
    suites = {}
    for t in found:
        kind = "gain" if t.name in cfg.gain_suites else "retention"
        suites[t.name] = _suite(t, kind, floors.get(t.name), draws[t.name], cfg, seed)
        suites[t.name]["pool"] = pool if t.name == FACTS else None
    _decide(suites, arms[1:], 1 - cfg.confidence)
    for t in found:
        _add_recovery(t, suites[t.name], draws[t.name], cfg)
    gain = next((t.name for t in found if suites[t.name]["kind"] == "gain"), None)
    retention = [t for t in found if suites[t.name]["kind"] == "retention"]
    head = headline([t.name for t in retention])
    kept = [t for t in retention if t.name != FACTS_POOL and t.binary(t.primary)]
    return {
        "format": 1,
        "arms": list(arms),
        "suites": suites,
        "gain": _gain(gain, suites[gain]) if gain else {},
        "forgetting": _forgetting(head, suites[head], draws[head], cfg) if head else {},
        "remaining": _forgetting(FACTS, suites[FACTS], draws[FACTS], cfg)
        if any(t.name == FACTS for t in retention)
        else {},
        **_flips(kept, arms[1:]),
    }


def headline(suites: Sequence[str]) -> str | None:
    """The retention suite that verdicts are about: one without selection and in which a change can go either way
    (``facts-pool``, else the first of lm-eval or your own), else the base's own dialogues, else ``facts``."""
    free = [s for s in suites if s not in (FACTS, FACTS_POOL, OWN)]
    return next((s for s in (FACTS_POOL, *free, OWN, FACTS) if s in suites), None)


def _resamples(cfg: EvalConfig, suites: int) -> int:
    """As many as asked, and enough that a difference can stay significant after Holm: the smallest p-value of drawn
    signs is 1 / (resamples + 1)."""
    return max(cfg.bootstrap, math.ceil(4 * suites / (1 - cfg.confidence)))


def _decide(suites: dict[str, Any], arms: Sequence[str], level: float) -> None:
    """Correct the p-values of each arm for the number of suites and say what is significant."""
    for arm in arms:
        for against in ("vs_base", "vs_sft"):
            compared = [(s, d) for s in suites.values() if (d := s["differences"][arm][against])]
            for (suite, diff), p in zip(compared, holm([d["p"] for _, d in compared]), strict=True):
                low, high = diff["ci"]
                floor = abs(suite["noise_floor"]["diff"]) if suite["noise_floor"] else 0.0
                real = (low > 0 or high < 0) and p <= level and abs(diff["diff"]) > floor
                better = (diff["diff"] > 0) == suite["higher_is_better"]
                diff.update(p_holm=p, significant=real, better=better if real else None)


def _pair(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _suite(
    t: SuiteTable, kind: str, floor: SuiteTable | None, draws: Floats, cfg: EvalConfig, seed: int
) -> dict[str, Any]:
    metric = t.primary
    values = t.metrics[metric]
    secondary = {}
    for other, table in t.metrics.items():
        if other in (metric, "tokens"):
            continue
        rows = ~np.isnan(table).any(axis=1)
        if rows.any():
            secondary[other] = _arm_values(t.arms, table[rows], bootstrap_means(table[rows], cfg.bootstrap, seed), cfg)
    differences = {arm: _differences(t, arm, draws, cfg) for arm in t.arms[1:]}
    spread = [d["vs_base"]["mdd"] for d in differences.values()]
    names = list(dict.fromkeys(t.domains))
    of = np.array([names.index(d) for d in t.domains])
    return {
        "kind": kind,
        "selected": t.name in SELECTED,
        "n": len(t.ids),
        "metric": metric,
        "higher_is_better": t.higher_is_better(metric),
        "unit": t.unit(metric),
        "arms": _arm_values(t.arms, values, draws, cfg),
        "secondary": secondary,
        "differences": differences,
        "domains": {
            name: {
                "n": int((of == k).sum()),
                "arms": dict(zip(t.arms, map(float, values[of == k].mean(axis=0)), strict=True)),
            }
            for k, name in enumerate(names)
        },
        "flips": {arm: _changes(t, arm) for arm in t.arms[1:]} if t.binary(metric) else None,
        "calibration": _calibration(t),
        "noise_floor": _noise(t, floor),
        "planned": planned(len(t.ids), cfg) if t.binary(metric) else None,
        "mdd": max((s for s in spread if s is not None), default=None),
    }


def _arm_values(arms: Sequence[str], values: Floats, draws: Floats, cfg: EvalConfig) -> dict[str, Any]:
    out = {}
    for k, arm in enumerate(arms):
        interval = percentile_interval(float(values[:, k].mean()), draws[:, k], cfg.confidence)
        out[arm] = {"value": interval.value, "ci": _pair(interval)}
    return out


def _noise(t: SuiteTable, floor: SuiteTable | None) -> dict[str, Any] | None:
    """What other batches change in the base's results. KL of the base to itself is 0 by definition; for it the
    noise is the mean absolute change of the token loss, which is in the same unit."""
    metric = "nll" if t.primary == "kl" else t.primary
    if floor is None or metric not in floor.metrics:
        return None
    change = floor.column(BASE, metric) - t.column(BASE, metric)
    flips = int((change != 0).sum()) if t.binary(metric) else 0
    return {
        "n": len(t.ids),
        "mean_abs": float(np.abs(change).mean()),
        "max_abs": float(np.abs(change).max()),
        "flips": flips,
        "diff": float(np.abs(change).mean() if t.primary == "kl" else change.mean()),
    }


def planned(n: int, cfg: EvalConfig) -> dict[str, Any]:
    """What ``n`` 0/1 items can see, known before any is scored."""
    return {
        "difference": detectable_change(n, cfg.assumed_discordance, confidence=cfg.confidence),
        "discordance": cfg.assumed_discordance,
    }


def _calibration(t: SuiteTable) -> dict[str, float] | None:
    """Expected calibration error of each arm, over the items where the models choose."""
    if "confidence" not in t.metrics or not t.whole("acc"):
        return None
    rows = ~np.isnan(t.metrics["confidence"]).any(axis=1)
    if not rows.any():
        return None
    sure, right = t.metrics["confidence"][rows], t.metrics["acc"][rows]
    return {a: expected_calibration_error(sure[:, k], right[:, k]) for k, a in enumerate(t.arms)}


def _differences(t: SuiteTable, arm: str, draws: Floats, cfg: EvalConfig) -> dict[str, Any]:
    sft = PLAIN if PLAIN in t.arms and arm != PLAIN else None
    return {
        "vs_base": _difference(t, arm, t.arms[0], draws, cfg),
        "vs_sft": _difference(t, arm, sft, draws, cfg) if sft else None,
        "recovery": None,
    }


def _difference(t: SuiteTable, arm: str, other: str, draws: Floats, cfg: EvalConfig) -> dict[str, Any]:
    a, b = t.column(arm), t.column(other)
    drawn = draws[:, t.arms.index(arm)] - draws[:, t.arms.index(other)]
    interval = percentile_interval(float((a - b).mean()), drawn, cfg.confidence)
    p = mcnemar_midp(a, b) if t.binary(t.primary) else sign_flip_p(a - b, resamples=len(drawn))
    mdd = minimum_detectable_difference(a - b, confidence=cfg.confidence)
    return {"diff": interval.value, "ci": _pair(interval), "p": p, "mdd": mdd}


def _add_recovery(t: SuiteTable, suite: dict[str, Any], draws: Floats, cfg: EvalConfig) -> None:
    for arm, compared in suite["differences"].items():
        if compared["vs_sft"] is None:
            continue
        if suite["differences"][PLAIN]["vs_base"]["better"] is not False:
            why = "plain SFT lost no more than the noise on this suite, so there is nothing to win back"
            compared["recovery"] = {"value": None, "ci": None, "defined": False, "reason": why}
            continue
        columns = [t.arms.index(a) for a in (arm, PLAIN, t.arms[0])]
        three = (draws[:, columns[0]], draws[:, columns[1]], draws[:, columns[2]])
        found = recovery_interval(t.column(arm), t.column(PLAIN), t.column(t.arms[0]), cfg.confidence, three)
        compared["recovery"] = {"value": found.value, "ci": _pair(found), "defined": True, "reason": None}


def _oriented(diff: dict[str, Any], sign: float) -> tuple[float, list[float]]:
    return _plain(sign * diff["diff"]), sorted(_plain(sign * v) for v in diff["ci"])


def _plain(value: float) -> float:
    return value + 0.0  # -0.0 would be shown as a loss


def _gain(name: str, suite: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for arm, compared in suite["differences"].items():
        value, ci = _oriented(compared["vs_base"], 1.0 if suite["higher_is_better"] else -1.0)
        out[arm] = {"suite": name, "metric": suite["metric"], "value": value, "ci": ci,
                    "significant": compared["vs_base"]["significant"]}  # fmt: skip
    return out


def _forgetting(name: str, suite: dict[str, Any], draws: Floats, cfg: EvalConfig) -> dict[str, Any]:
    """Forgetting, retention and backward transfer (Lopez-Paz & Ranzato 2017) on one suite.

    Retention, a ratio, exists only for metrics that grow with quality and of which the base has some.
    """
    out = {}
    ratio_exists = suite["higher_is_better"] and suite["arms"][BASE]["value"] > 0 and bool((draws[:, 0] > 0).all())
    for k, (arm, compared) in enumerate(suite["differences"].items(), 1):
        value, ci = _oriented(compared["vs_base"], -1.0 if suite["higher_is_better"] else 1.0)
        retention = None
        if ratio_exists:
            share = suite["arms"][arm]["value"] / suite["arms"][BASE]["value"]
            retention = percentile_interval(share, draws[:, k] / draws[:, 0], cfg.confidence)
        out[arm] = {
            "suite": name,
            "metric": suite["metric"],
            "value": value,
            "ci": ci,
            "significant": compared["vs_base"]["significant"],
            "retention": retention.value if retention else None,
            "retention_ci": _pair(retention) if retention else None,
            "backward_transfer": _plain(-value),
        }
    return out


def _changes(t: SuiteTable, arm: str) -> dict[str, int]:
    """How many 0/1 items went which way from the base to an arm."""
    before, after = t.column(BASE) > 0.5, t.column(arm) > 0.5
    return {
        "lost": int((before & ~after).sum()),
        "kept": int((before & after).sum()),
        "won": int((~before & after).sum()),
        "never": int((~before & ~after).sum()),
    }


def _flips(found: Sequence[SuiteTable], arms: Sequence[str]) -> dict[str, Any]:
    flips: dict[str, dict[str, int]] = {}
    lost: dict[str, list[str]] = {}
    for arm in arms:
        counts = [_changes(t, arm) for t in found]
        flips[arm] = {what: sum(c[what] for c in counts) for what in ("lost", "kept", "won")}
        lost[arm] = [
            f"{t.name}:{name}"
            for t in found
            for name, before, after in zip(t.ids, t.column(BASE), t.column(arm), strict=True)
            if before and not after
        ]
    return {"flips": flips, "lost": lost}
