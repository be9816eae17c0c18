"""Answers of a server on disk, so that what was paid for once is not paid for again.

SQLite, as in `regrow.grow.store`: comes with Python, survives ``kill -9``, and several runs may share one file. The
libraries that cache on top of it (diskcache, sqlitedict) store pickles.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import zlib
from pathlib import Path
from typing import Any

from regrow.errors import EngineError


def request_key(identity: Any, body: Any) -> bytes:
    """SHA-256 of what was asked of whom; both are JSON values, the order of their keys does not matter."""
    text = json.dumps([identity, body], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).digest()


class RequestCache:
    """Replies by `request_key`. Safe to use from several threads and processes.

    Args:
        path: The file; made when it is not there.

    Raises:
        EngineError: The file cannot be written or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            # A power cut may lose the last answers, not damage the file: they can be asked for again.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS replies(key BLOB PRIMARY KEY, reply BLOB NOT NULL)")
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def get(self, key: bytes) -> Any | None:
        """The reply's JSON, or None."""
        try:
            with self._lock:
                row = self._db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return None if row is None else json.loads(zlib.decompress(row[0]))

    def put(self, key: bytes, reply: Any) -> None:
        """Store a reply; committed when this returns."""
        blob = zlib.compress(json.dumps(reply, separators=(",", ":")).encode(), 1)
        try:
            with self._lock:
                self._db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, blob))
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._db.close()

    def _unusable(self, error: Exception) -> EngineError:
        return EngineError(
            f"the request cache cannot be used: {error}",
            where=str(self.path),
            hint="Free some space, delete the file, set REGROW_CACHE to another folder, or grow.server.cache: false.",
        )
