"""Metrics of continual learning over a sequence of trainings, from the matrix of every model on every task.

``R[i, j]`` is the score on task j after training on tasks 1..i, higher is better; row 0 is the untouched base, so the
matrix has T + 1 rows and T columns. All functions take leading axes (bootstrap draws) as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any

import numpy as np
import numpy.typing as npt

from regrow.errors import DataError
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import Record
from regrow.evaluate.stats import Floats, bootstrap_means, percentile_interval
from regrow.evaluate.tables import SuiteTable, tables

FORMAT = 1


def _matrix(scores: npt.ArrayLike) -> Floats:
    r = np.asarray(scores, dtype=np.float64)
    if r.ndim < 2 or r.shape[-2] != r.shape[-1] + 1:
        raise ValueError(f"expected T + 1 rows (the base first) and T columns, found {r.shape}")
    return r


def _tasks(r: Floats, least: int, what: str) -> int:
    if r.shape[-1] < least:
        raise ValueError(f"{what} needs {least} tasks or more")
    return int(r.shape[-1])


def average_accuracy(scores: npt.ArrayLike) -> Floats:
    """Mean of the last row (Lopez-Paz & Ranzato, NeurIPS 2017, eq. 2)."""
    out: Floats = _matrix(scores)[..., -1, :].mean(-1)
    return out


def backward_transfer(scores: npt.ArrayLike) -> Floats:
    """Mean over j < T of ``R[T, j] - R[j, j]`` (Lopez-Paz & Ranzato, NeurIPS 2017, eq. 3); negative is forgetting.

    Avalanche's StreamBWT; its StreamForgetting is the negative of it.
    """
    r = _matrix(scores)
    t = _tasks(r, 2, "backward transfer")
    j = np.arange(t - 1)
    out: Floats = (r[..., -1, j] - r[..., j + 1, j]).mean(-1)
    return out


def forward_transfer(scores: npt.ArrayLike) -> Floats:
    """Mean over j > 1 of ``R[j-1, j] - b[j]`` (Lopez-Paz & Ranzato, NeurIPS 2017, eq. 4): what earlier tasks did for
    one that was still to come. b is the untouched base here, a random initialisation there. Avalanche's forward
    transfer.
    """
    r = _matrix(scores)
    t = _tasks(r, 2, "forward transfer")
    j = np.arange(1, t)
    out: Floats = (r[..., j, j] - r[..., 0, j]).mean(-1)
    return out


def forgetting(scores: npt.ArrayLike, best: npt.ArrayLike | None = None) -> Floats:
    """Mean over j < T of ``max_{l < T} R[l, j] - R[T, j]`` over trained models l (Chaudhry et al., ECCV 2018, the
    forgetting measure); positive is bad, negative when a task ends better than it ever was.

    Args:
        scores: The matrix.
        best: ``(T-1,)`` rows l to compare with, in place of the maximum: a maximum of noisy draws is biased upwards,
            so intervals take the rows of the point estimate (`best_rows`).
    """
    r = _matrix(scores)
    t = _tasks(r, 2, "forgetting")
    rows = best_rows(r) if best is None else np.asarray(best)
    j = np.arange(t - 1)
    peak = (
        r[..., rows, j] if rows.ndim == 1 else np.take_along_axis(r[..., : t - 1], rows[..., None, :], -2)[..., 0, :]
    )
    out: Floats = (peak - r[..., -1, j]).mean(-1)
    return out


def best_rows(scores: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """``(..., T-1)``: the trained model before the last with the highest score on each task but the last."""
    r = _matrix(scores)
    t = _tasks(r, 2, "forgetting")
    found: npt.NDArray[np.int64] = r[..., 1:t, : t - 1].argmax(-2) + 1
    return found


def sequence_results(
    records: Sequence[Record],
    arms: Sequence[str],
    tasks: Sequence[str],
    cfg: EvalConfig,
    *,
    seed: int,
    higher: dict[str, dict[str, bool]] | None = None,
    judged_by: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Everything in ``continual.json``.

    Args:
        records: Every item under every model.
        arms: The base, then the models in the order of training.
        tasks: The suite of each training, in order. Other suites are shown in the matrix and enter no metric.
        cfg: Resamples and confidence. Items are resampled within each task; all models share the draws.
        seed: Of the resampling.
        higher, judged_by: See `regrow.evaluate.tables.tables`.

    Raises:
        DataError: Tasks and trainings do not match, a task has no items, or tasks are measured in different ways.
    """
    found = {t.name: t for t in tables(records, arms, higher, judged_by)}
    check_sequence(arms, tasks)
    _check(found, tasks)
    metric = found[tasks[0]].primary
    sign = 1.0 if found[tasks[0]].higher_is_better(metric) else -1.0
    r = sign * np.stack([found[t].metrics[metric].mean(axis=0) for t in tasks], axis=1)
    draws = sign * np.stack(
        [bootstrap_means(found[t].metrics[metric], cfg.bootstrap, seed + k) for k, t in enumerate(tasks)], axis=2
    )
    return {
        "format": FORMAT,
        "models": list(arms),
        "tasks": list(tasks),
        "metric": metric,
        "unit": found[tasks[0]].unit(metric),
        "higher_is_better": sign > 0,
        "matrix": {
            name: {
                "n": len(t.ids),
                "metric": t.primary,
                "unit": t.unit(t.primary),
                "task": name in tasks,
                "values": [float(v) for v in t.metrics[t.primary].mean(axis=0)],
            }
            for name, t in found.items()
        },
        "metrics": _metrics(r, draws, cfg.confidence),
        "flips": {name: _flips(t) for name, t in found.items() if t.binary(t.primary)},
        "confidence": cfg.confidence,
    }


