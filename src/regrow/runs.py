"""The run directory: manifest, lock, events, and stages that are done once and resumed after a crash.

A stage is a folder inside the run. Its *inputs* are a flat dict of settings and of the hashes of what it reads. A
stage whose inputs are unchanged is not run again; one that was cut off is entered again in its own folder and
continues from what it committed; one whose inputs changed is emptied and done anew, and the user is told which inputs
changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from regrow.errors import RegrowError, RunError
from regrow.outputs import LOCK, hold
from regrow.progress import event_sink, note

Resume = Literal["auto", "always", "never"]

FORMAT = "regrow-run/1"
MANIFEST = "manifest.json"
OWNER = ".owner.json"
LAST_STAGES = frozenset({"eval", "test"})
"""With one of them done a run is finished: `regrow run`'s and `regrow gradual`'s."""
EVENTS = "events.jsonl"
HASH_WHOLE_BELOW = 64 * 2**20
"""Outputs below this size are re-hashed before they are reused; larger ones (weights) are checked by size."""

_PACKAGES = (
    "regrow",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "openvino-genai",
    "lm-eval",
    "numpy",
)


def versions() -> dict[str, str]:
    """Versions of Python, this platform and the packages that decide the numbers."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one flat dict with dotted keys; lists stay whole."""
    if not isinstance(value, dict):
        return {prefix: value}
    out: dict[str, Any] = {}
    for key, inner in value.items():
        out.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
    return out


