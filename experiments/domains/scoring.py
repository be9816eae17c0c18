"""Losses of domain texts under several models, and their differences over seeds and items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from experiments.intervals import over_seeds

from regrow.evaluate.items import Item

Losses = dict[str, dict[str, dict[str, float]]]
"""Domain -> item -> arm -> nats a token."""


def score(models: dict[str, Path], items: list[Item], out: Path, seed: int) -> None:
    """Score the base and these models; `regrow.evaluate` keeps what is scored."""
    from regrow.evaluate.config import EvalConfig
    from regrow.evaluate.stage import evaluate
    from regrow.models.load import resolve_model

    cfg = EvalConfig(generate_samples=0, max_length=320, noise_floor=False)
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


def difference(seeds: list[Losses], domains: list[str], arm: str, other: str) -> dict[str, Any]:
    """``arm`` less ``other``, see `over_seeds`. An item is the k-th text of every domain, so that each domain counts
    as much in every resample."""
    deltas = [[[s[d][i][arm] - s[d][i][other] for i in sorted(seeds[0][d])] for d in domains] for s in seeds]
    return over_seeds(np.mean(deltas, axis=1))
