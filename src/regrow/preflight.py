"""What would stop a run late, looked at before anything is spent."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.arms import PLAIN
from regrow.data import read_general
from regrow.errors import DataError, ModelError, RecipeError
from regrow.recipe import Recipe

if TYPE_CHECKING:
    from regrow.models.load import ResolvedModel


def check_recipe(recipe: Recipe, model: ResolvedModel) -> None:
    """Check what training and evaluation would refuse after the corpus is grown.

    The arguments of the trainer and its trackers, the files of suites, whether the chat template can be split into
    turns, and whether the architecture is one that can be trained.

    Raises:
        RegrowError: Names the place.
    """
    from regrow.evaluate.suites.local import read_local
    from regrow.evaluate.suites.recipe import read_recipe
    from regrow.models.load import load_tokenizer
    from regrow.models.turns import derive_turns
    from regrow.train.arguments import check_trackers, make_arguments
    from regrow.train.launch import check_alone

    check_trainable(model)
    if recipe.train.save_epochs:
        raise RecipeError(
            "a run lays all passes over your data out as one, so that no pass has an end",
            where="train.save_epochs",
            hint="train on a mix with `regrow mix` and `regrow train`",
        )
    for name in recipe.evaluate.suites:
        kind, _, rest = name.partition(":")
        if kind == "file":
            read_local(rest)
        elif kind == "recipe":
            read_recipe(rest)
    tokenizer = load_tokenizer(model.path, trust_remote_code=model.trust_remote_code)
    if tokenizer.chat_template and set(recipe.arm_ratios()) - {PLAIN}:
        derive_turns(tokenizer)
    if recipe.data.general:
        _check_general(recipe, tokenizer)
    for arm in recipe.arm_ratios():
        check_alone(recipe.train_of(arm))
    check_trackers(recipe.train)
    with tempfile.TemporaryDirectory() as nowhere:
        make_arguments(recipe.train, Path(nowhere) / "checkpoints", recipe.seed)


def _check_general(recipe: Recipe, tokenizer: Any) -> None:
    from regrow.mix.given import WHERE, left_out_text, unfit
    from regrow.mix.tokenize import is_text
    from regrow.models.turns import derive_turns

    if not max(recipe.arm_ratios().values()):
        raise RecipeError("no arm replays anything, so there is nothing to compare", where=WHERE,
                          hint="set mix.replay_ratio above 0")  # fmt: skip
    rows = read_general(recipe).rows
    left_out = Counter(filter(None, map(unfit, rows)))
    if left_out.total() == len(rows):
        raise DataError("no row can be replayed", where=WHERE, hint=left_out_text(left_out))
    if not all(map(is_text, rows)):
        derive_turns(tokenizer)


def check_trainable(model: ResolvedModel) -> None:
    """Refuse a model whose architecture is code in its folder: growing runs it when asked to, training does not.

    Raises:
        ModelError: It is one.
    """
    from regrow.models.check import own_code

    if own_code(model.path):
        raise ModelError(
            "the architecture is code in the model's folder, which training and evaluation do not run",
            where=model.name,
            hint="`regrow grow` can grow a corpus out of it (model.trust_remote_code: true); train it elsewhere.",
        )
