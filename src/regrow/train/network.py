"""The network of a training: loaded for it, checked against the mix, and in one piece again at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.errors import ModelError, RecipeError, RunError
from regrow.progress import note
from regrow.train.config import TrainConfig
from regrow.train.save import stored_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from regrow.train.trainer import RegrowTrainer


def load_model(model_dir: Path, cfg: TrainConfig, *, bf16: bool) -> PreTrainedModel:
    """The base model: fp32 master weights for full training; frozen weights of LoRA in bf16 under bf16 autocast."""
    import torch
    from transformers import AutoModelForCausalLM

    from regrow.models.check import check_whole

    dtype = torch.bfloat16 if bf16 and cfg.method == "lora" else torch.float32
    chosen = {} if cfg.attn_implementation is None else {"attn_implementation": cfg.attn_implementation}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            model_dir,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **chosen,
        )
    except (ValueError, ImportError) as err:
        if chosen:
            raise RecipeError(
                f"the model does not load with {cfg.attn_implementation!r}: {err}", where="train.attn_implementation"
            ) from err
        raise ModelError(f"the model does not load: {err}", where=str(model_dir)) from err
    except OSError as err:
        raise ModelError(f"the model does not load: {err}", where=str(model_dir)) from err
    check_whole(info, model_dir)
    return model


def adapters(cfg: TrainConfig) -> Any:
    """The LoRA configuration, None for full training."""
    if cfg.method == "full":
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=cfg.lora.r,
        lora_alpha=cfg.lora.lora_alpha,
        lora_dropout=cfg.lora.lora_dropout,
        target_modules=cfg.lora.target_modules,
        use_dora=cfg.lora.use_dora,
        use_rslora=cfg.lora.use_rslora,
        task_type="CAUSAL_LM",
    )


def check_fits(model: PreTrainedModel, max_id: int, longest: int, mix_file: Path) -> None:
    """Refuse a mix with token ids that the model does not have, or with rows longer than the table of its positions.

    Rotary positions have no table that ends: with those a long row is only said, as someone may train for it.

    Raises:
        RunError: Names the id or the length, and the mix.
    """
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None) or -1
    if longest > context > 0:
        said = f"the mix has a row of {longest} tokens, the model's context ends at {context}"
        if not getattr(config, "rope_parameters", None):
            raise RunError(said, where=str(mix_file), hint=f"set train.max_length to {context} or less")
        note(f"{said} (train.max_length)")
    n_embeddings = model.get_input_embeddings().num_embeddings
    if max_id >= n_embeddings:
        raise RunError(
            f"the mix has the token id {max_id}, the model's vocabulary ends at {n_embeddings - 1}",
            where=str(mix_file),
            hint="mix again with the tokenizer of this model",
        )


def disk_bytes(model: PreTrainedModel, cfg: TrainConfig, model_dir: Path) -> int:
    """What a training will have on the disk at most: checkpoints (one more than kept while the newest is written) of
    weights (sharded training: twice) and two moments in fp32, the models of its epochs, and the result."""
    n_parameters = sum(p.numel() for p in model.parameters())
    full = cfg.method == "full"
    saved = n_parameters * stored_dtype(model_dir).itemsize
    per_weight = 16 if cfg.launch.strategy in ("fsdp", "deepspeed") else 12
    checkpoints = n_parameters * (per_weight if full else 1) * (cfg.save_total_limit + 1)
    midway = (saved if full else n_parameters) * int(cfg.num_train_epochs) * cfg.save_epochs
    total: int = checkpoints + saved + midway
    return total


def whole_model(trainer: RegrowTrainer, cfg: TrainConfig, model_dir: Path) -> Any:
    """The trained model in one piece on the main process, None on the others.

    Sharded weights are gathered on the CPU and put into the base model loaded anew, so that what is written has its
    names and ties whatever the wrapping did to them.
    """
    from regrow.train.trainer import load_whole

    main = trainer.accelerator.is_main_process
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return trainer.accelerator.unwrap_model(trainer.model) if main else None
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all processes take part
    if not main:
        return None
    model = load_model(model_dir, cfg, bf16=False)
    if cfg.method == "lora":
        from peft import get_peft_model

        model = get_peft_model(model, adapters(cfg))
    load_whole(model, weights, model_dir)
    return model
