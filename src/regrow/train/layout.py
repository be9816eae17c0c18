"""What a model can do with a row of several documents, found out by asking it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from regrow.errors import ModelError, RecipeError
from regrow.train.batches import Layout

if TYPE_CHECKING:
    from torch import Tensor, nn


def head_takes_mask(model: nn.Module) -> bool:
    """Whether the model computes logits at the ``True`` positions of a boolean ``logits_to_keep`` mask only.

    Asked of the model itself, on eight tokens: an older transformers would read the mask as positions.
    """
    forward = getattr(model, "get_base_model", lambda: model)().forward
    if "logits_to_keep" not in inspect.signature(forward).parameters:
        return False
    ids, positions = _probe(model)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, 1] = mask[0, 3] = mask[1, 2] = True
    with _evaluating(model), torch.no_grad():
        full = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        try:
            kept = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=mask).logits
        except (IndexError, TypeError, ValueError, RuntimeError):
            return False
    return kept.shape == (3, full.shape[-1]) and torch.allclose(kept.float(), full[mask].float(), atol=1e-2, rtol=1e-2)


def choose_layout(model: nn.Module, config: Any, *, packing: bool) -> Layout:
    """The layout that keeps documents apart on this model; checked by running it.

    Variable-length attention kernels want one tensor row, mask-based attention several short ones. Models that carry
    state along a row (state-space layers, convolutions) mix documents whatever the mask says: they get one document a
    row.

    Raises:
        RecipeError: Packing is asked of a model that cannot keep documents apart.
        ModelError: The model mixes tokens even of different tensor rows.
    """
    wanted: Layout = "single" if "flash" in (config._attn_implementation or "") else "rows"
    if _keeps_apart(model):
        return wanted
    if packing:
        raise RecipeError(
            f"{type(model).__name__} lets packed documents see each other",
            where="train.packing",
            hint="set it to false",
        )
    if not _keeps_apart(model, separate=True):
        raise ModelError(f"{type(model).__name__} is not causal: a token's output depends on padding after it")
    return "separate"


def _keeps_apart(model: nn.Module, *, separate: bool = False) -> bool:
    """Whether a document's logits stay the same when its neighbours in the row change."""
    ids, positions = _probe(model)
    other = ids.clone()
    if separate:  # a document, then padding: the padding must not matter
        other[:, 2:] = (other[:, 2:] + 5) % int(ids.max() + 1)
        look = slice(0, 2)
    else:  # two documents in a row: the first must not matter to the second
        ids, positions = ids.reshape(1, -1), positions.reshape(1, -1)
        other = ids.clone()
        other[:, :4] = (other[:, :4] + 5) % int(ids.max() + 1)
        look = slice(4, 8)
    with _evaluating(model), torch.no_grad():
        a = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, look].float()
        b = model(input_ids=other, position_ids=positions, use_cache=False).logits[:, look].float()
    return torch.allclose(a, b, atol=1e-3 * float(a.abs().max()) + 1e-6, rtol=0)


def _probe(model: nn.Module) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]], device=device)
    return ids, torch.arange(4, device=device).expand(2, 4)


class _evaluating:
    """Evaluation mode (no dropout) inside the block."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.was_training = self.model.training
        self.model.eval()

    def __exit__(self, *exc: object) -> None:
        self.model.train(self.was_training)
