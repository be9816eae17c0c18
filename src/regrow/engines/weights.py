"""GGUF files of a model, written once into the cache, for the engines that read nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regrow.errors import EngineError, ModelError

if TYPE_CHECKING:
    from regrow.models.load import ResolvedModel


def gguf_file(model: ResolvedModel, quant: Literal["f16", "q8_0"], reader: str) -> Path:
    """The model folder's weights as one GGUF.

    Args:
        model: The resolved model.
        quant: ``q8_0`` or ``f16``.
        reader: Who wants it, for the error.

    Raises:
        EngineError: It cannot be written for this model.
    """
    from filelock import FileLock

    from regrow.models.cache import cache_dir
    from regrow.models.gguf_export import export_gguf

    # The folder's name is from when only OpenVINO read these files; a new name would write gigabytes anew.
    target = cache_dir() / "openvino" / model.revision / f"model-{quant}.gguf"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.is_file():
            try:
                export_gguf(model.path, target, quant, source=model.gguf)
            except ModelError as error:
                raise EngineError(
                    f"the model cannot be written for {reader}: {error.message}",
                    where=error.where or model.name,
                    hint="engine: transformers",
                ) from error
    return target
