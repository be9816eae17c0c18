"""VersaTune's two ways to move domain weights while a model trains (arXiv 2411.11266).

Known from the authors' figures and repository: the learnable potential, the forgetting degree, and the released code's
update. Not known: the exact form of the paper's update and its constants (sigma, delta, epsilon); the forms and
defaults here are our reconstruction, and settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from regrow.errors import RecipeError
from regrow.mix.controller import Shares, normalised, require_losses

Rule = Literal["paper", "code"]


def potential(loss: float, reference: float) -> float:
    """Learnable potential ``max((loss - reference) / loss, 0)``: how much of the loss could still be learned away."""
    return max((loss - reference) / loss, 0.0)


def forgetting_degree(loss: float, before: float) -> float:
    """``max((loss - before) / before, 0)``: how much worse the domain became since the last measurement."""
    return max((loss - before) / before, 0.0)


class Fostering:
    """Multi-ability fostering: domains with more left to learn get more.

    ``paper``: ``w_j <- w_j (1 + sigma * gamma_j)``, normalised, with the potential gamma. ``code``: what the authors
    released, ``w_j <- w_j exp(loss_j)``, normalised; it uses no reference and no sigma.

    Args:
        initial: Shares the model itself shows (`regrow probe domains`), or any others.
        reference: Domain -> loss that could be reached (nats a token). Missing ones count as 0, which is what the
            authors' proxies came close to.
        sigma: Size of a step; 0.5 is our choice.
        rule: Which update.
    """

    def __init__(
        self,
        initial: Mapping[str, float],
        reference: Mapping[str, float] | None = None,
        *,
        sigma: float = 0.5,
        rule: Rule = "paper",
    ) -> None:
        self._shares = normalised(initial)
        self.reference = {domain: (reference or {}).get(domain, 0.0) for domain in self._shares}
        self.sigma, self.rule = sigma, rule
        self._measured = 0

    def weights(self) -> Shares:
        return dict(self._shares)

    def update(self, losses: Mapping[str, float]) -> None:
        """The first measurement is before training and changes nothing: the initial shares hold for one round."""
        require_losses(self._shares, losses)
        self._measured += 1
        if self._measured == 1:
            return
        if self.rule == "code":
            top = max(losses[d] for d in self._shares)
            moved = {d: w * math.exp(losses[d] - top) for d, w in self._shares.items()}
        else:
            moved = {
                d: w * (1.0 + self.sigma * potential(losses[d], self.reference[d])) for d, w in self._shares.items()
            }
        self._shares = normalised(moved)

    def state_dict(self) -> dict[str, Any]:
        return {"shares": dict(self._shares), "measured": self._measured}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._shares, self._measured = dict(state["shares"]), int(state["measured"])


class Expansion:
    """Domain expansion: the target's share rises as long as there is something to learn and the others hold.

    At each measurement, with target e: when ``mean forgetting of the others < epsilon * potential of e`` the target
    gets ``delta`` more, up to ``max_share``; else it stays. The others share the rest by ``w_j (1 + sigma * phi_j)``,
    so that a domain which is being forgotten gets weight back. Reconstructed: the paper's conditions and constants
    were not found.

    Args:
        initial: Shares at the start.
        target: The domain to expand into.
        reference: As in `Fostering`; only the target's is used.
        sigma, delta, epsilon, max_share: 0.5, 0.1, 0.5 and 0.9 are our choices.

    Raises:
        RecipeError: The target is not among the domains, or it is the only one.
    """

    def __init__(
        self,
        initial: Mapping[str, float],
        target: str,
        reference: Mapping[str, float] | None = None,
        *,
        sigma: float = 0.5,
        delta: float = 0.1,
        epsilon: float = 0.5,
        max_share: float = 0.9,
    ) -> None:
        self._shares = normalised(initial)
        if target not in self._shares or len(self._shares) < 2:
            raise RecipeError(f"'{target}' must be one of two or more domains, there are {', '.join(self._shares)}")
        self.target, self.reference = target, (reference or {}).get(target, 0.0)
        self.sigma, self.delta, self.epsilon, self.max_share = sigma, delta, epsilon, max_share
        self._before: Shares | None = None

    def weights(self) -> Shares:
        return dict(self._shares)

    def update(self, losses: Mapping[str, float]) -> None:
        """The first measurement is the point of comparison and changes nothing."""
        require_losses(self._shares, losses)
        now = {d: losses[d] for d in self._shares}
        before, self._before = self._before, now
        if before is None:
            return
        others = [d for d in self._shares if d != self.target]
        forgotten = {d: forgetting_degree(now[d], before[d]) for d in others}
        share = self._shares[self.target]
        if math.fsum(forgotten.values()) / len(others) < self.epsilon * potential(now[self.target], self.reference):
            share = max(share, min(share + self.delta, self.max_share))
        weighed = {d: self._shares[d] * (1.0 + self.sigma * forgotten[d]) for d in others}
        # Others that have come down to nothing share equally what is left.
        rest = normalised(weighed if any(weighed.values()) else dict.fromkeys(others, 1.0))
        self._shares = {d: share if d == self.target else (1.0 - share) * rest[d] for d in self._shares}

    def state_dict(self) -> dict[str, Any]:
        return {"shares": dict(self._shares), "before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._shares, self._before = dict(state["shares"]), state["before"]
