"""The mixture for the page: what was asked for, what came out, in tokens and in rows."""

from __future__ import annotations

from typing import Any

from regrow.arms import PLAIN
from regrow.report import charts, numbers
from regrow.report.load import RunData
from regrow.report.numbers import is_number

UNITS = {"tokens": "Tokens", "train_tokens": "Tokens trained on", "rows": "Rows"}


def mixture(run: RunData) -> list[dict[str, Any]]:
    """One block an arm, from ``mix/<arm>/mix.json``: the asked share of replay and what came out in each unit."""
    blocks = []
    for arm, facts in sorted(run.mixes.items(), key=lambda kv: (kv[0] != PLAIN, kv[0])):
        domain, replay = facts.get("domain") or {}, facts.get("replay") or {}
        bars = []
        for unit, title in UNITS.items():
            yours, grown = domain.get(unit, 0), replay.get(unit, 0)
            if not (is_number(yours) and is_number(grown)) or yours + grown <= 0:
                continue
            part = f"{grown / (yours + grown) * 100:.1f}\N{NO-BREAK SPACE}% replay"
            told = f"{numbers.integer(yours)} of your data, {numbers.integer(grown)} of replay"
            svg = charts.stacked([("your data", yours, "dom"), ("replay", grown, "rep")], title=f"{title}: {told}")
            bars.append({"title": title, "part": part, "told": told, "svg": svg})
        blocks.append({"arm": arm, "asked": _asked(facts), "bars": bars, "facts": _facts(facts)})
    return blocks


def _asked(facts: dict[str, Any]) -> str:
    asked = facts.get("asked") or {}
    ratio = asked.get("replay_ratio")
    if not is_number(ratio):
        return ""
    return f"{ratio * 100:.1f}\N{NO-BREAK SPACE}% of the {asked.get('unit', 'tokens')} asked to be replay"


def _facts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for source, title in (("domain", "Distinct rows of your data"), ("replay", "Distinct replay dialogues")):
        distinct = (facts.get(source) or {}).get("distinct")
        if distinct:
            out.append((title, numbers.integer(distinct)))
    if is_number(facts.get("epochs")):
        out.append(("Passes over your data", f"{facts['epochs']:g}"))
    if facts.get("tree_loss"):
        out.append(("Loss over a tree", str(facts["tree_loss"])))
    trees = facts.get("trees") or {}
    if trees.get("packed") and is_number(trees.get("unique_tokens")):
        out.append(("Replay tokens computed, packed as trees", numbers.integer(trees["unique_tokens"])))
    if facts.get("topk"):
        out.append(("Stored log-probabilities a position", numbers.integer(facts["topk"])))
    out += [(f"Left out: {reason}", numbers.integer(n)) for reason, n in (facts.get("dropped") or {}).items()]
    return out
