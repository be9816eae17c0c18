"""What a recipe will do: its stages, and how much is grown for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regrow.arms import INTERPOLATE, is_general, is_grown, is_regrown
from regrow.recipe import Recipe

if TYPE_CHECKING:
    from regrow.curate.config import CurateConfig
    from regrow.grow.config import GrowConfig
    from regrow.rows.row import Row

SOFT_TOP_K = 32
"""Tokens kept at each position for soft replay, where nothing says how many."""
SPARE = 1.3
"""Grown tokens per token the mix needs: curation drops some. Our choice; what is over is simply not mixed in."""


def planned(recipe: Recipe) -> list[str]:
    """The stages that a recipe will go through, in order."""
    arms = list(recipe.arm_ratios())
    return [
        "data",
        *(("pilot",) if recipe.auto.pilot_rows else ()),
        "suites",
        *(("grow", "corpus") if any(map(is_grown, arms)) else ()),
        *(("general",) if any(map(is_general, arms)) else ()),
        *(f"{stage}/{arm}" for arm in arms for stage in ("mix", "train")),
        *(("merge/interpolate",) if INTERPOLATE in (recipe.arms or []) else ()),
        "eval",
    ]


def replay_budget(recipe: Recipe, model_dir: Path, train_rows: Sequence[Row]) -> int:
    """Tokens of replay to grow for the arm with the most of it."""
    from regrow.mix.stage import replay_tokens_wanted

    mix = recipe.mix.model_copy(update={"replay_ratio": max(recipe.arm_ratios().values())})
    return int(SPARE * replay_tokens_wanted(train_rows, model_dir, mix, epochs=recipe.train.num_train_epochs))


def general_amount(recipe: Recipe, model_dir: Path, train_rows: Sequence[Row]) -> float:
    """General data that the arm with the most of it replays, in ``mix.replay_unit``; a dialogue more than is used."""
    from regrow.mix.replay import wanted
    from regrow.mix.stage import replay_tokens_wanted

    ratio, epochs = max(recipe.arm_ratios().values()), recipe.train.num_train_epochs
    if recipe.mix.replay_unit == "rows":
        return wanted(len(train_rows) * epochs, ratio) + 1
    mix = recipe.mix.model_copy(update={"replay_ratio": ratio})
    return replay_tokens_wanted(train_rows, model_dir, mix, epochs=epochs) + mix.max_length


def grow_budget(recipe: Recipe, model_dir: Path, train_rows: Sequence[Row]) -> GrowConfig:
    """The recipe's section ``grow`` with the budget that the mix needs and the top-k that soft replay needs."""
    from regrow.curate.config import DIALOGUE_TOKENS
    from regrow.grow.topics import configured_topics

    cfg = recipe.grow
    if cfg.dialogues is None and cfg.tokens is None:
        aside = recipe.curate.holdout_tokens
        if recipe.curate.watch_dialogues:
            topics = len(configured_topics(cfg)) or cfg.ask_topics
            aside += recipe.curate.watch_dialogues * topics * DIALOGUE_TOKENS
        cfg = cfg.model_copy(update={"tokens": replay_budget(recipe, model_dir, train_rows) + aside})
    if recipe.train.replay_loss != "hard" and cfg.top_logprobs == 0:
        cfg = cfg.model_copy(update={"top_logprobs": SOFT_TOP_K})
    return cfg


def pairs(ratios: Mapping[str, float]) -> list[tuple[str, str]]:
    """Arms with replay grown once, each with those that have other replay at its ratio."""
    grown = {ratio: arm for arm, ratio in ratios.items() if is_grown(arm)}
    others = {arm: ratio for arm, ratio in ratios.items() if is_general(arm) or is_regrown(arm)}
    return [(grown[ratio], arm) for arm, ratio in others.items() if ratio in grown]


def for_given(cfg: CurateConfig) -> CurateConfig:
    """Curation of dialogues that the user chose: what repeats itself or an evaluation item goes, and nothing for its
    quality; nothing is held out."""
    return cfg.model_copy(
        update={
            "min_answer_tokens": 0, "max_answer_tokens": None, "max_repeated_ngrams": 1.0, "min_alphanumeric": 0.0,
            "max_question_copy": 1.0, "min_mean_logprob": None, "max_mean_logprob": None, "holdout_dialogues": 0,
            "watch_dialogues": 0,
        }
    )  # fmt: skip
