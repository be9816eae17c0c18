"""Losses of domain texts under several models, and their differences over seeds and items."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from regrow.evaluate.items import Item

RESAMPLES = 2000

Losses = dict[str, dict[str, dict[str, float]]]
"""Domain -> item -> arm -> nats a token."""


def score(models: dict[str, Path], items: list[Item], out: Path, seed: int) -> None:
    """Score the base and these models; `regrow.evaluate` keeps what is scored."""
    from regrow.evaluate.config import EvalConfig
    from regrow.evaluate.stage import evaluate
    from regrow.models.load import resolve_model

    suites = list(dict.fromkeys(i.suite for i in items))
    cfg = EvalConfig(suites=suites, generate_samples=0, max_length=320, noise_floor=False)
    evaluate({"base": resolve_model("smollm2").path} | models, items, cfg, out, seed=seed)


def load(folder: Path) -> Losses:
    out: Losses = {}
    with (folder / "eval/records.jsonl").open(encoding="utf-8") as file:
        for record in map(json.loads, file):
            of_item = out.setdefault(record["domain"], {}).setdefault(record["item_id"], {})
            of_item[record["arm"]] = record["metrics"]["nll"]
    return out


def mean(seeds: list[Losses], domains: list[str], arm: str) -> float:
    """Over domains, each with the same weight."""
    return float(np.mean([[np.mean([v[arm] for v in s[d].values()]) for d in domains] for s in seeds]))


def difference(seeds: list[Losses], domains: list[str], arm: str, other: str) -> dict:
    """Mean of ``arm`` less ``other`` with a 95 % percentile interval: seeds are drawn, and within each seed items."""
    rng = np.random.default_rng(0)
    deltas = [[np.array([v[arm] - v[other] for v in s[d].values()]) for d in domains] for s in seeds]
    drawn = []
    for _ in range(RESAMPLES):
        picked = [deltas[i] for i in rng.integers(len(deltas), size=len(deltas))]
        drawn.append(np.mean([[d[rng.integers(len(d), size=len(d))].mean() for d in of] for of in picked]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    each = [float(np.mean([d.mean() for d in of])) for of in deltas]
    return {"value": float(np.mean(each)), "ci": [float(low), float(high)], "seeds": each}


def told(found: dict) -> str:
    low, high = found["ci"]
    return f"{found['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
