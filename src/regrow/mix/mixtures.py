"""The recipe section that names a mixture over domains, and the controller it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from regrow.errors import RecipeError
from regrow.mix.controller import Mixture, Static, inverse, normalised
from regrow.mix.forgetting import Forgetting
from regrow.mix.skill_it import SkillIt, diagnosis
from regrow.mix.versatune import Expansion, Fostering, Rule
from regrow.progress import note
from regrow.section import Section

WATCHED = "watched.parquet"
"""Beside a mix's ``train.parquet``, in the same columns: rows that the trainer measures and never trains on."""

Controller = Literal["none", "constant", "uniform", "inverse", "fostering", "expansion", "skill-it", "forgetting"]


class MixtureSection(Section):
    """Which domain the next training row comes from, decided while training. Off by default: rows then come in the
    order the mix stage laid them out."""

    controller: Controller = "none"
    """``constant``: the shares in ``weights``. ``uniform``, ``inverse``: equal shares, or ``(1 - w) / sum(1 - w)``.
    ``fostering`` and ``expansion``: VersaTune's updates by what can still be learned and what is being forgotten.
    ``skill-it``: multiplicative weights over a graph of skills. ``forgetting``: your rows stay where they are, and
    within the replay the topics that are being forgotten get more (needs ``curate.watch_dialogues``). ``none``: no
    control."""
    by: Literal["domain", "source"] = "domain"
    """What counts as a domain: the row's domain label (for replay its topic), or only yours (``domain``) against
    ``replay``."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Initial weights by domain, any scale; all domains must be named. Empty: the shares of tokens in the mix.
    `regrow probe domains` measures what the model itself knows."""
    update_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between two measurements of the domains' losses; also of what curation held out to be watched,
    whatever the controller. null: a tenth of the training, at most 50. Our choice."""
    holdout_rows: int = Field(default=8, ge=1)
    """Rows of each domain that are measured on and never trained on; at most a quarter of a domain."""
    target: str | None = None
    """``expansion``: the domain to expand into. ``skill-it``: the one skill that is wanted; null wants all."""
    reference: dict[str, float] = Field(default_factory=dict)
    """``fostering``, ``expansion``: loss in nats a token that a domain could be brought to; 0 where none is named."""
    rule: Rule = "paper"
    """``fostering``: the paper's update by potential, or the released code's ``w * exp(loss)``."""
    sigma: float = Field(default=0.5, ge=0)
    """``fostering``, ``expansion``: size of a step. Not in the paper; our choice."""
    delta: float = Field(default=0.1, gt=0, le=1)
    """``expansion``: what the target's share gains at a time. Not in the paper; our choice."""
    epsilon: float = Field(default=0.5, ge=0)
    """``expansion``: the target grows while the others forget less than this times its potential. Our choice."""
    max_share: float = Field(default=0.9, gt=0, lt=1)
    """``expansion``: the target's largest share. Our choice."""
    graph: dict[str, dict[str, float]] = Field(default_factory=dict)
    """``skill-it``: skill i -> skill j -> how much training on i helps j."""
    eta: float = Field(default=0.5, ge=0)
    """``skill-it``: size of the tilt; the authors use 0.1 to 0.8."""
    window: int = Field(default=3, ge=1)
    """``skill-it``: measurements that count; the authors' 3. The one before the first step never does."""
    looks: int = Field(default=1, ge=1)
    """``skill-it``: measurements between two changes of the shares. The authors' LEGO script has 20, so that its
    window is of the last moments alone; with so many set ``update_steps`` too. 1 costs the fewest measurements."""
    tilt: float = Field(default=0.5, ge=0, le=1)
    """``forgetting``: how much of the replay follows the forgetting; every topic keeps ``1 - tilt`` of its share.
    [G]: half, so that no topic can lose more than half of its replay to a noisy measurement."""
    signal: Literal["kl", "loss"] = "kl"
    """``forgetting``: what is measured on the watched dialogues. ``kl``: from the model as it was at the first step
    to the model now, over its 64 likeliest tokens and the rest as one. ``loss``: the growth of the cross-entropy,
    which also sees what the model merely says otherwise, and is noisier."""

    @model_validator(mode="after")
    def _complete(self) -> MixtureSection:
        if self.controller == "constant" and not self.weights:
            raise ValueError("controller: constant needs weights")
        if self.controller == "expansion" and self.target is None:
            raise ValueError("controller: expansion needs target, the domain to expand into")
        if self.controller == "skill-it" and not self.graph:
            raise ValueError("controller: skill-it needs graph; without one it is `uniform`")
        if self.controller == "forgetting" and self.by == "source":
            raise ValueError("controller: forgetting tells topics apart; by: source has one")
        return self


def make_mixture(cfg: MixtureSection, shares: Mapping[str, float]) -> Mixture:
    """The controller of a training run.

    Args:
        cfg: The section; its controller is not ``none``.
        shares: Domain -> share of tokens in the mix, the initial weights unless the section has others.

    Raises:
        RecipeError: A domain is named that the mix does not have, or one of the mix is missing.
    """
    domains = list(shares)
    for key, named in (("weights", cfg.weights), ("reference", cfg.reference), ("graph", cfg.graph)):
        if odd := sorted(set(named) - set(domains)):
            raise RecipeError(
                f"'{odd[0]}' is not a domain of this mix", where=f"train.mixture.{key}", hint=", ".join(domains)
            )
    for key, named in (("weights", cfg.weights), ("graph", cfg.graph if cfg.controller == "skill-it" else {})):
        if named and (missing := sorted(set(domains) - set(named))):
            raise RecipeError(f"domain '{missing[0]}' has no entry", where=f"train.mixture.{key}")
    if cfg.target is not None and cfg.target not in domains:
        raise RecipeError(
            f"'{cfg.target}' is not a domain of this mix", where="train.mixture.target", hint=", ".join(domains)
        )
    initial = normalised(cfg.weights or shares)
    if cfg.controller == "constant":
        return Static(initial)
    if cfg.controller == "uniform":
        return Static(dict.fromkeys(domains, 1.0))
    if cfg.controller == "inverse":
        return Static(inverse(initial))
    if cfg.controller == "fostering":
        return Fostering(initial, cfg.reference, sigma=cfg.sigma, rule=cfg.rule)
    if cfg.controller == "forgetting":
        return Forgetting(initial, tilt=cfg.tilt)
    if cfg.controller == "expansion":
        return Expansion(
            initial, str(cfg.target), cfg.reference,
            sigma=cfg.sigma, delta=cfg.delta, epsilon=cfg.epsilon, max_share=cfg.max_share,
        )  # fmt: skip
    if said := diagnosis(cfg.graph):
        note(f"mixture: {said}")
    graph = {i: cfg.graph[i] for i in domains}
    targets = [cfg.target] if cfg.target else None
    return SkillIt(
        graph, eta=cfg.eta, window=cfg.window, looks=cfg.looks, targets=targets, initial=cfg.weights or None
    )
