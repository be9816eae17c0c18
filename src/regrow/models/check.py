"""Checks of a model folder that need no torch: is everything there, is it whole, is it safe to load?"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regrow.errors import ModelError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds a PEFT adapter and no full model."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def check_folder(
    folder: Path, *, trust_remote_code: bool = False, tokenizer: bool = True, shown: str | None = None
) -> None:
    """Raise a `ModelError` that says what is missing, unless ``folder`` holds a whole model.

    Args:
        folder: The folder.
        trust_remote_code: Whether code in the folder may be run.
        tokenizer: Whether a tokenizer has to be there too.
        shown: What the user called it, for the message; the folder itself by default.
    """
    where = shown or str(folder)
    config = _read_config(folder, where)
    _check_code(config, trust_remote_code, where)
    _check_weights(folder, where)
    if (
        tokenizer
        and not any((folder / name).is_file() for name in TOKENIZER_FILES)
        and not list(folder.glob("*.tiktoken"))
    ):
        raise ModelError(
            "the folder has no tokenizer",
            where=where,
            hint="Copy tokenizer.json and tokenizer_config.json from the model it was trained from.",
        )


def _read_config(folder: Path, where: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelError("no such model folder", where=where)
    file = folder / "config.json"
    if not file.is_file():
        if is_adapter(folder):
            raise ModelError(
                "this is an adapter, a full model is needed here",
                where=where,
                hint="Merge it first: regrow.models.save.merge_adapter(adapter, out).",
            )
        raise ModelError(
            "the folder has no config.json, so it is not a model in Hugging Face format",
            where=where,
            hint="Give the folder that holds config.json, *.safetensors and tokenizer.json.",
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"config.json is not valid JSON: {error}", where=str(file)) from error
    if not isinstance(config, dict) or not config.get("model_type"):
        raise ModelError(
            "config.json names no model_type", where=str(file), hint="It is not the config of a transformers model."
        )
    return config


def own_code(folder: Path) -> bool:
    """Whether the model of a folder cannot be loaded without Python code that lies in it."""
    return _needs_code(_read_config(folder, str(folder)))


def _needs_code(config: dict[str, Any]) -> bool:
    if not config.get("auto_map"):
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    # Many models on the hub still carry code from before transformers knew them; those load without it.
    return config["model_type"] not in CONFIG_MAPPING_NAMES


def check_whole(info: Mapping[str, Any], where: Path) -> None:
    """Refuse a model of which transformers did not find all weights: it fills up what is missing with random numbers.

    Args:
        info: What ``from_pretrained(output_loading_info=True)`` gives.
        where: For the error.

    Raises:
        ModelError: Names the weights.
    """
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise ModelError(f"the files lack weights of the model: {missing[0]}{more}", where=str(where),
                         hint="Get the whole model again; a part of it cannot be used.")  # fmt: skip


def _check_code(config: dict[str, Any], trust_remote_code: bool, where: str) -> None:
    if trust_remote_code or not _needs_code(config):
        return
    raise ModelError(
        f"the architecture '{config['model_type']}' is code in the model's folder, which is not run unasked",
        where=where,
        hint="Read that code; if you trust it, set model.trust_remote_code: true.",
    )


def _check_weights(folder: Path, where: str) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ModelError(
                "the index of the weights is broken", where=str(index), hint="Download the model again."
            ) from error
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{len(missing)} of {len(shards)} weight files are missing, first {missing[0]}",
                where=where,
                hint="The download or the copy is not complete; do it again.",
            )
        files = [folder / name for name in shards]
    else:
        files = [file for file in sorted(folder.glob("*.safetensors")) if not file.name.startswith("adapter_")]
    if not files:
        pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        if pickles:
            raise ModelError(
                f"the weights are a pickle ({pickles[0]}), which can run code when loaded, so it is not loaded",
                where=where,
                hint='Convert it where you trust it: python -c "from transformers import AutoModelForCausalLM as M; '
                "M.from_pretrained('IN').save_pretrained('OUT')\" and copy the tokenizer files to OUT.",
            )
        raise ModelError(
            "the folder has no weights (*.safetensors)",
            where=where,
            hint="Download the model again, with its weights.",
        )
    for file in files:
        check_safetensors(file)


def check_safetensors(file: Path) -> None:
    """Raise a `ModelError` when ``file`` is cut off or not a safetensors file at all; reads only its header."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        head = handle.read(8)
        if head == b"version ":
            raise ModelError(
                "this is a git-lfs pointer, not the weights", where=str(file), hint="Run 'git lfs pull' in its folder."
            )
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        try:
            header = json.loads(handle.read(length) if length < size else "")
            ends = [int(entry["data_offsets"][1]) for key, entry in header.items() if key != "__metadata__"]
        except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError, RecursionError) as error:
            raise ModelError(
                "not a readable safetensors file", where=str(file), hint="Download the model again."
            ) from error
    wanted = 8 + length + max(ends, default=0)
    if size != wanted:
        raise ModelError(
            f"the weights are cut off: {size:,} bytes of {wanted:,}", where=str(file), hint="Download the model again."
        )
