"""The cache folder: things fetched or converted once, built atomically under a lock, checked by content hash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from regrow.errors import ModelError

MARKER = "regrow.json"


def cache_dir() -> Path:
    """``$REGROW_CACHE``, or ``~/.cache/regrow``. Not created here."""
    return Path(os.environ.get("REGROW_CACHE") or "~/.cache/regrow").expanduser()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex.

    Remembered in the cache by resolved path, size, inode and modification time in ns, so that a second look at 15 GB
    of weights is free.
    """
    path = path.resolve()
    stat = path.stat()
    key = hashlib.sha256(f"{path}|{stat.st_size}|{stat.st_ino}|{stat.st_mtime_ns}".encode()).hexdigest()
    remembered = cache_dir() / "hashes" / key
    if remembered.is_file():
        text = remembered.read_text(encoding="ascii").strip()
        if len(text) == 64:
            return text
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    if stat.st_size >= 1 << 20:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        tmp = remembered.with_name(f"{key}.{os.getpid()}.tmp")
        tmp.write_text(digest.hexdigest(), encoding="ascii")
        tmp.replace(remembered)
    return digest.hexdigest()


def _sizes(folder: Path) -> dict[str, int]:
    return {
        p.relative_to(folder).as_posix(): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MARKER
    }


def is_complete(folder: Path) -> bool:
    """Whether ``folder`` was built to the end by `build_once` and every file still has its size."""
    marker = folder / MARKER
    if not marker.is_file():
        return False
    try:
        wanted = json.loads(marker.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return False
    return bool(wanted == _sizes(folder))


def build_once(target: Path, build: Callable[[Path], dict[str, object]]) -> Path:
    """Return the folder ``target``, building it first when it is not there or damaged.

    Safe against other processes (a file lock), ``kill -9`` (built beside, renamed at the end) and truncated files
    (sizes in the marker).

    Args:
        target: A folder inside the cache.
        build: Fills the empty folder it is given and returns facts for the marker file.

    Raises:
        ModelError: The disk is full or the cache cannot be written.
    """
    from filelock import FileLock

    if is_complete(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            if is_complete(target):
                return target
            for stale in target.parent.glob(f".{target.name}.*.tmp"):
                shutil.rmtree(stale)
            tmp = target.parent / f".{target.name}.{os.getpid()}.tmp"
            tmp.mkdir()
            try:
                facts = build(tmp)
                for file in sorted(tmp.rglob("*")):
                    if file.is_file():
                        with file.open("rb") as handle:
                            os.fsync(handle.fileno())
                marker = json.dumps({**facts, "files": _sizes(tmp)}, indent=1)
                (tmp / MARKER).write_text(marker, encoding="utf-8")
                if target.exists():
                    shutil.rmtree(target)
                tmp.replace(target)
            finally:
                if tmp.exists():
                    shutil.rmtree(tmp)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        raise ModelError(
            f"the cache cannot be written: {error.strerror}",
            where=str(target.parent),
            hint="Free some space, or set REGROW_CACHE to a folder on another disk.",
        ) from error
    return target
