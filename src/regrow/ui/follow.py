"""What happens in the runs, as server-sent events: follows the files that a run writes, whoever started it.

Every reader follows on its own and keeps nothing on the server: one that comes back gets the present state first.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync

from regrow.errors import RegrowError
from regrow.grow.browse import Mark
from regrow.plan import planned
from regrow.recipe import load_recipe
from regrow.report.numbers import is_number
from regrow.runs import EVENTS
from regrow.ui.views import corpus_of, state, to_json

EVERY_S = 0.5
LIST_EVERY_S = 2.0
"""The list of runs: a look at each of hundreds of them takes tens of milliseconds."""
HEARTBEAT_S = 15.0
FIRST_EVENTS = 256 * 2**10
"""Bytes from the end of ``events.jsonl`` that a new reader is shown."""
FIRST_ROWS = 2000
"""Lines of a training log that a new reader is sent, evenly thinned; new lines are all sent."""

LOG, MONITOR = "log.jsonl", "monitor.jsonl"

Event = tuple[str, Any]


class Tail:
    """New lines of a JSONL file that grows, is written whole with more in it, or is begun anew.

    Args:
        path: It need not be there yet.
        last: Begin with at most this many bytes from its end; None is the whole file.
    """

    def __init__(self, path: Path, last: int | None = None) -> None:
        self._path, self._last = path, last
        self._first, self._at, self._inode = 0, 0, -1
        self._told = hashlib.blake2b()
        """Of the bytes from ``_first`` to ``_at``."""

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether the file was begun anew (also at first sight), and the lines that are new and whole.

        Another file in its place that begins with all that was told (a monitor writes all its lines each time, a
        resumed training those up to its checkpoint) is the same one, longer. A line that is half written waits for its
        rest; one that is no JSON object (cut off by a kill) is passed over.
        """
        try:
            with self._path.open("rb") as f:
                return self._read(f)
        except OSError:
            return False, []

    def _read(self, f: Any) -> tuple[bool, list[dict[str, Any]]]:
        stat = os.fstat(f.fileno())
        anew = stat.st_size < self._at or (stat.st_ino != self._inode and not self._goes_on(f))
        self._inode = stat.st_ino
        if anew:
            self._first, self._told = 0, hashlib.blake2b()
            if self._last is not None and stat.st_size > self._last:
                f.seek(stat.st_size - self._last)
                f.readline()
                self._first = f.tell()
            self._at = self._first
        f.seek(self._at)
        new = f.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        self._told.update(whole)
        return anew, list(_objects(whole.split(b"\n")))

    def _goes_on(self, f: Any) -> bool:
        """Whether a file that was not read before begins like the one that was."""
        if self._inode < 0:
            return False
        f.seek(self._first)
        return hashlib.blake2b(f.read(self._at - self._first)).digest() == self._told.digest()


