"""The recipe section of the curate stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from regrow.section import Section

Share = Annotated[float, Field(ge=0, le=1)]
DIALOGUE_TOKENS = 256
"""Tokens of a grown dialogue, for planning only: a question and an answer at their usual caps."""
Cosine = Annotated[float, Field(gt=0, le=1)]


class CurateConfig(Section):
    """What is removed from a grown corpus, and how much of it is held out."""

    dedup_method: Literal["minhash", "embedding", "both", "none"] = "both"
    """How near-duplicates are found: by shared words (`minhash`), by meaning (`embedding`), either, or not at all.
    Both by default: shared words catch long copies that a sentence encoder truncates, meaning catches rewordings."""

    dedup_threshold: Cosine = 0.95
    """Cosine similarity of question + answer from which two turns are duplicates by meaning. High on purpose: growing
    already keeps siblings apart, and questions on one topic are alike without being the same."""

    minhash_threshold: Cosine = 0.8
    """Jaccard similarity of the sets of three-word shingles from which two turns are duplicates by words.
    0.8 is what large web corpora are deduplicated at (Lee et al. 2022, arXiv 2107.06499)."""

    min_answer_tokens: int = Field(default=2, ge=0)
    """Shortest answer kept, in the model's tokens. Two by default: `Yes.` is an answer, a lone full stop is not."""

    max_answer_tokens: int | None = Field(default=None, ge=1)
    """Longest answer kept, in the model's tokens. No bound by default: growing caps the length of each layer."""

    max_repeated_ngrams: Share = 0.3
    """Largest share of a text's four-word sequences that occur earlier in the same text. Looping samples exceed it."""

    min_alphanumeric: Share = 0.5
    """Smallest share of letters and digits among the visible characters. Half by default: code and tables stay above
    it, rows of punctuation do not. Languages without spaces are letters too."""

    max_question_copy: Share = 0.9
    """Largest share of an answer's four-word sequences that were copied from its question."""

    min_mean_logprob: float | None = Field(default=None, le=0)
    """Drop answers whose mean token log-probability (nats) is below this. Off by default: the scale depends on the
    model and on the temperature it was sampled at."""

    max_mean_logprob: float | None = Field(default=None, le=0)
    """Drop answers whose mean token log-probability (nats) is above this: text the model has by heart, such as a
    licence. Off by default."""

    ngram: int = Field(default=13, ge=2)
    """A corpus turn that shares this many consecutive words with an evaluation item is dropped. 13 as for GPT-3
    (Brown et al. 2020, appendix C). Items shorter than this must occur whole, case and punctuation aside."""

    embedding_threshold: Cosine | None = 0.9
    """Cosine similarity from which a corpus turn is a paraphrase of an evaluation item and dropped; null turns it off.
    A question is compared with the items' questions, an answered question with their questions + answers."""

    holdout_dialogues: int | float = Field(default=0.1, ge=0)
    """How much of the corpus is held out as the suite `own-dialogues` and never trained on: a number of dialogues (an
    integer) or a share of the first-question bushes (a float below 1). Whole bushes (a first question and everything
    that grew from it) are held out, never more than half of them."""

    holdout_per_bush: int = Field(default=4, ge=1)
    """Dialogues of one held-out bush that become evaluation items. Paths of one bush share their beginning, so many of
    them would be one measurement counted many times; the others are held out as well and evaluated nowhere."""

    watch_dialogues: int = Field(default=0, ge=0)
    """Dialogues of each topic that are held out to be measured while a model trains (`watched.parquet`), for
    `train.mixture.controller: forgetting` and the stability gap. Others than those of `holdout_dialogues`: what
    training is steered by must not be what it is judged by. Whole bushes, at most a quarter of a topic's, and at most
    `holdout_per_bush` dialogues of each. 8 is a start [G]; 0: no monitor."""

    @field_validator("holdout_dialogues")
    @classmethod
    def _number_or_share(cls, value: int | float) -> int | float:
        if isinstance(value, float) and value >= 1:
            if not value.is_integer():
                raise ValueError("a number of dialogues is an integer, a share is below 1")
            return int(value)
        return value

    @property
    def holdout_tokens(self) -> int:
        """Tokens to grow on top of what the mix needs when a number of dialogues is held out: an estimate, as nothing
        is grown yet. 0 for a share, which the spare that is grown anyway covers."""
        return 0 if isinstance(self.holdout_dialogues, float) else self.holdout_dialogues * DIALOGUE_TOKENS
