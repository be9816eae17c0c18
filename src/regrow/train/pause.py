"""Training that stops at a step to be gone on with: what may join the stream meanwhile, and what it will need."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from regrow.errors import RunError
from regrow.mix.forgetting import Forgetting, missing
from regrow.mix.mixtures import WATCHED
from regrow.train.slots import SlotSampler

if TYPE_CHECKING:
    from regrow.train.trainer import RegrowTrainer


_NO_SLOTS = "only a training with replay and controller: forgetting can be stopped for more of it"


@dataclass(frozen=True, slots=True)
class Part:
    """Replay rows that join a running stream: a file of the mix's columns, and the optimizer step after which."""

    path: Path
    after_step: int


@dataclass(frozen=True, slots=True)
class Paused:
    """A training that stopped on purpose, with a complete checkpoint.

    Attributes:
        step, steps: Where it stands, and how many there will be.
        shares, initial: Shares of the replay by topic, now and at the start.
        forgotten: Nats a token by which each topic is worse than at the start.
        fresh: Tokens of each topic that no step has seen.
        left: Replay tokens still to be drawn.
        missing: Tokens by topic that the rest of the training will ask for beyond the fresh ones.
    """

    step: int
    steps: int
    shares: dict[str, float]
    initial: dict[str, float]
    forgotten: dict[str, float]
    fresh: dict[str, int]
    left: float
    missing: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON shape."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Stop:
    """When to stop: at a step after ``after``, not the last, at which ``tokens`` or more are missing, and that is a
    multiple of ``every`` rounded up to whole measurements (None: two of them)."""

    every: int | None
    after: int
    tokens: int

    def reached(self, trainer: RegrowTrainer) -> bool:
        """Whether the training is to stop where it stands."""
        if trainer.monitor is None:
            raise RunError(_NO_SLOTS)
        step, measured = trainer.state.global_step, trainer.monitor.every
        looks = 2 if self.every is None else math.ceil(self.every / measured)
        if step % (looks * measured) or not self.after < step < trainer.state.max_steps:
            return False
        lacking = where_it_stands(trainer).missing
        return sum(lacking.values()) >= self.tokens


class StopHere(TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint and ends the loop where a `Stop` is reached."""

    def __init__(self, trainer: RegrowTrainer, stop: Stop) -> None:
        self.trainer, self.stop = trainer, stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stop.reached(self.trainer):
            control.should_save = control.should_training_stop = True


def where_it_stands(trainer: RegrowTrainer) -> Paused:
    """The state of a training that has been stopped, or was brought back from a checkpoint.

    Raises:
        RunError: It has no replay slots.
    """
    monitor, sampler = trainer.monitor, trainer._sampler
    if monitor is None or not isinstance(sampler, SlotSampler) or not isinstance(monitor.mixture, Forgetting):
        raise RunError(_NO_SLOTS)
    mixture, steps = monitor.mixture, trainer.state.max_steps
    left, fresh = sampler.outlook(trainer.draws(steps))
    shares = mixture.weights()
    return Paused(
        step=trainer.state.global_step,
        steps=steps,
        shares=shares,
        initial=mixture.initial,
        forgotten=mixture.forgotten(),
        fresh=fresh,
        left=left,
        missing=missing(shares, mixture.initial, left, fresh),
    )


def watched_file(mix_file: Path) -> Path | None:
    """The rows beside a mix that are only measured, if there are any."""
    path = mix_file.with_name(WATCHED)
    return path if path.is_file() else None
