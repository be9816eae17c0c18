from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.errors import DataError
from regrow.rows.readers import read_rows
from regrow.rows.row import Row
from regrow.rows.writers import atomic_path, atomic_write_text, write_json_lines, write_jsonl, write_parquet

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda s: bool(s.strip()))
META = st.dictionaries(
    TEXT, st.none() | st.booleans() | st.integers(-9, 9) | TEXT | st.lists(TEXT, max_size=2), max_size=3
)


@st.composite
def _rows(draw: st.DrawFn) -> Row:
    meta = {k: v for k, v in draw(META).items() if k not in ("kind", "group")} | {"file": "f.jsonl", "line": 3}
    common = {
        "id": draw(TEXT),
        "source": draw(st.sampled_from(["domain", "replay"])),
        "domain": draw(TEXT).strip(),
        "meta": meta,
    }
    if draw(st.booleans()):
        common["meta"] = meta | {"kind": "text"}
        return Row(messages=[{"role": "assistant", "content": draw(TEXT)}], **common)
    images = draw(st.lists(st.from_regex(r"[a-z]{1,5}\.png", fullmatch=True), max_size=2))
    messages = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 2))):
        question = draw(TEXT) if not images else draw(TEXT).replace("<image>", "x") or "x"
        content = (
            question
            if turn or not images
            else [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
        )
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": draw(TEXT)}]
    return Row(messages=messages, images=images, **common)


def _said(row: Row) -> str:
    return json.dumps([row.messages, row.images, row.source], sort_keys=True)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(_rows(), min_size=1, max_size=4, unique_by=(lambda r: r.id, _said)))
def test_round_trip(suffix: str, rows: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = (write_jsonl if suffix == "jsonl" else write_parquet)(rows, Path(folder) / f"rows.{suffix}")
        assert read_rows(file).rows == rows


def test_written_lines_survive_splitlines(tmp_path: Path) -> None:
    row = Row("a", [{"role": "user", "content": "x\u2028y\x85z\u2029"}, {"role": "assistant", "content": "é\n"}])
    text = write_jsonl([row, row], tmp_path / "r.jsonl").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 2 and "é" in text


def test_parquet_is_what_trainers_expect(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    row = Row("a", [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
    table = pq.read_table(write_parquet([row], tmp_path / "r.parquet"))
    assert table.column("messages").to_pylist() == [row.messages]
    extra = Row("b", [{"role": "user", "content": "q", "name": "n"}])
    with pytest.raises(DataError, match="'name'"):
        write_parquet([extra], tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = atomic_write_text(tmp_path / "new" / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(file) as tmp:
        tmp.write_text("half")
        assert tmp.parent == file.parent and tmp.suffix == ".txt"
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    for bad in ({"id": 1, "x": float("nan")}, {"id": 1, "x": "\ud800"}, {"id": 1, "x": {1, 2}}):
        with pytest.raises(DataError, match=r"record 2 \(id 1\)"):
            write_json_lines([{"id": 0}, bad], file)
    assert file.read_text() == "old"
    assert [p.name for p in file.parent.iterdir()] == ["a.txt"]


def test_line_ends_are_kept(tmp_path: Path) -> None:
    assert atomic_write_text(tmp_path / "a", "x\ny\r\n").read_bytes() == b"x\ny\r\n"


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    file = atomic_write_text(tmp_path / "rows.jsonl", '{"question":"a","answer":"b"}\n')
    program = f"""
        import os, signal
        from regrow.rows.writers import write_json_lines
        def records():
            for i in range(100_000):
                yield {{"id": i}}
            os.kill(os.getpid(), signal.SIGKILL)
            yield {{}}
        write_json_lines(records(), {str(file)!r})
    """
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=env, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # the old file, and a hidden rest
    assert len(read_rows(tmp_path).rows) == 1
