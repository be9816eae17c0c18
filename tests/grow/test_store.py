from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regrow.errors import RunError
from regrow.grow.records import Expansion, StoredNode, TreeRow
from regrow.grow.shapes import Shape
from regrow.grow.store import STORE_NAME, Store
from tests.grow.helpers import run, settings, snapshot

ME = {"seed": 1, "grow": {"shape": [3, 2], "retries": 2}}


def node(id_: str, *, kept: bool = True, leaf: bool = False, size: int = 5, **keys: Any) -> StoredNode:
    parent, layer = id_.rsplit("/", 1)[0], id_.count("/")
    base: dict[str, Any] = {"want": None if leaf else {1: 1}, "token_logprobs": np.full(size, -0.5, np.float32)}
    return StoredNode(
        id_,
        parent,
        0,
        layer,
        "user",
        list(range(size)),
        f"text of {id_}",
        "stop",
        kept,
        None if kept else "empty",
        2**62 + 1,
        leaf,
        **(base | keys),
    )


def tree(n: int = 0) -> TreeRow:
    return TreeRow(n, n, "rivers", "Root.", 0, Shape((3, 2)), {1: 3})


def test_round_trip(tmp_path: Path) -> None:
    with Store.create_or_resume(tmp_path, ME) as store:
        store.plant([tree(), tree(1)])
        store.commit(
            Expansion(
                "root/t00",
                [node("t00/0"), node("t00/1", leaf=True), node("t00/x2", kept=False)],
                2,
                1,
                15,
                {"empty": 1},
            )
        )
    with Store.open_reader(tmp_path) as store:
        assert store.trees() == [tree(), tree(1)]
        assert store.open_nodes(1, "", 10) == [("t00/0", 0, {1: 1})]
        assert store.open_nodes(1, "t00/0", 10) == []
        assert store.contents(["t00/1"]) == {"t00/1": ([0, 1, 2, 3, 4], "text of t00/1")}
        assert store.totals().dropped == {"empty": 1}
        assert (store.totals().candidates, store.totals().kept, store.totals().tokens) == (3, 2, 15)
        assert store.finished() == {(0, 1): 1}
        assert store.is_expanded("root/t00") and not store.is_expanded("t00/0")
        assert store.tokens_on_paths() == 5
        assert [n.id for n, _ in store.nodes()] == ["t00/0", "t00/1", "t00/x2"]
        assert next(store.nodes())[0].seed == 2**62 + 1
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            store.put("x", 1)


def test_tokens_on_paths(tmp_path: Path) -> None:
    with Store.create_or_resume(tmp_path, ME) as store:
        store.plant([tree()])
        store.commit(
            Expansion("root/t00", [node("t00/0", size=3), node("t00/10", size=100), node("t00/2", size=7)], 3, 1, 0)
        )
        store.commit(
            Expansion("t00/0", [node("t00/0/0", leaf=True, size=2), node("t00/0/1", leaf=True, size=2)], 2, 1, 0)
        )
        store.commit(Expansion("t00/2", [node("t00/2/0", leaf=True, size=1), node("t00/2/x1", kept=False)], 1, 1, 0))
        assert store.tokens_on_paths() == 3 + 2 + 2 + 7 + 1


def test_a_failed_commit_leaves_nothing(tmp_path: Path) -> None:
    with Store.create_or_resume(tmp_path, ME) as store:
        store.plant([tree()])
        store.commit(Expansion("root/t00", [node("t00/0")], 1, 1, 5))
        with pytest.raises(sqlite3.IntegrityError):
            store.commit(Expansion("t00/9", [node("t00/9/0"), node("t00/0")], 1, 1, 5))
        assert store.totals().candidates == 1
        assert store.contents(["t00/9/0"]) == {}
        store.commit(Expansion("t00/0", [node("t00/0/0", leaf=True)], 1, 1, 5))


def test_another_configuration_is_named(tmp_path: Path) -> None:
    Store.create_or_resume(tmp_path, ME).close()
    with pytest.raises(RunError) as error:
        Store.create_or_resume(tmp_path, {"seed": 2, "grow": {"shape": [3, 2], "retries": 5}})
    assert "grow.retries: 2 -> 5; seed: 1 -> 2" in str(error.value)
    Store.create_or_resume(tmp_path, ME).close()


def test_mismatch_through_the_stage(tiny_model_dir: Path, tmp_path: Path) -> None:
    run(tiny_model_dir, tmp_path, settings(dialogues=4))
    with pytest.raises(RunError, match=r"grow.answer.temperature: 0.7 -> 0.9"):
        run(tiny_model_dir, tmp_path, settings(dialogues=4, answer={"temperature": 0.9, "max_new_tokens": [600]}))
    with pytest.raises(RunError, match="seed: 0 -> 1"):
        run(tiny_model_dir, tmp_path, settings(dialogues=4), seed=1)
    again = run(tiny_model_dir, tmp_path, settings(dialogues=4, batch_nodes=3))
    assert again.resumed_nodes == again.candidates, "nothing was grown twice"