def _write_json(path: Path, value: Any) -> None:
    tmp = path.with_name(f".{path.name}.tmp")
    with tmp.open("w", encoding="utf-8") as f:
        json.dump(value, f, indent=1, ensure_ascii=False, default=str)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
    tmp.replace(path)


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage left behind: its folder, the facts it returned, the hash of its outputs, and whether it ran now."""

    path: Path
    facts: dict[str, Any]
    output_hash: str
    ran: bool


class Run:
    """An open run directory. Use `open_run`; a `Run` holds the lock of its folder."""

    def __init__(self, path: Path, manifest: dict[str, Any], resume: Resume) -> None:
        self.path = path
        self.manifest = manifest
        self.resume = resume
        self.plan: list[str] = []
        """Names of all stages to come, in order; with it each stage says how many there are."""

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Append one line to ``events.jsonl``. A watcher's convenience: a failed write never stops the run."""
        line = json.dumps({"time": round(time.time(), 3), "kind": kind, **data}, ensure_ascii=False, default=str)
        try:
            with (self.path / EVENTS).open("a", encoding="utf-8") as f:
                f.write(line + "\n")
        except OSError as error:
            print(f"events.jsonl could not be written: {error}", file=sys.stderr)

    def save(self) -> None:
        """Write the manifest atomically."""
        _write_json(self.path / MANIFEST, self.manifest)

    def changed(self, name: str, inputs: dict[str, Any]) -> list[str]:
        """Which inputs of stage ``name`` differ from those recorded, as ``key: old -> new``; hashes are not shown."""
        old = self.manifest["stages"].get(name, {}).get("inputs", {})
        new = json.loads(json.dumps(flatten(inputs), default=str))
        return [
            _change(key, old.get(key), new.get(key))
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]

    def stage(
        self, name: str, inputs: dict[str, Any], work: Callable[[Path], dict[str, Any]], *, keep: Sequence[str] = ()
    ) -> StageResult:
        """Run one stage, or reuse or resume it.

        Args:
            name: Also its folder, ``grow`` or ``mix/regrow``.
            inputs: Settings and upstream hashes; compared with those of the last time.
            work: Gets the folder, does the work (continuing what it finds there), returns JSON-able facts.
            keep: Files that stay when changed inputs redo the stage, because each entry in them says what it was made
                from (a cache of scores).

        Raises:
            RunError: With ``resume="always"`` when the inputs changed; or when a finished stage's files are damaged.
        """
        folder = self._inside(name)
        stages = self.manifest["stages"]
        title = f"[{self.plan.index(name) + 1}/{len(self.plan)}] {name}" if name in self.plan else name
        known = stages.get(name)
        if known is not None:
            changes = self.changed(name, inputs)
            if not changes and known["status"] == "done":
                damage = self._damage(folder, known["outputs"])
                if not damage:
                    note(f"{title}: unchanged, not run again")
                    return StageResult(folder, known["facts"], known["output_hash"], ran=False)
                if self.resume == "always":
                    raise RunError(damage, where=str(folder), hint="run with --resume auto to do the stage again")
                note(f"{title}: {damage}; doing it again")
                self._empty(folder)
            elif changes:
                if self.resume == "always":
                    raise RunError(
                        f"stage '{name}' was made with other settings: " + "; ".join(changes[:8]),
                        where=str(self.path / "recipe.yaml"),
                        hint="use --resume auto to redo what changed, or another output folder",
                    )
                note(f"{title}: done anew, because {'; '.join(changes[:8])}")
                self._empty(folder, keep)
            else:
                note(f"{title}: continuing where it stopped")
        else:
            if folder.exists() and any(folder.iterdir()):
                self._empty(folder)
            if self.plan:
                note(title)
        folder.mkdir(parents=True, exist_ok=True)
        started, clock = time.time(), time.monotonic()  # the wall clock may be set back meanwhile
        earlier = 0.0 if known is None or known["status"] == "done" else known.get("seconds", 0.0)
        stages[name] = {
            "status": "running",
            "inputs": json.loads(json.dumps(flatten(inputs), default=str)),
            "started": started,
            "seconds": earlier,
        }
        self.save()
        self.event("stage", {"stage": name, "status": "running"})
        try:
            facts = work(folder)
        except BaseException as error:
            stages[name]["seconds"] = earlier + time.monotonic() - clock
            stages[name]["error"] = f"{type(error).__name__}: {error}"
            self._save_if_possible()
            self.event("stage", {"stage": name, "status": "stopped", "error": str(error)})
            raise
        outputs = self._outputs(folder)
        record = {
            **stages[name],
            "status": "done",
            "seconds": round(earlier + time.monotonic() - clock, 3),
            "facts": json.loads(json.dumps(facts, default=str)),
            "outputs": outputs,
            "output_hash": hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()[:16],
            "versions": versions(),
        }
        record.pop("error", None)
        stages[name] = record
        self.save()
        self.event("stage", {"stage": name, "status": "done", "seconds": record["seconds"]})
        return StageResult(folder, record["facts"], record["output_hash"], ran=True)

    def _save_if_possible(self) -> None:
        try:
            self.save()
        except OSError as error:  # a full disk must not hide the error that stopped the stage
            print(f"the manifest could not be updated: {error}", file=sys.stderr)

    def _inside(self, name: str) -> Path:
        folder = (self.path / name).resolve()
        if not folder.is_relative_to(self.path.resolve()) or folder == self.path.resolve():
            raise RunError(f"stage folder '{name}' lies outside the run", where=str(self.path))
        return folder

    def _empty(self, folder: Path, keep: Sequence[str] = ()) -> None:
        for path in folder.iterdir() if folder.exists() else ():
            if path.name in keep:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _outputs(self, folder: Path) -> dict[str, dict[str, Any]]:
        out = {}
        for path in sorted(_files(folder)):
            out[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        return out

    def _damage(self, folder: Path, outputs: dict[str, dict[str, Any]]) -> str | None:
        for name, facts in outputs.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != facts["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, {facts['bytes']} were written"
            if facts["bytes"] < HASH_WHOLE_BELOW and file_sha256(path) != facts["sha256"]:
                return f"{name} was changed since it was written"
        return None


def _files(folder: Path) -> Iterable[Path]:
    skip = ("-wal", "-shm", ".lock")
    return (p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(skip))


def _change(key: str, old: Any, new: Any) -> str:
    if any(isinstance(v, str) and re.fullmatch("[0-9a-f]{16}|[0-9a-f]{64}", v) for v in (old, new)):
        return f"{key} {'is new' if old is None else 'is gone' if new is None else 'changed'}"
    return f"{key}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        RunError: Not a run folder, or the manifest is damaged or of another format.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise RunError("this is not a run folder: it has no manifest.json", where=str(path))
    try:
        manifest: Any = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"the manifest is damaged: {error}",
            where=str(file),
            hint="restore it from a backup, or start again in another folder; the stages' folders are untouched",
        ) from error
    stages = manifest.get("stages") if isinstance(manifest, dict) else None
    if not isinstance(stages, dict) or manifest.get("format") != FORMAT:
        raise RunError(f"the manifest is not of the format {FORMAT}", where=str(file))
    for name, stage in stages.items():
        whole = isinstance(stage, dict) and isinstance(stage.get("inputs"), dict)
        if whole and stage.get("status") == "done":
            whole = isinstance(stage.get("outputs"), dict) and "output_hash" in stage and "facts" in stage
        if not whole or stage.get("status") not in ("running", "done"):
            raise RunError(f"the manifest's entry for stage '{name}' is damaged", where=str(file))
    found: dict[str, Any] = manifest
    return found


def finished_models(folder: Path) -> dict[str, Path]:
    """Arm -> model folder of a run whose training is done, the base first.

    Raises:
        RunError: Not a run folder, or nothing in it is trained yet.
    """
    models = {arm: folder / place for arm, place in read_manifest(folder).get("models", {}).items()}
    if not models:
        raise RunError("this run has no finished model yet", where=str(folder),
                       hint="the command that started it, given again, continues it")  # fmt: skip
    return models


@contextmanager
def open_run(path: str | Path, *, resume: Resume = "auto") -> Iterator[Run]:
    """Open (or create) a run directory and hold its lock.

    Args:
        path: The run folder. A new or empty folder starts a run.
        resume: ``auto`` continues a run that is there, redoing stages whose inputs changed; ``always`` insists that
            there is one and that nothing changed; ``never`` insists on a new folder.

    Raises:
        RunError: The folder holds something else, another process works on it, or it does not fit ``resume``.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise RunError("this is a file, a folder is needed", where=str(path))
    is_run = (path / MANIFEST).is_file()
    ours = {LOCK, OWNER, EVENTS, f".{MANIFEST}.tmp"}
    occupied = path.is_dir() and any(p.name not in ours for p in path.iterdir())
    if occupied and not is_run:
        raise RunError(
            "the output folder is not empty and is not a run", where=str(path), hint="choose another folder with -o"
        )
    if is_run and resume == "never":
        raise RunError(
            "the folder holds a run already", where=str(path), hint="choose another folder with -o, or --resume auto"
        )
    if not is_run and resume == "always":
        raise RunError("there is no run to resume", where=str(path), hint="use --resume auto to start one")
    with hold(path, lambda: f"another process works on this run{_told(_read_owner(path))}") as held:
        us = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
        try:
            _write_json(path / OWNER, us)
            if is_run:
                manifest = read_manifest(path)
            else:
                manifest = {"format": FORMAT, "created": time.strftime("%F %T"), "versions": versions(), "stages": {}}
            _end_last_line(path / EVENTS)
            run = Run(path, manifest, resume)
            run.save()
            try:
                with event_sink(run.event):
                    yield run
            except RegrowError:
                if not is_run and all(s["status"] != "done" for s in run.manifest["stages"].values()):
                    _undo(path, run)
                    held.taken_back = True
                raise
        finally:
            (path / OWNER).unlink(missing_ok=True)


def _undo(path: Path, run: Run) -> None:
    """Take back a run that ended at an error of the user's before any stage was done: half a run helps nobody, and
    its folder would only be in the way. Nothing is removed that the run did not make itself."""
    for stage in run.manifest["stages"]:
        shutil.rmtree(path / stage, ignore_errors=True)
    for name in (MANIFEST, "recipe.yaml", "events.jsonl"):
        (path / name).unlink(missing_ok=True)


def _end_last_line(path: Path) -> None:
    """A line that a kill cut off must not swallow the next one."""
    try:
        with path.open("rb+") as f:
            if f.seek(0, os.SEEK_END) and (f.seek(-1, os.SEEK_END), f.read(1))[1] != b"\n":
                f.write(b"\n")
    except OSError:
        return  # not there yet, or a disk that `Run.event` will complain about


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that works on a run."""

    pid: int
    host: str
    since: str

    @property
    def here(self) -> bool:
        """Whether it runs on this machine."""
        return self.host == socket.gethostname()


def owner(path: Path) -> Owner | None:
    """Who works on a run, or None when nobody does: a killed process leaves its name behind, but not its lock.

    A process on another machine, whose lock cannot be seen from here, counts as at work.
    """
    found = _read_owner(path)
    return None if found is None or (found.here and not _locked(path)) else found


def _read_owner(path: Path) -> Owner | None:
    try:
        told = json.loads((path / OWNER).read_text(encoding="utf-8"))
        found = Owner(int(told["pid"]), str(told["host"]), str(told["since"]))
        return found if found.pid > 0 else None  # to a signal, 0 and below are whole groups of processes
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _locked(path: Path) -> bool:
    """Whether the run's lock is held. Tried with a shared lock, given back at once: the number of a process that died
    may be another's by now, the kernel's lock dies with its holder."""
    import fcntl

    try:
        with (path / LOCK).open("rb") as f:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _told(found: Owner | None) -> str:
    return f" (process {found.pid} on {found.host} since {found.since})" if found else ""
