"""A grown corpus in the formats other trainers read: TRL, LLaMA-Factory, ms-swift, LLaVA."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from regrow.errors import DataError
from regrow.grow.corpus import Dialogue, read_dialogues
from regrow.rows.writers import atomic_path, atomic_write_text, write_json_lines

Target = Literal["messages", "sharegpt", "alpaca", "llava"]
DATASET_INFO = "dataset_info.json"
SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt"}


def export_corpus(corpus_dir: str | Path, out: str | Path, to: Target) -> Path:
    """Write the dialogues of a corpus for another trainer; returns the file.

    - ``messages``: JSON Lines of ``{id, messages, topic}``, for TRL and ms-swift; plain texts (TG-PT) become
      ``{id, text, topic}``.
    - ``sharegpt``: JSON Lines of ``{id, conversations: [{from, value}]}`` with human, gpt and system.
    - ``alpaca``: JSON Lines of ``{id, instruction, input, output[, system][, history]}``; earlier turns are pairs in
      ``history``.
    - ``llava``: a JSON list of ``{id, conversations}`` without ``image``, to be mixed into LLaVA's own file.

    Beside the first three, ``dataset_info.json`` gets an entry (named like the file) for LLaMA-Factory; other entries
    of that file stay.

    Args:
        corpus_dir: A folder with ``dialogues.parquet``.
        out: The file (``.jsonl`` or ``.json``), or a folder that gets ``<to>.jsonl`` (``llava.json``).
        to: The format.

    Raises:
        DataError: Unknown format; an empty corpus; dialogues the format has no place for; an ``out`` of another kind.
        RunError: There is no corpus, or it is damaged.
    """
    if to not in _MAKERS:
        raise DataError(f"{to!r} is not a format", where="to", hint=f"Known: {', '.join(get_args(Target))}.")
    corpus_dir = Path(corpus_dir)
    dialogues = read_dialogues(corpus_dir)
    if not dialogues:
        raise DataError("the corpus has no dialogues", where=str(corpus_dir))
    path = _file(Path(out), to)
    make = _MAKERS[to]
    records = [make(d) for d in dialogues]
    if to == "alpaca":
        # `datasets` takes a column's type from the first block of a file; rows without history would hide it.
        records.sort(key=lambda r: not r.get("history"))
        _same_columns(records)
    described = _described(path, to, records) if to != "llava" else None
    if path.suffix == ".json":
        with atomic_path(path) as tmp:
            tmp.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")
    else:
        write_json_lines(records, path)
    if described is not None:
        atomic_write_text(path.parent / DATASET_INFO, described)
    return path


def _file(out: Path, to: Target) -> Path:
    if out.is_dir() or out.suffix not in (".json", ".jsonl"):
        if out.exists() and not out.is_dir():
            raise DataError("is neither a folder nor a .json or .jsonl file", where=str(out))
        return out / ("llava.json" if to == "llava" else f"{to}.jsonl")
    if to == "llava" and out.suffix != ".json":
        raise DataError("LLaVA reads one JSON list", where=str(out), hint="Name the file .json.")
    if out.name == DATASET_INFO:
        raise DataError(f"{DATASET_INFO} is the name of the file that describes the export", where=str(out))
    return out


def _is_text(d: Dialogue) -> bool:
    return [m["role"] for m in d.messages] == ["assistant"]


def _turns(d: Dialogue, to: Target) -> tuple[str | None, list[dict[str, Any]]]:
    """The system prompt and the user and assistant turns after it."""
    if _is_text(d):
        raise DataError(
            f"dialogue {d.id!r} is a plain text, for which {to} has no place",
            where="to",
            hint="Export it --to messages, which writes plain texts as {id, text}.",
        )
    system = d.messages[0]["content"] if d.messages[0]["role"] == "system" else None
    return system, d.messages[system is not None :]


def _messages(d: Dialogue) -> dict[str, Any]:
    if _is_text(d):
        return {"id": d.id, "text": d.messages[0]["content"], "topic": d.topic}
    messages = [{"role": m["role"], "content": m["content"]} for m in d.messages]
    return {"id": d.id, "messages": messages, "topic": d.topic}


def _sharegpt(d: Dialogue) -> dict[str, Any]:
    _turns(d, "sharegpt")
    said = [{"from": SHAREGPT_NAMES[m["role"]], "value": m["content"]} for m in d.messages]
    return {"id": d.id, "conversations": said}


def _llava(d: Dialogue) -> dict[str, Any]:
    system, _ = _turns(d, "llava")
    if system is not None:
        raise DataError(
            f"dialogue {d.id!r} has a system prompt; LLaVA takes that from its conversation template",
            where="to",
            hint="Grow with grow.keep_system: false.",
        )
    return _sharegpt(d)


def _alpaca(d: Dialogue) -> dict[str, Any]:
    system, said = _turns(d, "alpaca")
    texts = [m["content"] for m in said]
    pairs = [list(p) for p in zip(texts[::2], texts[1::2], strict=True)]
    question, answer = pairs.pop()
    # `input` is there although empty: ms-swift tells the format by it.
    record: dict[str, Any] = {"id": d.id, "instruction": question, "input": "", "output": answer}
    if system is not None:
        record["system"] = system
    if pairs:
        record["history"] = pairs
    return record


def _same_columns(records: list[dict[str, Any]]) -> None:
    """Give all alpaca rows the optional columns that any of them has: LLaMA-Factory looks them up by name."""
    for column, empty in (("system", ""), ("history", [])):
        if any(column in r for r in records):
            for record in records:
                record.setdefault(column, empty)


_MAKERS: dict[str, Callable[[Dialogue], dict[str, Any]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "llava": _llava,
}


def _described(path: Path, to: Target, records: list[dict[str, Any]]) -> str:
    """The folder's ``dataset_info.json`` with the export added, in LLaMA-Factory's terms."""
    info_path = path.parent / DATASET_INFO
    info: Any = {}
    if info_path.exists():
        try:
            info = json.loads(info_path.read_text(encoding="utf-8"))
        except ValueError as err:
            raise DataError(f"is not JSON, so the export cannot be added to it: {err}", where=str(info_path)) from err
        if not isinstance(info, dict):
            raise DataError("is not a JSON object, so the export cannot be added to it", where=str(info_path))
    info[path.stem] = {"file_name": path.name, **_llama_factory(to, records)}
    return json.dumps(info, ensure_ascii=False, indent=2) + "\n"


def _llama_factory(to: Target, records: list[dict[str, Any]]) -> dict[str, Any]:
    if to == "alpaca":
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        return {"columns": columns | {c: c for c in ("system", "history") if c in records[0]}}
    if to == "sharegpt":
        names = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
        return {
            "formatting": "sharegpt",
            "columns": {"messages": "conversations"},
            "tags": names | {"system_tag": "system"},
        }
    if "text" in records[0]:
        return {"columns": {"prompt": "text"}}
    names = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    return {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": names | {"system_tag": "system"}}
