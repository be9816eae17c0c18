"""From dialogues to token rows with one loss weight a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from regrow.rows.row import Message, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from regrow.models.turns import Turns

NO_ID = -1
"""Stands in ``topk_ids`` where a trained position has no stored distribution (the token that ends an answer)."""


@dataclass(slots=True)
class TokenRow:
    """One training example.

    Attributes:
        ids: Token ids.
        weights: ``(len(ids),)`` weight of the loss on each token; 0 is not trained.
        spans: ``[start, end)`` of each message's content tokens.
        closing: ``[start, end)`` of the trained marker tokens behind each assistant message, same order as the messages
            (empty for the others).
    """

    ids: list[int]
    weights: npt.NDArray[np.float32]
    spans: list[tuple[int, int]] = field(default_factory=list)
    closing: list[tuple[int, int]] = field(default_factory=list)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    turns: Turns,
    messages: Sequence[Message],
    contents: Sequence[Sequence[int]] | None = None,
) -> TokenRow:
    """Encode a dialogue piece by piece; weights are 1 on assistant content and on what ends it.

    Args:
        tokenizer: The model's.
        turns: Its turn markers.
        messages: An optional system message, then user and assistant in turn.
        contents: Token ids of each message (without the system message) to use in place of encoding its text: a grown
            dialogue trains on exactly the tokens the model sampled.
    """
    ids: list[int] = []
    learn: list[tuple[int, int]] = []
    spans: list[tuple[int, int]] = []
    closing: list[tuple[int, int]] = []
    previous: str | None = None
    stops = set(turns.stop_ids("assistant"))
    for role, text in turns.pieces(list(messages)):
        start = len(ids)
        if role is None:
            new = turns.encode(tokenizer, text, first=not ids)
            if previous == "assistant":
                # The model is stopped at the first end token and never writes what comes behind it.
                stop = next((i for i, token in enumerate(new) if token in stops), len(new) - 1)
                closing[-1] = (start, start + stop + 1)
                learn.append(closing[-1])
        else:
            given = contents[len(spans)] if contents is not None else None
            new = list(given) if given is not None else turns.encode_content(tokenizer, text)
            spans.append((start, start + len(new)))
            closing.append((0, 0))
            if role == "assistant":
                learn.append(spans[-1])
        ids += new
        previous = role
    weights = np.zeros(len(ids), dtype=np.float32)
    for a, b in learn:
        weights[a:b] = 1.0
    return TokenRow(ids, weights, spans, closing)


def encode_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | str) -> TokenRow:
    """A plain text (TG-PT, continual pretraining): every token is trained; begins with BOS where the tokenizer adds
    one, ends with the end-of-text token."""
    inner = list(tokenizer(ids, add_special_tokens=False)["input_ids"]) if isinstance(ids, str) else list(ids)
    bos = list(tokenizer("")["input_ids"])[:1]
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    row = [*bos, *inner, *end]
    weights = np.ones(len(row), dtype=np.float32)
    weights[: len(bos)] = 0.0
    return TokenRow(row, weights, [(len(bos), len(bos) + len(inner))], [(len(bos) + len(inner), len(row))])


def is_text(row: Row) -> bool:
    """Whether a row is a plain text rather than a dialogue."""
    return row.meta.get("kind") == "text"


def shorten(
    tokenizer: PreTrainedTokenizerBase, turns: Turns, messages: Sequence[Message], max_length: int
) -> list[Message] | None:
    """The longest start of a dialogue that ends with an answer and fits; None when not even its first turn does."""
    kept = list(messages)
    while len(kept) > 2:
        kept = kept[:-2] if kept[-1]["role"] == "assistant" else kept[:-1]
        if kept[-1]["role"] != "assistant":
            return None
        if len(encode(tokenizer, turns, kept).ids) <= max_length:
            return kept
    return None
