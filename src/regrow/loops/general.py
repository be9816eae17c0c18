"""General data of the user, drawn until enough of it is left when what the evaluation asks is out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.errors import DataError, EngineError
from regrow.mix.config import MixConfig
from regrow.mix.given import WHERE, left_out_text, write_given
from regrow.mix.stage import scratch_in
from regrow.progress import note

if TYPE_CHECKING:
    from regrow.curate.config import CurateConfig
    from regrow.curate.decontaminate import Encodes
    from regrow.evaluate.items import Item
    from regrow.models.load import ResolvedModel
    from regrow.rows.readers import ReadResult
    from regrow.rows.row import Row

CORPUS = "corpus"
MORE = 2.0
"""How much more is drawn when curation has left too little."""


def draw_general(
    read: ReadResult,
    model_dir: Path,
    mix_cfg: MixConfig,
    curate_cfg: CurateConfig,
    out: Path,
    *,
    amount: float,
    items: Sequence[Item],
    domain_rows: Sequence[Row],
    encoder: Encodes | None,
    seed: int,
) -> dict[str, Any]:
    """Write ``out/corpus``: rows drawn at random, without those that repeat each other, an evaluation item or a
    held-out row, as many as make ``amount`` or as there are.

    Args:
        read: The general data.
        model_dir, mix_cfg: See `regrow.mix.given.write_given`.
        curate_cfg: See `regrow.curate.stage.curate`.
        out: Result folder.
        amount: In ``mix_cfg.replay_unit``.
        items, domain_rows: What must not be in it.
        encoder: See `regrow.curate.stage.curate`.
        seed: Of the draw.

    Returns:
        What `write_given` returns of the last draw, ``kept`` dialogues and ``kept_tokens`` of their texts, ``dropped``
        dialogues by reason, ``unread`` rows by reason.

    Raises:
        DataError: Nothing can be replayed.
    """
    from regrow.curate.stage import curate

    asked = amount
    while True:
        with scratch_in(out) as scratch:
            told = write_given(
                read.rows, model_dir, mix_cfg, scratch / CORPUS, amount=asked, seed=seed, unit=mix_cfg.replay_unit
            )
            try:
                cleaned = curate(
                    scratch / CORPUS, curate_cfg, out / CORPUS, items=items, domain_rows=domain_rows, encoder=encoder,
                    seed=seed,
                )  # fmt: skip
            except DataError as error:
                if told["drawn"] < told["rows"]:
                    asked *= MORE
                    continue
                raise DataError(
                    "none of the general data can be replayed: all of it repeats what the evaluation asks",
                    where=WHERE, hint=error.hint,
                ) from error  # fmt: skip
        kept = cleaned.dialogues["kept"] if mix_cfg.replay_unit == "rows" else cleaned.tokens["kept"]
        if kept >= amount or told["drawn"] == told["rows"]:
            break
        asked *= MORE
    if told["left_out"]:
        note(f"general data: left out {left_out_text(told['left_out'])}")
    dropped = {reason: n["dialogues"] for reason, n in cleaned.dropped.items()}
    return {**told, "kept": cleaned.dialogues["kept"], "kept_tokens": cleaned.tokens["kept"], "dropped": dropped,
            "unread": read.dropped}  # fmt: skip


def score_general(mix_dir: Path, model: ResolvedModel, k: int, max_length: int) -> int:
    """Have the base say what it thinks of the replay in a mix that it did not write, for the soft loss; returns ``k``,
    the tokens kept at each position.

    Raises:
        EngineError: The base cannot read it.
    """
    from regrow.engines.choose import make_engine
    from regrow.mix.scored import add_top_logprobs

    try:
        engine = make_engine("transformers", model)
        try:
            add_top_logprobs(mix_dir, engine, k, max_length)
        finally:
            engine.close()
    except EngineError as error:
        hint = "data.general_loss: hard trains on general data without the base reading it"
        raise EngineError(f"the base cannot read the general data: {error.message}", where=error.where,
                          hint=hint) from error  # fmt: skip
    return k
