"""Which facts each stage of gradual fine-tuning trains on (Li et al., arXiv 2410.05802).

Stage 1: those that are MaybeKnown. Stage 2: these again, those that stage 1 raised to MaybeKnown although it was not
trained on them (the augmentation), and some HighlyKnown ones so that they are not forgotten (the replay).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from regrow.mix.replay import wanted

ReplayOf = Literal["stage", "pool"]
HIGHLY, MAYBE, WEAKLY, UNKNOWN = "HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"


@dataclass(frozen=True, slots=True)
class StageTwo:
    """The facts of stage 2, by why they are there; ids in the order of the labels.

    Attributes:
        kept: MaybeKnown before stage 1, which trained on them.
        upgraded: WeaklyKnown or Unknown before, MaybeKnown after.
        replay: HighlyKnown before, drawn at random.
        replay_wanted: How many were to be drawn; more than ``replay`` when there are not so many.
    """

    kept: list[str]
    upgraded: list[str]
    replay: list[str]
    replay_wanted: int

    def ids(self) -> list[str]:
        """All of them, each once."""
        return [*self.kept, *self.upgraded, *self.replay]


def stage_one(labels: Mapping[str, str]) -> list[str]:
    """The facts that are MaybeKnown."""
    return [fact for fact, category in labels.items() if category == MAYBE]


def stage_two(
    before: Mapping[str, str],
    after: Mapping[str, str],
    *,
    augment: bool,
    replay_ratio: float,
    replay_of: ReplayOf,
    seed: int,
) -> StageTwo:
    """Put the set of stage 2 together.

    Args:
        before, after: Id -> category under the untrained model and under that of stage 1.
        augment: Whether upgraded facts are added.
        replay_ratio: Share of HighlyKnown facts; 0 is no replay.
        replay_of: Of what it is a share. ``stage``: of the whole set of stage 2, ``n = r / (1 - r)`` times the rest;
            ``pool``: of all HighlyKnown facts. The paper's "0.2" may mean either.
        seed: Of the draw.
    """
    kept = stage_one(before)
    upgraded = [f for f, c in before.items() if c in (WEAKLY, UNKNOWN) and after[f] == MAYBE] if augment else []
    pool = [f for f, c in before.items() if c == HIGHLY]
    if replay_of == "stage":
        n = round(wanted(len(kept) + len(upgraded), replay_ratio))
    else:
        n = round(replay_ratio * len(pool))
    drawn = set(random.Random(seed).sample(pool, min(n, len(pool))))
    return StageTwo(kept, upgraded, [f for f in pool if f in drawn], n)
