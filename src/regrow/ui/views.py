"""What the page shows of a run, as JSON: the report's own numbers and words, in pieces that a browser asks for."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regrow.arms import BASE
from regrow.grow.browse import Tree, open_tree
from regrow.report import charts, sections
from regrow.report.compare import RunLine, diff_runs
from regrow.report.items_view import OUTCOME_HELP, OUTCOMES, ItemsView, ItemView
from regrow.report.load import RunData, arm_name
from regrow.report.mixture import UNITS
from regrow.report.numbers import is_number
from regrow.runs import LAST_STAGES, Owner, owner, read_manifest

INTERRUPTED, RUNNING, STOPPED, DONE, EMPTY = "interrupted", "running", "stopped", "done", "empty"
PAGE = 50
MAX_PAGE = 200
LOG_CHARS = 12_000


def run_line(line: RunLine) -> dict[str, str]:
    """A run in the list."""
    return {k: str(v) for k, v in asdict(line).items() if k != "path"}


def state(path: Path) -> dict[str, Any]:
    """How far a run is: ``state``, the process at work, and its stages in the order they ran.

    ``interrupted`` is a run whose process was killed in a stage; ``stopped`` one that ended with an error or Ctrl-C,
    which then stands in the stage.
    """
    at_work = owner(path)
    manifest = read_manifest(path)
    stages = [
        {
            "name": name,
            "status": s["status"] if s["status"] == "done" or at_work else (STOPPED if "error" in s else INTERRUPTED),
            "seconds": s.get("seconds"),
            "started": s.get("started"),
            "error": s.get("error"),
            "facts": _small(s.get("facts") or {}),
        }
        for name, s in manifest["stages"].items()
    ]
    return {
        "state": _state(at_work, stages),
        "owner": None if at_work is None else {**asdict(at_work), "here": at_work.here},
        "stages": stages,
        "created": str(manifest.get("created", "")),
        "model": str((manifest.get("model") or {}).get("name", "")),
    }


def _state(at_work: Owner | None, stages: Sequence[dict[str, Any]]) -> str:
    if at_work is not None:
        return RUNNING
    open_ = [s["status"] for s in stages if s["status"] != "done"]
    if open_:
        return INTERRUPTED if INTERRUPTED in open_ else STOPPED
    return DONE if any(s["name"] in LAST_STAGES for s in stages) else (STOPPED if stages else EMPTY)


def _small(facts: dict[str, Any]) -> dict[str, Any]:
    """Numbers and short texts of a stage's facts; paths and tables are for the manifest."""
    return {k: v for k, v in facts.items() if is_number(v) or (isinstance(v, str) and len(v) < 80 and "/" not in v)}


def detail(run: RunData) -> dict[str, Any]:
    """Everything of a run but its items, tree and logs."""
    style = sections.styles(run)
    headline, suites = sections.headline(run), sections.suite_rows(run)
    for row in (*headline, *(arm for suite in suites for arm in suite["arms"])):
        row["name"] = arm_name(row["arm"])
    return {
        "arms": [{"arm": a, "name": arm_name(a), "style": style[a] % len(charts.SHAPES)} for a in style],
        "main": run.main_arm,
        "verdict": sections.verdict(run),
        "headline": headline,
        "suites": suites,
        "confidence": sections.confidence(run),
        "mixes": [_mix(arm, facts) for arm, facts in run.mixes.items()],
        "cost": sections.cost(run),
        "environment": sections.environment(run),
        "recipe": run.recipe,
        "notes": run.notes,
    }


