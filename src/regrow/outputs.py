"""The folder that a command writes to: new, empty or its own, and one process at a time.

A stage inside a run has the run's folder and lock (`regrow.runs`); this is for stages that are called on their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regrow.errors import RegrowError, RunError

if TYPE_CHECKING:
    from filelock import FileLock

MARK = ".regrow.json"
"""Says which command a folder belongs to. Hidden, so that `datasets` and transformers do not see it."""
LOCK = ".lock"
BUSY = "another process works in this folder"


@dataclass
class Held:
    """A folder whose lock is held.

    Attributes:
        taken_back: Set it when nothing in the folder is worth keeping: the lock file goes, and a new folder too.
    """

    taken_back: bool = False


@contextmanager
def hold(path: Path, busy: Callable[[], str]) -> Iterator[Held]:
    """Make a folder if need be, and hold its lock.

    Args:
        path: The folder.
        busy: What to say when another process holds it.

    Raises:
        RunError: Another process holds it, or it cannot be written.
    """
    new = not path.exists()
    lock = _lock(path / LOCK, path, busy)
    held = Held()
    try:
        yield held
    finally:
        if held.taken_back:
            (path / LOCK).unlink(missing_ok=True)
        lock.release()
        if held.taken_back and new:
            with suppress(OSError):  # something else lies there by now
                path.rmdir()


def _lock(place: Path, path: Path, busy: Callable[[], str]) -> FileLock:
    """The lock file ``place`` of the folder ``path``, held; see `hold`."""
    from filelock import FileLock, Timeout

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place)
        lock.acquire(timeout=0)
    except Timeout as error:
        hint = "wait for it, or choose another folder with -o"
        raise RunError(busy(), where=str(path), hint=hint) from error
    except OSError as error:
        raise RunError(f"the folder cannot be written: {error.strerror or error}", where=str(path)) from error
    return lock


@contextmanager
def own_folder(path: Path, command: str) -> Iterator[None]:
    """Hold ``path`` for a command: nobody else's files are in it, and no other process writes to it.

    Args:
        path: Made when it is not there; taken away again when the command ends at an error before it wrote anything.
        command: ``grow``, ``mix``, ...; the same command may come back to its folder.

    Raises:
        RunError: It is a file, it holds files that ``command`` did not make, or a process works in it.
    """
    check_own(path, command)
    with hold(path, lambda: BUSY) as held:
        try:
            (path / MARK).write_text(json.dumps({"made_by": f"regrow {command}"}) + "\n", encoding="utf-8")
            yield
        except RegrowError:
            if all(p.name in (MARK, LOCK) for p in path.iterdir()):
                (path / MARK).unlink(missing_ok=True)
                held.taken_back = True
            raise


@contextmanager
def hold_beside(path: Path) -> Iterator[None]:
    """Hold a folder that will be replaced as a whole, with a lock that lies beside it.

    Raises:
        RunError: Another process holds it, or nothing can be written there.
    """
    whole = path.resolve()  # `.` has no name
    place = whole.with_name(f".{whole.name}{LOCK}")
    new = not place.parent.exists()
    lock = _lock(place, path, lambda: BUSY)
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        lock.release()
        if new:
            with suppress(OSError):  # something was written there
                place.parent.rmdir()


def check_own(path: Path, command: str) -> None:
    """Refuse a folder that holds what ``command`` did not make.

    Raises:
        RunError: See `own_folder`.
    """
    if path.exists() and not path.is_dir():
        raise RunError("this is a file, a folder is needed", where=str(path))
    if not path.is_dir() or all(p.name == LOCK for p in path.iterdir()):
        return
    maker = _maker(path)
    if maker is None:
        raise RunError(f"the output folder is not empty and was not made by `regrow {command}`", where=str(path),
                       hint="choose another folder with -o")  # fmt: skip
    if maker != f"regrow {command}":
        raise RunError(f"the folder holds the output of `{maker}`", where=str(path),
                       hint="choose another folder with -o")  # fmt: skip


def check_new(path: Path) -> None:
    """Refuse a place where something is already.

    Raises:
        RunError: ``path`` is a file or a folder with something in it.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise RunError("there is something already", where=str(path),
                       hint="choose another place with -o, or remove it first")  # fmt: skip


def _maker(path: Path) -> str | None:
    try:
        found = json.loads((path / MARK).read_text(encoding="utf-8"))["made_by"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)
