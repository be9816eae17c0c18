"""Every accepted format gives the same dialogue; the containers give the same rows."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from regrow.errors import DataError
from regrow.rows.readers import read_rows
from regrow.rows.validate import content_text

QA = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "Four."}]
SYSTEM = {"role": "system", "content": "Be brief."}


def put(folder: Path, name: str, content: str | bytes | list[dict[str, Any]]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("record", "name", "messages"),
    [
        ({"instruction": "What is 2+2?", "input": "", "output": "Four."}, "alpaca", QA),
        ({"instruction": "Add.", "input": "2+2", "output": "4"}, "alpaca", [
            {"role": "user", "content": "Add.\n2+2"}, {"role": "assistant", "content": "4"}]),
        ({"instruction": "And 3+3?", "output": "Six.", "system": "Be brief.", "history": [["What is 2+2?", "Four."]]},
         "alpaca", [SYSTEM, *QA, {"role": "user", "content": "And 3+3?"}, {"role": "assistant", "content": "Six."}]),
        ({"conversations": [{"from": "human", "value": "What is 2+2?"}, {"from": "gpt", "value": "Four."}]},
         "sharegpt", QA),
        ({"conversations": [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "Four."}]},
         "sharegpt", QA),
        ({"system": "Be brief.", "conversations": [{"from": "human", "value": "What is 2+2?"},
          {"from": "gpt", "value": "Four."}]}, "sharegpt", [SYSTEM, *QA]),
        ({"messages": [SYSTEM, *QA]}, "messages", [SYSTEM, *QA]),
        ({"messages": [{"role": "system", "content": ""}, *QA]}, "messages", QA),
        ({"prompt": "What is 2+2?", "completion": "Four."}, "prompt_completion", QA),
        ({"prompt": [SYSTEM, QA[0]], "completion": [QA[1]]}, "prompt_completion", [SYSTEM, *QA]),
        ({"query": "What is 2+2?", "response": "Four."}, "query_response", QA),
        ({"question": "What is 2+2?", "answer": "Four."}, "question_answer", QA),
        ({"text": "Four is even."}, "text", [{"role": "assistant", "content": "Four is even."}]),
    ],
)  # fmt: skip
def test_each_format_is_recognised(tmp_path: Path, record: dict[str, Any], name: str, messages: list[Any]) -> None:
    result = read_rows(put(tmp_path, "d.jsonl", [record]))
    assert result.format == name
    assert result.rows[0].messages == messages
    assert (result.rows[0].meta.get("kind") == "text") == (name == "text")
    assert result.rows[0].meta["file"] == "d.jsonl" and result.rows[0].meta["line"] == 1


def test_tool_turns(tmp_path: Path) -> None:
    said = [("human", "weather?"), ("gpt", "I look."), ("observation", "rain"), ("gpt", "Rain.")]
    record = {"conversations": [{"from": f, "value": v} for f, v in said]}
    row = read_rows(put(tmp_path, "d.jsonl", [record])).rows[0]
    assert [m["role"] for m in row.messages] == ["user", "assistant", "tool", "assistant"]


def test_llava_with_and_without_image(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    plain = [{"from": "human", "value": "What is the token <img>?"}, {"from": "gpt", "value": "A tag."}]
    file = put(tmp_path, "l.json", json.dumps([{"id": "a", "image": "x/../img/1.png", "conversations": said},
                                               {"id": 2, "conversations": plain}]))  # fmt: skip
    result = read_rows(file)
    first, second = result.rows
    assert result.format == "llava"
    assert first.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    assert first.images == ["img/1.png"] and second.images == [] and second.id == "2"
    assert second.messages[0]["content"] == "What is the token <img>?"


@pytest.mark.parametrize("path", ["../x.png", "/etc/passwd", "a/../../x.png", "C:\\x.png", "file:///etc/passwd",
                                  "..\\x.png", "link/x.png", "", "."])  # fmt: skip
def test_images_stay_in_the_data_folder(tmp_path: Path, path: str) -> None:
    data, outside = tmp_path / "data", tmp_path / "outside"
    data.mkdir()
    outside.mkdir()
    (data / "link").symlink_to(outside)
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    with pytest.raises(DataError, match="image"):
        read_rows(put(data, "l.json", json.dumps([{"image": path, "conversations": said}])))


def test_image_urls_and_multiple_images(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "<image><image>\nSame?"}, {"role": "assistant", "content": "Yes."}]
    row = read_rows(put(tmp_path, "d.jsonl", [{"messages": messages, "images": ["a.png", "https://h/b.png"]}])).rows[0]
    assert row.images == ["a.png", "https://h/b.png"]
    assert [b["type"] for b in row.messages[0]["content"]] == ["image", "image", "text"]
    with pytest.raises(DataError, match=r"1 image\(s\) but 2"):
        read_rows(put(tmp_path, "e.jsonl", [{"messages": messages, "images": ["a.png"]}]))


ROWS = [{"question": f'Question {i}, "quoted"\nand \u2028 more?', "answer": f"Answer é {i}"} for i in range(5)]


@pytest.mark.parametrize("name", ["d.jsonl", "d.ndjson", "d.jsonl.gz", "d.json", "wrapped.json", "lines.json", "d.csv",
                                  "d.tsv", "d.csv.gz", "d.parquet", "bom.jsonl", "bom.csv", "bom.json"])  # fmt: skip
def test_containers_agree(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    kind = name.removesuffix(".gz").rsplit(".", 1)[1]
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        if kind in ("csv", "tsv"):
            plain = tmp_path / "plain"
            with plain.open("w", newline="", encoding="utf-8") as fh:
                writer = csv.DictWriter(fh, ["question", "answer"], delimiter="\t" if kind == "tsv" else ",")
                writer.writeheader()
                writer.writerows(ROWS)
            raw = plain.read_bytes()
        elif kind == "json" and name != "lines.json":
            raw = json.dumps({"data": ROWS} if name == "wrapped.json" else ROWS, indent=1, ensure_ascii=False).encode()
        else:
            raw = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS).encode()
        raw = b"\xef\xbb\xbf" + raw if name.startswith("bom") else raw
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    rows = read_rows(path).rows
    assert [(r.messages[0]["content"], r.messages[1]["content"]) for r in rows] == [
        (r["question"], r["answer"]) for r in ROWS
    ]


def test_text_files_are_read_by_paragraph(tmp_path: Path) -> None:
    result = read_rows(put(tmp_path, "d.txt", "one\r\ntwo\r\n\r\n \r\nthree\r\n"))
    assert [(r.messages[0]["content"], r.meta["line"]) for r in result.rows] == [("one\ntwo", 1), ("three", 5)]


def test_folder_in_order_of_paths_with_mixed_kinds(tmp_path: Path) -> None:
    put(tmp_path, "data/b.csv", "question,answer\nb?,B\n")
    put(tmp_path, "data/a.jsonl", [{"instruction": "a?", "output": "A"}])
    put(tmp_path, "data/sub/c.json", '[{"question":"c?","answer":"C"}]')
    put(tmp_path, "data/.hidden.jsonl", "broken")
    put(tmp_path, "data/dataset_info.json", "{}")
    put(tmp_path, "data/notes.md", "# notes")
    result = read_rows(tmp_path / "data")
    assert [r.messages[0]["content"] for r in result.rows] == ["a?", "b?", "c?"]
    assert [f.name for f in result.files] == ["a.jsonl", "b.csv", "c.json"]
    assert result.format == "alpaca+question_answer"
    assert [r.id for r in result.rows] == ["a.jsonl#1", "b.csv#1", "sub/c.json#1"]
    assert {r.domain for r in result.rows} == {"data"}


def test_options(tmp_path: Path) -> None:
    records = [
        {"my_q": "a?", "output": "A", "channel": "k", "extra": 1, "group": "g"},
        {"my_q": "b?", "output": "B", "domain": "m"},
        {"my_q": "c?", "output": "C"},
    ]
    file = put(tmp_path, "d.jsonl", records)
    result = read_rows(file, columns={"instruction": "my_q"}, source="replay", domain="d")
    assert [r.domain for r in result.rows] == ["k", "m", "d"]
    assert {r.source for r in result.rows} == {"replay"}
    assert result.rows[0].meta["group"] == "g"
    assert result.ignored == {"extra": 1}
    assert len(read_rows(file, columns={"instruction": "my_q"}, limit=2).rows) == 2
    both = put(tmp_path, "e.jsonl", [{"messages": QA, "text": "plain"}])
    assert read_rows(both).format == "messages"
    assert read_rows(both, format="text").rows[0].messages[0]["content"] == "plain"
    with pytest.raises(DataError, match="no_such_format"):
        read_rows(file, format="no_such_format")


def test_limit_stops_reading(tmp_path: Path) -> None:
    file = put(tmp_path, "d.jsonl", '{"question":"a?","answer":"A"}\nbroken\n')
    assert len(read_rows(file, limit=1).rows) == 1


def test_hub_name_goes_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[str, str]] = []

    def fake(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset.from_list([{"question": "a?", "answer": "A"}])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.chdir(tmp_path)
    result = read_rows("someone/some-set:validation")
    assert asked == [("someone/some-set", "validation")]
    assert content_text(result.rows[0].messages[0]["content"]) == "a?" and result.rows[0].domain == "some-set"


def test_offline_hub_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE"):
        read_rows("someone/some-set")


def test_json_array_on_one_line(tmp_path: Path) -> None:
    records = [{"question": f"q{i}", "answer": "a"} for i in range(3)]
    result = read_rows(put(tmp_path, "d.json", json.dumps(records)))
    assert [r.id for r in result.rows] == ["d.json#1", "d.json#2", "d.json#3"]
    bad = put(tmp_path, "e.json", json.dumps([*records, {"question": "q", "answer": ""}]))
    with pytest.raises(DataError) as error:
        read_rows(bad)
    assert error.value.where == f"{bad}:1 (row 4)"
