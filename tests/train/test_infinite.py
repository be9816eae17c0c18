"""The infinite schedule: golden rates, the trainer's rates, and going on from the flat model."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from regrow.train.config import InfiniteSection, TrainConfig
from regrow.train.schedules.infinite import infinite_factor, phases
from regrow.train.stage import train
from tests.train.helpers import largest_difference, log_lines, random_rows, weights_of, write_mix
from tests.train.test_resume import kill

GOLDEN = {25: 1.5e-4, 50: 3e-4, 275: 2.25e-4, 500: 1.5e-4, 800: 1.5e-4, 900: 6.7082e-5, 1000: 3e-5}
PAPER = InfiniteSection(cooldown_end=0.5, flat_ratio=0.5, flat_end=0.8, min_ratio=0.1)
QUICK = {
    "max_steps": 20, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1, "save_steps": 3,
    "warmup_ratio": 0.1, "lr_scheduler_type": "infinite",
    "infinite": {"cooldown_end": 0.4, "flat_ratio": 0.5, "flat_end": 0.7, "min_ratio": 0.1},
}  # fmt: skip


@pytest.fixture(scope="module")
def mix(tmp_path_factory):
    return write_mix(tmp_path_factory.mktemp("mix"), random_rows(40, seed=1))


@pytest.mark.parametrize(("step", "rate"), GOLDEN.items())
def test_golden_rates(step, rate):
    assert 3e-4 * infinite_factor(step, **phases(PAPER, 0.05, 1000)) == pytest.approx(rate, rel=1e-5)


def test_continuing_starts_flat():
    again = phases(PAPER.model_copy(update={"continues": True}), 0.05, 1000)
    assert [infinite_factor(t, **again) for t in (0, 25, 275, 800)] == [0.5] * 4
    assert infinite_factor(900, **again) == pytest.approx(0.5 * 0.2**0.5)


def test_empty_phases_and_no_annealing():
    forever = phases(PAPER.model_copy(update={"flat_end": 1.0}), 0.0, 100)
    assert infinite_factor(0, **forever) == 1.0 and infinite_factor(100, **forever) == 0.5
    sudden = phases(InfiniteSection(cooldown_end=0.0, flat_ratio=0.5), 0.0, 100)
    assert infinite_factor(0, **sudden) == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"infinite": {"cooldown_end": 0.9}}, "after the flat phase"),
     ({"infinite": {"min_ratio": 0.5}}, "annealing would rise"),
     ({"lr_scheduler_type": "infinite", "warmup_ratio": 0.5}, "ends after the cool-down"),
     ({"lr_scheduler_type": "infinite", "launch": {"strategy": "fsdp"}}, "sharded weights")],
)  # fmt: skip
def test_phases_must_follow_each_other(settings, message):
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**settings)


def test_the_trainer_follows_it_and_leaves_the_flat_model(tiny_model_dir, mix, tmp_path):
    done = train(tiny_model_dir, mix, TrainConfig(**QUICK), tmp_path / "out", seed=0)
    wanted = phases(InfiniteSection(**QUICK["infinite"]), 0.1, 20)
    rates = {line["step"]: line["lr"] for line in log_lines(tmp_path / "out")}
    assert len(rates) == 20
    for step, rate in rates.items():  # a line has the rate of the step that was taken, step 1 that at t = 0
        assert rate == pytest.approx(1e-3 * infinite_factor(step - 1, **wanted), rel=1e-6)
    flat = tmp_path / "out/flat"
    assert largest_difference(flat, done.model_path) > 0
    assert weights_of(flat).keys() == weights_of(tiny_model_dir).keys()
    assert (flat / "tokenizer.json").is_file()
    # the same training stopped at the end of the flat phase: the flat model is what it had then
    settings = QUICK | {"max_steps": 14, "warmup_ratio": 2 / 14,
                        "infinite": {"cooldown_end": 8 / 14, "flat_ratio": 0.5, "flat_end": 1.0}}  # fmt: skip
    short = train(tiny_model_dir, mix, TrainConfig(**settings), tmp_path / "short", seed=0)
    assert largest_difference(flat, short.model_path) == 0
    # the next data set: from the flat model, at the flat rate, with the flat model's loss at its first step
    again = QUICK | {"max_steps": 3, "infinite": QUICK["infinite"] | {"continues": True, "flat_end": 1.0}}
    train(flat, mix, TrainConfig(**again), tmp_path / "next", seed=0)
    first, *rest = log_lines(tmp_path / "next")
    assert all(line["lr"] == pytest.approx(5e-4) for line in (first, *rest))
    still = TrainConfig(**QUICK | {"max_steps": 1, "learning_rate": 1e-12})
    train(short.model_path, mix, still, tmp_path / "still", seed=0)
    assert first["loss"] == pytest.approx(log_lines(tmp_path / "still")[0]["loss"], rel=1e-6)


def test_flat_model_in_the_dtype_and_with_the_tensors_of_the_source(tiny_model_dir, mix, tmp_path):
    import shutil

    import torch
    from transformers import AutoModelForCausalLM

    source = tmp_path / "source"
    shutil.copytree(tiny_model_dir, source)
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).save_pretrained(source)
    train(source, mix, TrainConfig(**QUICK), tmp_path / "out", seed=0)
    flat = weights_of(tmp_path / "out/flat")
    assert {t.dtype for t in flat.values()} == {torch.bfloat16} and flat.keys() == weights_of(source).keys()
    assert (tmp_path / "out/flat/config.json").read_bytes() == (source / "config.json").read_bytes()


def test_killed_in_the_annealing_phase_and_continued(tiny_model_dir, mix, tmp_path):
    whole = train(tiny_model_dir, mix, TrainConfig(**QUICK), tmp_path / "whole", seed=3)
    kill("before checkpoint 15", tiny_model_dir, mix, tmp_path / "killed", QUICK)
    assert (tmp_path / "killed/flat").is_dir()
    continued = train(tiny_model_dir, mix, TrainConfig(**QUICK), tmp_path / "killed", seed=3)
    assert continued.resumed_from == 12
    assert largest_difference(whole.model_path, continued.model_path) == 0
    assert largest_difference(tmp_path / "whole/flat", tmp_path / "killed/flat") == 0
    rates = [[line["lr"] for line in log_lines(tmp_path / x)] for x in ("whole", "killed")]
    assert rates[0] == rates[1]


def test_an_adapter_has_a_flat_one_too(tiny_model_dir, mix, tmp_path):
    cfg = TrainConfig(**QUICK | {"method": "lora", "lora": {"r": 4}})
    train(tiny_model_dir, mix, cfg, tmp_path / "out", seed=0)
    assert weights_of(tmp_path / "out/flat").keys() == weights_of(tmp_path / "out/adapter").keys()
    assert largest_difference(tmp_path / "out/flat", tmp_path / "out/adapter") > 0
