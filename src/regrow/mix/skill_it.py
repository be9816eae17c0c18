"""Skill-It (Chen et al. 2023, arXiv 2307.14430): online multiplicative weights over a graph of skills.

``graph[i][j] > 0`` says that training on skill i lowers the loss of skill j. Every ``looks`` measurements the shares
become

    p_i ~ w0_i * exp(eta * sum_j graph[i][j] * sum over the last `window` measurements of loss_j),

computed from the initial weights each time and not compounded, as the authors' code does; the window of 3 is theirs.
With targets only their columns count, and the window is averaged instead of summed (also theirs).

The loss before the first step never counts. In the authors' code it is long out of the window at the first change
of the shares (they measure twenty times between two changes on LEGO); a model that does not know the format yet starts
at a loss so high that in the window it would give one skill nearly everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from regrow.errors import RecipeError
from regrow.mix.controller import Shares, normalised, require_losses

Graph = Mapping[str, Mapping[str, float]]


class SkillIt:
    """The online mixture.

    Args:
        graph: Skill i -> skill j -> weight of the edge, 0 or more. A missing entry is 0; one on the diagonal is 1.
        eta: Size of the tilt; the authors use 0.1 to 0.8, 0.5 on LEGO.
        window: How many measurements count.
        looks: How many measurements there are between two changes of the shares.
        targets: Skills that are wanted; None wants all.
        initial: Initial weights ``w0``; None is the same for all.

    Raises:
        RecipeError: An edge is negative, or names no skill.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        eta: float = 0.5,
        window: int = 3,
        looks: int = 1,
        targets: Sequence[str] | None = None,
        initial: Mapping[str, float] | None = None,
    ) -> None:
        self.skills = list(graph)
        self.graph = {i: {j: float(graph[i].get(j, 1.0 if i == j else 0.0)) for j in self.skills} for i in self.skills}
        odd = sorted({j for i in self.skills for j in graph[i]} - set(self.skills))
        odd += [t for t in targets or [] if t not in self.graph]
        if odd:
            raise RecipeError(f"'{odd[0]}' is not a skill of the graph", hint=", ".join(self.skills))
        if any(not (math.isfinite(w) and w >= 0) for row in self.graph.values() for w in row.values()):
            raise RecipeError("an edge of the skill graph is negative or no number")
        self.eta, self.window, self.looks = eta, window, looks
        self.targets = list(targets) if targets else None
        self._initial = normalised(initial or dict.fromkeys(self.skills, 1.0))
        self._seen: list[Shares] = []
        self._looked = 0
        self._shares = self._tilted(dict.fromkeys(self.skills, 1.0))

    def weights(self) -> Shares:
        """Until the first change every loss counts as one: ``p_i ~ w0_i exp(eta * sum_j graph[i][j])``."""
        return dict(self._shares)

    def _tilted(self, losses: Mapping[str, float]) -> Shares:
        wanted = self.targets or self.skills
        tilt = {i: self.eta * math.fsum(self.graph[i][j] * losses[j] for j in wanted) for i in self.skills}
        top = max(tilt.values())
        return normalised({i: self._initial[i] * math.exp(tilt[i] - top) for i in self.skills})

    def _windowed(self) -> Shares:
        sums = {j: math.fsum(seen[j] for seen in self._seen) for j in self.skills}
        return {j: s / len(self._seen) for j, s in sums.items()} if self.targets else sums

    def update(self, losses: Mapping[str, float]) -> None:
        require_losses(self.graph, losses)
        self._looked += 1
        if self._looked == 1:
            return
        self._seen = [*self._seen, {j: losses[j] for j in self.skills}][-self.window :]
        if (self._looked - 1) % self.looks == 0:
            self._shares = self._tilted(self._windowed())

    def state_dict(self) -> dict[str, Any]:
        return {"seen": [dict(s) for s in self._seen], "looked": self._looked, "shares": dict(self._shares)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._seen = [dict(s) for s in state["seen"]]
        self._looked, self._shares = int(state["looked"]), dict(state["shares"])


def diagnosis(graph: Graph) -> str | None:
    """Why this graph cannot help, or None: an empty or a full one treats all skills alike (the authors' own note)."""
    skills = list(graph)
    possible = len(skills) * (len(skills) - 1)
    edges = sum(graph[i].get(j, 0.0) > 0 for i in skills for j in skills if i != j)
    if possible and edges == 0:
        return "the skill graph has no edge: no skill helps another, and the mixture follows the losses alone"
    if possible and edges == possible:
        return "the skill graph is full: every skill helps every other, and the order of skills means nothing"
    return None
