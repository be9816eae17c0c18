"""The ``probe`` section of a recipe, read by `regrow probe`.

[P] marks a value that the paper states, [C] one of the authors' released code, [M] one that we only remember, [G] one
that is open there and that we chose.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regrow.engines.config import EngineName
from regrow.section import Section


class MinKConfig(Section):
    """Min-K% (arXiv 2310.16789) and Min-K%++ (arXiv 2404.02936): has the model seen a text?"""

    k: float = Field(default=0.2, gt=0, le=1)
    """Share of a text's tokens, the least likely ones, whose scores are averaged [C]."""
    max_tokens: int = Field(default=512, ge=2)
    """Longer texts are cut to their first tokens: scores of texts of unlike length cannot be compared well [G]."""
    form: Literal["plain", "chat"] = "plain"
    """plain: the text of a row as one document, as a web page would hold it; chat: rows in the model's chat template,
    answers scored, as fine-tuning would hold them."""
    lowercase: bool = True
    """Also score the text in lower case, for the baseline of that name. Doubles the work."""
    fpr: float = Field(default=0.05, gt=0, lt=1)
    """Share of the control texts that may be flagged by mistake; sets the threshold [C: TPR is reported at 5 %]."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples behind each interval."""


class MasteryConfig(Section):
    """SliCK (arXiv 2405.05904): how well is each fact known?"""

    prompts: int = Field(default=10, ge=1)
    """Random few-shot prompts a question [P]. Fewer label more facts as Unknown."""
    shots: int = Field(default=4, ge=1)
    """Answered questions in front of each question [P]."""
    samples: int = Field(default=16, ge=1)
    """Sampled answers a prompt, beside the greedy one [P]."""
    temperature: float = Field(default=0.5, gt=0)
    """Of the sampled answers [P]."""
    top_k: int = Field(default=40, ge=0)
    """Of the sampled answers; 0 is off [M]."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Cap of an answer in tokens; long enough for a name or a date [G]."""
    sample: Literal["needed", "all"] = "needed"
    """needed: answers are sampled only for questions that no greedy answer got right, since the others' category is
    settled (up to seventeen times fewer answers, the same categories); all: for every question [P]."""
    pool: Literal["relation", "file"] = "relation"
    """Where the shots come from: rows with the same `relation` column (the whole file when there is none) [P], or
    any."""
    form: Literal["auto", "chat", "plain"] = "auto"
    """plain: `Q: ... A: ...` lines, for base models; chat: turns of the chat template; auto: chat when the model has a
    template [G]."""
    column: str = "mastery"
    """Name of the column that is written; two more begin with it (`mastery_greedy`, `mastery_sampled`)."""
    engine: EngineName = "auto"
    """As `grow.engine`; an engine on a server takes its address from `grow.server` and `grow.serve`."""
    batch_items: int = Field(default=16, ge=1)
    """Questions asked together; what a killed run loses at most."""


class DomainsConfig(Section):
    """VersaTune's domain knowledge distribution (arXiv 2411.11266): what does a model say when nobody asks?"""

    samples: int = Field(default=200, ge=1)
    """Texts sampled in each repetition. The released code takes 10,000 [C]; 3 x 200 give shares to about four points
    and are minutes on a CPU [G]."""
    repeats: int = Field(default=3, ge=1)
    """Repetitions with other random numbers; their spread is shown [M: that there are some; their number is ours]."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Cap of a text. The released code allows 16,000 [C]; the embedded judge reads no more than 256 word pieces."""
    temperature: float = Field(default=1.0, gt=0)
    """1 samples the model's own distribution [C]."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """1 is off [C]."""
    start: str = "auto"
    """What the texts start from. auto: the beginning-of-text token, or the end-of-text token where the former opens
    turns (ChatML) [C: the released code starts from the end token]; user: an open user turn, so that the model says
    what it would ask; anything else is used as it stands."""
    labels: Literal["soft", "hard"] = "soft"
    """soft: mean probability of each domain [P]; hard: share of the likeliest domain [C]. Both are written."""
    test_size: float = Field(default=0.25, gt=0, lt=1)
    """Share of the labelled texts held out of the judge's training to measure it [G]."""
    folds: int = Field(default=5, ge=2)
    """Folds of the cross-validation that picks the judge's regularisation [G]."""
    encoder: str = "minilm"
    """Sentence encoder of the judge: minilm, a folder or a hub name."""
    bootstrap: int = Field(default=10_000, ge=100)
    """Resamples behind each interval."""
    engine: EngineName = "auto"
    """As `grow.engine`; an engine on a server takes its address from `grow.server` and `grow.serve`."""


class SkillsConfig(Section):
    """Skill-It's graph of skills (arXiv 2307.14430): what does training on one help the others?"""

    steps: int = Field(default=50, ge=1)
    """Optimizer steps on each skill alone; enough that its own loss falls clearly [G]."""
    holdout_rows: int = Field(default=16, ge=1)
    """Rows of each skill that are measured on and not trained on; at most a quarter of a skill [G]."""
    min_drop: float = Field(default=0.01, ge=0, lt=1)
    """A smaller relative drop of a loss is no edge: nearly any training moves nearly any loss a little [G]."""


class ProbeConfig(Section):
    """What a model knows, asked before anything is trained. Read by `regrow probe` only."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Level of the intervals."""
    min_k: MinKConfig = MinKConfig()
    mastery: MasteryConfig = MasteryConfig()
    domains: DomainsConfig = DomainsConfig()
    skills: SkillsConfig = SkillsConfig()
