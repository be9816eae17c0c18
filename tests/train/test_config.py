"""Every key of the ``train`` section does something, and wrong ones are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from regrow.errors import RecipeError
from regrow.train import network
from regrow.train.arguments import FIXED, OWN_KEY, make_arguments
from regrow.train.batches import TokenRows
from regrow.train.config import InfiniteSection, LaunchSection, LoraSection, SoftReplaySection, TrainConfig
from regrow.train.stage import train
from tests.train.helpers import largest_difference, log_lines, random_rows, write_mix

PASSED_ON = {
    "num_train_epochs": (2.0, "num_train_epochs", 2.0),
    "max_steps": (7, "max_steps", 7),
    "per_device_train_batch_size": (3, "per_device_train_batch_size", 3),
    "gradient_accumulation_steps": (5, "gradient_accumulation_steps", 5),
    "warmup_ratio": (0.25, "warmup_steps", 0.25),
    "lr_scheduler_type": ("constant", "lr_scheduler_type", "constant"),
    "weight_decay": (0.3, "weight_decay", 0.3),
    "max_grad_norm": (0.5, "max_grad_norm", 0.5),
    "bf16": (True, "bf16", True),
    "gradient_checkpointing": (True, "gradient_checkpointing", True),
    "save_steps": (11, "save_steps", 11),
    "logging_steps": (13, "logging_steps", 13),
    "report_to": (["tensorboard"], "report_to", ["tensorboard"]),
    "trainer_args": ({"adam_beta2": 0.95}, "adam_beta2", 0.95),
}
"""Keys that the Trainer reads: value, its name there, what must arrive."""

SEEN_IN_A_RUN = {
    "method", "learning_rate", "packing", "max_length", "lora", "merge_adapter", "save_total_limit",
    "keep_checkpoints", "attn_implementation", "replay_loss", "replay_weight", "soft",
    "infinite",  # test_infinite.py
    "launch",  # test_launch.py
    "mixture",  # test_mixture.py
    "save_epochs",  # test_epochs.py
}  # fmt: skip


def test_every_key_is_tested_here():
    assert PASSED_ON.keys() | SEEN_IN_A_RUN == TrainConfig.model_fields.keys()
    assert all(
        f.description
        for s in (TrainConfig, LoraSection, SoftReplaySection, InfiniteSection, LaunchSection)
        for f in s.model_fields.values()
    )


@pytest.mark.parametrize("key", sorted(PASSED_ON))
def test_keys_that_the_trainer_reads_arrive(key, tmp_path):
    value, name, wanted = PASSED_ON[key]
    default = make_arguments(TrainConfig(bf16=False), tmp_path, 0)
    changed = make_arguments(TrainConfig(**({"bf16": False} | {key: value})), tmp_path, 0)
    assert getattr(changed, name) == wanted
    assert getattr(default, name) != wanted


def test_learning_rate_follows_the_method_unless_given(tmp_path):
    rates = [
        make_arguments(TrainConfig(bf16=False, **kw), tmp_path, 0).learning_rate
        for kw in ({}, {"method": "lora"}, {"method": "lora", "learning_rate": 3e-3})
    ]
    assert rates == [2e-5, 2e-4, 3e-3]


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mix(tmp_path_factory.mktemp("mix"), random_rows(16, k=5))


def run(model: Path, mix: Path, out: Path, **settings: Any) -> Any:
    cfg = TrainConfig(**({"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3} | settings))
    return train(model, mix, cfg, out, seed=0)


def test_packing_and_max_length_decide_the_number_of_steps(tiny_model_dir, mix, tmp_path):
    settings = {"max_steps": -1, "num_train_epochs": 1}
    plain = run(tiny_model_dir, mix, tmp_path / "a", **settings)
    packed = run(tiny_model_dir, mix, tmp_path / "b", packing=True, max_length=128, **settings)
    longer = run(tiny_model_dir, mix, tmp_path / "c", packing=True, max_length=1024, **settings)
    assert (plain.steps, plain.tokens) == (4, packed.tokens)
    assert plain.steps > packed.steps >= longer.steps == 1
    assert run(tiny_model_dir, mix, tmp_path / "d", max_length=10, **settings).cut_documents > 0


def test_lora_keys_reach_peft(tiny_model_dir, mix, tmp_path):
    settings = {
        "r": 3,
        "lora_alpha": 5,
        "lora_dropout": 0.25,
        "target_modules": ["q_proj"],
        "use_rslora": True,
        "use_dora": True,
    }
    assert settings.keys() == LoraSection.model_fields.keys()
    done = run(tiny_model_dir, mix, tmp_path, method="lora", lora=settings)
    written = json.loads((done.adapter_path / "adapter_config.json").read_text())
    assert {k: written[k] for k in settings} == settings
    assert done.model_path == done.adapter_path == tmp_path / "adapter" and not (tmp_path / "model").exists()
    assert written["base_model_name_or_path"] == str(tiny_model_dir)
    merged = run(tiny_model_dir, mix, tmp_path / "m", method="lora", merge_adapter=True)
    assert merged.model_path == tmp_path / "m" / "model" and merged.adapter_path.is_dir()


def test_an_adapter_is_a_model_for_the_next_stage(tiny_model_dir, mix, tmp_path):
    """What ``model_path`` names without merging is something the loader of models takes."""
    from regrow.models.load import resolve_model

    done = run(tiny_model_dir, mix, tmp_path, method="lora", learning_rate=1e-2)
    assert largest_difference(resolve_model(str(done.model_path)).path, tiny_model_dir) > 1e-4


def test_checkpoints_are_kept_as_asked(tiny_model_dir, mix, tmp_path):
    settings = {"max_steps": 7, "save_steps": 2, "keep_checkpoints": True}
    for limit in (1, 2):
        run(tiny_model_dir, mix, tmp_path / str(limit), save_total_limit=limit, **settings)
        kept = sorted(p.name for p in (tmp_path / str(limit) / "checkpoints").glob("checkpoint-*"))
        assert kept == ["checkpoint-6", "checkpoint-7"][-limit:]
    run(tiny_model_dir, mix, tmp_path / "none", max_steps=3, save_steps=1)
    assert not (tmp_path / "none" / "checkpoints").exists()


def test_logging_steps_are_the_lines_of_the_log(tiny_model_dir, mix, tmp_path):
    run(tiny_model_dir, mix, tmp_path, max_steps=7, logging_steps=3)
    assert [line["step"] for line in log_lines(tmp_path)] == [3, 6, 7]


def test_attention_implementation_is_the_models(tiny_model_dir, mix, tmp_path, monkeypatch):
    seen = []
    load = network.load_model

    def recording(*args: Any, **kwargs: Any) -> Any:
        model = load(*args, **kwargs)
        seen.append(model.config._attn_implementation)
        return model

    monkeypatch.setattr(network, "load_model", recording)
    run(tiny_model_dir, mix, tmp_path / "a", attn_implementation="eager")
    run(tiny_model_dir, mix, tmp_path / "b")
    assert seen == ["eager", "sdpa"]
    with pytest.raises(RecipeError, match="does not load with 'nonsense'"):
        run(tiny_model_dir, mix, tmp_path / "c", attn_implementation="nonsense")


def test_replay_loss_and_each_soft_key_change_the_result(tiny_model_dir, mix, tmp_path):
    runs = {
        "hard": {"replay_loss": "hard"},
        "soft": {"replay_loss": "soft"},
        "weight": {"replay_loss": "soft", "soft": {"weight": 0.5}},
        "tail": {"replay_loss": "soft", "soft": {"tail": "renormalise"}},
        "temperature": {"replay_loss": "soft", "soft": {"tail": "renormalise", "temperature": 2.0}},
    }
    for name, settings in runs.items():
        run(tiny_model_dir, mix, tmp_path / name, learning_rate=1e-2, **settings)
    for a in runs:
        for b in runs:
            if a < b:
                assert largest_difference(tmp_path / a / "model", tmp_path / b / "model") > 1e-6, (a, b)


def test_replay_weight_is_that_of_the_rows(tiny_model_dir, tmp_path):
    rows = random_rows(16, k=4)
    scaled = [r | {"loss_weights": [w / 4 for w in r["loss_weights"]]} if r["source"] == "replay" else r for r in rows]
    mixes = {name: write_mix(tmp_path / f"mix-{name}", found) for name, found in (("as-is", rows), ("scaled", scaled))}
    for kind in ("hard", "soft"):
        settings: dict[str, Any] = {"learning_rate": 1e-2, "replay_loss": kind}
        quarter = run(tiny_model_dir, mixes["as-is"], tmp_path / f"a-{kind}", replay_weight=0.25, **settings)
        by_rows = run(tiny_model_dir, mixes["scaled"], tmp_path / f"b-{kind}", **settings)
        whole = run(tiny_model_dir, mixes["as-is"], tmp_path / f"c-{kind}", **settings)
        assert largest_difference(quarter.model_path, by_rows.model_path) == 0
        assert largest_difference(quarter.model_path, whole.model_path) > 1e-6


def test_an_even_weight_makes_replay_as_much_of_the_loss_as_of_the_tokens(tiny_model_dir, tmp_path, capsys):
    rows = random_rows(16)
    for row in rows:  # answers of two tokens beside replay that is trained whole
        last = len(row["input_ids"]) - 2
        row["loss_weights"] = [1.0 if row["source"] == "replay" or i >= last else 0.0 for i in range(last + 2)]
    found = {name: [r for r in rows if r["source"] == name] for name in ("domain", "replay")}
    tokens = {name: sum(len(r["input_ids"]) for r in some) for name, some in found.items()}
    loss = {
        "domain": 2 * len(found["domain"]),
        "replay": tokens["replay"] - len(found["replay"]),
    }  # not the first ones
    weight = tokens["replay"] / tokens["domain"] * loss["domain"] / loss["replay"]
    assert (
        weight * loss["replay"] / loss["domain"] == pytest.approx(tokens["replay"] / tokens["domain"]) and weight < 1
    )
    mix = write_mix(tmp_path / "mix", rows)
    even = run(tiny_model_dir, mix, tmp_path / "even", learning_rate=1e-2, replay_weight="even")
    assert f"a replay token counts {weight:.3g} in the loss" in capsys.readouterr().err
    assert even.replay_weight == pytest.approx(weight)
    given = run(tiny_model_dir, mix, tmp_path / "given", learning_rate=1e-2, replay_weight=even.replay_weight)
    assert largest_difference(even.model_path, given.model_path) == 0
    capsys.readouterr()
    whole = run(tiny_model_dir, mix, tmp_path / "whole", learning_rate=1e-2)
    assert largest_difference(even.model_path, whole.model_path) > 1e-6 and whole.replay_weight == 1.0
    said = capsys.readouterr().err
    assert "train.replay_weight=even would make it" in said
    assert f"replay is {tokens['replay'] / sum(tokens.values()):.0%} of the tokens" in said
    assert f"and {loss['replay'] / sum(loss.values()):.0%} of the loss" in said


@pytest.mark.parametrize("weight", [0, -1, "Even", "0.5", True, float("nan"), float("inf")])
def test_what_is_no_weight_is_refused(weight):
    with pytest.raises(ValueError, match="a number above 0, or even"):
        TrainConfig(replay_weight=weight)


def test_rows_that_join_later_do_not_move_an_even_weight(tiny_model_dir, tmp_path):
    rows = random_rows(16)
    mix = write_mix(tmp_path / "mix", rows) / "train.parquet"
    more = (
        write_mix(tmp_path / "more", [r for r in random_rows(16, seed=1) if r["source"] == "replay"]) / "train.parquet"
    )
    alone, joined = (
        TokenRows(mix, max_length=64, topk=False, cache_dir=tmp_path / f"cache{len(parts)}", parts=parts)
        for parts in ([], [more])
    )
    assert len(joined) > len(alone)
    assert joined.tokens == alone.tokens and joined.loss == alone.loss and alone.tokens["replay"] > 0


def test_without_replay_there_is_nothing_to_weigh(tiny_model_dir, tmp_path, capsys):
    rows = [r for r in random_rows(16) if r["source"] == "domain"]
    alone = run(tiny_model_dir, write_mix(tmp_path / "mix", rows), tmp_path / "out", replay_weight="even")
    assert alone.replay_weight is None and "replay" not in capsys.readouterr().err


def test_bf16_autocast_changes_the_arithmetic_not_the_format(tiny_model_dir, mix, tmp_path):
    import torch

    from tests.train.helpers import weights_of

    a, b = (run(tiny_model_dir, mix, tmp_path / str(v), bf16=v) for v in (True, False))
    assert 1e-9 < largest_difference(a.model_path, b.model_path) < 1e-2
    assert {t.dtype for t in weights_of(a.model_path).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"adam_beta3": 0.9}, "did you mean adam_beta"),
        ({"learning_rte": 1e-3}, "did you mean learning_rate"),
        ({"learning_rate": 1e-3}, "set train.learning_rate"),
        ({"output_dir": "/tmp/x"}, "cannot be set: checkpoints live in the run folder"),
        ({"optim": "no_such_optimizer"}, "do not fit together"),
    ],
)
def test_wrong_trainer_args_are_named(args, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        make_arguments(TrainConfig(trainer_args=args), tmp_path, 0)


def test_names_in_the_tables_are_real(tmp_path):
    """A field that TRL drops or renames has to leave our tables too."""
    import dataclasses

    from trl import SFTConfig

    known = {f.name for f in dataclasses.fields(SFTConfig)}
    assert known >= FIXED.keys()
    assert set(OWN_KEY.values()) <= TrainConfig.model_fields.keys()


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "qlora"}, {"learning_rate": 0}, {"learnig_rate": 1e-3}, {"max_steps": 0}, {"warmup_ratio": 1.0},
        {"soft": {"weight": 1.5}}, {"soft": {"weight": 0}}, {"soft": {"temperature": 2.0}}, {"lora": {"rank": 8}},
        {"save_total_limit": 0}, {"bf16": "yes please"},
    ],
)  # fmt: skip
def test_impossible_values_are_refused(settings):
    with pytest.raises(ValidationError):
        TrainConfig(**settings)


def test_arguments_are_made_without_a_warning(tmp_path, recwarn):
    make_arguments(TrainConfig(gradient_checkpointing=True), tmp_path, 0)
    assert [str(w.message) for w in recwarn if "deprecated" in str(w.message)] == []
