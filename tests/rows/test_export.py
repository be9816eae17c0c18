"""Exports are what the trainers' own loaders read, field by field.

LLaMA-Factory, ms-swift and LLaVA are not installed; the checks below restate what their loaders look up
(LLaMA-Factory ``data/converter.py`` and ``data/parser.py``, ms-swift ``dataset/preprocessor/core.py``, LLaVA
``train/train.py``). TRL and datasets are the real ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regrow.errors import DataError, RegrowError
from regrow.grow.corpus import Dialogue, write_corpus
from regrow.rows.export import DATASET_INFO, export_corpus
from regrow.rows.readers import read_rows

SYSTEM = {"role": "system", "content": "Be brief."}


def dialogue(i: int, turns: int, system: bool = False) -> Dialogue:
    messages: list[dict[str, Any]] = [dict(SYSTEM)] if system else []
    for t in range(turns):
        messages += [{"role": "user", "content": f"q{i}.{t}\u2028?"}, {"role": "assistant", "content": f"a{i}.{t}é"}]
    nodes = [f"t00/{i}" + "/0" * n for n in range(2 * turns)]
    return Dialogue(nodes[-1], messages, nodes, "cooking", 0, 10 * turns)


DIALOGUES = [dialogue(0, 1), dialogue(1, 3), dialogue(2, 1)]


def corpus(folder: Path, dialogues: list[Dialogue]) -> Path:
    write_corpus(folder, [], dialogues, {})
    return folder


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    return corpus(tmp_path / "corpus", DIALOGUES)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_id(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert len({r["id"] for r in records}) == len(records)
    return {r["id"]: r for r in records}


@pytest.mark.parametrize("to", ["messages", "sharegpt", "alpaca", "llava"])
def test_reading_an_export_gives_the_dialogues_back(grown: Path, tmp_path: Path, to: Any) -> None:
    out = export_corpus(grown, tmp_path / "out", to)
    assert out == tmp_path / "out" / ("llava.json" if to == "llava" else f"{to}.jsonl")
    rows = read_rows(out)
    assert {r.id: r.messages for r in rows.rows} == {d.id: d.messages for d in DIALOGUES}
    assert rows.ignored.keys() <= {"topic"}


@pytest.mark.parametrize("to", ["messages", "sharegpt", "alpaca"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_datasets_loads_it(grown: Path, tmp_path: Path, to: Any, suffix: str) -> None:
    from datasets import load_dataset

    out = export_corpus(grown, tmp_path / f"out{suffix}", to)
    data = load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert {r["id"] for r in data} == {d.id for d in DIALOGUES}


def test_trl_accepts_messages_and_renders_them(grown: Path, tmp_path: Path) -> None:
    from datasets import load_dataset
    from trl.data_utils import apply_chat_template, is_conversational

    from tests.fixtures.tiny import tiny_tokenizer

    out = export_corpus(grown, tmp_path / "m.jsonl", "messages")
    data = load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert all(is_conversational(r) for r in data)
    tokenizer = tiny_tokenizer()
    for record, d in zip(data, DIALOGUES, strict=True):
        text = apply_chat_template({"messages": record["messages"]}, tokenizer)["text"]
        assert text == tokenizer.apply_chat_template(d.messages, tokenize=False)
        assert all(m["content"] in text for m in d.messages)


@pytest.mark.slow
def test_trl_trains_on_messages(grown: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    out = export_corpus(grown, tmp_path / "m.jsonl", "messages")
    data = load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    args = SFTConfig(str(tmp_path / "sft"), max_steps=1, per_device_train_batch_size=3, report_to=[], use_cpu=True,
                     bf16=False, save_strategy="no", disable_tqdm=True)  # fmt: skip
    trainer = SFTTrainer(str(tiny_model_dir), args, train_dataset=data)
    assert trainer.train().training_loss > 0


def _llama_factory_prompt(record: dict[str, Any], entry: dict[str, Any]) -> list[tuple[str, str]]:
    """System and turns as LLaMA-Factory's converters look them up through ``dataset_info.json``."""
    columns, tags = entry["columns"], entry.get("tags", {})
    if entry.get("formatting") == "sharegpt":
        said = record[columns["messages"]]
        system = None
        if said[0][tags["role_tag"]] == tags["system_tag"]:
            system, said = said[0][tags["content_tag"]], said[1:]
        names = [m[tags["role_tag"]] for m in said]
        assert names == [tags["user_tag"], tags["assistant_tag"]] * (len(said) // 2)
        texts = [m[tags["content_tag"]] for m in said]
    else:
        texts = [t for pair in (record[columns["history"]] if "history" in columns else []) for t in pair]
        question = [record[columns["prompt"]], record[columns["query"]]]
        texts += ["\n".join(q for q in question if q), record[columns["response"]]]
        system = (record[columns["system"]] if "system" in columns else "") or None
    return [("system", system or ""), *zip(["user", "assistant"] * len(texts), texts, strict=False)]


@pytest.mark.parametrize("to", ["messages", "sharegpt", "alpaca"])
def test_llama_factory_finds_every_turn(tmp_path: Path, to: Any) -> None:
    dialogues = [dialogue(0, 1), dialogue(1, 2, system=True)]
    out = export_corpus(corpus(tmp_path / "c", dialogues), tmp_path / "own.jsonl", to)
    info = json.loads((tmp_path / DATASET_INFO).read_text())
    assert list(info) == ["own"] and info["own"]["file_name"] == "own.jsonl"
    records = by_id(lines(out))
    for d in dialogues:
        has_system = d.messages[0]["role"] == "system"
        expected = [("system", "Be brief." if has_system else "")]
        expected += [(m["role"], m["content"]) for m in d.messages[has_system:]]
        assert _llama_factory_prompt(records[d.id], info["own"]) == expected


def test_alpaca_columns_are_the_same_in_all_rows_and_typed_from_the_first(grown: Path, tmp_path: Path) -> None:
    records = lines(export_corpus(grown, tmp_path, "alpaca"))
    assert len({tuple(r) for r in records}) == 1
    assert records[0]["history"] == [["q1.0\u2028?", "a1.0é"], ["q1.1\u2028?", "a1.1é"]]
    # ms-swift takes a set for alpaca when it has these two columns
    assert all({"instruction", "input"} <= set(r) for r in records)
    single = lines(export_corpus(corpus(tmp_path / "one", [dialogue(0, 1)]), tmp_path / "o.jsonl", "alpaca"))
    assert set(single[0]) == {"id", "instruction", "input", "output"}


def test_ms_swift_roles(grown: Path, tmp_path: Path) -> None:
    for record in lines(export_corpus(grown, tmp_path / "m.jsonl", "messages")):
        for user, assistant in zip(record["messages"][::2], record["messages"][1::2], strict=True):
            assert user["role"] == "user" and assistant["role"] == "assistant" and assistant["content"]
    for record in lines(export_corpus(grown, tmp_path / "s.jsonl", "sharegpt")):
        for user, assistant in zip(record["conversations"][::2], record["conversations"][1::2], strict=True):
            assert user["from"] in ("user", "human") and assistant["from"] in ("assistant", "gpt", "bot")


def test_llava_list(grown: Path, tmp_path: Path) -> None:
    out = export_corpus(grown, tmp_path / "l.json", "llava")
    records = json.loads(out.read_text(encoding="utf-8"))
    assert isinstance(records, list) and len(by_id(records)) == 3
    for record in records:
        assert set(record) == {"id", "conversations"}  # an 'image' key would make LLaVA open a file
        assert [m["from"] for m in record["conversations"]] == ["human", "gpt"] * (len(record["conversations"]) // 2)
        assert all(isinstance(m["value"], str) for m in record["conversations"])
    assert not (tmp_path / DATASET_INFO).exists()


def test_other_entries_of_dataset_info_stay(grown: Path, tmp_path: Path) -> None:
    (tmp_path / DATASET_INFO).write_text('{"theirs": {"file_name": "x.json"}}')
    export_corpus(grown, tmp_path / "own.jsonl", "sharegpt")
    assert set(json.loads((tmp_path / DATASET_INFO).read_text())) == {"theirs", "own"}
    (tmp_path / DATASET_INFO).write_text("[broken")
    with pytest.raises(DataError, match="is not JSON"):
        export_corpus(grown, tmp_path / "new.jsonl", "sharegpt")
    assert not (tmp_path / "new.jsonl").exists()


def test_plain_texts(tmp_path: Path) -> None:
    text = Dialogue("t00/0", [{"role": "assistant", "content": "Once."}], ["t00/0"], "tales", 0, 2)
    folder = corpus(tmp_path / "c", [text])
    assert lines(export_corpus(folder, tmp_path / "t.jsonl", "messages")) == [
        {"id": "t00/0", "text": "Once.", "topic": "tales"}
    ]
    assert json.loads((tmp_path / DATASET_INFO).read_text())["t"]["columns"] == {"prompt": "text"}
    for to in ("sharegpt", "alpaca", "llava"):
        with pytest.raises(DataError, match="plain text"):
            export_corpus(folder, tmp_path / "x", to)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_refusals(grown: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="system prompt"):
        export_corpus(corpus(tmp_path / "s", [dialogue(0, 1, system=True)]), tmp_path / "l.json", "llava")
    with pytest.raises(DataError, match="one JSON list"):
        export_corpus(grown, tmp_path / "l.jsonl", "llava")
    with pytest.raises(DataError, match="not a format"):
        export_corpus(grown, tmp_path / "x", "xml")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no dialogues"):
        export_corpus(corpus(tmp_path / "empty", []), tmp_path / "x", "messages")
    with pytest.raises(RegrowError):
        export_corpus(tmp_path / "nowhere", tmp_path / "x", "messages")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="neither a folder"):
        export_corpus(grown, tmp_path / "file", "messages")
    with pytest.raises(DataError, match="describes the export"):
        export_corpus(grown, tmp_path / DATASET_INFO, "messages")
