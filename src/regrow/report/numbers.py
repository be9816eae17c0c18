"""Numbers as a reader wants them: points for shares, nats for losses, intervals always beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

MINUS = "−"
METRIC_NAMES = {
    "acc": "accuracy",
    "acc_norm": "accuracy (length-normalised)",
    "exact_match": "exact match",
    "rouge_l": "ROUGE-L",
    "contains": "contains the answer",
    "followed": "instructions followed",
    "answered": "harmless requests answered",
    "refused": "harmful requests refused",
    "nll": "loss",
    "kl": "KL from the base",
}


def is_number(value: Any) -> TypeGuard[float]:
    """An int or a float, not a bool and not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def metric_name(metric: str) -> str:
    """A metric's name in words."""
    return METRIC_NAMES.get(metric, metric)


def unit_of(suite: dict[str, Any]) -> str:
    """``share``, ``nats`` or ``score`` of a suite's primary metric."""
    unit = suite.get("unit")
    return str(unit) if unit else ("nats" if suite.get("metric") in ("nll", "kl") else "share")


def scale_of(unit: str) -> float:
    """Shares are shown in percent."""
    return 100.0 if unit == "share" else 1.0


def level(value: Any, unit: str) -> str:
    """A level: ``71.3 %``, ``2.41``; an en dash when there is none."""
    if not is_number(value):
        return "–"
    return (
        f"{_fixed(value * 100, 1)}\N{NO-BREAK SPACE}%"
        if unit == "share"
        else _fixed(value, 2 if abs(value) >= 0.1 else 3)
    )


def change(value: Any, unit: str) -> str:
    """A signed difference without its unit: ``+24.0`` (points), ``−0.31``."""
    if not is_number(value):
        return "–"
    text = _fixed(abs(value) * scale_of(unit), 1 if unit == "share" else (2 if abs(value) >= 0.1 else 3))
    zero = not text.strip("0.")
    return text if zero else f"{'+' if value > 0 else MINUS}{text}"


def change_unit(unit: str) -> str:
    """The unit of a difference, for the reader."""
    return {"share": "points", "nats": "nats/token"}.get(unit, "")


def interval(ci: Any, unit: str, *, signed: bool = True) -> str:
    """``[+0.2, +0.9]``; empty when there is no interval."""
    if not (isinstance(ci, Sequence) and len(ci) == 2 and all(is_number(x) for x in ci)):
        return ""
    show = change if signed else level
    return f"[{show(ci[0], unit)}, {show(ci[1], unit)}]"


def share(value: Any) -> str:
    """``83 %``."""
    return f"{_fixed(value * 100, 0)}\N{NO-BREAK SPACE}%" if is_number(value) else "–"


def integer(value: Any) -> str:
    """``12,345``."""
    return f"{round(value):,}" if is_number(value) else "–"


def seconds(value: Any) -> str:
    """``48 s``, ``12 min 5 s``, ``3 h 20 min``."""
    if not is_number(value):
        return "–"
    if value < 10:
        return f"{value:.1f} s"
    minutes, s = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {s} s" if minutes else f"{s} s"


def size(value: Any) -> str:
    """Bytes in decimal units: ``271 MB``."""
    if not is_number(value):
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit in ("B", "kB") or value >= 10 else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def _fixed(value: float, digits: int) -> str:
    text = f"{value:,.{digits}f}"
    return text.replace("-", MINUS) if text.strip("-0.,") else text.lstrip("-")
