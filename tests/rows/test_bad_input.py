"""Each fault gives one message with file and line, or is dropped and counted; a hostile file gives nothing else."""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.errors import DataError
from regrow.rows.limits import Limits
from regrow.rows.readers import read_rows
from regrow.rows.row import Row
from regrow.rows.writers import write_jsonl

GOOD = '{"question":"good?","answer":"yes"}\n'


def turns(*roles: str) -> str:
    return json.dumps({"messages": [{"role": r, "content": f"{r} {i}"} for i, r in enumerate(roles)]}) + "\n"


def chat(**message: Any) -> str:
    return json.dumps({"messages": [{"role": "user", "content": "q"}, message]}) + "\n"


M = turns("user", "assistant")
# the good row before the bad one, the bad one, its reason, part of the message
BAD_ROWS = [
    (GOOD, "{broken\n", "broken JSON", "broken JSON: .* column"),
    (GOOD, "[1, 2]\n", "not an object", "found an array"),
    (GOOD, "[" * 50_000 + "\n", "broken JSON", "cannot be read"),
    (GOOD, '{"question":"x","answer":' + "9" * 5000 + "}\n", "broken JSON", "cannot be read"),
    (GOOD, '{"question":"x","answer":NaN}\n', "not text", "NaN"),
    (GOOD, '{"question":"x","answer":4}\n', "not text", "'answer' must be text, found 4"),
    (GOOD, '{"question":"x","answer":null}\n', "missing text", "'answer' is missing"),
    (GOOD, '{"question":"x","answer":" "}\n', "empty answer", "'answer' is empty"),
    (GOOD, '{"question":"","answer":"x"}\n', "empty question", "'question' is empty"),
    (GOOD, '{"question":"x","answer":"\\ud800"}\n', "invalid Unicode", "lone surrogate"),
    (GOOD, '{"questions":"x","reply":"y"}\n', "wrong columns", "'questions', 'reply'.*'question_answer'"),
    (GOOD, '{"instruction":"x","output":"y"}\n', "mixed formats", "'alpaca', but the file began as 'question_answer'"),
    (GOOD, json.dumps({str(i): 1 for i in range(5000)}) + "\n", "too many columns", "5,000 columns"),
    (GOOD, json.dumps({"question": "x", "answer": "y" * 10_000_000}) + "\n", "too long", "10,000,0.. bytes"),
    (GOOD, b'{"question":"x","answer":"\xe9"}\n', "invalid UTF-8", r"0xe9 at offset 62"),
    (M, chat(role="boss", content="x"), "unknown role", "unknown role 'boss'"),
    (M, chat(role="assistant", content="x", tool_calls=[{"id": 1}]), "tool calls", "tool_calls"),
    (M, chat(role="assistant", content=[{"type": "video"}]), "unknown content", "neither text nor image"),
    (M, chat(name="x"), "not a dialogue", "neither 'role' nor 'from'"),
    (M, '{"messages":"hello"}\n', "not a dialogue", "must be a list"),
    (M, turns("user", "user", "assistant"), "two user turns in a row", "second user turn"),
    (M, turns("user", "assistant", "assistant"), "two assistant turns in a row", "second assistant turn"),
    (M, turns("user"), "no assistant turn", "no assistant turn"),
    (M, turns("assistant", "user", "assistant"), "wrong first turn", "begins with a turn of the assistant"),
    (M, turns("user", "assistant", "user"), "no last answer", "ends with a turn of the user"),
    (M, turns("user", "system", "assistant"), "late system message", "only the first"),
    (M, turns("user", "tool", "assistant"), "wrong turns", "tool turn right after a user turn"),
    (M, '{"messages":[]}\n', "no assistant turn", "no assistant turn"),
]


