"""Evaluations on disk out of records made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import Record
from regrow.evaluate.ratios import Sweep, compare_ratios
from regrow.evaluate.summary import summarise
from regrow.evaluate.tables import tables
from regrow.evaluate.verdict import verdict
from regrow.rows.writers import write_json_lines

ARMS = ("base", "sft", "regrow")


def records(suite: str, metric: str, values: dict[str, np.ndarray]) -> list[Record]:
    """One record an item and arm, in the order the stage writes them."""
    n = len(next(iter(values.values())))
    return [Record(str(k), suite, f"d{k % 3}", a, {metric: float(v[k])}) for k in range(n) for a, v in values.items()]


def ones(n: int, wrong: int, start: int = 0) -> np.ndarray:
    """``n`` right answers, but for ``wrong`` of them from ``start`` on."""
    out = np.ones(n)
    out[start : start + wrong] = 0
    return out


def write_evaluation(
    folder: Path, found: list[Record], arms: Sequence[str] = ARMS, *, seed: int = 0, sweep: Sweep | None = None
) -> Path:
    """The ``eval`` folder of a run that ended with these records."""
    cfg = EvalConfig(bootstrap=2000)
    results = summarise(found, arms, cfg, seed=seed)
    if sweep is not None:
        results["sweep"] = compare_ratios(tables(found, arms), results, sweep, cfg, seed=seed)
    results["verdict"] = verdict(results, cfg.confidence)
    results["settings"] = {**cfg.model_dump(mode="json"), "seed": seed}
    results["versions"], results["models"] = {}, {a: {"path": a, "revision": f"{a}{seed}"} for a in arms}
    (folder / "eval").mkdir(parents=True)
    (folder / "eval/results.json").write_text(json.dumps(results, allow_nan=False))
    write_json_lines((asdict(r) for r in found), folder / "eval/records.jsonl")
    return folder
