"""Dialogues that the user has, in the layout of a grown corpus: replay to compare the grown one with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regrow.errors import DataError
from regrow.grow.corpus import Dialogue, Node, write_corpus
from regrow.mix.config import MixConfig
from regrow.mix.tokenize import TokenRow, encode, encode_text, is_text
from regrow.progress import note
from regrow.rows.row import Row

SPOKEN = ("user", "assistant")


def write_given(
    rows: Sequence[Row], model_dir: Path, cfg: MixConfig, out: Path, *, tokens: int, seed: int
) -> dict[str, Any]:
    """Write rows as a corpus of trees with one path each, drawn at random until there are ``tokens``.

    Their tokens are those that `regrow.mix.stage.mix` would give them as rows of the user's data.

    Args:
        rows: Dialogues and plain texts. What a corpus cannot hold (images, tool turns) is left out and counted.
        model_dir: For the tokenizer and its chat template.
        cfg: ``system_prompt``.
        out: Result folder.
        tokens: Tokens of content to stop at.
        seed: Of the draw.

    Returns:
        ``rows`` given, ``dialogues`` and ``tokens`` written, ``left_out`` by reason.

    Raises:
        DataError: No row can be used.
        ModelError: The chat template cannot be used.
    """
    from regrow.models.load import load_tokenizer
    from regrow.models.turns import derive_turns

    tokenizer = load_tokenizer(model_dir)
    turns = None if all(map(is_text, rows)) else derive_turns(tokenizer)
    left_out: Counter[str] = Counter()
    nodes: list[Node] = []
    dialogues: list[Dialogue] = []
    total = 0
    for index in np.random.default_rng([seed, 0x61FE]).permutation(len(rows)).tolist():
        if total >= tokens:
            break
        row = rows[index]
        if reason := _unfit(row):
            left_out[reason] += 1
            continue
        text = is_text(row)
        encoded = (
            encode_text(tokenizer, row.messages[0]["content"]) if text else encode(tokenizer, turns, row.messages)  # type: ignore[arg-type]
        )
        mine = list(_nodes(row, encoded, len(dialogues), text))
        total += sum(len(n.token_ids) for n in mine)
        dialogues.append(
            Dialogue(
                mine[-1].id, row.messages, [n.id for n in mine], row.domain, mine[0].tree,
                sum(len(n.token_ids) for n in mine),
            )
        )  # fmt: skip
        nodes += mine
    if not dialogues:
        raise DataError("no row can be replayed", where="data.general", hint=_told(left_out) or "the file is empty")
    if left_out:
        note(f"general data: left out {_told(left_out)}")
    write_corpus(out, nodes, dialogues, {"model": "none: rows of your own", "engine": "none", "seed": seed})
    return {
        "rows": len(rows),
        "dialogues": len(dialogues),
        "tokens": total,
        "left_out": dict(sorted(left_out.items())),
    }


def _told(left_out: Counter[str]) -> str:
    return ", ".join(f"{n:,} rows with {reason}" for reason, n in sorted(left_out.items()))


def _unfit(row: Row) -> str | None:
    """Why a corpus cannot hold a row."""
    if any(not isinstance(m["content"], str) for m in row.messages):
        return "images"
    if any(m["role"] not in ("system", *SPOKEN) for m in row.messages):
        return "tool turns"
    return None


def _nodes(row: Row, encoded: TokenRow, tree: int, text: bool) -> Iterator[Node]:
    """A row as the nodes of one path."""
    said = [m for m in row.messages if m["role"] != "system"]
    parent = f"g{tree:07d}"
    for layer, (message, (start, end)) in enumerate(zip(said, encoded.spans, strict=True), 1):
        yield Node(
            id=f"{parent}/0", parent=parent, tree=tree, topic=row.domain, layer=layer,
            role="text" if text else message["role"], token_ids=encoded.ids[start:end], text=message["content"],
            logprob=None, token_logprobs=None, finish="stop", kept=True, reason=None, seed=0, n_paths=1,
        )  # fmt: skip
        parent = f"{parent}/0"
