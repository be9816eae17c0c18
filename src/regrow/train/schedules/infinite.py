"""The infinite learning-rate schedule: warm up, cool down, stay flat while data comes, anneal to deploy.

Studied for continual pre-training in arXiv 2503.02844. The model at the end of the flat phase is what the next data
set is trained from, at the flat rate: no second warm-up, and nothing annealed to recover from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    from regrow.train.config import InfiniteSection


def infinite_factor(
    step: float, *, warmup: float, cooldown: float, anneal: float, end: float, flat: float, lowest: float
) -> float:
    """The learning rate at ``step`` as a share of the peak.

    Linear warm-up; cosine cool-down ``flat + (1 - flat)/2 (1 + cos(pi (t - warmup)/(cooldown - warmup)))``; flat;
    exponential annealing ``flat (lowest/flat)^((t - anneal)/(end - anneal))``: as in the authors' released code.

    Args:
        step: t, from 0.
        warmup, cooldown, anneal, end: Steps at which warm-up, cool-down and the flat phase are over, and the last
            step; rising. Phases may be empty.
        flat: Share of the peak in the flat phase.
        lowest: Share of the peak at the end.
    """
    if step < warmup:
        return step / warmup
    if step < cooldown:
        return flat + (1 - flat) / 2 * (1 + math.cos(math.pi * (step - warmup) / (cooldown - warmup)))
    if step <= anneal or end <= anneal:
        return flat
    share = min(1.0, (step - anneal) / (end - anneal))
    return float(flat * (lowest / flat) ** share)


def phases(cfg: InfiniteSection, warmup_ratio: float, steps: int) -> dict[str, float]:
    """The keyword arguments of `infinite_factor` for a training of ``steps`` steps."""
    first = not cfg.continues
    return {
        "warmup": warmup_ratio * steps if first else 0.0,
        "cooldown": cfg.cooldown_end * steps if first else 0.0,
        "anneal": flat_step(cfg, steps),
        "end": float(steps),
        "flat": cfg.flat_ratio,
        "lowest": cfg.min_ratio,
    }


def flat_step(cfg: InfiniteSection, steps: int) -> int:
    """The step at whose end the flat phase is over."""
    return max(1, round(cfg.flat_end * steps))


def infinite_schedule(optimizer: Optimizer, cfg: InfiniteSection, warmup_ratio: float, steps: int) -> LambdaLR:
    """The schedule for an optimizer that was made with the peak rate."""
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, partial(infinite_factor, **phases(cfg, warmup_ratio, steps)))


class SaveFlat(TrainerCallback):  # type: ignore[misc]
    """Writes the model when the flat phase is over: what the next data set goes on from.

    Args:
        cfg: The schedule.
        save: Writes it.
    """

    def __init__(self, cfg: InfiniteSection, save: Callable[[], object]) -> None:
        self._cfg, self._save = cfg, save

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == flat_step(self._cfg, state.max_steps) and state.is_world_process_zero:
            self._save()
