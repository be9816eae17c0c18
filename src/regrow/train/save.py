"""Writing the finished model: same format, same names, same dtype as the folder it came from, all or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.errors import ModelError
from regrow.rows.writers import atomic_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from regrow.train.config import TrainConfig

COPIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken",
    "chat_template*", "additional_chat_templates", "generation_config.json", "preprocessor_config.json",
    "processor_config.json",
)  # fmt: skip
"""Files of the source folder that training does not change; they are copied byte for byte."""


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor name to file name, over all safetensors of a model folder.

    Raises:
        ModelError: There are none.
    """
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        mapping: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        for name in set(mapping.values()):
            if Path(name).name != name:
                raise ModelError(f"the index names a file outside the folder: {name}", where=str(index))
        return mapping
    mapping = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            mapping |= dict.fromkeys(file.keys(), path.name)
    if not mapping:
        raise ModelError("there are no safetensors weights here", where=str(folder))
    return mapping


def stored_dtype(folder: Path) -> torch.dtype:
    """The floating dtype most of the folder's weights are stored in; read from the headers."""
    import torch
    from safetensors import safe_open

    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
    sizes: dict[torch.dtype, int] = {}
    for name in set(weight_map(folder).values()):
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                part = file.get_slice(key)
                if part.get_dtype() in names:
                    dtype, size = names[part.get_dtype()], 1
                    for n in part.get_shape():
                        size *= n
                    sizes[dtype] = sizes.get(dtype, 0) + size
    if not sizes:
        raise ModelError("the weights are in no dtype that can be trained", where=str(folder),
                         hint="quantised checkpoints have to be converted first")  # fmt: skip
    return max(sizes, key=lambda d: sizes[d])


def copy_companions(source: Path, out: Path) -> None:
    """Copy tokenizer, chat template and generation settings from ``source`` to ``out``."""
    for pattern in COPIED:
        for path in sorted(source.glob(pattern)):
            if path.is_dir():
                shutil.copytree(path, out / path.name, dirs_exist_ok=True)
            elif path.suffix not in (".safetensors", ".bin", ".gguf"):
                shutil.copyfile(path, out / path.name)


def save_model(model: PreTrainedModel, source: Path, out: Path) -> Path:
    """Write a trained model to ``out`` in the dtype of ``source``, with its config, tokenizer and chat template.

    The model in memory is cast on the way: it is not meant to be trained further.
    """
    from transformers import AutoConfig, GenerationConfig

    dtype = stored_dtype(source)
    # The Trainer aligns special tokens of model and tokenizer in place; the model goes back out as it came in.
    model.config = AutoConfig.from_pretrained(source, local_files_only=True)
    if (source / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source, local_files_only=True)
    model.to(dtype=dtype)

    def write(tmp: Path) -> None:
        model.save_pretrained(tmp)
        copy_companions(source, tmp)

    return atomic_folder(out, write)


def save_running(model: PreTrainedModel, source: Path, out: Path) -> Path:
    """As `save_model`, of a model that is trained on afterwards: nothing in memory is changed."""
    dtype = stored_dtype(source)
    cast: dict[int, torch.Tensor] = {}  # tied weights stay one tensor, or both would be written
    state = {
        name: cast.setdefault(t.data_ptr(), t.to(dtype) if t.is_floating_point() else t)
        for name, t in model.state_dict().items()
    }

    def write(tmp: Path) -> None:
        model.save_pretrained(tmp, state_dict=state)
        shutil.copyfile(source / "config.json", tmp / "config.json")
        copy_companions(source, tmp)

    return atomic_folder(out, write)


def save_trained(model: Any, cfg: TrainConfig, model_dir: Path, out: Path) -> None:
    """Write ``out/model`` (full, or merged when asked) and ``out/adapter`` (LoRA)."""
    if cfg.method == "full":
        save_model(model, model_dir, out / "model")
        return
    model.peft_config["default"].base_model_name_or_path = str(model_dir.resolve())

    def write(tmp: Path) -> None:
        model.save_pretrained(tmp)
        copy_companions(model_dir, tmp)

    atomic_folder(out / "adapter", write)
    if cfg.merge_adapter:
        save_model(model.float().merge_and_unload(), model_dir, out / "model")


def save_midway(model: Any, cfg: TrainConfig, model_dir: Path, out: Path) -> None:
    """Write to ``out`` the model (for LoRA the adapter) as it is now; it is trained on afterwards."""
    if cfg.method == "full":
        save_running(model, model_dir, out)
        return

    def write(tmp: Path) -> None:
        model.save_pretrained(tmp)
        copy_companions(model_dir, tmp)

    model.peft_config["default"].base_model_name_or_path = str(model_dir.resolve())
    atomic_folder(out, write)
