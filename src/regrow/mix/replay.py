"""Which replay, how much of it, and in what order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def wanted(amount: float, replay_ratio: float) -> float:
    """Replay that makes ``replay_ratio`` of the whole when ``amount`` is the rest: ``r / (1 - r) * amount``."""
    return replay_ratio / (1.0 - replay_ratio) * amount


def even_weight(tokens: float, loss: float, replay_tokens: float, replay_loss: float) -> float:
    """What a replay token must count so that replay is as much of the loss as it is of the tokens.

    Args:
        tokens, loss: Tokens of the user's rows, and the weight in the loss of those that are trained.
        replay_tokens, replay_loss: Likewise of replay. Without any the weight is 1.
    """
    return replay_tokens * loss / (tokens * replay_loss) if tokens and replay_loss else 1.0


def choose(
    sizes: Sequence[int],
    topics: Sequence[str],
    target: float,
    *,
    max_repeats: int,
    rng: np.random.Generator,
    nested: bool = False,
) -> list[int]:
    """Choose dialogues until their sizes sum to ``target`` as nearly as whole dialogues allow.

    Topics take turns, each with its dialogues in random order; when all are used, the round starts again, at most
    ``max_repeats`` times over. A dialogue that would overshoot is passed over for a shorter one; so the sum ends
    within half of the shortest dialogue that was not used, unless the corpus runs out.

    Args:
        sizes: Tokens (or 1 for rows) of each dialogue.
        topics: The topic of each.
        target: What the sizes should sum to.
        max_repeats: Uses of one dialogue at most.
        rng: Source of the order.
        nested: Stop at the first dialogue that would overshoot. The choice for a smaller target, with an equal
            ``rng``, is then the beginning of that for a larger one; the sum ends within half of the next dialogue.

    Returns:
        Indices in the order chosen.
    """
    chosen: list[int] = []
    total = 0.0
    for _ in range(max_repeats):
        passed_over = False
        for index in _round(topics, rng):
            # Take the dialogue only if that brings the sum closer.
            if total + sizes[index] / 2 > target:
                if nested:
                    return chosen
                passed_over = True
                if total >= target:
                    break
                continue
            chosen.append(index)
            total += sizes[index]
        if passed_over:  # what is missing is smaller than a dialogue that is there: no reason to use any twice
            break
    return chosen


def _round(topics: Sequence[str], rng: np.random.Generator) -> list[int]:
    by_topic: dict[str, list[int]] = {}
    for index, topic in enumerate(topics):
        by_topic.setdefault(topic, []).append(index)
    piles = [rng.permutation(by_topic[topic]).tolist() for topic in sorted(by_topic)]
    piles = [piles[i] for i in rng.permutation(len(piles))]
    depth = max((len(p) for p in piles), default=0)
    return [pile[i] for i in range(depth) for pile in piles if i < len(pile)]


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in the stream: ``index`` into the domain or the replay rows."""

    replay: bool
    index: int


def interleave(domain: Sequence[int], replay: Sequence[int]) -> list[Slot]:
    """Merge two streams, given the sizes of their rows, so that their ratio holds in every stretch.

    Whichever stream lags behind its share goes next; both keep their own order.
    """
    out: list[Slot] = []
    i = j = 0
    done_d = done_r = 0.0
    all_d, all_r = float(sum(domain)) or 1.0, float(sum(replay)) or 1.0
    while i < len(domain) or j < len(replay):
        take_replay = j < len(replay) and (
            i == len(domain) or (done_r + replay[j] / 2) / all_r < (done_d + domain[i] / 2) / all_d
        )
        if take_replay:
            out.append(Slot(True, j))
            done_r += replay[j]
            j += 1
        else:
            out.append(Slot(False, i))
            done_d += domain[i]
            i += 1
    return out


def domain_order(n: int, epochs: float, seed: int) -> npt.NDArray[np.int64]:
    """Row numbers for ``epochs`` passes over ``n`` rows, each pass in its own random order; a fraction takes the start
    of its pass. Depends on nothing else, so arms that differ in replay see the same rows in the same order."""
    passes = []
    left = epochs
    number = 0
    while left > 1e-9:
        order = np.random.default_rng([seed, number]).permutation(n)
        passes.append(order if left >= 1 else order[: max(1, round(n * left))])
        left -= 1
        number += 1
    return np.concatenate(passes) if passes else np.zeros(0, dtype=np.int64)
