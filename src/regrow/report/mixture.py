"""The mixture for the page: what was asked for, what came out, in tokens and in rows."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from regrow.report import charts, numbers
from regrow.report.load import PLAIN, RunData
from regrow.report.numbers import is_number

_SHARES = {"replay_ratio", "replay_ratio_rows", "replay_ratio_tokens", "ratio", "share"}


def mixture(run: RunData) -> list[dict[str, Any]]:
    """One block an arm: bars of tokens and rows by source where ``mix.json`` has both, and all its other numbers."""
    blocks = []
    for arm, facts in sorted(run.mixes.items(), key=lambda kv: (kv[0] != PLAIN, kv[0])):
        flat = _flatten(facts)
        bars = []
        for unit in ("tokens", "rows"):
            domain, replay = _find(flat, "domain", unit), _find(flat, "replay", unit)
            if domain is not None and replay is not None and domain + replay > 0:
                told = (
                    f"{unit.capitalize()}: {numbers.integer(domain)} of your data, "
                    f"{numbers.integer(replay)} of replay "
                    f"({replay / (domain + replay) * 100:.1f}\N{NO-BREAK SPACE}% replay)"
                )
                bars.append({"told": told, "svg": _bar(domain, replay, told)})
        table = [(_words(k), _shown(k, v)) for k, v in flat.items()]
        blocks.append({"arm": arm, "bars": bars, "facts": table})
    return blocks


def _bar(domain: float, replay: float, told: str) -> Markup:
    return charts.stacked([("your data", domain, "dom"), ("replay", replay, "rep")], title=told)


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(inner, dict):
            out.update(_flatten(inner, name))
        elif isinstance(inner, str | int | float) and not isinstance(inner, bool):
            out[name] = inner
    return out


def _find(flat: dict[str, Any], source: str, unit: str) -> float | None:
    """The realised number of ``unit`` of one source, under either nesting (``domain.tokens``, ``tokens.domain``)."""
    for key, value in flat.items():
        parts = key.replace("_", ".").split(".")
        if is_number(value) and sorted(parts[-2:]) == sorted((source, unit)) and "asked" not in parts:
            return float(value)
    return None


def _words(key: str) -> str:
    return key.replace("_", " ").replace(".", " · ")


def _shown(key: str, value: Any) -> str:
    if not is_number(value):
        return str(value)
    if isinstance(value, float) and 0 <= value <= 1 and (_SHARES & set(key.split(".")) or "ratio" in key):
        return f"{value * 100:.1f} %"
    return numbers.integer(value) if float(value).is_integer() else f"{value:.4g}"
