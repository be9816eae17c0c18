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
"""Stands in ``topk_ids`` where a trained position has no stored distribution."""


@dataclass(slots=True)
class TokenRow:
    """One training example.

    Attributes:
        ids: Token ids.
        weights: ``(len(ids),)`` weight of the loss on each token; 0 is not trained.
        spans: ``[start, end)`` of each message's content tokens (without the system message); for a plain text, of
            each piece.
        closing: ``[start, end)`` of the trained marker tokens behind each message (empty for the user's).
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

    Piece by piece, so that content which looks like a marker stays text, and so that an answer's tokens are those the
    model would emit after its generation prompt, never merged with the marker before them.

    Args:
        tokenizer: The model's.
        turns: Its turn markers.
        messages: An optional system message, then user and assistant in turn.
        contents: Token ids of each message (without the system message) to use in place of encoding its text: a grown
            dialogue trains on exactly the tokens the model sampled.

    Raises:
        ModelError: Roles do not alternate, or a content is not text.
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
            closing.append((start + len(new), start + len(new)))
            if role == "assistant":
                learn.append(spans[-1])
        ids += new
        previous = role
    weights = np.zeros(len(ids), dtype=np.float32)
    for a, b in learn:
        weights[a:b] = 1.0
    return TokenRow(ids, weights, spans, closing)


def encode_text(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Sequence[int]] | str, *, ended: bool = True
) -> TokenRow:
    """A plain text (TG-PT, continual pretraining): every token is trained, what looks like a special token is text.

    Args:
        tokenizer: The model's.
        pieces: The text, or token ids of its pieces in order (the nodes of a path).
        ended: Whether the text is complete: then the end-of-text token follows, and is trained.
    """
    from regrow.models.encoding import encode_inner

    if isinstance(pieces, str):
        pieces = [encode_inner(tokenizer, pieces, plain=True, first=True)]
    empty = list(tokenizer("")["input_ids"])
    ids = empty[:1] if empty and empty[0] == tokenizer.bos_token_id else []
    untrained = len(ids)
    spans = []
    for piece in pieces:
        spans.append((len(ids), len(ids) + len(piece)))
        ids += list(piece)
    closing = [(b, b) for _, b in spans]
    if ended and tokenizer.eos_token_id is not None:
        closing[-1] = (len(ids), len(ids) + 1)
        ids.append(int(tokenizer.eos_token_id))
    weights = np.ones(len(ids), dtype=np.float32)
    weights[:untrained] = 0.0
    return TokenRow(ids, weights, spans, closing)


def is_text(row: Row) -> bool:
    """Whether a row is a plain text rather than a dialogue."""
    return row.meta.get("kind") == "text"


def cut_to_pieces(row: TokenRow, max_length: int) -> list[TokenRow]:
    """A long text as consecutive examples of at most ``max_length`` tokens; together they hold every token."""
    return [
        TokenRow(row.ids[start : start + max_length], row.weights[start : start + max_length].copy())
        for start in range(0, len(row.ids), max_length)
    ]


def shorten(row: TokenRow, max_length: int) -> TokenRow | None:
    """The longest start of a dialogue that ends with a finished answer and fits; None when its first turn does not."""
    ends = [end for start, end in row.closing if end > start and end <= max_length]
    if not ends:
        return None
    end = ends[-1]
    n = sum(b <= end for _, b in row.spans)
    return TokenRow(row.ids[:end], row.weights[:end].copy(), row.spans[:n], row.closing[:n])
