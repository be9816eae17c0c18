"""Token ids of parts of a text, as they would be inside the whole."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from regrow.models.template import marker_tokens, units

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHOR = "\n"


def encode_inner(
    tokenizer: PreTrainedTokenizerBase, text: str, *, plain: bool = False, first: bool = False
) -> list[int]:
    """Ids of ``text`` as it is encoded inside a longer text: SentencePiece tokenizers put a space before a text's
    first word, which an inner text does not have, so ``text`` is encoded behind a line break whose ids are taken off
    again."""

    if not text:
        return []
    anchor = _anchor_ids(tokenizer)
    if first or not anchor:
        return _ids(tokenizer, text, plain)
    whole = _ids(tokenizer, ANCHOR + text, plain)
    return whole[len(anchor) :] if whole[: len(anchor)] == anchor else _ids(tokenizer, text, plain)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, plain: bool) -> list[int]:
    extra = {"split_special_tokens": True} if plain else {}
    return list(tokenizer(text, add_special_tokens=False, **extra)["input_ids"])


@lru_cache(maxsize=16)
def _anchor_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the anchor, or nothing where a text is encoded the same at its start and inside."""
    anchor = _ids(tokenizer, ANCHOR, True)
    return [] if _ids(tokenizer, f"{ANCHOR}Hello", True) == anchor + _ids(tokenizer, "Hello", True) else anchor


def encode_broken(tokenizer: PreTrainedTokenizerBase, text: str, forbidden: frozenset[int]) -> list[int]:
    """Ids of ``text`` with every look-alike of a forbidden token cut after its first character, so that it cannot be
    matched."""
    tokens = frozenset(t for t in marker_tokens(tokenizer) if tokenizer.convert_tokens_to_ids(t) in forbidden)
    parts, current = [], ""
    for unit in units(text, tokens):
        if unit in tokens:
            parts.append(current + unit[0])
            current = unit[1:]
        else:
            current += unit
    return [token for part in [*parts, current] for token in encode_inner(tokenizer, part, plain=True)]