@pytest.mark.parametrize(
    ("good", "bad", "reason", "message"), BAD_ROWS, ids=[f"{b[2]}-{i}" for i, b in enumerate(BAD_ROWS)]
)
def test_a_bad_row_is_named_or_counted(tmp_path: Path, good: str, bad: str | bytes, reason: str, message: str) -> None:
    file = tmp_path / "d.jsonl"
    file.write_bytes(good.encode() + (bad.encode() if isinstance(bad, str) else bad))
    with pytest.raises(DataError, match=message) as error:
        read_rows(file)
    assert error.value.where == f"{file}:2"
    assert len(str(error.value)) < 700
    result = read_rows(file, on_bad="drop")
    assert len(result.rows) == 1 and result.dropped == {reason: 1}


def test_line_7342(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    lines = [json.dumps({"question": f"q{i}\u2028", "answer": "a"}, ensure_ascii=False) for i in range(8000)]
    lines[7341] = '{"question": "q", "answer": '
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match="broken JSON") as error:
        read_rows(file)
    assert error.value.where == f"{file}:7342"
    assert read_rows(file, on_bad="drop").dropped == {"broken JSON": 1}


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        ("d.json", '[{"question":"a","answer":"b"},\n{"question":\n}]', 3, "broken JSON"),
        ("d.json", '[{"question":"a","answer":"b"},\n{"question":"c","answer":"d"}', 2, "the file ends where"),
        ("d.json", '[{"question":"a","answer":"b"}]\n]', 2, "something follows"),
        ("d.json", '[{"question":"a","answer":"b"},\n{"question":"a","answer":Infinity}]', 2, "Infinity"),
        ("d.json", '[\n{"question":"a","answer":""}]', 2, "empty"),
        ("d.json", b'[\n\n{"question":"a","answer":"\xff"}]', 3, "invalid UTF-8: byte 0xff at offset 29"),
        ("d.csv", "question,answer\na,b\nc,d,e\n", 3, "3 fields, but the header has 2"),
        ("d.csv", 'question,answer\na,"b\nc,d\n', 2, "broken CSV"),
        ("d.csv", "question,question\na,b\n", 1, "more than once"),
        ("d.csv", b"question,answer\na,b\n\xe9,x\n", 3, "invalid UTF-8: byte 0xe9 at offset 20"),
        ("d.csv", "question;answer\na;b\n", 2, "found the columns 'question;answer'"),
        ("d.tsv", 'question\tanswer\n"a\nb"\t\n', 2, "empty"),
        ("d.txt", b"good\n\nb\xe9d\n", 3, "invalid UTF-8"),
    ],
)
def test_faults_by_container(tmp_path: Path, name: str, content: str | bytes, line: int, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message) as error:
        read_rows(file)
    assert error.value.where == f"{file}:{line}"


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.txt", "d.jsonl.gz"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    with pytest.raises(DataError, match="empty") as error:
        read_rows(file)
    assert error.value.where == str(file)
    with pytest.raises(DataError, match="no usable row: 1 empty file"):
        read_rows(file, on_bad="drop")


def test_a_million_columns_are_refused(tmp_path: Path) -> None:
    names = ",".join(f"c{i}" for i in range(1_000_000))
    (tmp_path / "d.csv").write_text(names + "\n" + names + "\n")
    with pytest.raises(DataError, match="1,000,000 columns; the limit is 1,000"):
        read_rows(tmp_path / "d.csv")