def _objects(lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


class Follower:
    """One run, seen by one reader. `poll` gives what is new as ``(kind, data)``:

    ``state`` (stages, process, plan), ``progress`` (the newest of each task), ``notes``, ``log`` (lines of an arm's
    training log; ``anew`` when earlier ones are void), ``monitor`` (the same of what is measured on held-out rows),
    ``corpus`` (nodes so far, and below which ones there are new ones; None when it is gone), ``problem`` (the corpus
    cannot be read), ``changed`` (results or mixes are new: ask again).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events = Tail(path / EVENTS, FIRST_EVENTS)
        self._lines: dict[Path, Tail] = {}
        self._told: dict[str, Any] = {}
        self._mark: Mark | None = None

    def poll(self) -> list[Event]:
        """What happened since the last call; the present state at the first.

        Raises:
            RegrowError: The run was removed, or its manifest is damaged.
        """
        out: list[Event] = []
        now = state(self.path)
        recipe = _stat(self.path / "recipe.yaml")
        if self._new("recipe", recipe):
            self._told["plan"] = _plan(self.path / "recipe.yaml")
        now["plan"] = self._told["plan"]
        if self._new("state", now):
            out.append(("state", now))
        out += self._progress()
        out += self._training("log", LOG)
        out += self._training("monitor", MONITOR)
        try:
            out += self._corpus()
        except RegrowError as error:  # what was read above is new only once
            if self._new("trouble", str(error)):
                out.append(("problem", {"message": str(error)}))
        else:
            self._told.pop("trouble", None)
        results = [_stat(p) for p in (self.path / "eval/results.json", *sorted(self.path.glob("mix/*/mix.json")))]
        if self._new("results", results):
            out.append(("changed", {}))
        return out

    def _new(self, what: str, value: Any) -> bool:
        if what in self._told and self._told[what] == value:
            return False
        self._told[what] = value
        return True

    def _progress(self) -> list[Event]:
        _, rows = self._events.read()
        tasks: dict[str, dict[str, Any]] = {}
        notes = []
        for row in rows:
            if row.get("kind") == "progress" and isinstance(row.get("task"), str):
                tasks.pop(row["task"], None)
                tasks[row["task"]] = row
            elif row.get("kind") == "note":
                notes.append({"time": row.get("time"), "text": str(row.get("text", ""))})
            elif row.get("kind") == "stage":
                tasks = {k: v for k, v in tasks.items() if row.get("status") != "running"}
        out: list[Event] = [("progress", row) for row in tasks.values()]
        return out + ([("notes", notes)] if notes else [])

    def _training(self, kind: str, name: str) -> list[Event]:
        out: list[Event] = []
        for path in sorted(self.path.glob(f"train/*/{name}")):
            anew, rows = self._lines.setdefault(path, Tail(path)).read()
            if anew or rows:
                told = {"arm": path.parent.name, "anew": anew, "rows": numeric(rows, FIRST_ROWS if anew else None)}
                out.append((kind, told))
        return out

    def _corpus(self) -> list[Event]:
        found = corpus_of(self.path)
        if found is None:
            gone, self._mark = self._mark is not None, None  # a stage that is done anew has emptied its folder
            return [("corpus", None)] if gone else []
        # The corpus itself is asked, not its files: SQLite's log is longer a moment before its commit can be read.
        source, tree = found
        news = tree.news(self._mark)
        if news.mark == self._mark:
            return []
        size = tree.size()
        self._mark = news.mark
        return [("corpus", {"source": source, "nodes": size.nodes, "kept": size.kept, "parents": news.parents})]


def numeric(rows: list[dict[str, Any]], most: int | None = FIRST_ROWS) -> list[dict[str, float]]:
    """The finite numbers of log lines; at most ``most`` lines, evenly thinned, the last one among them."""
    if most is not None and len(rows) > most:
        rows = [rows[i * (len(rows) - 1) // (most - 1)] for i in range(most)]
    return [{k: v for k, v in row.items() if is_number(v) and math.isfinite(v)} for row in rows]


def _plan(recipe: Path) -> list[str]:
    try:
        return planned(load_recipe(recipe))
    except RegrowError:
        return []


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


async def stream(
    poll: Callable[[], list[Event]], stopping: Callable[[], bool], every: float = EVERY_S
) -> AsyncIterator[str]:
    """Server-sent events out of calls of ``poll``, ``every`` seconds apart, with a comment now and then that keeps
    proxies awake.

    An error that the user can mend is sent as the event ``problem``, and polling goes on. Ends when ``stopping`` says
    so: a server waits for its open answers before it ends.
    """
    problem, quiet = "", 0.0
    yield "retry: 1000\n\n"
    while not stopping():
        try:
            found = await run_sync(poll)
            problem = ""
        except RegrowError as error:
            found = [] if str(error) == problem else [("problem", {"message": str(error)})]
            problem = str(error)
        for kind, data in found:
            yield f"event: {kind}\ndata: {to_json(data)}\n\n"
        quiet = 0.0 if found else quiet + every
        if quiet >= HEARTBEAT_S:
            quiet = 0.0
            yield ": still here\n\n"
        until = anyio.current_time() + every
        while not stopping() and (left := until - anyio.current_time()) > 0:
            await anyio.sleep(min(left, EVERY_S))
