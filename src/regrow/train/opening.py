"""The rows of a training, opened, and what is to be said of them before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regrow.errors import RunError
from regrow.mix.replay import even_weight
from regrow.progress import note
from regrow.train.config import TrainConfig

if TYPE_CHECKING:
    from regrow.train.batches import TokenRows
    from regrow.train.pause import Part

MOSTLY_REPLAY, LIGHT = 0.5, 1 / 3
"""With more of the loss replay than this, and an even weight below that, the training says so. Our choice."""


def open_rows(
    mix_file: Path, cfg: TrainConfig, out: Path, label: str, parts: Sequence[Part], *, quiet: bool
) -> tuple[TokenRows, TokenRows | None, TrainConfig]:
    """The rows to train on, those that are only measured, and the settings with loss and weight of replay decided.

    Args:
        mix_file: The mix.
        cfg: Settings.
        out: The training's folder.
        label: Shown in what is said.
        parts: Rows that join later.
        quiet: Say nothing: the training goes on, and all was said when it began.

    Raises:
        RunError: Soft replay was asked for, and no replay row carries a top-k.
    """
    from accelerate import PartialState

    from regrow.train.batches import TokenRows, has_topk_columns
    from regrow.train.pause import watched_file

    processes = PartialState()
    speaks = processes.is_main_process and not quiet
    topk = cfg.replay_loss == "soft" or (cfg.replay_loss == "auto" and has_topk_columns(mix_file))
    cache_dir = out / "checkpoints" / "cache"
    watched = None
    with processes.main_process_first():
        added = [part.path for part in parts]
        rows = TokenRows(mix_file, max_length=cfg.max_length, topk=topk, cache_dir=cache_dir, parts=added)
        if (file := watched_file(mix_file)) is not None and processes.num_processes == 1:
            watched = TokenRows(file, max_length=cfg.max_length, topk=False, cache_dir=cache_dir)
        elif file is not None and speaks:
            note(f"training {label}: {file.name} is not measured, because several processes train")
    even = even_weight(rows.tokens["domain"], rows.loss["domain"], rows.tokens["replay"], rows.loss["replay"])
    if cfg.replay_weight == "even":
        cfg = cfg.model_copy(update={"replay_weight": even})
    if speaks:
        _tell_about(rows, cfg)
    if speaks and rows.n_replay:
        _tell_the_weight(rows, cfg, even, label)
    bare = rows.n_replay and not rows.n_with_topk
    if cfg.replay_loss == "auto":
        cfg = cfg.model_copy(update={"replay_loss": "soft" if rows.n_with_topk else "hard"})
        if bare and speaks:
            note(f"training {label}: hard replay, as no replay row carries the base model's top-k (train.replay_loss)")
    if cfg.replay_loss == "soft" and bare:
        raise RunError(
            "train.replay_loss is soft, but no replay row carries the base model's top-k",
            where=str(mix_file),
            hint="grow with top-k log-probabilities, or set train.replay_loss to hard",
        )
    return rows, watched, cfg


def _tell_about(rows: TokenRows, cfg: TrainConfig) -> None:
    """Say what will not be trained as asked."""
    if rows.n_cut:
        note(f"{rows.n_cut} examples are longer than train.max_length={cfg.max_length} and lose their end")
    if rows.n_untrained:
        note(f"{rows.n_untrained} examples have no trained token left and are skipped")


def _tell_the_weight(rows: TokenRows, cfg: TrainConfig, even: float, label: str) -> None:
    """Say what a replay token counts, or that replay is nearly all of the loss."""
    share, of_loss = (found["replay"] / (found["replay"] + found["domain"]) for found in (rows.tokens, rows.loss))
    if cfg.replay_weight != 1:
        note(f"training {label}: a replay token counts {cfg.replay_weight:.3g} in the loss (train.replay_weight)")
    elif of_loss > MOSTLY_REPLAY and even < LIGHT:
        note(
            f"training {label}: replay is {share:.0%} of the tokens and {of_loss:.0%} of the loss, as your answers "
            f"are shorter; train.replay_weight=even would make it {share:.0%} of both"
        )


def tell_about_trees(rows: TokenRows, trees: list[int], no_trees: str | None) -> None:
    """Say what tree packing saves, or why it is not done."""
    if no_trees is not None:
        note(f"{sum(trees):,} dialogues of {len(trees):,} trees are trained one by one: {no_trees}")
        return
    tokens = sum(rows.lengths[i] for unit in rows.units if len(unit) > 1 for i in unit)
    computed = sum(n for unit, n in zip(rows.units, rows.unit_lengths, strict=True) if len(unit) > 1)
    note(f"{sum(trees):,} dialogues in {len(trees):,} trees: {tokens:,} tokens an epoch, {computed:,} computed")