def test_gzip_bomb_and_damage(tmp_path: Path) -> None:
    bomb = tmp_path / "d.jsonl.gz"
    bomb.write_bytes(gzip.compress(GOOD.encode() * 100_000))
    with pytest.raises(DataError, match="unpacks to more than 1,000,000 bytes"):
        read_rows(bomb, limits=Limits(unpacked_bytes=1_000_000))
    one_line = tmp_path / "e.jsonl.gz"
    one_line.write_bytes(gzip.compress(b" " * 30_000_000))
    with pytest.raises(DataError, match="unpacks to more than"):
        read_rows(one_line, limits=Limits(unpacked_bytes=10_000_000))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(bomb.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged"):
        read_rows(cut)
    fake = tmp_path / "fake.json.gz"
    fake.write_text("[]")
    with pytest.raises(DataError, match="not gzip"):
        read_rows(fake)


def test_damaged_and_numeric_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not Parquet"):
        read_rows(bad)
    numbers = tmp_path / "n.parquet"
    pq.write_table(pa.table({"question": ["a", "b"], "answer": [float("nan"), 1.0]}), numbers)
    with pytest.raises(DataError, match="must be text, found nan") as error:
        read_rows(numbers)
    assert error.value.where == f"{numbers}:1"
    wide = tmp_path / "w.parquet"
    pq.write_table(pa.table({f"c{i}": [1] for i in range(1500)}), wide)
    with pytest.raises(DataError, match="1,500 columns"):
        read_rows(wide)
    with pytest.raises(DataError, match="unpacks to"):
        read_rows(numbers, limits=Limits(unpacked_bytes=10))


def test_duplicates(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"id":"x","question":"a","answer":"b"}\n' * 2 + '{"id":"x","question":"c","answer":"d"}\n')
    with pytest.raises(DataError, match=f"'x' was already used at {re.escape(str(file))}:1") as error:
        read_rows(file)
    assert error.value.where == f"{file}:3"
    assert read_rows(file, on_bad="drop").dropped == {"exact duplicate": 1, "duplicated id": 1}


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_rows(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="no such file or folder"):
        read_rows("absent/data.jsonl")
    with pytest.raises(DataError, match="no data files"):
        read_rows(tmp_path)
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(DataError, match="cannot tell the kind"):
        read_rows(tmp_path / "a.pdf")


def test_links_out_of_the_folder_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text(GOOD)
    data = tmp_path / "data"
    data.mkdir()
    (data / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(DataError, match="no data files"):
        read_rows(data)


def test_preference_data_is_explained(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"chosen":"a","rejected":"b"}\n')
    with pytest.raises(DataError, match="preference data"):
        read_rows(tmp_path / "d.jsonl")


def test_row_limit_is_configurable(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"question": "x", "answer": "y" * 100}) + "\n")
    with pytest.raises(DataError, match="the limit is 50"):
        read_rows(file, limits=Limits(row_bytes=50))
    assert read_rows(file, limits=Limits(row_bytes=500)).rows


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
COLUMNS = [
    "messages", "conversations", "instruction", "input", "output", "history", "system", "prompt",
    "completion", "question", "answer", "text", "image", "images", "id", "meta", "domain", "role", "content",
    "from", "value", "group",
]  # fmt: skip
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": JSON | st.text(max_size=5)}
)
RECORD = st.dictionaries(st.sampled_from(COLUMNS), JSON | st.lists(TURN, max_size=4), max_size=6)


def _only_rows_or_data_error(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        for on_bad in ("error", "drop"):
            try:
                result = read_rows(file, on_bad=on_bad)  # type: ignore[arg-type]
            except DataError as error:
                assert str(error)
            else:
                assert result.rows and all(isinstance(r, Row) for r in result.rows)
                assert all(r.messages[-1]["role"] == "assistant" for r in result.rows)
                # what was read can be written and read again
                again = read_rows(write_jsonl(result.rows, Path(folder) / "again" / "rows.jsonl"))
                assert [r.messages for r in again.rows] == [r.messages for r in result.rows]


@settings(max_examples=150, deadline=None)
@given(st.lists(RECORD, max_size=4), st.sampled_from(["d.jsonl", "d.json"]))
def test_any_records(records: list[dict[str, Any]], name: str) -> None:
    text = json.dumps(records) if name == "d.json" else "\n".join(map(json.dumps, records))
    _only_rows_or_data_error(name, text.encode("utf-8", "surrogatepass"))


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60) | st.text(alphabet='{}[]":,\n\t\r\\ aquestionw\u2028\x00é', max_size=60).map(str.encode),
    st.sampled_from(["d.jsonl", "d.json", "d.csv", "d.tsv", "d.txt", "d.parquet", "d.jsonl.gz"]),
    st.sampled_from(
        [b"", b"question,answer\n", b"question\tanswer\n", b'[{"question":"a","answer":"b"},', GOOD.encode()]
    ),
)
def test_any_bytes(raw: bytes, name: str, prefix: bytes) -> None:
    _only_rows_or_data_error(name, prefix + raw)
