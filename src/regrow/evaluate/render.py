"""From items to token rows: what is put before the model, and which of its tokens are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regrow.errors import DataError
from regrow.evaluate.items import Item
from regrow.rows.row import Message


@dataclass(slots=True)
class TokenRow:
    """A token row and the half-open spans ``[start, end)`` of it that are scored, each with ``start >= 1``."""

    ids: list[int]
    spans: list[tuple[int, int]]

    @property
    def targets(self) -> list[int]:
        """Positions of all scored tokens, rising."""
        return [t for start, end in self.spans for t in range(start, end)]


def prompt_text(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The dialogue up to where the assistant speaks, in the model's own chat template.

    A last message of role ``assistant`` is the beginning of the answer and stays open. A tokenizer without chat
    template gets the contents as paragraphs.
    """
    opening = ""
    if messages and messages[-1]["role"] == "assistant":
        opening = _text(messages[-1])
        messages = messages[:-1]
    if tokenizer.chat_template is None:
        return "".join(f"{_text(m)}\n\n" for m in messages) + opening
    if not messages:
        return opening
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return text + opening


def answer_glue(item: Item) -> str:
    """What stands between prompt and answer: a space when the item opens the answer with words, else nothing."""
    last = item.messages[-1]
    opened = last["role"] == "assistant" and _text(last)[-1:] not in ("", " ", "\n", '"')
    return " " if opened else ""


def encode_item(tokenizer: Any, item: Item, max_length: int = 1 << 20) -> list[TokenRow]:
    """The token rows of an item: one a choice, one an accepted answer, or one for a dialogue.

    Rows of one item share their prompt tokens, so a scorer computes them once. Dialogues longer than ``max_length``
    tokens are cut at the end.

    Raises:
        DataError: The item has images, an empty answer, or nothing left to score.
    """
    if item.kind == "dialogue":
        row = _dialogue_row(tokenizer, item, max_length)
        if not row.targets:
            raise DataError("the dialogue has no assistant text to score", where=f"{item.suite}:{item.id}")
        return [row]
    prompt = prompt_text(tokenizer, item.messages)
    glue = answer_glue(item)
    answers = item.choices if item.kind == "choice" else item.answers
    if not answers or not all(a.strip() for a in answers):
        raise DataError("an answer is empty", where=f"{item.suite}:{item.id}")
    head = tokenizer.encode(prompt, add_special_tokens=False)
    rows = [tokenizer.encode(prompt + glue + a, add_special_tokens=False) for a in answers]
    # A tokenizer may merge over the border; then scoring starts at the last border that all answers have in common.
    start = min(len(head), *(_common(head, r) for r in rows))
    if start < 1 or any(len(r) <= start for r in rows):
        raise DataError("the answer adds no token to the prompt", where=f"{item.suite}:{item.id}")
    return [TokenRow(r, [(start, len(r))]) for r in rows]


def _dialogue_row(tokenizer: Any, item: Item, max_length: int) -> TokenRow:
    if "token_ids" in item.meta:
        ids = [int(t) for t in item.meta["token_ids"]]
        spans = [(int(s), int(e)) for s, e in item.meta["spans"]]
    elif item.meta.get("kind") == "text" or tokenizer.chat_template is None:
        ids = tokenizer.encode("\n\n".join(_text(m) for m in item.messages), add_special_tokens=True)
        spans = [(1, len(ids))]
    else:
        ids, spans = _template_spans(tokenizer, item)
    ids = ids[:max_length]
    return TokenRow(ids, [(max(s, 1), min(e, len(ids))) for s, e in spans if max(s, 1) < min(e, len(ids))])


def _template_spans(tokenizer: Any, item: Item) -> tuple[list[int], list[tuple[int, int]]]:
    """Assistant turns by re-rendering: a turn is what the template adds after its generation prompt.

    The turn's closing marker counts; white space the template puts behind it does not.
    """
    for m in item.messages:
        _text(m)
    whole: str = tokenizer.apply_chat_template(item.messages, tokenize=False)
    chars: list[tuple[int, int]] = []
    for i, m in enumerate(item.messages):
        if m["role"] != "assistant":
            continue
        before: str = tokenizer.apply_chat_template(item.messages[:i], tokenize=False, add_generation_prompt=True)
        until: str = tokenizer.apply_chat_template(item.messages[: i + 1], tokenize=False)
        if not (until.startswith(before) and whole.startswith(until.rstrip())):
            raise DataError(
                "the chat template rewrites earlier turns, so the assistant's text cannot be located",
                where=f"{item.suite}:{item.id}",
            )
        chars.append((len(before), len(until.rstrip())))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    spans = []
    for start, end in chars:
        inside = [t for t, (a, b) in enumerate(offsets) if a >= start and b <= end and b > a]
        if inside:
            spans.append((inside[0], inside[-1] + 1))
    return list(encoded["input_ids"]), spans


def _text(message: Message) -> str:
    content = message["content"]
    if not isinstance(content, str):
        raise DataError("evaluation items with images are not supported; text only")
    return content


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
