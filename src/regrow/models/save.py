"""Finished models: merging an adapter, exporting to GGUF. The model card is in `card`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from regrow.errors import ModelError
from regrow.models.card import write_model_card
from regrow.models.gguf_export import export_gguf
from regrow.rows.writers import atomic_folder

if TYPE_CHECKING:
    from regrow.models.load import ResolvedModel

__all__ = ["adapter_base", "export_gguf", "merge_adapter", "write_model_card"]


def adapter_base(adapter: Path) -> str:
    """The base model that a PEFT adapter names: a folder or a hub name.

    Raises:
        ModelError: No adapter there, a pickled one, or one that names no base.
    """
    file = adapter / "adapter_config.json"
    if not file.is_file():
        raise ModelError(
            "this folder holds no adapter, so there is nothing to merge",
            where=str(adapter),
            hint="A folder with config.json and *.safetensors already is a full model.",
        )
    if not (adapter / "adapter_model.safetensors").is_file():
        raise ModelError(
            "the adapter has no adapter_model.safetensors",
            where=str(adapter),
            hint="Pickled adapters (.bin) are not loaded, because loading them can run code.",
        )
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except ValueError as error:
        raise ModelError(f"not valid JSON: {error}", where=str(file)) from error
    if not base:
        raise ModelError("the adapter names no base model", where=str(file), hint="Fill in base_model_name_or_path.")
    return str(base)


def merge_adapter(
    adapter_dir: str | os.PathLike[str], out: str | os.PathLike[str], *, base: ResolvedModel | None = None
) -> Path:
    """Add a LoRA adapter's weights into its base and write a full model.

    Added in float32, stored in the base's number format: in bfloat16 small changes would be rounded away before they
    are added up. Takes 4 bytes of memory a parameter.

    Args:
        adapter_dir: Folder of a PEFT adapter.
        out: Folder to write; must not exist or be empty. Appears at the end, whole.
        base: The base model; by default the one that the adapter names.

    Returns:
        ``out``: safetensors, config, tokenizer, chat template.

    Raises:
        ModelError: No adapter, its base is gone or does not fit, or ``out`` is not empty.
    """
    import torch
    from peft import PeftModel

    from regrow.models.load import load_model, load_tokenizer, resolve_model

    adapter, out = Path(adapter_dir), Path(out)
    named = adapter_base(adapter)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError("the output folder is not empty", where=str(out), hint="Name another one, or remove it.")
    if base is None:
        try:
            base = resolve_model(named)
        except ModelError as error:
            error.message = f"the adapter's base model '{named}' cannot be used: {error.message}"
            raise
    model = load_model(base.path, dtype="float32", device="cpu", trust_remote_code=base.trust_remote_code)
    stored = _stored_dtype(base.path)
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(
            f"the adapter does not fit its base '{base.name}': {str(error).splitlines()[0]}", where=str(adapter)
        ) from error
    own = any((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    tokenizer = load_tokenizer(adapter if own else base.path)

    def write(tmp: Path) -> None:
        merged.to(getattr(torch, stored)).save_pretrained(tmp)
        tokenizer.save_pretrained(tmp)

    return atomic_folder(out, write)


def _stored_dtype(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return name if name in ("float32", "bfloat16", "float16") else "float32"
