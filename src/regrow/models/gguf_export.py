"""Writing GGUF: through llama.cpp's converter where it is installed, else our own writer for Llama-type models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regrow import progress
from regrow.errors import ModelError
from regrow.models.cache import MARKER, cache_dir
from regrow.models.check import check_folder

if TYPE_CHECKING:
    import numpy as np

Quant = Literal["f16", "q8_0"]
CONVERTERS = ("convert_hf_to_gguf.py", "convert_hf_to_gguf", "convert-hf-to-gguf")
LLAMA_TYPE = ("llama", "mistral")
F16_MAX = 65504.0


def export_gguf(
    model_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    quant: str = "f16",
    *,
    source: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a model as one GGUF file.

    llama.cpp's ``convert_hf_to_gguf`` is used when it is on the PATH. Without it a Llama-type model that came out of a
    GGUF
    can still be written: metadata and vocabulary are copied from that file, the weights are ours.

    Args:
        model_dir: Folder in Hugging Face format.
        out: The file; an existing folder gets ``<model>-<quant>.gguf`` in it. Appears at the end, whole.
        quant: ``f16`` (for measurements) or ``q8_0`` (half the size, faster; near ties of tokens may flip).
        source: A GGUF of the same model family and vocabulary to take the metadata from; by default one that was
            converted on this machine and has the same vocabulary.

    Raises:
        ModelError: Neither way is open for this model; says what to install.
    """
    folder, target = Path(model_dir), Path(out)
    if quant not in ("f16", "q8_0"):
        raise ModelError(f"'{quant}' is not a number format for GGUF", where="--quant", hint="f16 or q8_0")
    check_folder(folder)
    if target.is_dir():
        target = target / f"{folder.resolve().name}-{quant}.gguf"
    elif target.suffix.lower() != ".gguf":
        raise ModelError("a GGUF export is one file whose name ends in .gguf", where=str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    tmp = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        converter = next((found for name in CONVERTERS if (found := shutil.which(name))), None)
        if converter:
            _run_converter(converter, folder, tmp, quant)
        else:
            _write(folder, tmp, quant, _source(folder, source))
        tmp.replace(target)
    finally:
        tmp.unlink(missing_ok=True)
    return target


def _run_converter(converter: str, folder: Path, out: Path, quant: str) -> None:
    start = [sys.executable, converter] if converter.endswith(".py") else [converter]
    done = subprocess.run(
        [*start, str(folder), "--outfile", str(out), "--outtype", quant], capture_output=True, text=True, check=False
    )
    if done.returncode != 0 or not out.is_file():
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ModelError(f"{Path(converter).name} failed: {last}", where=str(folder))


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _source(folder: Path, given: str | os.PathLike[str] | None) -> Path:
    kind = str(_config(folder).get("model_type"))
    install = "Install llama.cpp and put its convert_hf_to_gguf.py on the PATH (it covers nearly every architecture)."
    if kind not in LLAMA_TYPE:
        raise ModelError(
            f"without llama.cpp's converter only Llama-type models can be written as GGUF, not '{kind}'",
            where=str(folder),
            hint=install,
        )
    if given is not None:
        if not Path(given).is_file():
            raise ModelError("no such GGUF file", where=str(given))
        return Path(given)
    vocabulary = _vocabulary(folder)
    for marker in sorted((cache_dir() / "gguf").glob(f"*/{MARKER}")):
        source = Path(json.loads(marker.read_text(encoding="utf-8")).get("source", ""))
        if source.is_file() and vocabulary is not None and _vocabulary(marker.parent) == vocabulary:
            return source
    raise ModelError(
        "llama.cpp's converter is not installed, and no GGUF with this model's vocabulary is known here",
        where=str(folder),
        hint=install,
    )


def _vocabulary(folder: Path) -> Any:
    """What decides the token ids; padding and truncation settings, which training changes, are left out."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    data = json.loads(file.read_text(encoding="utf-8"))
    return data.get("model"), [(token["id"], token["content"]) for token in data.get("added_tokens", [])]


def _write(folder: Path, out: Path, quant: str, source: Path) -> None:
    import gguf
    import torch
    from safetensors import safe_open

    from regrow.models.gguf import open_gguf

    config = _config(folder)
    reader = open_gguf(source)
    _check_same_shape(config, reader, source)
    file_type = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[quant]
    writer = gguf.GGUFWriter(out, "llama")
    ours = {"general.file_type": int(file_type), "general.name": folder.resolve().name}
    if template := _chat_template(folder):
        ours["tokenizer.chat_template"] = template
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.quantization_version"):
            continue
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, ours.pop(key, field.contents()), field.types[0], sub_type)
    for key, value in ours.items():
        kind = gguf.GGUFValueType.UINT32 if isinstance(value, int) else gguf.GGUFValueType.STRING
        writer.add_key_value(key, value, kind)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    files = sorted(folder.glob("model*.safetensors"))
    with progress.task(f"writing {quant} GGUF", None, "tensors") as bar:
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                for name in sorted(tensors.keys()):
                    if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                        continue
                    target = names.get_name(name, try_suffixes=(".weight", ".bias"))
                    if target is None:
                        raise ModelError(f"GGUF has no name for the tensor '{name}'", where=str(file))
                    array = tensors.get_tensor(name).to(torch.float32).numpy()
                    array = _permuted(name, array, config)
                    data, kind = _quantised(array, quant, name)
                    writer.add_tensor(target, data, raw_dtype=kind)
                    bar.advance()
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _check_same_shape(config: dict[str, Any], reader: Any, source: Path) -> None:
    wanted = {
        "llama.block_count": config["num_hidden_layers"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config.get("num_key_value_heads", config["num_attention_heads"]),
    }
    for key, value in wanted.items():
        field = reader.get_field(key)
        found = None if field is None else int(field.contents())
        if found != value:
            raise ModelError(
                f"the GGUF is of another model: its {key} is {found}, the model's is {value}", where=str(source)
            )


def _chat_template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    file = folder / "tokenizer_config.json"
    template = json.loads(file.read_text(encoding="utf-8")).get("chat_template") if file.is_file() else None
    return template if isinstance(template, str) else None


def _permuted(name: str, array: np.ndarray[Any, Any], config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Rows of q and k in the order of llama.cpp's rope: the two halves of a head's dimensions interleaved pairwise."""
    if not name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
        return array
    heads = int(config["num_attention_heads"])
    if "k_proj" in name:
        heads = int(config.get("num_key_value_heads", heads))
    split = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return split.swapaxes(1, 2).reshape(array.shape)


def _quantised(array: np.ndarray[Any, Any], quant: str, name: str) -> tuple[np.ndarray[Any, Any], Any]:
    import gguf
    import numpy as np

    if array.ndim == 1:
        return np.ascontiguousarray(array), gguf.GGMLQuantizationType.F32
    if quant == "q8_0" and array.shape[-1] % 32 == 0:
        kind = gguf.GGMLQuantizationType.Q8_0
        return gguf.quants.quantize(array, kind), kind
    if np.abs(array).max() > F16_MAX:
        raise ModelError(f"'{name}' has values beyond what float16 can hold", hint="Export with q8_0.")
    return array.astype(np.float16), gguf.GGMLQuantizationType.F16
