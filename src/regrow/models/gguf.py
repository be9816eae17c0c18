"""GGUF files: what is inside, and the one-time conversion to a trainable Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrow import progress
from regrow.errors import ModelError
from regrow.models.cache import build_once, cache_dir, sha256_file
from regrow.models.check import check_whole

LAYOUT = 1
"""Raised when `_convert` writes something else than before, so that folders in old caches are not taken for new
ones."""


@dataclass(frozen=True)
class GgufFacts:
    """What the metadata of a GGUF file says; empty string where it says nothing."""

    architecture: str
    name: str
    license: str
    has_chat_template: bool
    n_tensors: int


def open_gguf(path: Path) -> Any:
    """A `gguf.GGUFReader`, or a `ModelError` that names the file."""
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise ModelError(
            f"not a readable GGUF file: {error}",
            where=str(path),
            hint="The file may be cut off, or a git-lfs pointer; download it again.",
        ) from error


def read_gguf(path: Path) -> GgufFacts:
    """Read the metadata of a GGUF file.

    Raises:
        ModelError: It is not a GGUF file, is cut off, or names no architecture.
    """
    reader = open_gguf(path)

    def text(key: str) -> str:
        field = reader.get_field(key)
        return "" if field is None else str(field.contents())

    architecture = text("general.architecture")
    if not architecture:
        raise ModelError("the GGUF names no architecture (general.architecture)", where=str(path))
    return GgufFacts(
        architecture=architecture,
        name=text("general.name"),
        license=text("general.license"),
        has_chat_template=bool(text("tokenizer.chat_template")),
        n_tensors=len(reader.tensors),
    )


def loadable_architectures() -> list[str]:
    """GGUF architectures that the installed transformers can de-quantise."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    return sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - {"general", "tokenizer"})


def convert_gguf(path: Path) -> Path:
    """A Hugging Face folder (safetensors, tokenizer, chat template) with the weights of ``path``.

    Converted once and kept in the cache under the file's content hash. Stored in float32: a de-quantised weight
    ``scale * q + minimum`` needs more bits than bfloat16 has (see `docs/how-to/models.md` for what rounding would
    change).

    Raises:
        ModelError: Unreadable file, or an architecture that transformers cannot load from GGUF.
    """
    digest = sha256_file(path)
    target = cache_dir() / "gguf" / f"{digest[:16]}-v{LAYOUT}"

    def build(folder: Path) -> dict[str, object]:
        facts = read_gguf(path)
        known = loadable_architectures()
        if facts.architecture not in known:
            raise ModelError(
                f"transformers cannot load the GGUF architecture '{facts.architecture}'",
                where=str(path),
                hint=f"It loads: {', '.join(known)}. Use the model's original safetensors folder instead.",
            )
        progress.note(f"converting {path.name} ({facts.architecture}) to safetensors, once")
        _convert(path, folder)
        return {
            "source": str(path.resolve()),
            "sha256": digest,
            "architecture": facts.architecture,
            "license": facts.license,
        }

    return build_once(target, build)


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with progress.task(f"converting {path.name}", 3, "steps") as bar:
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
            bar.advance(step="tokenizer")
            model, info = AutoModelForCausalLM.from_pretrained(
                str(path.parent), gguf_file=path.name, dtype=torch.float32, output_loading_info=True
            )
            bar.advance(step="weights")
        except (ValueError, KeyError, NotImplementedError, RuntimeError, TypeError) as error:
            raise ModelError(
                f"transformers could not convert the GGUF: {type(error).__name__}: {error}",
                where=str(path),
                hint="Use the model's original safetensors folder instead.",
            ) from error
        check_whole(info, path)
        # The weights are plain float32 now, but transformers still calls the model quantised and refuses to save or
        # train it.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
        # A title such as "Smollm2 135M 8k Lc100K Mix1 Ep2" is no path.
        model.config.__dict__.pop("_model_name_or_path", None)
        model.config._name_or_path = ""
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        bar.advance(step="written")
