"""Your own test items out of a JSONL file.

Multiple choice: ``{"question": "...", "choices": ["a", "b"], "answer": 0}`` (an index, or the right
choice's text; ``answer_index`` is the same key). Other columns are left alone.
Short answer: ``{"question": "...", "answer": "Paris"}`` or ``{"question": "...", "answers": ["Paris", "paris"]}``.
``messages`` in place of ``question`` gives a whole dialogue up to the question; ``id`` and ``domain`` are optional.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from regrow.errors import DataError
from regrow.evaluate.config import EMBEDDED_SUITES
from regrow.evaluate.items import Item
from regrow.evaluate.suites.refusals import HARMFUL, HARMLESS
from regrow.rows.row import Message

KEYS = {"question", "messages", "choices", "answer", "answer_index", "answers", "id", "domain"}
ROLES = ("system", "user", "assistant")
TAKEN = (*EMBEDDED_SUITES, "facts-pool", HARMLESS, HARMFUL)


def suite_of(name: str) -> str:
    """The suite that ``file:PATH``, ``recipe:PATH`` or another entry of ``evaluate.suites`` becomes."""
    kind, _, rest = name.partition(":")
    return Path(rest).stem if kind in ("file", "recipe") else name


def check_name(path: Path) -> None:
    """Refuse a file that would be named like an embedded suite.

    Raises:
        DataError: It would.
    """
    if path.stem in TAKEN:
        raise DataError(
            f"the name '{path.stem}' belongs to an embedded suite", where=str(path), hint="Rename the file."
        )


def read_local(path: str | Path) -> list[Item]:
    """Items of a file; the suite is named after the file.

    Raises:
        DataError: The file is missing or empty, or a line is wrong; names file and line.
    """
    path = Path(path)
    suite = path.stem
    check_name(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text (byte {error.start})", where=str(path)) from error
    except OSError as error:
        raise DataError(error.strerror or str(error), where=str(path), hint="Check evaluate.suites.") from error
    out: list[Item] = []
    ids: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        item = _item(line, suite, number, f"{path}:{number}")
        if item.id in ids:
            raise DataError(f"id '{item.id}' was used in line {ids[item.id]}", where=f"{path}:{number}")
        ids[item.id] = number
        out.append(item)
    if not out:
        raise DataError("the file has no items", where=str(path))
    return out


def _item(line: str, suite: str, number: int, where: str) -> Item:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=where) from error
    if not isinstance(data, dict):
        raise DataError("expected a JSON object", where=where)
    for key in sorted(set(data) - KEYS):
        # Benchmark files carry columns of their own (split, subject, ...); only what looks like a typo is an error.
        if close := get_close_matches(key, KEYS, n=1, cutoff=0.75):
            raise DataError(f"unknown key '{key}'", where=where, hint=f"did you mean '{close[0]}'?")
    name, domain = str(data.get("id", number)), str(data.get("domain", suite))
    messages = _messages(data, where)
    if "choices" in data:
        choices = _texts(data["choices"], "choices", where)
        if len(choices) < 2 or len(set(choices)) < len(choices):
            raise DataError("'choices' needs at least two different texts", where=where)
        index = _index(data.get("answer", data.get("answer_index")), choices, where)
        return Item(name, suite, domain, "choice", messages, choices=choices, answer_index=index)
    if "answer" in data and "answers" in data:
        raise DataError("give 'answer' or 'answers', not both", where=where)
    answers = _texts(data["answers"] if "answers" in data else [data.get("answer")], "answer", where)
    return Item(name, suite, domain, "answer", messages, answers=answers)


def _messages(data: dict[str, Any], where: str) -> list[Message]:
    if ("question" in data) == ("messages" in data):
        raise DataError("give either 'question' or 'messages'", where=where)
    if "question" in data:
        return [{"role": "user", "content": _texts([data["question"]], "question", where)[0]}]
    found = data["messages"]
    good = isinstance(found, list) and found and all(
        isinstance(m, dict) and m.get("role") in ROLES and isinstance(m.get("content"), str) for m in found
    )  # fmt: skip
    if not good:
        raise DataError("'messages' is a list of {role, content} with text", where=where)
    return [{"role": m["role"], "content": m["content"]} for m in found]


def _texts(value: Any, key: str, where: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise DataError(f"'{key}' must be text that is not empty", where=where)
    return list(value)


def _index(answer: Any, choices: list[str], where: str) -> int:
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    raise DataError("'answer' must be the index or the text of one of the choices", where=where,
                    hint="Indices start at 0.")  # fmt: skip
