"""What the probes read: any rows, questions, evaluation items or a grown corpus, as texts with a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regrow.errors import DataError
from regrow.grow.corpus import NODES, read_nodes
from regrow.progress import note
from regrow.rows.formats import detect
from regrow.rows.limits import Limits
from regrow.rows.readers import read_rows
from regrow.rows.row import Message, Row
from regrow.rows.sources import find_files, read_records
from regrow.rows.validate import BadRow

ANSWER_COLUMNS = ("answers", "answer", "correct_answers", "best_answer")
QUESTION_COLUMNS = ("question", "prompt", "query", "instruction")


@dataclass(slots=True)
class Text:
    """A text to be judged.

    Attributes:
        id: Unique within what was read.
        text: As one document.
        messages: The dialogue, where it is one.
        domain: Its label, or the topic it was grown under.
    """

    id: str
    text: str
    messages: list[Message] = field(default_factory=list)
    domain: str = ""


def read_texts(path: str | Path) -> list[Text]:
    """Texts of a file or folder.

    A corpus of `regrow grow` gives its kept turns (each once, however many dialogues go through it); questions with
    choices or accepted answers give question and right answer; anything else is read as
    `regrow.rows.readers.read_rows` does, a ``.txt`` file by paragraphs.

    Raises:
        DataError: Nothing to read, or a bad row.
    """
    path = Path(path)
    if (path / NODES).is_file():
        nodes = read_nodes(path, ["id", "text", "topic", "kept"])
        return [Text(n.id, n.text, domain=n.topic) for n in nodes if n.kept and n.text.strip()]
    if path.is_file() and _are_questions(path):
        return [
            Text(q.id, f"{q.text}\n{q.answers[0]}", [*q.messages, {"role": "assistant", "content": q.answers[0]}])
            for q in read_questions(path)
        ]
    read = read_rows(path)
    for reason, n in read.dropped.items():
        note(f"{path}: {n:,} rows left out, {reason}")
    return [Text(r.id, plain_text(r), [] if r.meta.get("kind") == "text" else r.messages, r.domain) for r in read.rows]


def plain_text(row: Row) -> str:
    """The contents of a row's messages as paragraphs of one document; images have no text."""
    return "\n\n".join(c for m in row.messages for c in _contents(m["content"]))


def _contents(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    else:
        yield from (block["text"] for block in content if block["type"] == "text")


def _are_questions(path: Path) -> bool:
    first = next(iter(read_records(path, Limits())), None)
    return first is not None and isinstance(first.data, Mapping) and _kind(first.data) is not None


def _kind(record: Mapping[str, Any]) -> str | None:
    """The question's column when the record is a question with answers or choices that no row format covers alone."""
    have = next((c for c in QUESTION_COLUMNS if isinstance(record.get(c), str)), None)
    if have is None or not ("choices" in record or any(c in record for c in ANSWER_COLUMNS)):
        return None
    return have


@dataclass(slots=True)
class Question:
    """A question with its accepted answers.

    Attributes:
        id: Unique within the file.
        messages: The dialogue up to the question.
        text: The question alone.
        answers: Accepted ones, the best first; that one is shown in few-shot prompts.
        relation: Questions of one relation make each other's few-shot prompts.
        record: The record as it was read, every column.
    """

    id: str
    messages: list[Message]
    text: str
    answers: list[str]
    relation: str
    record: dict[str, Any]


def read_questions(path: str | Path) -> list[Question]:
    """Questions with answers, from any file of rows.

    ``question`` (or ``prompt``, ``query``, ``instruction`` with ``input``) with ``answer`` or ``answers``
    (``aliases`` are accepted too), multiple choice (``choices`` and ``answer_index`` or ``answer``), and dialogues,
    whose last assistant turn is the answer. ``relation`` and ``id`` are optional.

    Raises:
        DataError: Nothing to read, or a bad record; names file and line.
    """
    path = Path(path)
    out: list[Question] = []
    lines: dict[str, str] = {}
    for file in find_files(path):
        for number, found in enumerate(read_records(file, Limits()), 1):
            where = f"{file}:{found.line}"
            try:
                if isinstance(found.data, BadRow):
                    raise found.data
                name = file.name if file == path else file.relative_to(path).as_posix()
                question = _question(dict(found.data), f"{name}#{number}")
            except BadRow as bad:
                raise DataError(bad.message, where=where, hint=bad.hint) from None
            if question.id in lines:
                raise DataError(f"the id {question.id!r} was already used at {lines[question.id]}", where=where)
            lines[question.id] = where
            out.append(question)
    if not out:
        raise DataError("the file has no questions", where=str(path))
    return out


def _question(record: dict[str, Any], default_id: str) -> Question:
    column = _kind(record)
    if column is not None:
        asked, answers = str(record[column]).strip(), _answers(record)
        if column == "instruction" and str(record.get("input") or "").strip():
            asked = f"{asked}\n{str(record['input']).strip()}"
        messages: list[Message] = [{"role": "user", "content": asked}]
    else:
        found = detect(record)
        if found is None or found.name == "text":
            raise BadRow(
                "not a question",
                "a question with an answer is needed; the columns are " + ", ".join(map(repr, list(record)[:12])),
                "Use 'question' and 'answer' (or 'answers'), or a dialogue that ends in an answer.",
            )
        said = found.parse(record, None).messages
        if len(said) < 2 or said[-1]["role"] != "assistant" or not all(isinstance(m["content"], str) for m in said):
            raise BadRow("not a question", "the dialogue is not text that ends in an assistant's answer")
        messages, answers, asked = said[:-1], [said[-1]["content"]], said[-2]["content"]
    if not asked or not answers:
        raise BadRow("not a question", "the question or its answer is empty")
    relation = record.get("relation")
    name = record.get("id")
    return Question(
        str(name) if name not in (None, "") else default_id, messages, asked, answers,
        str(relation) if relation is not None else "", record,
    )  # fmt: skip


def _answers(record: Mapping[str, Any]) -> list[str]:
    if "choices" in record:
        choices, index = record["choices"], record.get("answer_index", record.get("answer"))
        if isinstance(index, str) and index in choices:
            index = choices.index(index)
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(choices):
            raise BadRow("bad answer", "'answer_index' must be the index (or 'answer' the text) of one of the choices")
        return [str(choices[index])]
    found: list[str] = []
    for key in (*ANSWER_COLUMNS, "aliases"):
        value = record.get(key)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not isinstance(one, str | int | float):
                raise BadRow("bad answer", f"'{key}' must be text or a list of texts")
            if one is not None and str(one).strip():
                found.append(str(one).strip())
    return list(dict.fromkeys(found))
