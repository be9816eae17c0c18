"""Runs in the terminal: a folder of runs, every suite of one, two side by side, several seeds together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from regrow.errors import RunError
from regrow.report import numbers, sections
from regrow.report.gaps import gaps
from regrow.report.load import RunData, arm_name, read_json
from regrow.runs import LAST_STAGES, MANIFEST, flatten, owner

DEPTH = 2
"""Folders below the given one in which runs are looked for."""


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run in a list: its path below the folder, what stands in its manifest and recipe, and its result."""

    path: Path
    name: str
    created: str
    model: str
    data: str
    state: str
    result: str
    gain: str
    change: str


def find_runs(folder: Path) -> list[RunLine]:
    """The runs in a folder (itself, or up to `DEPTH` below), newest first.

    Raises:
        RunError: There is no such folder.
    """
    if not folder.is_dir():
        raise RunError("there is no such folder", where=str(folder), hint="regrow runs FOLDER lists the runs in it")
    lines = [run_line(path, folder) for path in run_folders(folder)]
    return sorted(lines, key=lambda line: line.created, reverse=True)


def run_folders(folder: Path) -> list[Path]:
    """The folders of the runs that `find_runs` finds."""
    return [m.parent for depth in range(DEPTH + 1) for m in folder.glob("*/" * depth + MANIFEST)]


def run_line(path: Path, folder: Path) -> RunLine:
    """A run of the list of ``folder``; one that cannot be read is a line that says so."""
    name = str(path.relative_to(folder)) if path != folder else path.resolve().name
    try:
        manifest = read_json(path / MANIFEST)
        stages = manifest.get("stages")
        if not isinstance(stages, dict):
            raise RunError("no stages")
        results_file = path / "eval" / "results.json"
        results = read_json(results_file) if results_file.is_file() else None
        run = RunData(path, manifest=manifest, results=results)
        told = sections.verdict(run) if results else {"word": "", "sign": ""}
        rows = {row["arm"]: row for row in (sections.headline(run) if results else [])}
    except (RunError, KeyError, TypeError, AttributeError) as error:
        return RunLine(path, name, "", "", "", "damaged", str(getattr(error, "message", error)), "", "")
    recipe = _recipe(path)
    row = rows.get(run.main_arm or "")
    return RunLine(
        path,
        name,
        str(manifest.get("created", "")),
        str((manifest.get("model") or {}).get("name", "")),
        str(recipe.get("data.path", "")),
        _state(path, stages),
        f"{told['sign']} {told['word']}".strip(),
        _cell(row["gain"]) if row else "",
        _cell(row["change"]) if row else "",
    )


def _state(path: Path, stages: dict[str, Any]) -> str:
    open_ = [name for name, s in stages.items() if s.get("status") != "done"]
    if not open_ and LAST_STAGES & stages.keys():
        return "done"
    at = open_[-1] if open_ else (list(stages)[-1] if stages else "start")
    return f"{'running' if owner(path) else 'stopped'}: {at}"


def _recipe(path: Path) -> dict[str, Any]:
    """The recipe's keys with dots; empty where there is none or it is no mapping."""
    try:
        text = (path / "recipe.yaml").read_text(encoding="utf-8")
        data = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return flatten(data) if isinstance(data, dict) else {}