def _mix(arm: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Domain and replay in each unit that was counted, and the share of replay asked for."""
    yours, grown = facts.get("domain") or {}, facts.get("replay") or {}
    rows = [
        {"unit": title, "domain": yours.get(unit, 0), "replay": grown.get(unit, 0)}
        for unit, title in UNITS.items()
        if is_number(yours.get(unit, 0)) and is_number(grown.get(unit, 0)) and yours.get(unit, 0) + grown.get(unit, 0)
    ]
    return {"arm": arm, "name": arm_name(arm), "asked": facts.get("asked") or {}, "rows": rows}


def items_page(
    view: ItemsView, *, arm: str, outcome: str, domain: str, suite: str, words: str, offset: int, limit: int
) -> dict[str, Any]:
    """The items that fit the choice, a page of them, and how many there are of each outcome.

    Args:
        view: All items.
        arm: Whose outcome is asked for.
        outcome: A key of `OUTCOMES`; empty for all. ``kept`` includes those saved by replay.
        domain, suite: Empty for all.
        words: Each must occur in the item's text, id, domain or an answer; case does not matter.
        offset, limit: Which of them.
    """
    needles = words.lower().split()
    fit = [
        i
        for i in view.items
        if (not domain or i.domain == domain) and (not suite or i.suite == suite) and _says(i, needles)
    ]
    counts = Counter(i.outcome.get(arm, "") for i in fit)
    counts["kept"] += counts["saved"]
    chosen = [i for i in fit if not outcome or _is(i.outcome.get(arm), outcome)]
    return {
        "arms": [{"arm": a, "name": arm_name(a)} for a in view.arms if a != BASE],
        "outcomes": [{"key": k, "name": v, "help": OUTCOME_HELP[k], "n": counts[k]} for k, v in OUTCOMES.items()],
        "domains": sorted({i.domain for i in view.items if i.domain}),
        "suites": sorted({i.suite for i in view.items}),
        "all": len(fit),
        "total": len(chosen),
        "items": [_item(i, arm) for i in chosen[offset : offset + limit]],
    }


def _is(found: str | None, wanted: str) -> bool:
    return found == wanted or (wanted == "kept" and found == "saved")


def _says(item: ItemView, needles: Sequence[str]) -> bool:
    if not needles:
        return True
    text = "\n".join([item.id, item.domain, item.question, item.reference, *(a.text for a in item.answers)]).lower()
    return all(n in text for n in needles)


def _item(item: ItemView, arm: str) -> dict[str, Any]:
    return {
        "id": item.id,
        "suite": item.suite,
        "domain": item.domain,
        "question": item.question,
        "reference": item.reference,
        "outcome": item.outcome.get(arm),
        "answers": [{"arm": a.arm, "name": arm_name(a.arm), "text": a.text, "right": a.right} for a in item.answers],
    }


def corpus_of(path: Path) -> tuple[str, Tree] | None:
    """The corpus of a run to look at, and what it is: the curated one, else the grown or growing one."""
    for folder in ("corpus", "grow"):
        if (tree := open_tree(path / folder)) is not None:
            return folder, tree
    return None


def tree_page(path: Path, parent: str, offset: int, limit: int) -> dict[str, Any]:
    """One level of the tree, a page of it."""
    found = corpus_of(path)
    if found is None:
        return {"source": None, "nodes": 0, "kept": 0, "total": 0, "branches": []}
    source, tree = found
    size, level = tree.size(), tree.level(parent, offset, limit)
    return {
        "source": source,
        "nodes": size.nodes,
        "kept": size.kept,
        "total": level.total,
        "branches": [asdict(b) for b in level.branches],
    }


def compared(runs: Sequence[tuple[str, RunData]]) -> dict[str, Any]:
    """Two or more runs side by side: each against the first, with the code of `regrow diff`."""
    (_, first), *others = runs
    diffs = [diff_runs(first, run) for _, run in others]
    recipe: dict[str, list[Any]] = {}
    versions: dict[str, list[Any]] = {}
    for table, of in ((recipe, "recipe"), (versions, "versions")):
        for k, found in enumerate(diffs):
            for key, (a, b) in getattr(found, of).items():
                table.setdefault(key, [a] * len(runs))[k + 1] = b
    rows: dict[tuple[str, str], list[str]] = {}
    for k, found in enumerate(diffs):
        for suite, arm, a, b in found.numbers:
            row = rows.setdefault((suite, arm), ["–"] * len(runs))
            row[0] = a if a != "–" else row[0]
            row[k + 1] = b
    return {
        "runs": [name for name, _ in runs],
        "recipe": [{"key": k, "values": [_shown(v) for v in values]} for k, values in sorted(recipe.items())],
        "versions": [{"key": k, "values": [_shown(v) for v in values]} for k, values in sorted(versions.items())],
        "numbers": [
            {"suite": suite, "arm": arm, "name": arm_name(arm), "values": v} for (suite, arm), v in rows.items()
        ],
        "verdicts": [sections.verdict(run) for _, run in runs],
        "notes": list(dict.fromkeys(note for found in diffs for note in found.notes)),
    }


def _shown(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def finite(value: Any) -> Any:
    """The same with null for infinities and NaN, which JSON does not know: a loss can be either."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any) -> str:
    """JSON in ASCII: text of models can hold lone surrogates, which UTF-8 cannot carry."""
    return json.dumps(finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=str)


def tail(path: Path, chars: int = LOG_CHARS) -> str:
    """The end of a text file; empty when there is none."""
    try:
        with path.open("rb") as f:
            size = f.seek(0, 2)
            f.seek(max(0, size - chars))
            text = f.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return text if size <= chars else text.partition("\n")[2]
