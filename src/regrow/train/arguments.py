"""From `TrainConfig` to ``trl.SFTConfig``, and the check of ``trainer_args``."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.errors import RecipeError
from regrow.train.config import TrainConfig

if TYPE_CHECKING:
    from trl import SFTConfig

OWN_KEY = {
    "warmup_steps": "warmup_ratio",
    "warmup_ratio": "warmup_ratio",
    "activation_checkpointing": "gradient_checkpointing",
    "fp16": "bf16",
} | {
    name: name
    for name in [
        "learning_rate",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "lr_scheduler_type",
        "weight_decay",
        "max_grad_norm",
        "bf16",
        "packing",
        "max_length",
        "gradient_checkpointing",
        "save_steps",
        "save_total_limit",
        "logging_steps",
        "report_to",
    ]
}
"""``trainer_args`` fields that a key of the ``train`` section already sets."""

FIXED = {
    "output_dir": "checkpoints live in the run folder",
    "seed": "the recipe's own seed drives everything",
    "data_seed": "the recipe's own seed drives everything",
    "dataset_kwargs": "the mix is already tokenized",
    "remove_unused_columns": "the collator needs every column",
    "disable_tqdm": "progress is Regrow's own",
    "log_level": "set TRANSFORMERS_VERBOSITY instead",
    "loss_type": "the loss is Regrow's (replay_loss)",
    "label_smoothing_factor": "the loss is Regrow's (replay_loss)",
    "padding_free": "documents are always laid out without attention across them",
    "packing_strategy": "packs are always best-fit decreasing",
    "assistant_only_loss": "the mix carries a weight for every token",
    "completion_only_loss": "the mix carries a weight for every token",
    "train_sampling_strategy": "the mix has its order",
    "save_strategy": "resume needs checkpoints at save_steps",
    "save_only_model": "resume needs the optimizer's state",
    "logging_strategy": "logging is by logging_steps",
    "resume_from_checkpoint": "a run resumes by itself",
    "load_best_model_at_end": "models are judged in the evaluation stage, after training",
    "push_to_hub": "nothing is uploaded while training",
    "auto_find_batch_size": "it would change the order of the data on resume",
    "ignore_data_skip": "it would repeat data on resume",
    "eval_strategy": "models are judged in the evaluation stage, after training",
    "do_train": "training is what this stage does",
    "do_eval": "models are judged in the evaluation stage, after training",
    "do_predict": "models are judged in the evaluation stage, after training",
    "model_init_kwargs": "the model is loaded by Regrow (attn_implementation is a key of train)",
    "average_tokens_across_devices": "the loss is always normalised over all devices",
}
"""Fields that Regrow sets itself, and why."""


def check_trainer_args(cfg: TrainConfig) -> None:
    """Reject names in ``trainer_args`` that TRL does not know or that Regrow sets itself.

    Raises:
        RecipeError: Names the field and, for an unknown one, the closest known names.
    """
    import dataclasses

    from trl import SFTConfig

    known = {f.name for f in dataclasses.fields(SFTConfig) if f.init}
    for name in cfg.trainer_args:
        where = f"train.trainer_args.{name}"
        if name in OWN_KEY:
            raise RecipeError("this has a key of its own", where=where, hint=f"set train.{OWN_KEY[name]}")
        if name in FIXED:
            raise RecipeError(f"this cannot be set: {FIXED[name]}", where=where)
        if name not in known:
            names = [*known - FIXED.keys(), *TrainConfig.model_fields]
            close = difflib.get_close_matches(name, names, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "see the fields of trl.SFTConfig"
            raise RecipeError("TRL and transformers have no such training argument", where=where, hint=hint)


def use_bf16(cfg: TrainConfig) -> bool:
    """Whether to run under bfloat16 autocast; ``auto`` says yes on CUDA devices that have it."""
    import torch

    if cfg.bf16 == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return cfg.bf16


def check_trackers(cfg: TrainConfig) -> None:
    """Reject trackers that transformers does not know or whose package is not there, before a model is loaded.

    Raises:
        RecipeError: Names the tracker.
    """
    from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

    names = [cfg.report_to] if isinstance(cfg.report_to, str) else cfg.report_to
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise RecipeError(f"'{name}' is no tracker", where="train.report_to", hint=f"none, all, {known}")
        if name not in get_available_reporting_integrations():
            raise RecipeError(f"the package of '{name}' is not installed", where="train.report_to",
                              hint=f"pip install {name.replace('_', '-')}")  # fmt: skip


def make_arguments(cfg: TrainConfig, checkpoints: Path, seed: int, *, run_name: str | None = None) -> SFTConfig:
    """The trainer's arguments.

    Args:
        cfg: The recipe's section.
        checkpoints: The trainer's folder.
        seed: All randomness comes from it.
        run_name: What trackers call the training, unless ``trainer_args`` says.

    Raises:
        RecipeError: A value that TRL or transformers refuses, in their words.
    """
    import torch
    from trl import SFTConfig

    check_trainer_args(cfg)
    accelerated = torch.accelerator.is_available()
    # The newer of two names; transformers warns of the older one.
    recompute = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(SFTConfig, n))
    fields: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "seed": seed,
        "data_seed": seed,
        "learning_rate": cfg.peak_learning_rate,
        "num_train_epochs": cfg.num_train_epochs,
        "max_steps": cfg.max_steps,
        "per_device_train_batch_size": cfg.per_device_train_batch_size,
        "gradient_accumulation_steps": cfg.gradient_accumulation_steps,
        "warmup_steps": cfg.warmup_ratio,
        # transformers does not know this one; RegrowTrainer.create_scheduler makes it.
        "lr_scheduler_type": "constant" if cfg.lr_scheduler_type == "infinite" else cfg.lr_scheduler_type,
        "weight_decay": cfg.weight_decay,
        "max_grad_norm": cfg.max_grad_norm,
        "bf16": use_bf16(cfg),
        recompute: cfg.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": cfg.save_steps,
        # Old checkpoints go only once a newer one is known to be complete: see RegrowTrainer._save_checkpoint.
        "save_total_limit": None,
        "logging_steps": cfg.logging_steps,
        "report_to": cfg.report_to,
        "run_name": run_name,
        "max_length": None,
        "packing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "log_level": "error",
        "use_cpu": not accelerated,  # without it bf16 on a CPU is refused
        "dataloader_pin_memory": accelerated,
    }
    try:
        return SFTConfig(**{**fields, **cfg.trainer_args})
    except (ValueError, TypeError, ImportError, KeyError) as err:
        raise RecipeError(f"the training arguments do not fit together: {err}", where="train") from err
