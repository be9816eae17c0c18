"""Results on disk as they are made: an append-only file that survives kill -9."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from regrow.errors import RunError
from regrow.rows.writers import json_line


def pass_key(kind: str, revision: str, settings: dict[str, Any]) -> str:
    """Name of one pass over items: what was done, with which model (``revision``), under which settings."""
    text = json.dumps([kind, revision, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Ledger:
    """An append-only JSONL file of values by (pass, item).

    A batch is appended with one write and flushed to disk, so a killed process loses at most the batch it was at; a
    torn last line is cut off when the file is opened again.

    Args:
        path: The file.
        reuse: Files of the same kind to look values up in. They are only read; a torn last line is passed over.

    Raises:
        RunError: A file is damaged elsewhere than at its end.
    """

    def __init__(self, path: Path, reuse: Sequence[Path] = ()) -> None:
        self.path = path
        self._values: dict[tuple[str, str], dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raw = path.read_bytes()
            whole = raw.rfind(b"\n") + 1
            if whole < len(raw):
                with path.open("rb+") as f:
                    f.truncate(whole)
                    os.fsync(f.fileno())
            self._read(raw[:whole], path)
        for other in reuse:
            raw = other.read_bytes()
            self._read(raw[: raw.rfind(b"\n") + 1], other)
        self._file = path.open("ab")

    def _read(self, raw: bytes, path: Path) -> None:
        for number, line in enumerate(raw.split(b"\n")[:-1], 1):
            try:
                entry = json.loads(line)
                key = (entry["pass"], entry["item"])
                value = entry["value"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise RunError(
                    f"the file of results is damaged: {error}",
                    where=f"{path}:{number}",
                    hint="Delete the file; its items are then done again.",
                ) from error
            self._values.setdefault(key, value)

    def get(self, name: str, item: str) -> dict[str, Any] | None:
        """The value stored for an item in a pass."""
        return self._values.get((name, item))

    def add(self, name: str, values: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Store a batch of (item hash, value) durably; what is there already stays."""
        fresh = [(item, value) for item, value in values if (name, item) not in self._values]
        if not fresh:
            return
        lines = "".join(json_line({"pass": name, "item": item, "value": value}) for item, value in fresh)
        self._file.write(lines.encode("utf-8"))
        self._file.flush()
        os.fsync(self._file.fileno())
        for item, value in fresh:
            self._values[name, item] = value

    def __len__(self) -> int:
        return len(self._values)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
