"""Weight interpolation between a base model and its fine-tuned descendant: the alternative that costs no training.

``theta = (1 - alpha) * base + alpha * tuned`` (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903, equation 1).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regrow.errors import ModelError, RecipeError
from regrow.train.merge import combine_weights

if TYPE_CHECKING:
    import torch


def interpolate(base_dir: Path, tuned_dir: Path, alpha: float, out: Path) -> Path:
    """Write the model ``alpha`` of the way from ``base_dir`` to ``tuned_dir``.

    Args:
        base_dir: Folder in HF format. Its file layout, config, tokenizer and dtypes are those of the result.
        tuned_dir: A full fine-tune of it with the same tensor names and shapes.
        alpha: 0 gives the base, 1 the tuned model, both bit for bit (when the dtypes agree).
        out: Result folder; replaced when it exists.

    Raises:
        RecipeError: ``alpha`` is outside [0, 1].
        ModelError: The two folders do not hold the same tensors.
    """
    if not 0.0 <= alpha <= 1.0:
        raise RecipeError(f"{alpha} is not between 0 (base) and 1 (tuned)", where="alpha")

    def mixed(name: str, base: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
        (tuned,) = others
        if base.shape != tuned.shape:
            raise ModelError(f"{name} is {tuple(base.shape)} in one and {tuple(tuned.shape)} in the other",
                             where=f"{base_dir} and {tuned_dir}")  # fmt: skip
        if alpha in (0.0, 1.0):
            return tuned if alpha else base
        return base.float().lerp(tuned.float(), alpha)

    return combine_weights(base_dir, {"tuned": tuned_dir}, mixed, out)
