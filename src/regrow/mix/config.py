"""The recipe section ``mix``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regrow.section import Section


class MixConfig(Section):
    """How much replay is mixed into your data, and how its tokens count."""

    replay_ratio: float = Field(default=0.2, ge=0, lt=1)
    """Share of the final training tokens that is replay, 0 up to (not including) 1. The paper mixes 100 K dialogues
    into 665 K rows, 13 % of the rows; a small model and narrow data need more. `regrow tune` reports
    asked and realised."""

    replay_unit: Literal["tokens", "rows"] = "tokens"
    """What the ratio counts. Tokens by default: a replay dialogue can be ten times as long as one of your rows."""

    tree_loss: Literal["paths", "once"] = "paths"
    """Dialogues of one tree share their beginnings. ``paths`` trains every dialogue in full, as in the paper, so that
    a shared answer counts once for each dialogue through it; ``once`` divides its weight by their number."""

    tree_packing: bool = False
    """Put replay dialogues of one tree next to each other, as many as have ``max_length`` unique tokens together,
    and train them as one sequence in which a shared beginning is computed once. The same dialogues are drawn, and the
    gradient is that of the dialogues one by one; but a tree is one element of the batch, so that steps get fewer and
    more uneven. Off by default: it pays where many paths of a tree are drawn and ``max_length`` holds several."""

    max_length: int = Field(default=1024, ge=16)
    """Longest example in tokens. A longer dialogue loses its last turns; one whose first turn is too long is left out.
    A longer plain text of yours is cut into pieces. All are counted."""

    assistant_only_loss: bool = True
    """Train on what the assistant says (and on the token that ends it). Off: on every token of your rows; replay rows
    always train on the assistant only."""

    system_prompt: str | None = None
    """System prompt of examples that have none of their own; null leaves it to the chat template, which is how the
    tuned model will be used. Replay is rendered with the same one, so that it protects the model under that prompt."""

    max_repeats: int = Field(default=4, ge=1)
    """How often one replay dialogue may be used when the corpus is too small for the ratio; up to four passes over the
    same data are nearly as good as new data (Muennighoff et al. 2023, arXiv 2305.16264). Beyond that the realised
    ratio stays below the one asked for, and the run says so."""
