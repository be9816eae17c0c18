"""A corpus looked at level by level, growing and finished."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from regrow.errors import RunError
from regrow.grow import browse
from regrow.grow.browse import News, Size, open_tree
from regrow.grow.corpus import read_nodes
from regrow.grow.records import Expansion
from regrow.grow.store import STORE_NAME, Store
from tests.grow.helpers import run, settings
from tests.grow.test_store import ME, node, tree


def test_growing_and_finished_corpora_look_alike(tiny_model_dir: Path, tmp_path: Path) -> None:
    run(tiny_model_dir, tmp_path, settings(shape=[4, 2, 2, 1], topics=["rivers", "birds"], dialogues="all"))
    nodes = list(read_nodes(tmp_path))
    (tmp_path / "done").mkdir()
    (tmp_path / "nodes.parquet").rename(tmp_path / "done/nodes.parquet")
    finished, growing = open_tree(tmp_path / "done"), open_tree(tmp_path)
    assert finished is not None and growing is not None
    assert finished.size().nodes == growing.size().nodes == len(nodes)
    seen = 0
    open_ = [""]
    while open_:
        parent = open_.pop()
        level = growing.level(parent, 0, 1000)
        other = finished.level(parent, 0, 1000)
        told, others = ({(b.id, b.role, b.text, b.children) for b in found.branches} for found in (level, other))
        assert told == others
        assert level.total == other.total == len(level.branches)
        assert level.total == sum(n.parent == parent for n in nodes) or not parent
        seen += len(level.branches) if parent else 0
        open_ += [b.id for b in level.branches if b.children]
    assert seen == len(nodes)


def plant(folder: Path, width: int, below: int) -> None:
    with Store.create_or_resume(folder, ME) as store:
        store.plant([tree()])
        firsts = [node(f"t00/{i}") for i in range(width)] + [node("t00/x7", kept=False)]
        store.commit(Expansion("root/t00", firsts, width, 1, 5, {"empty": 1}))
        for first in firsts[:-1]:
            leaves = [node(f"{first.id}/{i}", leaf=True) for i in range(below)]
            store.commit(Expansion(first.id, leaves, below, 1, 5))


def test_a_level_is_paged(tmp_path: Path) -> None:
    plant(tmp_path, width=25, below=2)
    found = open_tree(tmp_path)
    assert found is not None
    whole = found.level("t00", 0, 100)
    assert whole.total == 26 and [b.kept for b in whole.branches] == [True] * 25 + [False]
    assert whole.branches[-1].reason == "empty" and whole.branches[-1].children == 0
    assert {b.children for b in whole.branches[:-1]} == {2}
    assert [b for k in range(0, 26, 7) for b in found.level("t00", k, 7).branches] == whole.branches
    assert found.level("", 0, 10).branches[0].text == "rivers" and found.level("", 0, 10).branches[0].children == 26
    assert found.level("t00/3", 0, 10).total == 2 and found.level("t00/99", 0, 10).total == 0
    assert found.level("t0", 0, 10).total == 0, "the beginning of a name is not a name"
    assert found.size() == Size(76, 75)


def test_a_level_does_not_walk_through_what_hangs_below_it(tmp_path: Path) -> None:
    """Steps of SQLite's machine for the same level, over a tree ten times as large, are the same."""

    def steps(folder: Path) -> int:
        counted = 0

        def count() -> int:
            nonlocal counted
            counted += 1
            return 0

        with sqlite3.connect(folder / STORE_NAME) as db:
            db.set_progress_handler(count, 1)
            rows = db.execute(browse._CHILDREN, {"first": "t00/", "end": "t000"}).fetchall()
            assert len(rows) == 9
        return counted

    plant(tmp_path / "small", width=8, below=3)
    plant(tmp_path / "large", width=8, below=300)
    assert steps(tmp_path / "large") == steps(tmp_path / "small")


def test_what_is_new_is_named_at_the_cost_of_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, width=25, below=40)
    growing = open_tree(tmp_path)
    assert growing is not None
    first = growing.news(None)
    assert first.parents is None, "without a mark anything may be new"
    steps = []
    opened = growing._open  # type: ignore[attr-defined]

    @contextmanager
    def counting() -> Iterator[sqlite3.Connection]:
        with opened() as db:
            db.set_progress_handler(lambda: steps.append(1), 1)
            yield db

    monkeypatch.setattr(growing, "_open", counting)
    with Store.create_or_resume(tmp_path, ME) as store:
        assert growing.news(first.mark).parents == []
        store.commit(Expansion("t00/3/1", [node("t00/3/1/0"), node("t00/3/1/x1", kept=False)], 1, 1, 5))
        store.commit(Expansion("t00/4/1", [node("t00/4/1/0")], 1, 1, 5))
        second = growing.news(first.mark)
        assert sorted(second.parents or []) == ["t00/3/1", "t00/4/1"]
        store.plant([tree(1)])
        third = growing.news(second.mark)
        assert third.parents == [""] and growing.news(third.mark).parents == []
    assert len(steps) < 1000, "steps of SQLite's machine; there are a thousand nodes"
    monkeypatch.setattr(browse, "MOST_NAMED", 1)
    assert growing.news(first.mark).parents is None


def test_another_file_may_be_new_anywhere(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        plant(tmp_path / folder, width=2, below=1)
    one, two = (open_tree(tmp_path / folder) for folder in ("one", "two"))
    assert one is not None and two is not None
    mark = one.news(None).mark
    assert one.news(mark).parents == [] and two.news(mark).parents is None
    (tmp_path / "two/nodes.sqlite").replace(tmp_path / "one/nodes.sqlite")
    assert one.news(mark).parents is None


def test_a_finished_corpus_has_no_news(tiny_model_dir: Path, tmp_path: Path) -> None:
    run(tiny_model_dir, tmp_path, settings(shape=[4, 2], topics=["rivers"], dialogues="all"))
    done = open_tree(tmp_path)
    assert done is not None
    found = done.news(None)
    assert found.parents is None and done.news(found.mark) == News(found.mark, [])
    os.utime(tmp_path / "nodes.parquet", (1, 1))
    assert done.news(found.mark).parents is None


def test_finished_texts_are_read_by_the_page(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_model_dir, tmp_path, settings(shape=[4, 2, 2, 1], topics=["rivers", "birds"], dialogues="all"))
    asked: list[list[int]] = []
    texts = browse._texts
    monkeypatch.setattr(browse, "_texts", lambda path, numbers: (asked.append(numbers), texts(path, numbers))[1])
    found = open_tree(tmp_path)
    assert found is not None
    found.level("t00", 0, 2)
    assert [len(numbers) for numbers in asked] == [2]


def test_nothing_there_and_damage(tmp_path: Path) -> None:
    assert open_tree(tmp_path) is None
    (tmp_path / "nodes.sqlite").write_bytes(b"")
    just_begun = open_tree(tmp_path)
    assert just_begun is not None and just_begun.size() == Size(0, 0) and just_begun.level("", 0, 5).total == 0
    (tmp_path / "nodes.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(RunError, match="cannot be read"):
        just_begun.size()
    (tmp_path / "nodes.parquet").write_bytes(b"no parquet")
    damaged = open_tree(tmp_path)
    assert damaged is not None
    with pytest.raises(RunError, match="cannot be read"):
        damaged.level("", 0, 5)
