"""Several replay ratios side by side: the chart, the table and the ratio recommended."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from regrow.arms import PLAIN
from regrow.report import charts, numbers
from regrow.report.load import RunData, arm_name
from regrow.report.numbers import is_number

CHOSEN_STYLE, REPLAY_STYLE, PLAIN_STYLE, GENERAL_STYLE, REGROWN_STYLE = 4, 2, 1, 3, 5
HEADS = ("replay ratio", "realised", "tokens", "learned", "than plain SFT", "forgot", "more than", "")


def sweep(run: RunData) -> dict[str, Any] | None:
    """What a sweep found, for the page and the terminal; None for any other run.

    Returns:
        ``sentence``, ``notes``, ``units`` (of gain and forgetting), ``rows`` (one an arm, smallest ratio first) and
        the ``chart``, None where gain or forgetting was not measured.
    """
    found = (run.results or {}).get("sweep")
    if not isinstance(found, dict):
        return None
    arms = found.get("arms") or {}
    on = [(found.get("on") or {}).get(what) or {} for what in ("gain", "forgetting")]
    units = [str(o.get("unit") or "score") for o in on]
    return {
        "sentence": str(found.get("sentence") or "The sweep says nothing."),
        "notes": [str(n) for n in (*(found.get("notes") or []), *_beside_general(run.results or {}))],
        "units": [numbers.change_unit(u) for u in units],
        "suites": [str(o.get("suite") or "") for o in on],
        "rows": [_row(run, arm, facts, units, arm == found.get("arm")) for arm, facts in arms.items()],
        "chart": _chart(arms, found.get("arm"), units) if arms else None,
    }


def _beside_general(results: dict[str, Any]) -> list[str]:
    return [pair["sentence"] for pair in results.get("sources") or [] if isinstance(pair, dict)]


def text(run: RunData) -> list[str]:
    """The table of ratios and the recommendation, as lines for the terminal; none for any other run."""
    from io import StringIO

    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = sweep(run)
    if shown is None:
        return []
    table = Table(*HEADS, box=SIMPLE, show_edge=False, pad_edge=False)
    for row in shown["rows"]:
        gain, below, lost, above = (
            f"{row[key]['value']} {row[key]['ci']}" for key in ("gain", "below_plain", "forgetting", "above")
        )
        marks = ", ".join(m for m, there in (("recommended", row["chosen"]), ("front", row["front"])) if there)
        cells = (row["ratio"], row["realised"], row["tokens"], gain, below, lost, f"{above} {row['than']}", marks)
        table.add_row(*(Text(x) for x in cells))
    console = Console(file=StringIO(), width=160, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(table)
    lines = console.file.getvalue().rstrip().splitlines()  # type: ignore[attr-defined]
    units = f"learned in {shown['units'][0] or 'its score'}, forgotten in {shown['units'][1] or 'its score'}"
    body = [*(line.rstrip() for line in lines), "", f"{units}; intervals over items"] if shown["rows"] else []
    return [*body, shown["sentence"], *(f"- {n}" for n in shown["notes"])]


def _row(run: RunData, arm: str, facts: dict[str, Any], units: list[str], chosen: bool) -> dict[str, Any]:
    mix = run.mixes.get(arm) or {}
    counts = [(mix.get(part) or {}).get("tokens") for part in ("domain", "replay")]
    realised = (mix.get("realised") or {}).get("tokens")
    above = facts.get("above") or {}
    return {
        "ratio": _label(facts),
        "realised": numbers.level(realised, "share"),
        "tokens": numbers.integer(sum(n for n in counts if is_number(n)) if mix else None),
        "gain": _cell(facts.get("gain"), units[0]),
        "below_plain": _cell(_turned(facts.get("below_plain")), units[0]) if arm != PLAIN else _cell({}, units[0]),
        "forgetting": _cell(facts.get("forgetting"), units[1]),
        "above": _cell(above, units[1]),
        "than": arm_name(str(above.get("than") or "")),
        "front": bool(facts.get("front")),
        "chosen": chosen,
    }


def _label(facts: dict[str, Any]) -> str:
    """The replay ratio of an arm, and where its replay is from unless it is grown."""
    beside = {"general": " general data", "regrown": " regrown"}
    return _percent(facts.get("ratio")) + beside.get(str(facts.get("source")), "")


def _percent(ratio: Any) -> str:
    return f"{100 * ratio:g}\N{NO-BREAK SPACE}%" if is_number(ratio) else "–"


def _cell(effect: Any, unit: str) -> dict[str, str]:
    effect = effect if isinstance(effect, dict) else {}
    return {"value": numbers.change(effect.get("value"), unit), "ci": numbers.interval(effect.get("ci"), unit)}


def _turned(effect: Any) -> dict[str, Any]:
    """An effect with its sign turned round."""
    if not isinstance(effect, dict) or not is_number(effect.get("value")):
        return {}
    low, high = effect["ci"]
    return {"value": -effect["value"] + 0.0, "ci": [-high + 0.0, -low + 0.0]}


def _style(arm: str, facts: dict[str, Any], chosen: Any) -> int:
    if (beside := {"general": GENERAL_STYLE, "regrown": REGROWN_STYLE}.get(str(facts.get("source")))) is not None:
        return beside
    return CHOSEN_STYLE if arm == chosen else PLAIN_STYLE if arm == PLAIN else REPLAY_STYLE


def _chart(arms: dict[str, Any], chosen: Any, units: list[str]) -> Markup:
    """Learned (x) against kept (y), both against the base."""
    sx, sy = (numbers.scale_of(u) for u in units)
    points: list[charts.Point] = []
    front, told = [], []
    for arm, facts in arms.items():
        gain, kept = facts["gain"], _turned(facts["forgetting"])
        label = _label(facts)
        if facts.get("front"):
            front.append(len(points))
        points.append(
            charts.Point(
                f"{label} (recommended)" if arm == chosen else label,
                _style(arm, facts, chosen),
                gain["value"] * sx,
                kept["value"] * sy,
                (gain["ci"][0] * sx, gain["ci"][1] * sx),
                (kept["ci"][0] * sy, kept["ci"][1] * sy),
            )
        )
        told.append(f"{label}: {numbers.change(gain['value'], units[0])} learned, "
                    f"{numbers.change(kept['value'], units[1])} on what it knew")  # fmt: skip
    return charts.pareto(
        points,
        front,
        title="Learned against kept by replay ratio. " + "; ".join(told) + ".",
        x_label=f"Learned on your data ({numbers.change_unit(units[0]) or 'score'}) \u2192",
        y_label=f"\u2191 Kept of what it knew ({numbers.change_unit(units[1]) or 'score'})",
    )
