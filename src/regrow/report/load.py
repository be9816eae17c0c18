"""Read a run directory for the page. Everything is optional: what is missing becomes a note, never a guess."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regrow.arms import BASE, GENERAL, INTERPOLATE, PLAIN, REPLAY, main_arm, ratio_in, replay_text
from regrow.errors import RunError

ARM_NAMES = {BASE: "Base model", PLAIN: "Plain SFT", REPLAY: "Regrow", GENERAL: "General data",
             INTERPOLATE: "Half-way to base"}  # fmt: skip
MAX_RECIPE_CHARS = 60_000


@dataclass(slots=True)
class RunData:
    """What a run directory holds, as far as the page needs it.

    Attributes:
        path: The run directory.
        recipe: The recipe's text, or None.
        manifest: ``manifest.json``; ``{"stages": {}}`` when there is none.
        results: ``eval/results.json``, or None before the evaluation.
        records: ``eval/records.jsonl`` as ``(suite, item_id) -> arm -> record``.
        items: ``suites/items.jsonl`` as ``(suite, item_id) -> item``.
        mixes: ``mix/<arm>/mix.json`` by arm.
        logs: ``train/<arm>/log.jsonl`` by arm.
        trainings: ``train/<arm>/train.json`` by arm, of those that are finished.
        curate: ``corpus/curate.json``, or None.
        corpus_dir: The curated corpus, else the grown one, else None.
        notes: What is missing, in sentences for the reader.
    """

    path: Path
    recipe: str | None = None
    manifest: dict[str, Any] = field(default_factory=lambda: {"stages": {}})
    results: dict[str, Any] | None = None
    records: dict[tuple[str, str], dict[str, dict[str, Any]]] = field(default_factory=dict)
    items: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    mixes: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    trainings: dict[str, dict[str, Any]] = field(default_factory=dict)
    curate: dict[str, Any] | None = None
    corpus_dir: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def arms(self) -> list[str]:
        """The arms that were evaluated, base first; without an evaluation, those that were trained."""
        if self.results is not None:
            return [str(a) for a in self.results["arms"]]
        return [BASE, *self.logs] if self.logs else [BASE]

    @property
    def main_arm(self) -> str | None:
        """The arm that the page is about: the ratio that a sweep recommends, else ``regrow``, else the last."""
        return main_arm(self.arms, ((self.results or {}).get("sweep") or {}).get("arm"))

    def stage(self, name: str) -> dict[str, Any]:
        """The manifest's record of a stage; empty when it did not run."""
        found = self.manifest["stages"].get(name, {})
        return found if isinstance(found, dict) else {}


def arm_name(arm: str) -> str:
    """The name of an arm for readers."""
    ratio = ratio_in(arm)
    if ratio is None:
        return ARM_NAMES.get(arm, arm)
    return f"{100 * ratio:g}\N{NO-BREAK SPACE}% {replay_text(arm)}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RunError: The file is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise RunError(f"cannot be read: {error}", where=str(path), hint=_REDO) from error
    if not isinstance(value, dict):
        raise RunError(f"a JSON object was expected, found {type(value).__name__}", where=str(path), hint=_REDO)
    return value


