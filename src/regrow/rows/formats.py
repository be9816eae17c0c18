"""The formats people keep fine-tuning data in: how each is recognised, and how a record of it becomes messages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from regrow.rows.row import Message, Role
from regrow.rows.validate import IMAGE_TOKEN, BadRow, check_image, image_blocks, require_text, shorten

SHAREGPT_ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system", "tool": "tool",
    "observation": "tool", "function_response": "tool",
}  # fmt: skip
CHAT_ROLES: dict[str, Role] = {role: role for role in get_args(Role)}


@dataclass(frozen=True)
class Parsed:
    """What a format's parser makes of one record."""

    messages: list[Message]
    images: list[str]
    kind: str | None = None


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        required: Columns that must be there.
        optional: Columns that belong to it as well.
        parse: Makes `Parsed` of a record and the folder that image paths are relative to; raises `BadRow`.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    parse: Callable[[Mapping[str, Any], Path | None], Parsed]


COMMON = ("id", "domain", "channel", "source", "meta", "group")
"""Columns any format may have: they become the row's id, domain, source and meta."""


def turns(value: object, what: str) -> list[Message]:
    """Messages out of a list of ``{role, content}`` or ``{from, value}``.

    Raises:
        BadRow: Not such a list; an unknown role; tool calls; content other than text or blocks of text and images.
    """
    if not isinstance(value, list):
        raise BadRow("not a dialogue", f"{what} must be a list of turns, found {shorten(value)}")
    return [_turn(turn, f"{what}, turn {n}") for n, turn in enumerate(value, 1)]


def _turn(turn: object, what: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow("not a dialogue", f"{what} must be an object with role and content, found {shorten(turn)}")
    if "role" in turn:
        role_key, content_key, roles = "role", "content", CHAT_ROLES
    elif "from" in turn:
        role_key, content_key, roles = "from", "value", SHAREGPT_ROLES
    else:
        raise BadRow("not a dialogue", f"{what} has neither 'role' nor 'from'; its keys are {_listed(turn)}")
    for key in ("tool_calls", "function_call"):
        if turn.get(key):
            raise BadRow(
                "tool calls",
                f"{what} has {key}, which cannot be trained on yet",
                "Write the call into the content, or leave such rows out with data.on_bad: drop.",
            )
    name = turn[role_key]
    if not isinstance(name, str) or name not in roles:
        raise BadRow(
            "unknown role", f"{what} has the unknown role {shorten(name)}", f"Known roles: {', '.join(roles)}."
        )
    return {"role": roles[name], "content": _content(turn.get(content_key), f"{what} ({content_key})")}


def _content(value: object, what: str) -> str | list[dict[str, Any]]:
    if not isinstance(value, list):
        return require_text(value, what)
    blocks: list[dict[str, Any]] = []
    for block in value:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "text":
            blocks.append({"type": "text", "text": require_text(block.get("text"), what)})
        elif kind == "image":
            blocks.append({"type": "image"})
        else:
            raise BadRow("unknown content", f"{what} has a block that is neither text nor image: {shorten(block)}")
    if len(blocks) == 1 and blocks[0]["type"] == "text":
        return str(blocks[0]["text"])
    return blocks


def _images(record: Mapping[str, Any], root: Path | None) -> list[str]:
    """The images of a record: ``image`` (one) or ``images`` (a list)."""
    one, many = record.get("image"), record.get("images")
    found = (
        many if isinstance(many, list) else [many] if many else one if isinstance(one, list) else [one] if one else []
    )
    return [check_image(path, root) for path in found]


def _with_image_tokens(messages: list[Message], images: list[str]) -> list[Message]:
    """Where a row has images, ``<image>`` in its texts marks their places; where it has none, it is only text."""
    if not images:
        return messages
    return [
        {**m, "content": image_blocks(m["content"])}
        if isinstance(m["content"], str) and IMAGE_TOKEN in m["content"]
        else m
        for m in messages
    ]


def _dialogue(column: str) -> Callable[[Mapping[str, Any], Path | None], Parsed]:
    def parse(record: Mapping[str, Any], root: Path | None) -> Parsed:
        messages = turns(record[column], f"'{column}'")
        system = record.get("system")
        if system and not (messages and messages[0]["role"] == "system"):
            messages.insert(0, {"role": "system", "content": require_text(system, "'system'")})
        images = _images(record, root)
        meta = record.get("meta")
        kind = "text" if isinstance(meta, Mapping) and meta.get("kind") == "text" else None
        return Parsed(_with_image_tokens(messages, images), images, kind)

    return parse


def _llava(record: Mapping[str, Any], root: Path | None) -> Parsed:
    parsed = _dialogue("conversations")(record, root)
    if not parsed.images and any(
        isinstance(m["content"], str) and IMAGE_TOKEN in m["content"] for m in parsed.messages
    ):
        raise BadRow("images do not match", f"the row has {IMAGE_TOKEN} in its text but no image")
    return parsed


def _alpaca(record: Mapping[str, Any], root: Path | None) -> Parsed:
    messages: list[Message] = []
    if record.get("system"):
        messages.append({"role": "system", "content": require_text(record["system"], "'system'")})
    history = record.get("history") or []
    if not isinstance(history, list):
        raise BadRow("bad history", f"'history' must be a list of [question, answer] pairs, found {shorten(history)}")
    for n, pair in enumerate(history, 1):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRow(
                "bad history", f"'history', entry {n} must be a [question, answer] pair, found {shorten(pair)}"
            )
        messages += _pair(pair[0], pair[1], f"'history', entry {n}", f"'history', entry {n}")
    instruction = require_text(record["instruction"], "'instruction'")
    more = record.get("input")
    if more is not None and require_text(more, "'input'"):
        instruction = f"{instruction}\n{more}" if instruction else str(more)
    return Parsed(messages + _pair(instruction, record["output"], "'instruction'", "'output'"), [])


def _pair(question: object, answer: object, q: str, a: str) -> list[Message]:
    asked, answered = require_text(question, q), require_text(answer, a)
    for text, name, label in ((asked, q, "empty question"), (answered, a, "empty answer")):
        if not text.strip():
            raise BadRow(label, f"{name} is empty")
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _question_answer(q: str, a: str) -> Callable[[Mapping[str, Any], Path | None], Parsed]:
    def parse(record: Mapping[str, Any], root: Path | None) -> Parsed:
        system = record.get("system")
        head: list[Message] = [{"role": "system", "content": require_text(system, "'system'")}] if system else []
        return Parsed(head + _pair(record[q], record[a], f"'{q}'", f"'{a}'"), [])

    return parse


def _prompt_completion(record: Mapping[str, Any], root: Path | None) -> Parsed:
    prompt, completion = record["prompt"], record["completion"]
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return Parsed(_pair(prompt, completion, "'prompt'", "'completion'"), [])
    images = _images(record, root)
    return Parsed(_with_image_tokens(turns(prompt, "'prompt'") + turns(completion, "'completion'"), images), images)


def _text(record: Mapping[str, Any], root: Path | None) -> Parsed:
    return Parsed([{"role": "assistant", "content": require_text(record["text"], "'text'")}], [], "text")


# In the order they are tried: data sets often carry a flattened 'text' or 'prompt' beside the dialogue itself.
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("messages", ("messages",), ("images", "image", "system"), _dialogue("messages")),
        Format("llava", ("image", "conversations"), ("images", "system"), _llava),
        Format("sharegpt", ("conversations",), ("images", "system"), _dialogue("conversations")),
        Format("alpaca", ("instruction", "output"), ("input", "system", "history"), _alpaca),
        Format("prompt_completion", ("prompt", "completion"), ("images", "image"), _prompt_completion),
        Format("query_response", ("query", "response"), ("system",), _question_answer("query", "response")),
        Format("question_answer", ("question", "answer"), ("system",), _question_answer("question", "answer")),
        Format("text", ("text",), (), _text),
    )
}


