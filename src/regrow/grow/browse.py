"""A grown tree on disk, looked at level by level: while it grows (SQLite) and when it is done (Parquet).

Nothing here reads a whole corpus of text: a level costs one index step a child in the store, and one scan of the
parents' column and the row groups of a page in Parquet.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from regrow.errors import RunError
from regrow.grow.corpus import NODES

STORE = "nodes.sqlite"
MOST_NAMED = 1000
"""Parents that are named in one `News`."""
_HINT = "grow or curate this corpus again"


@dataclass(frozen=True, slots=True)
class Branch:
    """A node, or at the top a tree.

    Attributes:
        id: Its path: ``t03``, ``t03/5/0``.
        role: ``user``, ``assistant``, ``text``, or ``topic`` for a tree.
        text: What was said; a tree's topic.
        kept: Whether it is part of the corpus.
        reason: Why not, else None.
        children: Nodes right below it, dropped ones too.
    """

    id: str
    role: str
    text: str
    kept: bool
    reason: str | None
    children: int


@dataclass(frozen=True, slots=True)
class Level:
    """Some of the children of one node.

    Attributes:
        branches: In order of id, kept ones before dropped ones.
        total: Children in all.
    """

    branches: list[Branch]
    total: int


@dataclass(frozen=True, slots=True)
class Size:
    """Nodes of a corpus so far."""

    nodes: int
    kept: int


Mark = tuple[str, int, int, int]
"""Of a corpus at some moment; only `Tree.news` can read it."""


@dataclass(frozen=True, slots=True)
class News:
    """What has been added to a corpus.

    Attributes:
        mark: For the next question.
        parents: Nodes below which there are new ones, the empty id among them when a tree is new; None when anything
            may have changed: there was no mark, it is of another file, or more than `MOST_NAMED` would be named.
    """

    mark: Mark
    parents: list[str] | None


class Tree(Protocol):
    """A corpus that can be looked at."""

    def level(self, parent: str, offset: int, limit: int) -> Level:
        """Children of ``parent`` (an id; empty for the trees), from number ``offset`` on.

        Raises:
            RunError: The corpus is damaged.
        """

    def size(self) -> Size:
        """How many nodes there are."""

    def news(self, mark: Mark | None) -> News:
        """Where nodes were added since ``mark``, at a cost of what was added and not of what is there."""


def open_tree(folder: Path) -> Tree | None:
    """The corpus in a folder, finished or growing; None when nothing has been grown there yet."""
    if (folder / NODES).is_file():
        return _Finished(folder / NODES)
    if (folder / STORE).is_file():
        return _Growing(folder / STORE)
    return None


class _Growing:
    """The store of a corpus that is being grown. SQLite lets readers in while one writes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as db:
                yield db
        except (sqlite3.Error, OSError) as error:
            raise RunError(f"cannot be read: {error}", where=str(self._path), hint="look again in a moment") from error

    def size(self) -> Size:
        with self._open() as db:
            if not _begun(db):
                return Size(0, 0)
            nodes, kept = db.execute("SELECT total(candidates), total(kept) FROM expansions").fetchone()
            return Size(int(nodes), int(kept))

    def news(self, mark: Mark | None) -> News:
        with self._open() as db:
            file = (str(self._path), self._path.stat().st_ino)
            if not _begun(db):
                return News((*file, 0, 0), None)
            db.execute("BEGIN")  # both numbers and the nodes are of one moment
            (last,) = db.execute("SELECT coalesce(max(rowid), 0) FROM nodes").fetchone()
            (trees,) = db.execute("SELECT count(*) FROM trees").fetchone()
            now = (*file, int(last), int(trees))
            if mark is None or mark[:2] != file or mark[2] > last:
                return News(now, None)
            added = "SELECT DISTINCT parent FROM nodes WHERE rowid > ? LIMIT ?"
            parents = [parent for (parent,) in db.execute(added, (mark[2], MOST_NAMED + 1))]
            if len(parents) > MOST_NAMED:
                return News(now, None)
            return News(now, parents + [""] * (trees != mark[3]))

    def level(self, parent: str, offset: int, limit: int) -> Level:
        with self._open() as db:
            if not _begun(db):
                return Level([], 0)
            if not parent:
                return self._trees(db, offset, limit)
            ids = [id_ for (id_,) in db.execute(_CHILDREN, {"first": f"{parent}/", "end": f"{parent}0"})]
            return Level([self._branch(db, id_) for id_ in ids[offset : offset + limit]], len(ids))

    def _trees(self, db: sqlite3.Connection, offset: int, limit: int) -> Level:
        rows = db.execute("SELECT tree, name FROM trees ORDER BY tree LIMIT ? OFFSET ?", (limit, offset)).fetchall()
        found = []
        for tree, name in rows:
            id_ = f"t{tree:02d}"
            found.append(Branch(id_, "topic", name, True, None, _count(db, id_)))
        return Level(found, int(db.execute("SELECT count(*) FROM trees").fetchone()[0]))

    def _branch(self, db: sqlite3.Connection, id_: str) -> Branch:
        role, text, kept, reason = db.execute(
            "SELECT role, text, kept, reason FROM nodes WHERE id = ?", (id_,)
        ).fetchone()
        return Branch(id_, role, text, bool(kept), reason, _count(db, id_) if kept else 0)


