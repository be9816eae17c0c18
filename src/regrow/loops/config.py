"""The recipe sections ``auto``, ``regrowth`` and ``sweep``."""

from __future__ import annotations

from pydantic import Field, field_validator

from regrow.arms import at_ratio
from regrow.section import Section


def _comparable(ratios: list[float]) -> list[float]:
    if odd := [r for r in ratios if not 0 <= r < 1]:
        raise ValueError(f"{odd[0]:g} is no share of the tokens; ratios are 0 or more and less than 1")
    if 0 not in ratios or len(ratios) < 2:
        raise ValueError("0, the plain model that the others are compared with, and one ratio more are needed")
    if len({at_ratio(r) for r in ratios}) < len(ratios):
        raise ValueError("a ratio stands twice")
    return sorted(ratios)


class AutoConfig(Section):
    """A pilot on some of your rows chooses the replay ratio and what the corpus is about (``regrow tune --auto``)."""

    pilot_rows: int = Field(default=0, ge=0)
    """Rows of the pilot, drawn from those to train on: at most half of them, at least 40. 0: no pilot."""
    replay_ratios: list[float] = Field(default_factory=lambda: [0.0, 0.1, 0.2, 0.4])
    """The ratios that the pilot tries, a training each; 0 among them. The one it chooses stands in place of
    ``mix.replay_ratio``."""
    watch_dialogues: int = Field(default=2, ge=0)
    """Dialogues of each topic on which the pilot measures what plain fine-tuning forgets; topics that it forgets more
    of get a larger share of the corpus (by ``train.mixture.tilt``). 0: equal shares, or those of ``grow.quota``."""

    @field_validator("replay_ratios")
    @classmethod
    def _known(cls, ratios: list[float]) -> list[float]:
        return _comparable(ratios)


class RegrowthConfig(Section):
    """More branches for topics that are being forgotten, grown out of the original model while another is trained.
    Needs ``train.mixture.controller: forgetting`` and ``curate.watch_dialogues``."""

    tokens: int = Field(default=0, ge=0)
    """Budget in tokens of distinct turns, over all rounds [G]. 0: no growth; the mixture alone follows the
    forgetting."""
    every_steps: int = Field(default=100, ge=1)
    """Optimizer steps between two looks at what is missing (taken up to the next measurement) [G]."""
    min_tokens: int = Field(default=500, ge=1)
    """Tokens that must be missing for a round. A round stops the training, loads the original model, and loads the
    trained one again; for less than a few dialogues that does not pay [G]."""


class SweepConfig(Section):
    """Several replay ratios in one run: one corpus, the same items for every model, and a ratio recommended."""

    replay_ratios: list[float] = Field(default_factory=list)
    """The ratios to train with, 0 (plain SFT, which the others are compared with) among them; they stand in place of
    ``mix.replay_ratio``. Empty: no sweep."""
    equal_tokens: bool = False
    """Every model trains on as many tokens as the one with the most replay: those with less replay pass over your data
    more often. Off: every model sees your data equally often, and more replay is more training."""
    margin: float = Field(default=2.0, ge=0)
    """A difference between two ratios that does not matter to you, in points of a score between 0 and 100: forgetting
    that you would accept for less replay, learning that you would give up for more. Our choice; 600 items resolve it
    when two models differ on one in twenty of them."""
    margin_nats: float = Field(default=0.1, ge=0)
    """The same where a suite is measured in nats per token. Our choice: a tenth of a nat makes each token about a
    tenth less likely."""

    @field_validator("replay_ratios")
    @classmethod
    def _known(cls, ratios: list[float]) -> list[float]:
        return _comparable(ratios) if ratios else ratios
