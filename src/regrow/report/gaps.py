"""The stability gap for the page and the terminal: what each training lost on its way, and whether it came back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regrow.report import numbers
from regrow.report.load import RunData, arm_name
from regrow.report.numbers import is_number


def gaps(run: RunData) -> list[dict[str, str]]:
    """A row for each arm and domain of a training that had a monitor, deepest dip first within an arm."""
    rows = []
    for arm, training in run.trainings.items():
        found = training.get("gaps")
        if not isinstance(found, Mapping):
            continue
        for domain, gap in sorted(found.items(), key=lambda kv: -_number(kv[1], "dip")):
            dip = _number(gap, "dip")
            back = gap.get("recovered_step")
            rows.append(
                {
                    "arm": arm_name(arm),
                    "domain": str(domain),
                    "dip": f"{dip:.3f}",
                    "at": numbers.integer(gap.get("at_step")) if dip else "",
                    "back": "" if not dip else ("not by the end" if back is None else numbers.integer(back)),
                    "end": numbers.change(_number(gap, "end"), "nats"),
                }
            )
    return rows


def _number(gap: Mapping[str, Any], key: str) -> float:
    value = gap.get(key)
    return float(value) if is_number(value) else 0.0
