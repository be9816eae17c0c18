"""Evaluations on disk, read back: results, records and score files of a run or of `regrow eval`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrow.errors import RunError
from regrow.evaluate.items import Record

_REDO = "regrow run (or regrow eval) writes it again"


@dataclass(frozen=True, slots=True)
class Saved:
    """A finished evaluation.

    Attributes:
        folder: The run folder, or the folder of `regrow eval`.
        results: Its ``eval/results.json``.
    """

    folder: Path
    results: dict[str, Any]

    def records(self) -> list[Record]:
        """``eval/records.jsonl``.

        Raises:
            RunError: It is missing or damaged; names the line.
        """
        path = self.folder / "eval" / "records.jsonl"
        out = []
        try:
            with path.open(encoding="utf-8") as f:
                for number, line in enumerate(f, 1):
                    try:
                        out.append(Record(**json.loads(line)))
                    except (ValueError, TypeError, RecursionError) as error:
                        raise RunError(f"not a record: {error}", where=f"{path}:{number}", hint=_REDO) from error
        except OSError as error:
            raise RunError(error.strerror or str(error), where=str(path), hint=_REDO) from error
        return out


def load_evaluation(folder: Path) -> Saved:
    """Read ``eval/results.json`` of a run folder or of a folder that `regrow eval` wrote.

    Raises:
        RunError: There is none, it is damaged, or it was written by a version with other keys.
    """
    path = folder / "eval" / "results.json"
    if not folder.is_dir():
        raise RunError("there is no such folder", where=str(folder), hint="give the folder that regrow tune -o wrote")
    if not path.is_file():
        raise RunError("this folder has no finished evaluation", where=str(folder),
                       hint="the command that began the run, given again, finishes it")  # fmt: skip
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise RunError(f"cannot be read: {error}", where=str(path), hint=_REDO) from error
    keys = ("arms", "suites", "gain", "remaining", "settings")
    whole = isinstance(results, dict) and all(k in results for k in keys)
    if not whole or not all("selected" in s for s in results["suites"].values()):
        raise RunError("the results are not of this version", where=str(path), hint=_REDO)
    return Saved(folder, results)


def score_files(folder: Path, *, required: bool = True) -> list[Path]:
    """The score files below a folder of an earlier evaluation, for `ScoreCache`.

    Raises:
        RunError: There is none, and one is required.
    """
    found = sorted(p for at in (folder, folder / "suites", folder / "eval") if (p := at / "scores.jsonl").is_file())
    if required and not found:
        raise RunError("nothing was scored in this folder", where=str(folder), hint="give the -o of regrow eval")
    return found
