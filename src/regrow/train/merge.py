"""Models made out of models, with no training: the tensor-by-tensor pass, and the instruction residual.

Residual (Jindal et al. 2024, "Balancing Continuous Pre-Training and Instruction Fine-Tuning", arXiv 2410.10739):
continue pre-training the *base*, not the instruct model, then add back what instruction tuning had changed,

    theta = theta_continued + scale * (theta_instruct - theta_base),   scale 1 in the paper.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.errors import ModelError
from regrow.rows.writers import atomic_folder
from regrow.train.save import copy_companions, weight_map

if TYPE_CHECKING:
    import torch

Combine = Callable[[str, "torch.Tensor", "list[torch.Tensor]"], "torch.Tensor"]


def combine_weights(layout: Path, others: Mapping[str, Path], combine: Combine, out: Path) -> Path:
    """Write the model whose tensors are ``combine(name, of the layout, [of the others])``; one tensor of each at a
    time is in memory beside the file being written.

    Args:
        layout: Folder in HF format. Its file layout, config, tokenizer and dtypes are those of the result.
        others: Label -> folder with the same tensor names; the labels are for error messages.
        combine: May return any floating dtype; what it returns is cast to the layout's.
        out: Result folder; replaced when it exists.

    Raises:
        ModelError: The folders do not hold the same tensors, or one that is no floating-point tensor differs.
    """
    import torch
    from safetensors.torch import save_file

    files = weight_map(layout)
    maps = {label: weight_map(folder) for label, folder in others.items()}
    for label, found in maps.items():
        if odd := sorted(files.keys() ^ found.keys()):
            raise ModelError(
                f"{len(odd)} tensors are in one model only, such as {odd[0]}",
                where=f"{layout} and {others[label]}",
                hint="all must be full models of one architecture; merge an adapter first",
            )

    def one(name: str, mine: torch.Tensor, theirs: list[torch.Tensor]) -> torch.Tensor:
        if mine.is_floating_point():
            return combine(name, mine, theirs).to(mine.dtype).contiguous()
        for folder, other in zip(others.values(), theirs, strict=True):
            if not torch.equal(mine, other):
                raise ModelError(f"{name} differs and is not floating point", where=str(folder))
        return mine

    def write(tmp: Path) -> None:
        for file_name in sorted(set(files.values())):
            with ExitStack() as stack:
                read = _Reader(stack)
                tensors = {
                    name: one(
                        name,
                        read(layout / file_name, name),
                        [read(folder / maps[label][name], name) for label, folder in others.items()],
                    )
                    for name in sorted(n for n, file in files.items() if file == file_name)
                }
            save_file(tensors, tmp / file_name, metadata={"format": "pt"})
        for name in ("config.json", "model.safetensors.index.json"):
            if (layout / name).is_file():
                shutil.copyfile(layout / name, tmp / name)
        copy_companions(layout, tmp)

    return atomic_folder(out, write)


class _Reader:
    """Single tensors out of safetensors files, each opened once."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._open: dict[Path, Any] = {}

    def __call__(self, path: Path, name: str) -> torch.Tensor:
        from safetensors import safe_open

        if path not in self._open:
            self._open[path] = self._stack.enter_context(safe_open(path, framework="pt"))
        tensor: torch.Tensor = self._open[path].get_tensor(name)
        return tensor


def add_residual(base_dir: Path, instruct_dir: Path, continued_dir: Path, out: Path, *, scale: float = 1.0) -> Path:
    """Give a continued base the instruction tuning of its sibling: continued + scale * (instruct - base).

    In float64, so that a tensor which continued pre-training did not move comes out as the instruct model's, bit for
    bit, for weights of similar size (a float32 residual is off by up to one rounding step).

    An instruct model with more tokens than the base keeps its rows: the missing ones count as zero in base and
    continued.

    Args:
        base_dir: The base both others come from.
        instruct_dir: Its instruction-tuned sibling; gives config, tokenizer, chat template and dtype of the result.
        continued_dir: The base after continued pre-training.
        out: Result folder; replaced when it exists.
        scale: 1 is the paper's; 0 gives the continued base in the instruct model's clothes.

    Raises:
        ModelError: The three do not hold the same tensors, or their shapes differ in more than the number of tokens.
    """
    import torch

    def grown(name: str, tensor: torch.Tensor, like: torch.Tensor, folder: Path) -> torch.Tensor:
        if tensor.shape == like.shape:
            return tensor.double()
        words = any(part in name for part in ("embed_tokens", "wte", "lm_head", "embed_in", "embed_out"))
        if not words or tensor.shape[1:] != like.shape[1:] or tensor.shape[0] > like.shape[0]:
            raise ModelError(
                f"{name} is {tuple(tensor.shape)} in one and {tuple(like.shape)} in the other",
                where=f"{folder} and {instruct_dir}",
                hint="only the instruct model may have more tokens; all else must have the same shape",
            )
        return torch.cat([tensor.double(), tensor.new_zeros(len(like) - len(tensor), *like.shape[1:]).double()])

    def residual(name: str, instruct: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
        base = grown(name, others[0], instruct, base_dir)
        continued = grown(name, others[1], instruct, continued_dir)
        return continued + scale * (instruct.double() - base)

    return combine_weights(instruct_dir, {"base": base_dir, "continued": continued_dir}, residual, out)
