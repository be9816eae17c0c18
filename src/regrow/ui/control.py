"""Runs started and stopped from the page. A started run is a process of its own that outlives the server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from regrow.errors import RunError
from regrow.recipe import Recipe, dump_recipe, load_recipe
from regrow.rows.writers import atomic_write_text
from regrow.runs import MANIFEST, owner
from regrow.ui.folder import RunsFolder
from regrow.ui.form import refused

END_S = 30.0
"""Longest that a process is waited for that works on no run any more."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
STARTED = ".started"
"""Folder beside the runs for what does not belong into a run: recipes as they were sent, and what was printed."""

_RUN = "from regrow.cli import main; main()"


class Control:
    """Starts, continues and stops the runs of a folder."""

    def __init__(self, folder: RunsFolder) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, recipe: Recipe) -> int:
        """Run a recipe in a new folder; returns the process.

        Raises:
            RunError: The name cannot be a folder's or is taken; or the recipe names code or places to write to.
        """
        if not NAME.fullmatch(name):
            raise RunError(
                "a name has letters, digits, dots, dashes and underscores, and begins with a letter or a digit",
                where="name",
            )
        _refuse(recipe)
        with self._lock:
            path = self.folder.place(name)
            if self._alive(name) or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
                raise RunError("there is a run or a folder of this name already", where="name")
            file = atomic_write_text(self._beside(name, "yaml"), dump_recipe(recipe))
            return self._launch(name, file, path)

    def proceed(self, name: str) -> int:
        """Continue a run that stopped, by its own recipe; returns the process.

        Raises:
            RunError: It is at work; or its recipe names code or places to write to.
            RecipeError: Its recipe cannot be read.
        """
        path = self.folder.run(name)
        recipe = load_recipe(path / "recipe.yaml")
        _refuse(recipe)
        if owner(path) is None:
            self._let_end(name)
        with self._lock:
            if self._alive(name) or owner(path) is not None:
                raise RunError("a process works on this run already", where=name)
            file = atomic_write_text(self._beside(name, "yaml"), dump_recipe(recipe))
            return self._launch(name, file, path)

    def stop(self, name: str) -> int:
        """Send Ctrl-C to the process that works on a run; returns the process. It keeps what it committed.

        A process that was started in the background of a script ignores Ctrl-C; it gets SIGTERM, which means the same.

        Raises:
            RunError: Nobody works on it, or a process on another machine or of another user does.
        """
        path = self.folder.place(name)
        found = owner(path)
        if found is not None and not found.here:
            raise RunError(f"process {found.pid} on {found.host} works on this run", hint="stop it there with Ctrl-C")
        with self._lock:
            if found is None and not self._alive(name):
                raise RunError("no process works on this run", where=name)
            pid = found.pid if found is not None else self._processes[name].pid
            try:
                os.kill(pid, signal.SIGTERM if _ignores_ctrl_c(pid) else signal.SIGINT)
            except ProcessLookupError as error:
                raise RunError("no process works on this run", where=name) from error
            except PermissionError as error:
                raise RunError(f"process {pid} belongs to another user", where=name) from error
        return pid

    def starting(self) -> dict[str, str]:
        """Runs that were started here and have no folder yet: name -> ``starting``, or ``failed``."""
        with self._lock:
            new = [n for n in self._processes if not (self.folder.place(n) / MANIFEST).is_file()]
            return {n: "starting" if self._alive(n) else "failed" for n in new}

    def printed(self, name: str) -> Path:
        """Where the output of a run that was started here goes."""
        return self._beside(name, "log")

    def _alive(self, name: str) -> bool:
        process = self._processes.get(name)
        return process is not None and process.poll() is None

    def _let_end(self, name: str) -> None:
        """A process that let go of its run takes a moment to end; who sees the run free may continue it at once."""
        if (process := self._processes.get(name)) is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)

    def _beside(self, name: str, ending: str) -> Path:
        stem = self.folder.name(self.folder.place(name)).replace("/", "__")
        path = self.folder.root / STARTED / f"{'this' if stem == '.' else stem}.{ending}"
        if not path.resolve().is_relative_to(self.folder.root):
            raise RunError("this lies outside the folder of runs", where=str(path))
        return path

    def _launch(self, name: str, recipe: Path, out: Path) -> int:
        for process in self._processes.values():
            process.poll()  # no zombies
        log = self._beside(name, "log")
        with log.open("ab") as printed:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-c", _RUN, "run", str(recipe), "-o", str(out)],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # neither Ctrl-C at the server's terminal nor its end reaches the run
            )
        return self._processes[name].pid


def _ignores_ctrl_c(pid: int) -> bool:
    """As Linux tells it; elsewhere it is not known."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False
    masks = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return bool(int(masks.get("SigIgn", "0"), 16) >> (signal.SIGINT - 1) & 1)


def _refuse(recipe: Recipe) -> None:
    found = refused(recipe)
    if found:
        key, why = next(iter(found.items()))
        raise RunError(why, where=key, hint="start it in a terminal: regrow run RECIPE -o FOLDER")