def read_jsonl(path: Path, *, torn_end: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSONL file.

    Args:
        path: The file.
        torn_end: Allow a last line without its newline that does not parse (a writer that was killed, or is at work).

    Raises:
        RunError: A line is not a JSON object; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise RunError(f"cannot be read: {error}", where=str(path), hint=_REDO) from error
    rows: list[dict[str, Any]] = []
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if torn_end and number == len(lines):
                break
            raise RunError(f"broken JSON: {error}", where=f"{path}:{number}", hint=_REDO) from error
        if not isinstance(row, dict):
            raise RunError("a JSON object was expected", where=f"{path}:{number}", hint=_REDO)
        rows.append(row)
    return rows


_REDO = "run the stage that writes it again (regrow run), then regrow report"


def load_run(run_dir: str | Path) -> RunData:
    """Read what is there of a run.

    Raises:
        RunError: The folder is missing or holds nothing of a run, or a file is damaged (named, with its line).
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise RunError(
            "there is no such run folder", where=str(path), hint="give the folder that regrow tune -o wrote"
        )
    known = ("recipe.yaml", "manifest.json", "eval", "train", "mix", "grow", "corpus", "suites")
    if not any((path / name).exists() for name in known):
        raise RunError(
            "this folder holds nothing of a run", where=str(path), hint="give the folder that regrow tune -o wrote"
        )
    run = RunData(path)
    if (recipe := path / "recipe.yaml").is_file():
        text = recipe.read_text(encoding="utf-8", errors="replace")
        run.recipe = text[:MAX_RECIPE_CHARS] + ("\n# … cut here" if len(text) > MAX_RECIPE_CHARS else "")
    else:
        run.notes.append("There is no recipe.yaml in this folder.")
    if (manifest := path / "manifest.json").is_file():
        run.manifest = read_json(manifest)
        if not isinstance(run.manifest.get("stages"), dict):
            raise RunError("the manifest has no stages", where=str(manifest), hint=_REDO)
    else:
        run.notes.append("There is no manifest.json, so times, hashes and machine facts are unknown.")
    _load_evaluation(run)
    gone = _gone(run)
    for folder in sorted((path / "mix").glob("*/mix.json")):
        if folder.parent.name not in gone:
            run.mixes[folder.parent.name] = read_json(folder)
    for log in sorted((path / "train").glob("*/log.jsonl"), key=lambda p: (p.parent.name != PLAIN, p.parent.name)):
        if log.parent.name in gone:
            continue
        run.logs[log.parent.name] = read_jsonl(log, torn_end=True)
        if (summary := log.with_name("train.json")).is_file():
            run.trainings[log.parent.name] = read_json(summary)
    if not run.logs:
        run.notes.append("No training log was found: no model has been trained in this run yet.")
    if (curate := path / "corpus" / "curate.json").is_file():
        run.curate = read_json(curate)
    for name in ("corpus", "grow"):
        if (path / name / "nodes.parquet").is_file():
            run.corpus_dir = path / name
            break
    else:
        run.notes.append("This run has no grown corpus (yet), so there is no tree to show.")
    stages = {n: s for n, s in run.manifest["stages"].items() if n.rpartition("/")[2] not in gone}
    stopped = [n for n, s in stages.items() if isinstance(s, dict) and s.get("status") != "done"]
    if stopped:
        run.notes.append(f"Not finished: {', '.join(stopped)}. The page shows what was there when it was made.")
    return run


def _gone(run: RunData) -> set[str]:
    """Arms whose folders are there from an earlier recipe of this run; said in its notes."""
    from regrow.errors import RegrowError
    from regrow.recipe import load_recipe

    try:
        arms = {*load_recipe(run.path / "recipe.yaml").arm_ratios(), *((run.results or {}).get("arms") or [])}
    except (RegrowError, OSError):  # no recipe, or one of another version: then nothing can be told apart
        return set()
    gone = {folder.name for kind in ("mix", "train") for folder in (run.path / kind).glob("*/")} - arms
    if gone:
        run.notes.append(f"Not shown: {', '.join(sorted(gone))}, which the recipe of this run no longer has.")
    return gone


def _load_evaluation(run: RunData) -> None:
    results = run.path / "eval" / "results.json"
    if results.is_file():
        run.results = read_json(results)
        for key, kind in (("arms", list), ("suites", dict)):
            if not isinstance(run.results.get(key), kind):
                raise RunError(f"'{key}' is missing or of the wrong type", where=str(results), hint=_REDO)
        if PLAIN not in run.results["arms"]:
            run.notes.append(
                "There is no plain SFT arm to compare with (--no-compare), so what replay saved cannot be said."
            )
    else:
        run.notes.append("The models have not been evaluated yet, so there is no verdict.")
    if (records := run.path / "eval" / "records.jsonl").is_file():
        for number, record in enumerate(read_jsonl(records, torn_end=run.results is None), 1):
            try:
                answered = (str(record["suite"]), str(record["item_id"]))
                run.records.setdefault(answered, {})[str(record["arm"])] = record
            except KeyError as error:
                raise RunError(f"a record has no {error}", where=f"{records}:{number}", hint=_REDO) from error
    if (items := run.path / "suites" / "items.jsonl").is_file():
        for number, item in enumerate(read_jsonl(items), 1):
            try:
                run.items[(str(item["suite"]), str(item["id"]))] = item
            except KeyError as error:
                raise RunError(f"an item has no {error}", where=f"{items}:{number}", hint=_REDO) from error
