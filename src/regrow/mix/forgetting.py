r"""More replay for what is being forgotten: the shares of topics, and what is missing for them. Ours.

Let :math:`f_j` be how much of topic j is forgotten: the KL from the base to the model on held-out dialogues of it, in
nats a token, or the growth of their loss since the first step (0 where it fell). With the initial shares :math:`p_j`
and ``tilt`` :math:`\lambda`

.. math::
    w_j = (1 - \lambda)\, p_j + \lambda\, \frac{p_j f_j}{\sum_i p_i f_i}

and :math:`w = p` while nothing is forgotten. The second term gives a topic its share of all the forgetting there is;
the first is a floor, so that no topic is left to be forgotten next. It is computed from the initial shares each time
and does not compound: a topic that has recovered is back where it began. When all topics are forgotten alike,
:math:`w = p`. A topic that is not measured counts as forgotten like the average of those that are, and so keeps its
share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from regrow.errors import RecipeError
from regrow.mix.controller import Shares, normalised


class Forgetting:
    """The controller; see the module's formula.

    Args:
        initial: Shares at the start, those of fixed-ratio replay.
        tilt: How much of the replay follows the forgetting, 0 (none: fixed shares) to 1 (all of it).
    """

    def __init__(self, initial: Mapping[str, float], *, tilt: float = 0.5) -> None:
        self.initial = normalised(initial)
        self.tilt = tilt
        self.base: Shares | None = None
        self.now: Shares = {}

    def weights(self) -> Shares:
        forgotten = self.forgotten()
        total = math.fsum(self.initial[d] * forgotten[d] for d in self.initial)
        if total <= 0:
            return dict(self.initial)
        tilted = {d: p * forgotten[d] / total for d, p in self.initial.items()}
        return normalised({d: (1 - self.tilt) * p + self.tilt * tilted[d] for d, p in self.initial.items()})

    def forgotten(self) -> Shares:
        """Nats a token by which each topic is worse than at the first measurement, or 0."""
        base = self.base or {}
        found = {d: max(self.now[d] - base[d], 0.0) for d in base}
        measured = math.fsum(self.initial[d] for d in found)
        mean = math.fsum(self.initial[d] * f for d, f in found.items()) / measured if measured else 0.0
        return {d: found.get(d, mean) for d in self.initial}

    def update(self, losses: Mapping[str, float]) -> None:
        """Losses, or KL to the base, of the topics that are measured, now. The first are those of the base.

        Raises:
            RecipeError: One is no number, or none is of a topic of the mix.
        """
        self.now = {d: float(losses[d]) for d in self.initial if d in losses}
        for domain, loss in self.now.items():
            if not math.isfinite(loss):
                raise RecipeError(f"topic '{domain}' has no usable loss ({loss})")
        if not self.now:
            raise RecipeError(
                "no topic of the replay is measured", where="train.mixture.controller", hint=", ".join(self.initial)
            )
        if self.base is None:
            self.base = dict(self.now)

    def state_dict(self) -> dict[str, Any]:
        return {"base": self.base, "now": self.now}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.base, self.now = state["base"], dict(state["now"])


def missing(shares: Shares, initial: Shares, left: float, fresh: Mapping[str, float]) -> Shares:
    """Tokens that the rest of a training will ask of each topic beyond what it has not yet seen.

    Only of topics whose share has risen: the others' replay is what it would be at a fixed ratio.

    Args:
        shares: Now.
        initial: At the start.
        left: Replay tokens that are still to be drawn.
        fresh: Tokens of each topic that no step has seen yet.
    """
    return {
        d: max(0.0, share * left - fresh.get(d, 0.0)) if share > initial[d] + 1e-12 else 0.0
        for d, share in shares.items()
    }