def _cell(cell: dict[str, str]) -> str:
    return " ".join(x for x in (cell["value"], cell["unit"], cell["ci"], "n.s." * bool(cell["word"])) if x)


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table for the terminal whose headings are text, never markup."""
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, title=title, title_justify="left")
    for k, column in enumerate(columns):
        table.add_column(Text(column), overflow="fold", no_wrap=k == 0)
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(c) for c in cells))


def runs_table(lines: Sequence[RunLine]) -> Table:
    """For `regrow runs`."""
    table = plain_table("run", "made", "model", "data", "state", "verdict", "learned", "change on what it knew")
    for r in lines:
        _add(table, r.name, r.created, r.model, r.data, r.state, r.result, r.gain, r.change)
    return table


def suites_table(run: RunData) -> Table:
    """Every suite and arm with its difference from the base, for `regrow show`."""
    table = plain_table("suite", "items", "metric", "model", "score", "against the base", "", "p (Holm)")
    for row in sections.suite_rows(run):
        differences = (run.results or {})["suites"][row["name"]]["differences"]
        for k, arm in enumerate(row["arms"]):
            head = [row["name"], row["n"], row["metric"]] if k == 0 else ["", "", ""]
            p = ((differences.get(arm["arm"]) or {}).get("vs_base") or {}).get("p_holm")
            diff = " ".join(x for x in (arm["diff"], row["unit"] if arm["diff"] else "", arm["diff_ci"]) if x)
            shown = "" if p is None else ("< 0.001" if p < 0.001 else f"{p:.3f}")
            _add(table, *head, arm_name(arm["arm"]), arm["value"], diff, arm["word"], shown)
    return table


def gaps_table(run: RunData) -> Table | None:
    """The stability gaps, for `regrow show`; None when no training had a monitor."""
    rows = gaps(run)
    if not rows:
        return None
    table = plain_table(
        "model", "held out of", "dip (nats)", "at step", "back at step", "at the end", title="while training"
    )
    for row in rows:
        _add(table, row["arm"], row["domain"], row["dip"], row["at"], row["back"], row["end"])
    return table


def seeds_table(found: dict[str, Any]) -> Table:
    """`regrow.evaluate.seeds.over_seeds` as a table: intervals over seeds and items beside those over items alone."""
    seeds = ", ".join(map(str, found["seeds"]))
    table = plain_table("suite", "model", "against the base", "over seeds and items", "over items alone", "by seed",
                   title=f"seeds {seeds}")  # fmt: skip
    for name, suite in found["suites"].items():
        unit = numbers.unit_of(suite)
        for arm, compared in suite["differences"].items():
            d = compared["vs_base"]
            low, high = d["ci"]
            word = "" if low > 0 or high < 0 else "no significant change"
            _add(
                table,
                name,
                arm_name(arm),
                f"{numbers.change(d['diff'], unit)} {numbers.change_unit(unit)} {word}".strip(),
                numbers.interval(d["ci"], unit),
                numbers.interval(d["ci_items"], unit),
                " ".join(numbers.change(v, unit) for v in d["by_seed"]),
            )
    return table


@dataclass(frozen=True, slots=True)
class Diff:
    """Two runs side by side.

    Attributes:
        recipe: Key -> its two values, where they differ.
        versions: Package -> its two versions, where they differ.
        numbers: ``(suite, arm, first, second)``: the difference from the base in each run.
        notes: What keeps the numbers from being compared.
    """

    recipe: dict[str, tuple[Any, Any]]
    versions: dict[str, tuple[Any, Any]]
    numbers: list[tuple[str, str, str, str]]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        rows = [dict(zip(("suite", "arm", "first", "second"), r, strict=True)) for r in self.numbers]
        return {"recipe": self.recipe, "versions": self.versions, "numbers": rows, "notes": self.notes}


def diff_runs(first: RunData, second: RunData) -> Diff:
    """What differs between two runs in recipe, versions and numbers."""
    recipes = _recipe(first.path), _recipe(second.path)
    versions = [r.manifest.get("versions") or {} for r in (first, second)]
    rows = [{(row["name"], a["arm"]): _difference(a, row["unit"]) for row in sections.suite_rows(r)
             for a in row["arms"] if a["diff"]} for r in (first, second)]  # fmt: skip
    places = list(dict.fromkeys([*rows[0], *rows[1]]))
    notes = []
    bases = [((r.results or {}).get("models") or {}).get("base", {}).get("revision") for r in (first, second)]
    if None not in bases and bases[0] != bases[1]:
        notes.append("The base models differ, so the changes are from different starting points.")
    seeds = [((r.results or {}).get("settings") or {}).get("seed") for r in (first, second)]
    if None not in seeds and seeds[0] != seeds[1]:
        notes.append("The seeds differ, and with them which items were drawn.")
    for r in (first, second):
        if r.results is None:
            notes.append(f"{r.path} has not been evaluated.")
    notes.append("Each interval compares a model with its own base; overlapping intervals of two runs are no test.")
    return Diff(
        _differing(*recipes),
        _differing(*versions),
        [(*place, rows[0].get(place, "–"), rows[1].get(place, "–")) for place in places],
        notes,
    )


def _difference(arm: dict[str, str], unit: str) -> str:
    return " ".join(x for x in (arm["diff"], unit, arm["diff_ci"], "n.s." * (arm["tone"] == "")) if x)


def _differing(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {k: (a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)}


def diff_tables(found: Diff, names: tuple[str, str]) -> list[Table]:
    """For `regrow diff`."""
    out = []
    for title, values in (("recipe", found.recipe), ("versions", found.versions)):
        if values:
            table = plain_table(title, *names)
            for key, (a, b) in values.items():
                _add(table, key, _value(a), _value(b))
            out.append(table)
    if found.numbers:
        table = plain_table("suite", "model", *names, title="against the base")
        for suite, arm, a, b in found.numbers:
            _add(table, suite, arm_name(arm), a, b)
        out.append(table)
    return out


def _value(value: Any) -> str:
    return "–" if value is None else (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