def check_sequence(models: Sequence[str], tasks: Sequence[str]) -> None:
    """Whether there is one task for each training.

    Raises:
        DataError: There is not.
    """
    if not tasks or len(tasks) != len(models) - 1:
        raise DataError(
            f"{len(models) - 1} trained model(s) and {len(tasks)} task(s)",
            where="--task",
            hint="Name one task for each training, in the same order: regrow eval-sequence BASE FIRST SECOND "
            "--task file:first.jsonl --task file:second.jsonl",
        )
    if len(set(tasks)) != len(tasks):
        raise DataError("a task is named twice (a file's task is its name without folder)", where="--task")


def _check(found: dict[str, SuiteTable], tasks: Sequence[str]) -> None:
    for name in tasks:
        if name not in found:
            raise DataError(f"the task '{name}' has no items", where="--task")
    kinds = {(found[t].primary, found[t].unit(found[t].primary)) for t in tasks}
    if len(kinds) > 1:
        shown = ", ".join(f"{t} ({found[t].primary})" for t in tasks)
        raise DataError(f"tasks measured in different ways cannot be averaged: {shown}", where="--task")


def _metrics(r: Floats, draws: Floats, confidence: float) -> dict[str, Any]:
    """Each metric with its interval; scores of which lower is better come in negated."""
    measures: dict[str, Callable[[Floats], Floats]] = {"average_accuracy": average_accuracy}
    if r.shape[1] > 1:
        best = best_rows(r)
        measures["backward_transfer"] = backward_transfer
        measures["forgetting"] = lambda m: forgetting(m, best)
        measures["forward_transfer"] = forward_transfer
    out = {}
    for name, measure in measures.items():
        found = percentile_interval(float(measure(r)), measure(draws), confidence)
        out[name] = {"value": found.value + 0.0, "ci": [found.low + 0.0, found.high + 0.0]}
    return out


def _flips(t: SuiteTable) -> list[dict[str, int]]:
    """Per training: how many 0/1 items went which way from the model before; ``returned`` of those won had been right
    under an earlier model."""
    right = t.metrics[t.primary] > 0.5
    out = []
    for i in range(1, right.shape[1]):
        before, after, ever = right[:, i - 1], right[:, i], right[:, :i].any(axis=1)
        out.append(
            {
                "lost": int((before & ~after).sum()),
                "kept": int((before & after).sum()),
                "won": int((~before & after).sum()),
                "returned": int((~before & after & ever).sum()),
                "never": int((~ever & ~after).sum()),
            }
        )
    return out


_TITLES = {
    "average_accuracy": "average score on all tasks at the end",
    "backward_transfer": "backward transfer (negative: later tasks cost earlier ones)",
    "forgetting": "forgetting (below the best it had been)",
    "forward_transfer": "forward transfer (from earlier tasks to later ones)",
}


def sequence_text(results: dict[str, Any]) -> str:
    """The matrix and the metrics for a terminal."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("after training", box=SIMPLE, show_edge=False, pad_edge=False)
    columns = results["matrix"]
    for name, column in columns.items():
        unit = {"share": "%", "nats": "nats"}.get(column["unit"], column["metric"])
        table.add_column(Text(f"{name}\n{unit}, {column['n']} items{'' if column['task'] else ', no task'}"),
                         justify="right")  # fmt: skip
    for i, model in enumerate(results["models"]):
        cells = [_shown(c["values"][i], c["unit"]) for c in columns.values()]
        table.add_row(*(Text(x) for x in (model, *cells)))
    console = Console(file=StringIO(), width=160, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(table)
    lines = [line.rstrip() for line in console.file.getvalue().rstrip().splitlines()]  # type: ignore[attr-defined]
    unit = {"share": "%", "nats": "nats"}.get(results["unit"], "")
    sure = f"{results['confidence']:.0%} interval over items"
    for name, found in results["metrics"].items():
        value, low, high = (_shown(v, results["unit"]) for v in (found["value"], *found["ci"]))
        lines.append(f"{_TITLES[name]}: {value} {unit} [{low}, {high}]".replace(" []", ""))
    lines.append(f"({sure}{'' if results['higher_is_better'] else '; losses count negative, so that more is better'})")
    return "\n".join(lines)


def _shown(value: float, unit: str) -> str:
    return f"{100 * value:.1f}" if unit == "share" else f"{value:.3f}"
