"""The attention mask of tree-packed sequences, in the form the model's attention takes, and whether it takes one.

SDPA gets a boolean 4-D mask, eager attention an additive one, FlexAttention a block mask. Sliding-window layers get
their window on the positions of a path, not on places in the sequence, where siblings stand in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

TAKES_MASKS = ("sdpa", "eager", "flex_attention")
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest difference in the probe, as a share of the largest logit. Rounding stays far below it; a model that ignores
the mask moves its logits by tenths."""
HALF_TOLERANCE = 5e-2
"""The same in 16-bit types."""


def tree_mask(ends: Tensor, positions: Tensor, window: int | None = None) -> Tensor:
    """``(B, L, L)`` bool, True where query (second axis) sees key (third).

    Args:
        ends: ``(B, L)``, see `regrow.train.trees.Merged`.
        positions: ``(B, L)`` place of each token on its path.
        window: A token sees so many tokens of its path, itself included; None for all.
    """
    at = torch.arange(ends.shape[1], device=ends.device)
    seen = (at[None, :] <= at[:, None])[None] & (at[:, None] < ends[:, None, :])
    if window is not None:
        seen &= positions[:, :, None] - positions[:, None, :] < window
    return seen


class TreeAttention:
    """Makes masks for one model.

    Args:
        config: The model's.
        longest: Tokens of the longest path; a window at least as wide hides nothing.
        dtype: Of an additive mask.
    """

    def __init__(self, config: Any, longest: int, dtype: torch.dtype = torch.float32) -> None:
        text = config.get_text_config()
        self.dtype = dtype
        self.kind = str(config._attn_implementation)
        window = getattr(text, "sliding_window", None)
        types = getattr(text, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
        self.unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
        """Kinds of layers that no mask of ours is right for (chunked, linear, ...)."""
        self.windows: dict[str, int | None] = {
            kind: int(window) if kind == "sliding_attention" and window else None for kind in sorted(set(types))
        }
        if all(w is None or w >= longest for w in self.windows.values()):
            self.windows = {"full_attention": None}

    def mask(self, ends: Tensor, positions: Tensor) -> Any:
        """What to pass as ``attention_mask``: one mask, or one for each kind of layer where they differ.

        Args:
            ends, positions: ``(B, L)``, see `tree_mask`.
        """
        masks = {kind: self._one(ends, positions, window) for kind, window in self.windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _one(self, ends: Tensor, positions: Tensor, window: int | None) -> Any:
        if self.kind == "flex_attention":
            return block_mask(ends, positions, window)
        seen = tree_mask(ends, positions, window)[:, None]
        if self.kind == "sdpa":
            return seen
        floor = torch.finfo(self.dtype).min
        return torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill_(~seen, floor)


def block_mask(ends: Tensor, positions: Tensor, window: int | None = None) -> Any:
    """The same mask as `tree_mask` for FlexAttention, which skips the blocks in which nothing is seen."""
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        inside = (k <= q) & (q < ends[b, k])
        return inside if window is None else inside & (positions[b, q] - positions[b, k] < window)

    rows, length = ends.shape
    return create_block_mask(seen, B=rows, H=None, Q_LEN=length, KV_LEN=length, device=ends.device)


def why_not(model: nn.Module, attention: TreeAttention) -> str | None:
    """None when the model computes trees right, else the reason why it cannot; found out by asking it.

    Three rows with a common beginning are computed as a tree and one by one. Where paths are longer than the model's
    sliding window, so are those of the probe: a shorter one could not see a wrong window.

    Args:
        model: On its device.
        attention: Its masks.
    """
    if attention.kind not in TAKES_MASKS:
        return f"{attention.kind} attention takes no tree mask (train.attn_implementation: sdpa does)"
    if attention.unknown:
        return f"the model has layers of {', '.join(attention.unknown)}"
    try:
        same = _computes_trees(model, attention)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, NotImplementedError, KeyError, AttributeError) as err:
        return f"the model refuses a tree mask ({str(err).splitlines()[0] if str(err) else type(err).__name__})"
    return None if same else "the model does not compute a tree as it computes its paths"


def _computes_trees(model: nn.Module, attention: TreeAttention) -> bool:
    """Whether the logits of a small tree are those of its paths."""
    device = next(model.parameters()).device
    stem, branch = max([6, *(w + 1 for w in attention.windows.values() if w is not None)]), 3
    total = stem + 3 * branch
    ids = (torch.arange(total, device=device) * 7) % 50 + 3
    positions = torch.cat([torch.arange(stem), *(torch.arange(stem, stem + branch) for _ in range(3))]).to(device)
    ends = torch.full((total,), total, device=device)
    for i in range(3):
        ends[stem + i * branch : stem + (i + 1) * branch] = stem + (i + 1) * branch
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            mask = attention.mask(ends[None], positions[None])
            inputs = {"input_ids": ids[None], "position_ids": positions[None], "attention_mask": mask}
            tree = model(**inputs, use_cache=False).logits[0].float()
            for i in range(3):
                own = torch.arange(stem + i * branch, stem + (i + 1) * branch, device=device)
                path = torch.cat([torch.arange(stem, device=device), own])
                alone = model(input_ids=ids[path][None], use_cache=False).logits[0].float()
                near = TOLERANCE.get(attention.dtype, HALF_TOLERANCE) * float(alone.abs().max())
                if not torch.allclose(tree[path], alone, atol=near, rtol=0):
                    return False
    finally:
        model.train(was_training)
    return True