def _begun(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'topk'").fetchone() is not None


_CHILDREN = """
WITH RECURSIVE child(id) AS (
    SELECT min(id) FROM nodes WHERE id > :first AND id < :end
    UNION ALL
    SELECT (SELECT min(n.id) FROM nodes n WHERE n.id >= child.id || '0' AND n.id < :end)
    FROM child WHERE child.id IS NOT NULL
)
SELECT id FROM child WHERE id IS NOT NULL
"""
"""A node's descendants stand between ``id/`` and ``id0`` (``0`` follows ``/``): one index step leaps over them all to
the next sibling, so that a level costs its own width and not what hangs below it."""


def _count(db: sqlite3.Connection, id_: str) -> int:
    query = _CHILDREN.replace("SELECT id FROM child", "SELECT count(*) FROM child")
    return int(db.execute(query, {"first": f"{id_}/", "end": f"{id_}0"}).fetchone()[0])


class _Finished:
    """A corpus in Parquet. The columns that make the tree are held, its text is read by the page."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def size(self) -> Size:
        import pyarrow.compute as pc

        found = self._read()
        return Size(found.num_rows, int(pc.sum(found["kept"]).as_py() or 0))

    def news(self, mark: Mark | None) -> News:
        stat = self._stat()
        now = (str(self._path), stat.st_ino, stat.st_mtime_ns, stat.st_size)
        return News(now, [] if now == mark else None)

    def level(self, parent: str, offset: int, limit: int) -> Level:
        import pyarrow.compute as pc

        found = self._read()
        if not parent:
            return self._topics(found, offset, limit)
        at = pc.indices_nonzero(pc.equal(found["parent"], parent))
        below = found.take(at)
        order = pc.sort_indices(below.append_column("at", at), [("kept", "descending"), ("at", "ascending")])
        page = order.slice(offset, limit)
        texts = _texts(self._path, at.take(page).to_pylist())
        rows = below.take(page).to_pylist()
        counts = _counts(found, [r["id"] for r in rows])
        return Level(
            [
                Branch(r["id"], r["role"], text, bool(r["kept"]), r["reason"], counts.get(r["id"], 0))
                for r, text in zip(rows, texts, strict=True)
            ],
            len(at),
        )

    def _topics(self, found: Any, offset: int, limit: int) -> Level:
        import pyarrow.compute as pc

        firsts = found.filter(pc.equal(found["layer"], 1)).group_by(["parent", "topic"]).aggregate([("id", "count")])
        rows = firsts.sort_by("parent").to_pylist()
        page = rows[offset : offset + limit]
        return Level([Branch(r["parent"], "topic", r["topic"], True, None, r["id_count"]) for r in page], len(rows))

    def _read(self) -> Any:
        stat = self._stat()
        return _skeleton(self._path, stat.st_mtime_ns, stat.st_size)

    def _stat(self) -> os.stat_result:
        try:
            return self._path.stat()
        except OSError as error:  # a stage that is done anew has just emptied its folder
            raise RunError(f"cannot be read: {error.strerror}", where=str(self._path), hint=_HINT) from error


@lru_cache(maxsize=4)
def _skeleton(path: Path, changed: int, size: int) -> Any:
    """Everything but the text, as an Arrow table; ``changed`` and ``size`` make a new version a new entry."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=["id", "parent", "topic", "layer", "role", "kept", "reason"])
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"cannot be read: {error}", where=str(path), hint=_HINT) from error


def _counts(found: Any, ids: list[str]) -> dict[str, int]:
    import pyarrow as pa
    import pyarrow.compute as pc

    below = found.filter(pc.is_in(found["parent"], value_set=pa.array(ids, pa.string())))
    return {r["values"]: r["counts"] for r in pc.value_counts(below["parent"]).to_pylist()}


def _texts(path: Path, numbers: list[int]) -> list[str]:
    """Texts of the rows with these numbers, reading only the row groups they stand in."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            starts, at = [], 0
            for group in range(file.num_row_groups):
                starts.append(at)
                at += file.metadata.row_group(group).num_rows
            out: dict[int, str] = {}
            for group in range(file.num_row_groups):
                end = starts[group + 1] if group + 1 < len(starts) else at
                wanted = [n for n in numbers if starts[group] <= n < end]
                if wanted:
                    column = file.read_row_group(group, columns=["text"])["text"]
                    out |= {n: column[n - starts[group]].as_py() or "" for n in wanted}
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"cannot be read: {error}", where=str(path), hint=_HINT) from error
    return [out[n] for n in numbers]
