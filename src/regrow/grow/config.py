"""The ``grow`` section of a recipe: every open choice of Tree Generation is a field here.

[P] marks a value or rule that the paper states (arXiv 2406.11354v3), [G] one that it leaves open and that we chose.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from regrow.engines.config import EngineName, RayConfig, ServeConfig, ServerConfig
from regrow.section import Section

NAMED_SHAPES = ("auto", "balance", "wide", "mixed-turns")

DEFAULT_SYSTEM_PROMPT = "You are a knowledgeable and helpful assistant."
DEFAULT_TOPIC_SENTENCE = "The topic of the conversation is {topic}."
DEFAULT_WORLD_SENTENCE = "The topic of the conversation can be any part of the world's knowledge."
DEFAULT_LEAD_IN = "The following text explains something useful to know about {topic}.\n\n"

DEFAULT_REFUSALS = [
    r"^\W*(i'?m|i am|we are|we're) (very |so |really |truly )?(sorry|afraid|unable|not able)\b",
    r"\bas an? (ai|artificial intelligence|large language model|language model|digital assistant)\b",
    r"\bi (can'?t|can ?not|am unable to|am not able to|won'?t) (help|assist|answer|provide|fulfil|comply|engage)\b",
    r"\bi (do not|don't) have (access|the ability|personal|real-time|the capability)",
]


class QuestionSampling(Section):
    """How user turns are sampled. Diversity matters more than polish here."""

    temperature: float = Field(default=0.8, ge=0)
    """Softmax temperature [G]. Small models ask broken questions at 1.0; a large one can be given 1.0 for variety."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus mass; cuts the tail of broken tokens [G]."""
    top_k: int = Field(default=50, ge=0)
    """Only the k likeliest tokens; 0 is off [G]."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Cap of a question in tokens, the same in every question layer [P: one constant m0; its value is ours]."""
    stop: list[str] = Field(default_factory=lambda: ["\n\n"])
    """Strings that end a question besides the model's own end of turn [G]."""


class AnswerSampling(Section):
    """How assistant turns are sampled: closer to the model's mode than questions are."""

    temperature: float = Field(default=0.7, ge=0)
    """Softmax temperature [G]."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus mass [G]."""
    top_k: int = Field(default=0, ge=0)
    """Only the k likeliest tokens; 0 is off [G]."""
    max_new_tokens: list[int] = Field(default_factory=lambda: [256, 512], min_length=1)
    """Cap of an answer in tokens, one number a turn; later turns use the last one. Answers may grow with depth
    [P: L2 < L4 < ...; the numbers are ours]."""

    @field_validator("max_new_tokens", mode="before")
    @classmethod
    def _one_number(cls, value: object) -> object:
        return [value] if isinstance(value, int) else value

    @field_validator("max_new_tokens")
    @classmethod
    def _positive(cls, value: list[int]) -> list[int]:
        if any(v < 1 for v in value):
            raise ValueError("every cap must be at least 1 token")
        return value


class ScreenConfig(Section):
    """What makes a sampled candidate unfit, before semantic deduplication. The paper states no filter [G]."""

    min_words: int = Field(default=3, ge=1)
    """Candidates with fewer words are dropped as ``too short``. Single words answer nothing worth replaying."""
    max_repeated_4gram: float = Field(default=0.3, ge=0, le=1)
    """Share of word 4-grams that repeat an earlier one above which a candidate is dropped as ``repeating``."""
    scripts: list[str] = Field(default_factory=lambda: ["latin"])
    """Writing systems of the corpus, as Unicode names them (``latin``, ``cjk``, ``cyrillic``, ``arabic``, ...). A
    candidate with over ``max_off_script`` of its letters in other scripts is dropped as ``off-language``. Empty: no
    such screen."""
    max_off_script: float = Field(default=0.3, ge=0, le=1)
    """Share of letters outside ``scripts`` that is still accepted, so that quoted words and formulas pass."""
    refusals: list[str] = Field(default_factory=lambda: list(DEFAULT_REFUSALS))
    """Regular expressions (case ignored, searched in the first 200 characters) of refusals. Empty: no such screen."""
    role_leaks: bool = True
    """Drop candidates that hold chat-template markers or lines that begin with ``User:``, ``Assistant:`` and the
    like."""
    question_form: bool = True
    """Drop user turns that speak as the assistant (``Here is ...``, ``Sure, ...``, ``I can help you``): the role flip
    failed there. Counted as ``not a question``."""

    @field_validator("refusals")
    @classmethod
    def _compile(cls, value: list[str]) -> list[str]:
        import re

        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression: {pattern!r} ({error})") from error
        return value


