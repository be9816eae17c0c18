"""The store of a growing corpus: append-only, crash-safe, one writer, many readers.

SQLite in WAL mode, because it comes with Python, keeps millions of rows on disk and not in memory, lets others read
while one writes, and its commits survive ``kill -9``. ``synchronous=FULL`` also syncs the log at each commit, so that
a commit survives a power cut; one sync for an expanded parent costs milliseconds beside the seconds that sampling it
took.

The unit of work is the expansion of one parent: its children, its dropped candidates and the mark that it is done are
one transaction. A killed run therefore knows every parent as either done or untouched, and no node is lost or made
twice.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from regrow.errors import RunError
from regrow.grow.plan import Want
from regrow.grow.records import (
    SCHEMA,
    Expansion,
    StoredNode,
    Totals,
    TreeRow,
    ints,
    node_values,
    want_from_json,
    want_to_json,
)
from regrow.grow.shapes import Shape

STORE_NAME = "nodes.sqlite"
LOCK_NAME = "grow.lock"
_VERSION = 1
_CHUNK = 500


class Store:
    """The nodes of one corpus on disk. Use `Store.create_or_resume` to write, `Store.open_reader` to look."""

    def __init__(self, path: Path, db: sqlite3.Connection, lock: Any = None) -> None:
        self.path = path
        self._db = db
        self._lock = lock

    # -- opening ------------------------------------------------------------------------------------------------

    @classmethod
    def create_or_resume(cls, folder: Path, identity: Mapping[str, Any]) -> Store:
        """Open ``folder``'s store for writing, alone; make it when there is none.

        Args:
            folder: The corpus folder.
            identity: What decides the corpus (configuration, model revision, seed). It is stored, and must be the same
                on resume: a corpus grown under two configurations would be neither.

        Raises:
            RunError: Another process writes here, the store was grown under another identity (the message names the
                keys), or the file is damaged.
        """
        from filelock import FileLock, Timeout

        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_NAME)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                "another process is growing into this folder",
                where=str(folder),
                hint="Wait for it, stop it, or grow into another folder. Readers may open the corpus meanwhile.",
            ) from None
        path = folder / STORE_NAME
        store = None
        try:
            with _readable(path):
                store = cls(path, _connect(path), lock)
                store._prepare(json.loads(json.dumps(identity)))
        except BaseException:
            if store is not None:
                store._db.close()
            lock.release()
            raise
        return store

    @classmethod
    def open_reader(cls, folder: Path) -> Store:
        """Open ``folder``'s store to read; any number of readers, also while it grows.

        Raises:
            RunError: There is no store, or it is damaged.
        """
        path = folder / STORE_NAME
        if not path.is_file():
            raise RunError("no corpus has been grown here", where=str(folder), hint="Run `regrow grow` first.")
        with _readable(path):
            db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
            begun = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone()
        if not begun:
            db.close()
            raise RunError("the corpus is only just being begun", where=str(folder), hint="Look again in a moment.")
        return cls(path, db)

    def _prepare(self, identity: dict[str, Any]) -> None:
        with self._writing():
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                for statement in SCHEMA.split(";"):
                    if statement.strip():
                        self._db.execute(statement)
                self._set("version", _VERSION)
                self._set("identity", identity)
                return
        damage = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
        if self.get("version") != _VERSION:
            raise RunError(
                f"the store has format {self.get('version')}, this Regrow writes {_VERSION}",
                where=str(self.path), hint="Grow into a new folder, or use the Regrow that made this one.",
            )  # fmt: skip
        differing = _differences(self.get("identity"), identity)
        if differing:
            raise RunError(
                "this corpus was begun under another configuration: " + "; ".join(differing),
                where=str(self.path.parent),
                hint="Grow into a new folder, or put the old values back to resume.",
            )

    def close(self) -> None:
        """Close the file and free the lock. Idempotent."""
        self._db.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction; on any error nothing of it stays."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                with closing(self._db.cursor()) as cursor:
                    cursor.execute("ROLLBACK")
            if isinstance(error, (sqlite3.Error, OSError)) and _is_full(error):
                raise RunError(
                    "the disk is full; every expansion committed so far is safe",
                    where=str(self.path),
                    hint="Free some space and run the same command again: it goes on from the last committed parent.",
                ) from error
            raise

    # -- small things -------------------------------------------------------------------------------------------

    def _set(self, key: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value, sort_keys=True)))

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value under ``key``."""
        with self._writing():
            self._set(key, value)

    def get(self, key: str, default: Any = None) -> Any:
        """The JSON value under ``key``."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else json.loads(row[0])

    # -- trees and expansions -----------------------------------------------------------------------------------

    def plant(self, trees: Sequence[TreeRow]) -> None:
        """Add the trees of one round, all or none."""
        with self._writing():
            self._db.executemany(
                "INSERT INTO trees VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (t.tree, t.topic, t.name, t.root, t.round, json.dumps(t.shape.children), t.shape.independent,
                     want_to_json(t.want))
                    for t in trees
                ],
            )  # fmt: skip

    def trees(self) -> list[TreeRow]:
        """All planted trees in order."""
        return [
            TreeRow(
                tree, topic, name, root, round_, Shape(tuple(json.loads(children)), bool(alone)), want_from_json(want)
            )
            for tree, topic, name, root, round_, children, alone, want in self._db.execute(
                "SELECT * FROM trees ORDER BY tree"
            )
        ]

    def is_expanded(self, unit: str) -> bool:
        """Whether this expansion is committed."""
        return self._db.execute("SELECT 1 FROM expansions WHERE unit = ?", (unit,)).fetchone() is not None

    def expanded_units(self, prefix: str) -> set[str]:
        """Committed expansions whose unit is ``prefix`` followed by ``/`` and a number."""
        rows = self._db.execute(
            "SELECT unit FROM expansions WHERE unit > ? AND unit < ?", (f"{prefix}/", f"{prefix}0")
        )
        return {unit for (unit,) in rows}

    def open_nodes(self, layer: int, after: str, limit: int) -> list[tuple[str, int, Want]]:
        """Kept nodes of ``layer`` that have not been expanded: ``(id, tree, want)`` in order of id, from past
        ``after``."""
        rows = self._db.execute(
            "SELECT n.id, n.tree, n.want FROM nodes n LEFT JOIN expansions e ON e.unit = n.id "
            "WHERE n.kept = 1 AND n.leaf = 0 AND n.layer = ? AND n.id > ? AND e.unit IS NULL ORDER BY n.id LIMIT ?",
            (layer, after, limit),
        )
        return [(id_, tree, want_from_json(want)) for id_, tree, want in rows]

    def contents(self, ids: Sequence[str]) -> dict[str, tuple[list[int], str]]:
        """Token ids and text of these nodes."""
        found: dict[str, tuple[list[int], str]] = {}
        unique = sorted(set(ids))
        for i in range(0, len(unique), _CHUNK):
            part = unique[i : i + _CHUNK]
            marks = ",".join("?" * len(part))
            rows = self._db.execute(f"SELECT id, token_ids, text FROM nodes WHERE id IN ({marks})", part)  # noqa: S608
            found.update({id_: (ints(blob), text) for id_, blob, text in rows})
        return found

    def commit(self, expansion: Expansion) -> None:
        """Make one expansion durable: all of it or, on any failure, nothing."""
        with self._writing():
            self._db.executemany(
                "INSERT INTO nodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [node_values(node) for node in expansion.nodes],
            )
            kept = sum(node.kept for node in expansion.nodes)
            self._db.execute(
                "INSERT INTO expansions VALUES (?, ?, ?, ?, ?, ?)",
                (expansion.unit, len(expansion.nodes), kept, expansion.wanted, expansion.attempts, expansion.tokens),
            )
            self._db.executemany(
                "INSERT INTO drops VALUES (?, ?) ON CONFLICT(reason) DO UPDATE SET n = n + excluded.n",
                sorted(expansion.dropped.items()),
            )

    # -- reading ------------------------------------------------------------------------------------------------

    def totals(self) -> Totals:
        """Counts over everything committed."""
        candidates, kept, tokens, n = self._db.execute(
            "SELECT total(candidates), total(kept), total(tokens), count(*) FROM expansions"
        ).fetchone()
        return Totals(
            int(candidates), int(kept), int(tokens), n, dict(self._db.execute("SELECT reason, n FROM drops"))
        )

    def finished(self) -> dict[tuple[int, int], int]:
        """Complete dialogues by (topic number, layer of the leaf)."""
        rows = self._db.execute(
            "SELECT t.topic, n.layer, count(*) FROM nodes n JOIN trees t ON t.tree = n.tree "
            "WHERE n.leaf = 1 GROUP BY 1, 2"
        )
        return {(topic, layer): n for topic, layer, n in rows}

    def wanted_so_far(self) -> int:
        """Children that the committed expansions were to give; what a progress bar counts."""
        return int(self._db.execute("SELECT total(wanted) FROM expansions").fetchone()[0])

    def tokens_on_paths(self) -> int:
        """Tokens of the distinct nodes that lie on a complete dialogue."""
        return sum(self.tokens_by_tree().values())

    def tokens_by_tree(self) -> dict[int, int]:
        """The same, tree by tree.

        Against the order of ids children come before their parents, so only the open ends of one branch are held.
        """
        tokens: dict[int, int] = {}
        alive: set[str] = set()
        for id_, parent, tree, n, leaf in self._db.execute(
            "SELECT id, parent, tree, n_tokens, leaf FROM nodes WHERE kept = 1 ORDER BY id DESC"
        ):
            if leaf or id_ in alive:
                alive.discard(id_)
                alive.add(parent)
                tokens[tree] = tokens.get(tree, 0) + n
        return tokens

    def dialogues_by_tree(self) -> dict[int, int]:
        """Complete dialogues of each tree."""
        return dict(self._db.execute("SELECT tree, count(*) FROM nodes WHERE leaf = 1 GROUP BY tree"))

    def leaf_ids(self) -> Iterator[str]:
        """Ids of the leaves, in order of id."""
        for (id_,) in self._db.execute("SELECT id FROM nodes WHERE leaf = 1 ORDER BY id"):
            yield id_

    def nodes(self) -> Iterator[tuple[StoredNode, tuple[int, bytes, bytes] | None]]:
        """All nodes in order of id (a parent right before its descendants), with their top-k row where there is
        one."""
        rows = self._db.execute(
            "SELECT n.id, n.parent, n.tree, n.layer, n.role, n.token_ids, n.text, n.finish, n.kept, n.reason, "
            "n.seed, n.leaf, n.token_logprobs, t.k, t.ids, t.logprobs "
            "FROM nodes n LEFT JOIN topk t ON t.id = n.id ORDER BY n.id"
        )
        for r in rows:
            logprobs = None if r[12] is None else np.frombuffer(r[12], dtype="<f4")
            yield (
                StoredNode(
                    r[0], r[1], r[2], r[3], r[4], ints(r[5]), r[6], r[7], bool(r[8]), r[9], r[10], bool(r[11]),
                    token_logprobs=logprobs,
                ),
                None if r[13] is None else (r[13], r[14], r[15]),
            )  # fmt: skip

    # -- top-k --------------------------------------------------------------------------------------------------

    def without_topk(self, ids: Sequence[str]) -> list[str]:
        """Those of ``ids`` that have no top-k row yet, in the order given."""
        done: set[str] = set()
        for i in range(0, len(ids), _CHUNK):
            part = ids[i : i + _CHUNK]
            marks = ",".join("?" * len(part))
            rows = self._db.execute(f"SELECT id FROM topk WHERE id IN ({marks})", part)  # noqa: S608
            done.update(id_ for (id_,) in rows)
        return [id_ for id_ in ids if id_ not in done]

    def add_topk(self, rows: Sequence[tuple[str, int, bytes, bytes]]) -> None:
        """Keep top-k rows ``(id, k, ids int32, logprobs float16)``, flat, row-major, all or none."""
        with self._writing():
            self._db.executemany("INSERT INTO topk VALUES (?, ?, ?, ?)", rows)

    def clear_topk(self) -> None:
        """Forget the top-k rows (k or the prompt in front of them changed)."""
        with self._writing():
            self._db.execute("DELETE FROM topk")


def copy_store(source: Path, folder: Path) -> None:
    """Make ``folder`` hold the store of ``source`` as it is, so that it can grow on there; the copy appears whole.

    Raises:
        RunError: ``source`` has no store, or it is damaged.
    """
    from regrow.rows.writers import atomic_path

    folder.mkdir(parents=True, exist_ok=True)
    with Store.open_reader(source) as store, atomic_path(folder / STORE_NAME) as tmp, _readable(store.path):
        copy = sqlite3.connect(tmp)
        try:
            store._db.backup(copy)
        finally:
            copy.close()


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    return db


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if _is_full(error):
            raise RunError(
                "the disk is full", where=str(path), hint="Free some space and run the same command again."
            ) from error
        raise RunError(
            f"the store is damaged: {error}",
            where=str(path),
            hint="A crash does not do this; a failing disk or a cut copy does. Take what is readable with "
            "`sqlite3 nodes.sqlite .recover | sqlite3 rescued.sqlite`, or delete the folder and grow again.",
        ) from error


def _is_full(error: BaseException) -> bool:
    return (
        "disk is full" in str(error)
        or getattr(error, "errno", None) == 28
        or (getattr(error, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"))
    )


def _differences(old: Any, new: Any, at: str = "") -> list[str]:
    """The keys in which two nested identities differ, as ``key: old -> new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            d
            for key in sorted({*old, *new})
            for d in _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        ]
    return [] if old == new else [f"{at}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