def detect(columns: Iterable[str]) -> Format | None:
    """The first format all of whose required columns are there."""
    have = set(columns)
    return next((f for f in FORMATS.values() if have.issuperset(f.required)), None)


def wrong_columns(columns: Iterable[str], wanted: Format | None = None) -> BadRow:
    """The fault of a record whose columns fit no format (or not the ``wanted`` one), with the closest format."""
    have = [str(c) for c in columns]
    closest = wanted or max(FORMATS.values(), key=lambda f: _likeness(f, have))
    missing = [c for c in closest.required if c not in have]
    found = f"found the columns {_listed(have)}" if have else "found no columns"
    asked = (
        f"format {closest.name!r} needs"
        if wanted
        else f"no known format; the closest is {closest.name!r}, which needs"
    )
    renames = " ".join(f"--set data.columns.{c}=YOUR_COLUMN" for c in missing)
    hint = f"Name yours: {renames} (in Python columns={{...}}). Known formats: {', '.join(FORMATS)}."
    if {"chosen", "rejected"} <= set(have):
        hint = "This looks like preference data; for supervised fine-tuning give the chosen answers only."
    return BadRow("wrong columns", f"{found}; {asked} {', '.join(repr(c) for c in closest.required)}", hint)


def _likeness(f: Format, have: list[str]) -> float:
    """How near the found names come to the required ones: that of the best column plus the mean, so 0 to 2."""
    near = [
        max((difflib.SequenceMatcher(None, c, h.lower()[:40]).ratio() for h in have[:50]), default=0.0)
        for c in f.required
    ]
    return max(near) + sum(near) / len(near)


def _listed(names: Iterable[Any], most: int = 12) -> str:
    names = [str(n)[:40] for n in names]
    more = f", … ({len(names):,} in all)" if len(names) > most else ""
    return ", ".join(repr(n) for n in names[:most]) + more
