"""Who decides, while a model trains, which domain the next row comes from: the contract, and the mixtures that never
change.

A controller knows nothing about rows or models. The trainer measures each domain's loss on held-out rows every so
often and tells it; the controller answers with shares of the training tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from regrow.errors import RecipeError

Shares = dict[str, float]


class Mixture(Protocol):
    """Shares of the training tokens by domain; they are positive or zero and add up to one."""

    def weights(self) -> Shares:
        """What is asked for now."""
        ...

    def update(self, losses: Mapping[str, float]) -> None:
        """Take notice of the domains' held-out losses (nats a token), measured now. The first call is before the
        first step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as JSON values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        ...


class Static:
    """Shares that stay as they are (``uniform``, ``inverse``, ``constant``)."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        self._shares = normalised(shares)

    def weights(self) -> Shares:
        return dict(self._shares)

    def update(self, losses: Mapping[str, float]) -> None:
        """Nothing: that is the point."""

    def state_dict(self) -> dict[str, Any]:
        return {"shares": dict(self._shares)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._shares = dict(state["shares"])


def normalised(weights: Mapping[str, float]) -> Shares:
    """Weights as shares that add up to one.

    Raises:
        RecipeError: One is negative or no number, or all are zero.
    """
    for domain, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise RecipeError(f"the weight of '{domain}' is {weight}, not a number of 0 or more")
    total = math.fsum(weights.values())
    if total <= 0:
        raise RecipeError("all domains have weight 0")
    return {domain: weight / total for domain, weight in weights.items()}


def inverse(shares: Mapping[str, float]) -> Shares:
    """``(1 - w) / sum(1 - w)``: most for what the model knows least (a baseline of VersaTune's code)."""
    return normalised({domain: 1.0 - share for domain, share in normalised(shares).items()})


def require_losses(domains: Mapping[str, Any], losses: Mapping[str, float]) -> None:
    """Every domain must have a finite, positive loss.

    Raises:
        RecipeError: One has none.
    """
    for domain in domains:
        if not (math.isfinite(losses.get(domain, math.nan)) and losses[domain] > 0):
            raise RecipeError(f"domain '{domain}' has no usable loss ({losses.get(domain)})")