class GrowConfig(Section):
    """Tree Generation: what is grown, how much of it, and what is thrown away."""

    engine: EngineName = "auto"
    """What samples: ``auto`` takes OpenVINO on a CPU where it can read the model, else transformers. ``openai`` asks
    the server at ``server.url``; ``vllm`` and ``llama.cpp`` start a server and stop it with the run.
    ``ray`` spreads the work over a cluster."""
    mode: Literal["chat", "pretrain"] = "chat"
    """``chat`` grows dialogues (TG-SFT); ``pretrain`` grows plain text from a base model without a chat template
    (TG-PT)."""

    shape: str | list[int] = "auto"
    """Most children a parent keeps, layer by layer (odd layers: questions, even: answers). ``balance`` is 32,16,8,8
    [P]; ``auto`` is the proportions of ``balance`` scaled to the dialogues wanted from each topic [G]; ``wide`` is
    independent dialogues [P]; ``mixed-turns`` has 1 to 4 turns, Gaussian-shaped [P]; or a list such as
    ``32,16,8,8``."""
    turns: int = Field(default=2, ge=1, le=16)
    """Turns of a dialogue for the shapes ``auto`` and ``wide``; 2 was best in the paper [P]. A list sets its own."""
    dialogues: int | Literal["all"] | None = None
    """Dialogues wanted in all. Fewer than the whole trees hold: a uniformly random subset of their paths is grown and
    nothing else. ``all``: every path of one tree a topic. Default 1,000 when ``tokens`` is not given either [G]."""
    tokens: int | None = Field(default=None, ge=1)
    """Budget in tokens of distinct kept turns instead of ``dialogues``; reached, and passed by at most the last
    round."""

    topics: list[str] = Field(default_factory=list)
    """One topic a tree. None given: a built-in list of broad fields of knowledge."""
    topics_file: str | None = None
    """A text file with one topic a line (``#`` begins a comment) instead of ``topics``."""
    ask_topics: int = Field(default=0, ge=0, le=500)
    """Ask the model itself for this many topics instead (deduplicated by the encoder)."""
    quota: dict[str, float] = Field(default_factory=dict)
    """Share of the dialogues for each topic (any scale). Empty: equal shares. Without ``topics`` its keys are the
    topics."""

    system_prompt: str = DEFAULT_SYSTEM_PROMPT
    """Root prompt P0: a generic description of the assistant [P: such a prompt; the wording is ours]. Close to what
    chat
    models were tuned with: on a description of two speakers, small models talk about the chat instead of having it."""
    topic_sentence: str = DEFAULT_TOPIC_SENTENCE
    """Last sentence of the root prompt; ``{topic}`` is replaced. Also what first questions are compared with in
    MMR."""
    world_sentence: str = DEFAULT_WORLD_SENTENCE
    """The last sentence for a tree without a topic (topic ``*``) [P: all kinds of world knowledge]."""
    lead_in: str = DEFAULT_LEAD_IN
    """Root text of ``mode: pretrain`` [P: a short lead-in that announces useful knowledge; the wording is ours]."""
    keep_system: bool = False
    """Put the growing prompt (``lead_in`` in pretrain mode) into the written dialogues. Off: training uses the model's
    default rendering, which is what the tuned model will be used with."""

    question: QuestionSampling = Field(default_factory=QuestionSampling)
    """Sampling of user turns."""
    answer: AnswerSampling = Field(default_factory=AnswerSampling)
    """Sampling of assistant turns (and of all text in pretrain mode)."""
    truncated: Literal["drop", "trim"] = "trim"
    """An answer that met its cap: ``trim`` it to its last whole sentence (dropped when it has none), or ``drop`` it. A
    cut question is always dropped. Trimming costs nothing that was sampled; such a node keeps ``finish: length``, so
    that no one trains the model to end there [G]."""

    oversample: float = Field(default=2.0, ge=1, le=16)
    """Candidates sampled for each child wanted, before screens and MMR [G: 2 to 4]. A single child has no siblings to
    differ from: it gets one candidate, and this many in each retry. Shape ``wide`` always samples one."""
    retries: int = Field(default=2, ge=0, le=20)
    """How often a parent with too few survivors is sampled again with fresh seeds before it keeps fewer [G]."""
    refill_rounds: int = Field(default=8, ge=0, le=50)
    """Rounds of new trees that make up for branches that died, so that the budget is met [G]."""
    encoder: str = "minilm"
    """Sentence encoder of the semantic deduplication: ``minilm`` (embedded), a folder, a hub name, or ``none`` (no
    MMR)."""
    mmr_lambda: float = Field(default=0.5, ge=0, le=1)
    """Weight of relevance against novelty in MMR; 1 is relevance alone [G]."""
    max_similarity: float = Field(default=0.9, ge=-1, le=1)
    """Cosine to a kept sibling above which a candidate is dropped whatever its relevance [G]."""
    screen: ScreenConfig = Field(default_factory=ScreenConfig)
    """What makes a candidate unfit."""
    server: ServerConfig = Field(default_factory=ServerConfig)
    """The server that the engines ``openai``, ``vllm`` and ``llama.cpp`` ask."""
    serve: ServeConfig = Field(default_factory=ServeConfig)
    """How the server of ``vllm`` or ``llama.cpp`` is started."""
    ray: RayConfig = Field(default_factory=RayConfig)
    """The cluster, with ``engine: ray``."""

    top_logprobs: int = Field(default=0, ge=0, le=1024)
    """Store the base model's k likeliest tokens and their log-probabilities for every kept token (soft replay; 32 is
    usual). 0: off. Costs one scoring pass over the corpus."""
    top_logprobs_context: Literal["training", "growing"] = "training"
    """What stands before the dialogue in that pass: the tokenizer's default rendering, as in training, or the growing
    prompt. The KL term compares the student with the base on the rows it trains on, so the prompts must be the
    same."""
    batch_nodes: int = Field(default=256, ge=1)
    """Candidates handed to the engine at once (with ``engine: ray``: so many for each worker). Bounds memory; does not
    change what is grown."""

    @field_validator("shape", mode="before")
    @classmethod
    def _parse_shape(cls, value: object) -> object:
        if isinstance(value, str):
            text = value.strip().lower()
            if text in NAMED_SHAPES:
                return text
            parts = [p for p in text.replace("/", ",").split(",") if p.strip()]
            if parts and all(p.strip().isdigit() for p in parts):
                return [int(p) for p in parts]
            raise ValueError(f"a shape is one of {', '.join(NAMED_SHAPES)} or a list such as 32,16,8,8; not {value!r}")
        return value

    @field_validator("shape")
    @classmethod
    def _check_shape(cls, value: str | list[int]) -> str | list[int]:
        if isinstance(value, list) and (not value or any(n < 1 for n in value)):
            raise ValueError("a shape needs at least one layer and at least one child in each")
        return value

    @field_validator("dialogues")
    @classmethod
    def _check_dialogues(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and value < 1:
            raise ValueError("at least 1 dialogue")
        return value

    @field_validator("topic_sentence")
    @classmethod
    def _has_topic(cls, value: str) -> str:
        if "{topic}" not in value:
            raise ValueError("the topic sentence must hold {topic}")
        return value

    @field_validator("quota")
    @classmethod
    def _check_quota(cls, value: dict[str, float]) -> dict[str, float]:
        if value and (any(not math.isfinite(v) or v < 0 for v in value.values()) or sum(value.values()) <= 0):
            raise ValueError("shares must be finite, not negative and not all zero")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> GrowConfig:
        if self.engine == "openai" and self.server.url is None:
            raise ValueError("engine 'openai' needs the address of a server in server.url")
        if self.tokens is not None and self.dialogues is not None:
            raise ValueError("give either 'dialogues' or 'tokens', not both")
        sources = [name for name in ("topics", "topics_file", "ask_topics") if getattr(self, name)]
        if len(sources) > 1:
            raise ValueError(f"give only one of {' and '.join(sources)}")
        if self.mode == "chat" and isinstance(self.shape, list) and len(self.shape) % 2:
            raise ValueError("a dialogue tree needs an even number of layers: a question and an answer for each turn")
        if self.dialogues == "all" and self.shape in ("wide", "auto", "mixed-turns"):
            raise ValueError(f"'dialogues: all' needs a shape with a size of its own, not {self.shape!r}")
        if self.mode == "pretrain" and self.shape == "mixed-turns":
            raise ValueError("mixed-turns is a shape of dialogues; pretrain mode has no turns")
        return self
