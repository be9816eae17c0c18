"""Dialogues and texts that the user has, in the layout of a grown corpus: replay to compare the grown one with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from regrow.errors import DataError
from regrow.grow.corpus import GIVEN, Dialogue, Node, write_corpus
from regrow.mix.config import MixConfig
from regrow.mix.tokenize import encode, encode_text, is_text, shorten
from regrow.rows.row import Message, Row
from regrow.rows.validate import content_text

if TYPE_CHECKING:
    from regrow.models.turns import Turns

WHERE = "data.general"
TOPIC = "general"
"""Of all of them: a mix deals its replay by topic, and here the draw decides and not what rows are labelled with."""


def write_given(
    rows: Sequence[Row],
    model_dir: Path,
    cfg: MixConfig,
    out: Path,
    *,
    amount: float,
    seed: int,
    unit: Literal["tokens", "rows"] = "tokens",
) -> dict[str, Any]:
    """Write rows as a corpus of trees with one path each, drawn at random until there are enough.

    They are trained on as `regrow.mix.stage.mix` would train on them as rows of the user's data: texts longer than
    ``max_length`` are cut into pieces, dialogues lose their last turns.

    Args:
        rows: Dialogues and plain texts. What a corpus cannot hold (images, tool turns, a first turn longer than
            ``max_length``) is left out and counted.
        model_dir: For the tokenizer and its chat template.
        cfg: ``system_prompt``, ``max_length``.
        out: Result folder.
        amount: How much is enough: tokens as they will be trained on, or dialogues.
        seed: Of the draw. A larger amount draws the same ones first.
        unit: What ``amount`` counts.

    Returns:
        ``rows`` given and ``drawn`` (all of them when there were not enough), ``dialogues`` and ``tokens`` written,
        ``left_out`` by reason.

    Raises:
        DataError: No row can be used.
        ModelError: The chat template cannot be used.
    """
    writer = _Writer(model_dir, cfg, seed)
    drawn = 0
    for index in np.random.default_rng([seed, 0x61FE]).permutation(len(rows)).tolist():
        if (writer.tokens if unit == "tokens" else len(writer.dialogues)) >= amount:
            break
        writer.add(rows[index])
        drawn += 1
    if not writer.dialogues:
        raise DataError(
            "no row can be replayed", where=WHERE, hint=left_out_text(writer.left_out) or "there is no row"
        )
    write_corpus(
        out, writer.nodes, writer.dialogues, {"model": "none: rows of your own", "engine": "none", "seed": seed},
        about=GIVEN,
    )  # fmt: skip
    return {
        "rows": len(rows), "drawn": drawn, "dialogues": len(writer.dialogues), "tokens": writer.tokens,
        "left_out": dict(sorted(writer.left_out.items())),
    }  # fmt: skip


def left_out_text(left_out: Mapping[str, int]) -> str:
    """What was left out, in words."""
    return ", ".join(f"{n:,} rows with {reason}" for reason, n in sorted(left_out.items()))


def unfit(row: Row) -> str | None:
    """Why a corpus cannot hold a row."""
    blocks = [b for m in row.messages if not isinstance(m["content"], str) for b in m["content"]]
    if any(b["type"] != "text" for b in blocks):
        return "images"
    if any(m["role"] == "tool" for m in row.messages):
        return "tool turns"
    return None


class _Writer:
    def __init__(self, model_dir: Path, cfg: MixConfig, seed: int) -> None:
        from regrow.models.load import load_tokenizer

        self.tokenizer: Any = load_tokenizer(model_dir)
        self.cfg, self.seed = cfg, seed
        self.nodes: list[Node] = []
        self.dialogues: list[Dialogue] = []
        self.tokens = 0
        self.left_out: Counter[str] = Counter()
        self._turns: Turns | None = None

    def add(self, row: Row) -> None:
        """A row as one dialogue, or a text as one for each piece."""
        if reason := unfit(row):
            self.left_out[reason] += 1
        elif is_text(row):
            self._add_text(content_text(row.messages[0]["content"]))
        else:
            self._add_dialogue([{"role": m["role"], "content": content_text(m["content"])} for m in row.messages])

    def _add_text(self, text: str) -> None:
        whole = encode_text(self.tokenizer, text)
        (start, end), markers = whole.spans[0], len(whole.ids) - (whole.spans[0][1] - whole.spans[0][0])
        room = self.cfg.max_length - markers
        for at in range(start, end, room):
            ids = whole.ids[at : min(at + room, end)]
            said = text if end - start <= room else self.tokenizer.decode(ids)
            message = {"role": "assistant", "content": said}
            # Only the last piece ends the text.
            self._add([message], ["text"], [ids], len(ids) + markers, "stop" if at + room >= end else "length")

    def _add_dialogue(self, messages: list[Message]) -> None:
        from regrow.models.turns import derive_turns

        if self._turns is None:
            self._turns = derive_turns(self.tokenizer)
        shown = messages
        if self.cfg.system_prompt is not None and messages[0]["role"] != "system":
            shown = [{"role": "system", "content": self.cfg.system_prompt}, *messages]
        whole = encode(self.tokenizer, self._turns, shown)
        row = whole if len(whole.ids) <= self.cfg.max_length else shorten(whole, self.cfg.max_length)
        if row is None:
            self.left_out["a first turn longer than mix.max_length"] += 1
            return
        system = messages[:1] if messages[0]["role"] == "system" else []
        said = messages[len(system) :][: len(row.spans)]
        contents = [row.ids[a:b] for a, b in row.spans]
        self._add([*system, *said], [m["role"] for m in said], contents, len(row.ids), "stop")

    def _add(
        self, messages: list[Message], roles: list[str], contents: list[list[int]], tokens: int, finish: str
    ) -> None:
        tree = len(self.dialogues)
        parent, ids = f"g{tree:07d}", []
        texts = [m["content"] for m in messages if m["role"] != "system"]
        for layer, (role, text, tokens_of) in enumerate(zip(roles, texts, contents, strict=True), 1):
            ids.append(f"{parent}/0")
            self.nodes.append(
                Node(
                    id=ids[-1], parent=parent, tree=tree, topic=TOPIC, layer=layer, role=role, token_ids=tokens_of,
                    text=text, logprob=None, token_logprobs=None, finish=finish, kept=True, reason=None,
                    seed=self.seed, n_paths=1,
                )
            )  # fmt: skip
            parent = ids[-1]
        self.dialogues.append(Dialogue(ids[-1], messages, ids, TOPIC, tree, sum(map(len, contents))))
        self.tokens += tokens
