"""The recipe section ``regrowth``."""

from __future__ import annotations

from pydantic import Field

from regrow.section import Section


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
