"""``save_epochs``: the model after each pass, as if training had ended there, also when it was killed at that step."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from regrow.errors import RecipeError
from regrow.train.config import TrainConfig
from regrow.train.stage import epoch_folder, train
from tests.train.helpers import largest_difference, random_rows, weights_of, write_mix
from tests.train.test_resume import FULL, kill

EVEN = FULL | {"lr_scheduler_type": "constant", "warmup_ratio": 0.0, "save_epochs": True}
"""24 rows in fours: a pass is six steps, and of 20 steps three passes are whole."""


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mix(tmp_path_factory.mktemp("mix"), random_rows(24, seed=1))


@pytest.fixture(scope="module")
def whole(mix: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    train(tiny_model_dir, mix, TrainConfig(**EVEN), out, seed=3)
    return out


def test_a_pass_is_a_training_that_ended_there(whole: Path, mix: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    assert [p.name for p in sorted((whole / "epochs").iterdir())] == ["01", "02", "03"]
    short = train(tiny_model_dir, mix, TrainConfig(**EVEN | {"max_steps": 12, "save_epochs": False}), tmp_path, seed=3)
    assert largest_difference(epoch_folder(whole, 2), short.model_path) == 0
    assert largest_difference(epoch_folder(whole, 1), short.model_path) > 0
    assert not (tmp_path / "epochs").exists()
    assert weights_of(epoch_folder(whole, 1)).keys() == weights_of(tiny_model_dir).keys()
    assert (epoch_folder(whole, 1) / "tokenizer.json").is_file() and (epoch_folder(whole, 1) / "config.json").is_file()


def test_killed_between_the_checkpoint_and_the_end_of_the_pass(
    whole: Path, mix: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    kill("after checkpoint 12", tiny_model_dir, mix, tmp_path, EVEN)
    done = train(tiny_model_dir, mix, TrainConfig(**EVEN), tmp_path, seed=3)
    assert done.resumed_from == 12
    for n in (1, 2, 3):
        assert largest_difference(epoch_folder(whole, n), epoch_folder(tmp_path, n)) == 0


def test_an_adapter_a_pass(mix: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    cfg = TrainConfig(**EVEN | {"method": "lora", "lora": {"r": 4}, "max_steps": 12})
    done = train(tiny_model_dir, mix, cfg, tmp_path, seed=0)
    assert largest_difference(epoch_folder(tmp_path, 2), done.model_path) == 0
    assert largest_difference(epoch_folder(tmp_path, 1), done.model_path) > 0


def test_what_has_no_passes_or_no_whole_weights_is_refused(tiny_model_dir: Path) -> None:
    from regrow.models.load import resolve_model
    from regrow.preflight import check_recipe
    from regrow.recipe import parse_recipe

    with pytest.raises(ValidationError, match="sharded weights"):
        TrainConfig(save_epochs=True, launch={"strategy": "fsdp"})
    with pytest.raises(RecipeError, match="no pass has an end"):
        check_recipe(parse_recipe("train: {save_epochs: true}"), resolve_model(tiny_model_dir))
