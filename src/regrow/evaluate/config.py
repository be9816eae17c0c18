"""The recipe section ``evaluate``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from regrow.section import Section

DEFAULT_SUITES = ("facts", "own-dialogues", "heldout")
WRITTEN_SUITES = ("instructions", "refusals")
"""Every model has to write every answer, which takes far longer than scoring, so they are only run when named."""
EMBEDDED_SUITES = (*DEFAULT_SUITES, *WRITTEN_SUITES)
AFTER_SUITES = (
    "gain_suites",
    "max_dialogues",
    "generate_samples",
    "max_new_tokens",
    "noise_floor",
    "bootstrap",
    "confidence",
    "assumed_discordance",
)
"""Keys that decide nothing about which items there are, only about what is done with them after training."""
SuiteName = Annotated[str, Field(min_length=1)]


class EvalConfig(Section):
    """What is measured, on how many items, and how intervals are made."""

    suites: list[SuiteName] = Field(default_factory=lambda: list(DEFAULT_SUITES))
    """``facts`` (embedded retention suite), ``own-dialogues`` (the base's own held-out trees), ``heldout`` (your rows
    that were kept out of training), ``instructions`` (embedded; is the asked-for form kept), ``refusals`` (embedded;
    what is refused and what is not), ``lm-eval:TASK`` for any lm-eval task, ``file:PATH`` for a local JSONL file,
    ``recipe:PATH`` for a YAML file that says how one is asked and judged."""

    gain_suites: list[SuiteName] = Field(default_factory=lambda: ["heldout"])
    """Suites in which an improvement is what training was for. The first of them that has items is the gain; all other
    suites measure what was kept."""

    n_facts: int = Field(600, ge=24)
    """Items of suite ``facts`` to keep out of those the base gets right, balanced over domains: what share of the
    facts it knew remains. Any change reads as a loss there."""

    pool_sample: int = Field(600, ge=0)
    """Items drawn from the whole candidate pool, right or wrong, as suite ``facts-pool``: the change in knowledge
    without the selection effect, which the verdict is about. 0 switches it off."""

    n_instructions: int = Field(120, ge=20, le=1000)
    """Items of suite ``instructions``. Every model writes up to 160 tokens for each."""

    max_heldout: int = Field(200, ge=1)
    """Held-out rows to score; more are sampled down with the run's seed."""

    max_dialogues: int = Field(120, ge=1)
    """Held-out dialogues of the base's own trees to score; more are sampled down with the run's seed."""

    short_answer_words: int = Field(12, ge=0)
    """Held-out rows are scored by exact match when at least nine in ten of their answers have no more words than this;
    otherwise by token loss and ROUGE-L."""

    max_length: int = Field(1024, ge=16)
    """Longest dialogue in tokens; longer ones are scored up to here."""

    generate_samples: int = Field(16, ge=0)
    """Items a suite on which every arm really writes its answer, for the page that shows them side by side and for
    exact match and ROUGE-L of generated text. 0 switches generation off."""

    max_new_tokens: int = Field(24, ge=1)
    """Longest generated answer to a short question, in tokens. Dialogues get four times as many."""

    batch_tokens: int = Field(512, ge=32)
    """Tokens in one forward pass. More needs more memory (tokens x vocabulary x 4 bytes for dialogues) and gains
    little on a CPU."""

    noise_floor: bool = True
    """Score the base a second time in other batches, and count no difference that is not larger than what
    this changes."""

    bootstrap: int = Field(10_000, ge=100)
    """Resamples behind each interval."""

    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    """Level of the intervals and of the word "significant"."""

    assumed_discordance: float = Field(0.15, gt=0, le=1)
    """Share of the 0/1 items whose result a training is assumed to change in either direction. Before anything is
    scored it gives the smallest difference that so many items can find."""

    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Number format for scoring. Rounding in bfloat16 flips near ties, so differences drown in noise sooner."""

    device: str = "auto"
    """``auto`` (CUDA, then MPS, then CPU) or a torch device."""

    lm_eval_limit: int | None = Field(None, ge=1)
    """First N documents of each lm-eval task; all when empty."""

    lm_eval_include_path: str | None = None
    """Folder of your own lm-eval task files (YAML)."""

    lm_eval_num_fewshot: int | None = Field(None, ge=0)
    """Few-shot examples for lm-eval tasks; the task's own default when empty."""

    lm_eval_batch_size: int = Field(16, ge=1)
    """Batch size inside lm-eval."""

    lm_eval_chat_template: bool = False
    """Wrap lm-eval's prompts in the model's chat template."""

    @field_validator("suites")
    @classmethod
    def _known_suites(cls, value: list[str]) -> list[str]:
        for name in value:
            kind, _, rest = name.partition(":")
            if name not in EMBEDDED_SUITES and not (kind in ("lm-eval", "file", "recipe") and rest):
                raise ValueError(
                    f"unknown suite '{name}': expected {', '.join(EMBEDDED_SUITES)}, lm-eval:TASK, file:PATH or "
                    "recipe:PATH"
                )
        if len(set(value)) != len(value):
            raise ValueError("a suite is named twice")
        return value
