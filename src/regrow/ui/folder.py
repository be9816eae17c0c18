"""The folder of runs that the page may look into, and nothing outside it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from regrow.errors import RegrowError, RunError
from regrow.outputs import LOCK
from regrow.report.compare import RunLine, run_folders, run_line
from regrow.report.items_view import ItemsView, load_items
from regrow.report.load import RunData, load_run
from regrow.runs import EVENTS, MANIFEST, OWNER, owner
from regrow.ui.views import state

READ = (
    MANIFEST, OWNER, LOCK, EVENTS, "recipe.yaml", "suites/items.jsonl", "eval/results.json", "eval/records.jsonl",
    "corpus/curate.json", "corpus/dropped.jsonl", "corpus/nodes.parquet", "corpus/dialogues.parquet",
    "grow/nodes.parquet", "grow/nodes.sqlite", "mix/*/mix.json", "train/*/log.jsonl",
    "train/*/train.json", "train/*/monitor.jsonl",
)  # fmt: skip
"""All files of a run that the page reads; none of them may be a link to somewhere else."""
LIVE = (OWNER, LOCK, EVENTS, "grow/nodes.sqlite", "train/*/monitor.jsonl")
"""Those that change all the time and do not stand in what `RunsFolder.data` gives."""
LISTED = (MANIFEST, "eval/results.json", "recipe.yaml")
"""Those that the list of runs is made from."""
KEPT_RUNS = 8
T = TypeVar("T")
ALL_ITEMS = 2**40
"""Bytes of items to load: the page asks for a few at a time, so that there is no need to leave any out."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A run in the list: its name, what `regrow runs` says of it, and its state as `regrow.ui.views.state` has it."""

    name: str
    line: RunLine
    state: str


class RunsFolder:
    """Runs by name. A name is a path below the folder, ``.`` the folder itself."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise RunError("there is no such folder", where=str(root), hint="regrow ui FOLDER shows the runs in it")
        self.root = root.resolve()
        self._listed: dict[Path, tuple[Any, Listed]] = {}
        self._data: _Newest[RunData] = _Newest()
        self._items: _Newest[ItemsView] = _Newest()

    def name(self, path: Path) -> str:
        """The name of a run."""
        return path.relative_to(self.root).as_posix()

    def place(self, name: str) -> Path:
        """Where a run of this name is or would be; links are followed first.

        Raises:
            RunError: That is outside the folder.
        """
        try:
            path = (self.root / name).resolve()
            path.exists()  # raises for a name that no file can have
        except (OSError, ValueError, RuntimeError) as error:  # a NUL, a loop of links, a name that is too long
            raise RunError("this is not the name of a run", hint="choose one of the list") from error
        if not path.is_relative_to(self.root):
            raise RunError("this lies outside the folder of runs", hint="start `regrow ui` with the folder it is in")
        return path

    def run(self, name: str) -> Path:
        """The folder of the run of this name.

        Raises:
            RunError: There is none, or it or a file in it lies outside the folder of runs.
        """
        path = self.place(name)
        if not name or not (path / MANIFEST).is_file():
            raise RunError("there is no such run", where=name, hint="it may have been moved or removed")
        for pattern in READ:
            for file in path.glob(pattern):
                if not file.resolve().is_relative_to(self.root):
                    raise RunError(
                        "a file of this run is a link to outside the folder of runs", where=f"{name}/{pattern}"
                    )
        return path

    def runs(self) -> list[Listed]:
        """All runs, newest first; links to outside the folder are left out. A run is read again when it changed, the
        others are not: there may be hundreds, and every reader asks all the time."""
        held, found = self._listed, {}
        for path in run_folders(self.root):
            version = (owner(path), *(_stat(path / name) for name in LISTED))
            before = held.get(path)
            if before is not None and before[0] == version:
                found[path] = before
            elif path.resolve().is_relative_to(self.root):
                found[path] = (version, self._look(path))
        self._listed = found
        return sorted((listed for _, listed in found.values()), key=lambda run: run.line.created, reverse=True)

    def _look(self, path: Path) -> Listed:
        try:
            now = str(state(path)["state"])
        except RegrowError:
            now = "damaged"
        return Listed(self.name(path), run_line(path, self.root), now)

    def data(self, name: str) -> RunData:
        """A run as the report sees it, read again when a file of it changed."""
        path = self.run(name)
        return self._data.get(path, _versions(path), lambda: load_run(path))

    def items(self, name: str) -> ItemsView:
        """Every evaluated item of a run, in the report's order."""
        path = self.run(name)
        versions = _versions(path)
        run = self._data.get(path, versions, lambda: load_run(path))
        return self._items.get(path, versions, lambda: load_items(run, max_bytes=ALL_ITEMS))


def _versions(path: Path) -> tuple[Any, ...]:
    """Changes whenever a file that is read changes."""
    files = (f for pattern in READ if pattern not in LIVE for f in sorted(path.glob(pattern)))
    return tuple((str(f), _stat(f)) for f in files)


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


class _Newest(Generic[T]):
    """The last few values, one a run, each with the version of the files it was made from."""

    def __init__(self) -> None:
        self._held: OrderedDict[Path, tuple[Any, T]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, version: Any, make: Callable[[], T]) -> T:
        with self._lock:
            held = self._held.get(path)
            if held is not None and held[0] == version:
                self._held.move_to_end(path)
                return held[1]
        value = make()
        with self._lock:
            self._held[path] = (version, value)
            self._held.move_to_end(path)
            while len(self._held) > KEPT_RUNS:
                self._held.popitem(last=False)
        return value