def test_a_finished_run_is_not_grown_again(tiny_model_dir: Path, tmp_path: Path) -> None:
    run(tiny_model_dir, tmp_path, settings(dialogues=6))
    before = snapshot(tmp_path)
    (tmp_path / "nodes.parquet").unlink()
    run(tiny_model_dir, tmp_path, settings(dialogues=6))
    assert snapshot(tmp_path) == before


def test_disk_full(tmp_path: Path) -> None:
    """SQLite's own page limit stands for the disk: the same error, and the same promise."""
    with Store.create_or_resume(tmp_path, ME) as store:
        store.plant([tree()])
        store.commit(Expansion("root/t00", [node("t00/0")], 1, 1, 5))
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(RunError, match="disk is full; every expansion committed so far is safe") as error:
            store.commit(Expansion("t00/0", [node(f"t00/0/{i}", size=5000) for i in range(9)], 9, 1, 5))
        assert "run the same command again" in str(error.value)
        assert store.totals().candidates == 1
    with Store.create_or_resume(tmp_path, ME) as store:
        store.commit(Expansion("t00/0", [node(f"t00/0/{i}", size=5000) for i in range(9)], 9, 1, 5))
        assert store.totals().candidates == 10


def crashed(tmp_path: Path) -> Path:
    """A copy of the files as a crash would leave them: commits in the write-ahead log only."""
    with Store.create_or_resume(tmp_path / "a", ME) as store:
        store.plant([tree()])
        for i in range(5):
            store.commit(Expansion(f"unit{i}", [node(f"t00/{i}")], 1, 1, 5))
        (tmp_path / "b").mkdir()
        for file in (STORE_NAME, STORE_NAME + "-wal"):
            shutil.copy(tmp_path / "a" / file, tmp_path / "b" / file)
    return tmp_path / "b"


def test_a_torn_last_record_is_left_out(tmp_path: Path) -> None:
    folder = crashed(tmp_path)
    wal = folder / (STORE_NAME + "-wal")
    wal.write_bytes(wal.read_bytes()[:-1000])
    with Store.create_or_resume(folder, ME) as store:
        assert store.totals().expansions == 4
        assert not store.is_expanded("unit4")
        store.commit(Expansion("unit4", [node("t00/4")], 1, 1, 5))


def test_rubbish_after_the_last_record(tmp_path: Path) -> None:
    folder = crashed(tmp_path)
    wal = folder / (STORE_NAME + "-wal")
    wal.write_bytes(wal.read_bytes() + b"\x7f" * 5000)
    with Store.create_or_resume(folder, ME) as store:
        assert store.totals().expansions == 5


@pytest.mark.parametrize("damage", ["header", "middle"])
def test_a_damaged_file_says_so(tmp_path: Path, damage: str) -> None:
    with Store.create_or_resume(tmp_path, ME) as store:
        store.plant([tree()])
        for i in range(200):
            store.commit(Expansion(f"unit{i}", [node(f"t00/{i}", size=400)], 1, 1, 5))
    path = tmp_path / STORE_NAME
    data = bytearray(path.read_bytes())
    start = 0 if damage == "header" else len(data) // 2
    data[start : start + 40_000] = b"\x55" * 40_000
    path.write_bytes(data)
    with pytest.raises(RunError, match="the store is damaged") as error:
        Store.create_or_resume(tmp_path, ME)
    assert ".recover" in str(error.value)
    with pytest.raises(RunError, match="the store is damaged"):
        Store.create_or_resume(tmp_path, ME)


def test_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no corpus has been grown here"):
        Store.open_reader(tmp_path)


def test_foreign_database(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / STORE_NAME)
    db.execute("CREATE TABLE meta(key TEXT, value TEXT)")
    db.execute("INSERT INTO meta VALUES ('version', '99')")
    db.commit()
    db.close()
    with pytest.raises(RunError, match="format 99"):
        Store.create_or_resume(tmp_path, ME)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Reading twenty thousand nodes holds a page of them, not all."""
    import tracemalloc

    with Store.create_or_resume(tmp_path, ME) as store:
        store.plant([tree()])
        for i in range(20):
            store.commit(
                Expansion(f"unit{i}", [node(f"t00/{i}/{j}", leaf=True, size=100) for j in range(1000)], 1, 1, 5)
            )
        tracemalloc.start()
        assert sum(1 for _ in store.nodes()) == 20_000
        assert store.tokens_on_paths() == 20_000 * 100
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
        tracemalloc.stop()
