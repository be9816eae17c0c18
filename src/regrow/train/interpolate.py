"""Weight interpolation between a base model and its fine-tuned descendant: the alternative that costs no training.

``theta = (1 - alpha) * base + alpha * tuned`` (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903, equation 1).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from regrow.errors import ModelError, RecipeError
from regrow.train.save import atomic_folder, copy_companions, weight_map


def interpolate(base_dir: Path, tuned_dir: Path, alpha: float, out: Path) -> Path:
    """Write the model ``alpha`` of the way from ``base_dir`` to ``tuned_dir``; one weight file in memory at a time.

    Args:
        base_dir: Folder in HF format. Its file layout, config, tokenizer and dtypes are those of the result.
        tuned_dir: A full fine-tune of it with the same tensor names and shapes.
        alpha: 0 gives the base, 1 the tuned model, both bit for bit (when the dtypes agree).
        out: Result folder; replaced when it exists.

    Raises:
        RecipeError: ``alpha`` is outside [0, 1].
        ModelError: The two folders do not hold the same tensors.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    if not 0.0 <= alpha <= 1.0:
        raise RecipeError(f"{alpha} is not between 0 (base) and 1 (tuned)", where="alpha")
    base_files, tuned_files = weight_map(base_dir), weight_map(tuned_dir)
    odd = sorted(base_files.keys() ^ tuned_files.keys())
    if odd:
        raise ModelError(
            f"{len(odd)} tensors are in one model only, such as {odd[0]}",
            where=f"{base_dir} and {tuned_dir}",
            hint="both must be full models of one architecture; merge an adapter first",
        )

    def mixed(name: str, base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
        if base.shape != tuned.shape:
            raise ModelError(f"{name} is {tuple(base.shape)} in one and {tuple(tuned.shape)} in the other",
                             where=f"{base_dir} and {tuned_dir}")  # fmt: skip
        if not base.is_floating_point():
            if not torch.equal(base, tuned):
                raise ModelError(f"{name} differs and is not floating point", where=str(tuned_dir))
            return base
        if alpha in (0.0, 1.0):
            return (tuned if alpha else base).to(base.dtype)
        return torch.lerp(base.float(), tuned.float(), alpha).to(base.dtype)

    def write(tmp: Path) -> None:
        for file_name in sorted(set(base_files.values())):
            tensors = {}
            with safe_open(base_dir / file_name, framework="pt") as base:
                metadata = base.metadata()
                names = sorted(name for name, file in base_files.items() if file == file_name)
                for tuned_name in sorted({tuned_files[name] for name in names}):
                    with safe_open(tuned_dir / tuned_name, framework="pt") as tuned:
                        for name in (n for n in names if tuned_files[n] == tuned_name):
                            tensors[name] = mixed(name, base.get_tensor(name), tuned.get_tensor(name))
            save_file(tensors, tmp / file_name, metadata=metadata)
        for name in ("config.json", "model.safetensors.index.json"):
            if (base_dir / name).is_file():
                shutil.copyfile(base_dir / name, tmp / name)
        copy_companions(base_dir, tmp)

    return atomic_folder(out, write)
