"""What a dialogue must be before anything trains on it. Each fault has a reason to count by and a sentence to show."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PureWindowsPath
from typing import Any

from regrow.rows.row import Message

IMAGE_TOKEN = "<image>"  # noqa: S105 - the placeholder of LLaVA's files


class BadRow(Exception):
    """One row cannot be used.

    Args:
        reason: A short label, the same for all rows with this fault (``on_bad="drop"`` counts by it).
        message: What is wrong with this row.
        hint: What was expected, or what to do.
        line: Where it is, when that is not where the row begins.
    """

    def __init__(self, reason: str, message: str, hint: str | None = None, *, line: int | None = None) -> None:
        self.reason = reason
        self.message = message
        self.hint = hint
        self.line = line
        super().__init__(message)


def shorten(value: object, width: int = 60) -> str:
    """``repr`` of a value for a message, cut in the middle of nowhere rather than filling the screen."""
    if isinstance(value, (list, tuple, dict, bytes)):
        return f"a {type(value).__name__} of {len(value):,}"
    text = repr(value if not isinstance(value, str) else value[: width + 1])
    return text if len(text) <= width else text[: width - 1] + "…"


def require_text(value: object, what: str) -> str:
    """``value`` if it is text that UTF-8 can hold.

    Raises:
        BadRow: It is missing, a number (NaN too), a list, ..., or has a lone surrogate.
    """
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as err:
            raise BadRow(
                "invalid Unicode", f"{what} has a lone surrogate at character {err.start}, which is not text"
            ) from None
        return value
    if value is None:
        raise BadRow("missing text", f"{what} is missing or null", "Text is expected.")
    hint = "Put numbers between quotes." if isinstance(value, (int, float)) else None
    raise BadRow("not text", f"{what} must be text, found {shorten(value)}", hint)


def content_text(content: str | list[dict[str, Any]]) -> str:
    """The text of a message, blocks joined, images left out."""
    if isinstance(content, str):
        return content
    return "".join(b["text"] for b in content if b["type"] == "text")


def check_dialogue(messages: list[Message], *, kind: str | None = None) -> list[Message]:
    """Check the order of turns and that nothing is empty; returns the messages without an empty system prompt.

    The order: at most one system message, first; then user and assistant by turns, beginning with the user and
    ending with the assistant; one or more tool messages may stand between two assistant messages. With
    ``kind="text"`` (plain text) exactly one assistant message is expected.

    Raises:
        BadRow: Anything else.
    """
    if kind == "text":
        if [m["role"] for m in messages] != ["assistant"]:
            raise BadRow("wrong turns", "a plain-text row must have exactly one assistant message")
        if not content_text(messages[0]["content"]).strip():
            raise BadRow("empty text", "the text is empty")
        return messages
    if messages and messages[0]["role"] == "system" and not content_text(messages[0]["content"]).strip():
        messages = messages[1:]
    if not any(m["role"] == "assistant" for m in messages):
        raise BadRow("no assistant turn", "the dialogue has no assistant turn, so there is nothing to learn from")
    before = "start"
    for n, message in enumerate(messages, 1):
        role = message["role"]
        if role not in _FOLLOWS[before]:
            raise _wrong_order(before, role, n)
        if role in ("assistant", "user") and not _says_something(message["content"]):
            label = "empty answer" if role == "assistant" else "empty question"
            raise BadRow(label, f"message {n} ({role}) is empty")
        before = role
    if before != "assistant":
        raise BadRow(
            "no last answer",
            f"the dialogue ends with a turn of the {before} that nobody answers",
            "The last turn must be the assistant's.",
        )
    return messages


_FOLLOWS: dict[str, tuple[str, ...]] = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def _says_something(content: str | list[dict[str, Any]]) -> bool:
    return bool(content_text(content).strip()) or (
        not isinstance(content, str) and any(b["type"] == "image" for b in content)
    )


def _wrong_order(before: str, role: str, n: int) -> BadRow:
    if before == role:
        return BadRow(
            f"two {role} turns in a row",
            f"message {n} is a second {role} turn in a row",
            "Join them into one message; data.on_bad: drop leaves such rows out.",
        )
    if role == "system":
        return BadRow("late system message", f"message {n} is a system message; only the first message may be one")
    if before == "start":
        return BadRow(
            "wrong first turn", f"the dialogue begins with a turn of the {role}", "It must begin with the user's."
        )
    return BadRow("wrong turns", f"message {n} is a {role} turn right after a {before} turn")


def check_image(path: object, root: Path | None) -> str:
    """A safe image reference: an http(s) URL as it is, or a path inside ``root``, normalised, with ``/``.

    Whether the file is there is checked by whoever opens it.

    Raises:
        BadRow: Not text, empty, absolute, of another scheme, or leading out of the folder (also through a link).
    """
    text = require_text(path, "an image path")
    if re.match(r"https?://", text):
        return text
    clean = posixpath.normpath(text.replace("\\", "/"))
    if not text or clean == "." or "\0" in text:
        raise BadRow("bad image path", f"the image path {shorten(text)} names no file")
    if clean.startswith("/") or PureWindowsPath(clean).drive or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", clean):
        raise BadRow(
            "bad image path",
            f"the image path {shorten(text)} is absolute",
            "Give image paths relative to the folder of the data file.",
        )
    outside = clean == ".." or clean.startswith("../")
    if not outside and root is not None:
        base = root.resolve()
        outside = not (base / clean).resolve().is_relative_to(base)
    if outside:
        raise BadRow("bad image path", f"the image path {shorten(text)} leads out of the data folder")
    return clean


def image_blocks(text: str) -> list[dict[str, Any]]:
    """Turn the ``<image>`` tokens of LLaVA's text into image blocks; the line breaks beside a token go with it."""
    blocks: list[dict[str, Any]] = []
    for n, part in enumerate(text.split(IMAGE_TOKEN)):
        if n:
            blocks.append({"type": "image"})
        part = part.strip("\n")
        if part:
            blocks.append({"type": "text", "text": part})
    return blocks


def check_images(messages: list[Message], images: list[str]) -> None:
    """As many image blocks as images.

    Raises:
        BadRow: They differ.
    """
    found = sum(b["type"] == "image" for m in messages if not isinstance(m["content"], str) for b in m["content"])
    if found != len(images):
        raise BadRow(
            "images do not match",
            f"the row has {len(images)} image(s) but {found} place(s) for one in its messages",
            f"Mark the place of each image with {IMAGE_TOKEN} or an image block.",
        )
