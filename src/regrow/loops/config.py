"""The recipe sections ``auto``, ``regrowth``, ``sweep`` and ``gradual``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from regrow.arms import at_ratio
from regrow.section import Section


def _comparable(ratios: list[float]) -> list[float]:
    if odd := [r for r in ratios if not 0 <= r < 1]:
        raise ValueError(f"{odd[0]:g} is no share of the tokens; ratios are 0 or more and less than 1")
    if 0 not in ratios or len(ratios) < 2:
        raise ValueError("it needs 0, the plain model that the others are compared with, and one ratio more")
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
    Needs ``curate.watch_dialogues``, and ``train.mixture.controller: forgetting`` or ``sweep.regrown``."""

    tokens: int = Field(default=0, ge=0)
    """Budget in tokens of distinct turns, over all rounds [G]. 0: no growth; the mixture alone follows the
    forgetting."""
    every_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between two looks at what is missing, taken up to the next measurement. null: every second
    measurement [G]."""
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
    regrown: bool = False
    """Beside each ratio a model more with as many replay tokens, whose replay follows what is being forgotten
    (``train.mixture``'s ``forgetting``) and grows on up to ``regrowth.tokens``. Needs ``curate.watch_dialogues``."""
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


class StageTwoConfig(Section):
    """The second stage of gradual fine-tuning: what it trains on, and how gently."""

    epochs: int = Field(default=3, ge=1)
    """Passes over the set of stage 2; the best one on the dev part is kept. The paper finds it after 1 to 3 [R]."""
    augment: bool = True
    """Add facts that were WeaklyKnown or Unknown and that stage 1 raised to MaybeKnown [R]."""
    replay: Literal["highly-known", "corpus", "none"] = "highly-known"
    """What is mixed in so that nothing is forgotten. highly-known: HighlyKnown facts of your file [R]; corpus:
    dialogues of a grown corpus (ours); none."""
    replay_ratio: float = Field(default=0.2, ge=0, lt=1)
    """How much of it [R]."""
    replay_of: Literal["stage", "pool"] = "stage"
    """What the ratio of HighlyKnown facts is a share of. stage: all facts of stage 2, replay included; pool: the
    HighlyKnown facts there are. It is not known which of them the paper's 0.2 means; stage is a guess [G]. A corpus is
    always mixed by `stage`, in `mix.replay_unit`."""
    corpus: str = ""
    """The folder of the grown corpus, for `replay: corpus`."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; null takes half of stage 1's [G]. The paper has a lower one than in stage 1, 1.5e-4 with
    LoRA [R]; stage 1's was not found."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's weight decay; the paper has some [R], its value was not found [G]."""

    @model_validator(mode="after")
    def _corpus_and_replay(self) -> StageTwoConfig:
        if (self.replay == "corpus") != bool(self.corpus):
            raise ValueError("replay: corpus and corpus: FOLDER belong together")
        return self


class GradualConfig(Section):
    """Gradual fine-tuning by mastery (arXiv 2410.05802). Read by `regrow gradual` only; how facts are classified
    stands in `probe.mastery`, how models are trained in `train`."""

    dev: str | float | int = 0.1
    """Questions that choose the best epoch and are never trained on: a file, or how many of yours are held out (a
    share below 1, or a number)."""
    test: str | float | int = 0.1
    """Questions that are asked once all models are finished and that decide nothing: a file, a share or a number."""
    shots: int = Field(default=4, ge=0)
    """Answered questions (of the training part) in front of each dev and test question; 0 asks them bare. The paper's
    test prompts have other questions of the same type in them [R]."""
    epochs: int = Field(default=10, ge=1)
    """Passes of stage 1 over the MaybeKnown facts, and of the one-stage arm over all. The best one on the dev part is
    kept; the paper finds it at about 8 [R]."""
    stage2: StageTwoConfig = StageTwoConfig()
    control: bool = True
    """Classify the untrained model a second time, with other prompts. How many facts move is what a stage must exceed.
    Costs one more classification."""
    one_stage: bool = True
    """Also train on all facts at once, to compare with. Costs one more training and one more classification."""
    law: bool = True
    """Ask all trained facts after each epoch, to see which are fitted, and fit SliCK's linear law. Costs one answer a
    fact and epoch."""

    @field_validator("dev", "test")
    @classmethod
    def _some(cls, value: str | float | int) -> str | float | int:
        fits = value != "" if isinstance(value, str) else 0 < value < (1 if isinstance(value, float) else float("inf"))
        if not fits:
            raise ValueError("a file, a share between 0 and 1, or a number of questions from 1")
        return value
