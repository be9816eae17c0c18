"""How the layers of a tree are spoken: which role a layer has, and which tokens stand before it.

`ChatScript` flips roles by the model's own turn markers (TG-SFT); `regrow.grow.pretrain.TextScript` only continues
(TG-PT).
Paths are never tokenised again: a prompt is the parent's own token ids plus the ids of the markers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from regrow.engines.base import SampleParams
from regrow.grow.config import GrowConfig
from regrow.grow.topics import ANY_TOPIC
from regrow.models.turns import Turns, derive_turns


def topic_sentence(config: GrowConfig, topic: str) -> str:
    """The last sentence of the root prompt: names the topic, or all of the world's knowledge."""
    return config.world_sentence if topic == ANY_TOPIC else config.topic_sentence.replace("{topic}", topic)


def root_prompt(config: GrowConfig, topic: str) -> str:
    """P0: the system prompt with the topic sentence at its end; in pretrain mode the lead-in."""
    if config.mode == "pretrain":
        return config.lead_in.replace("{topic}", "the world" if topic == ANY_TOPIC else topic)
    return f"{config.system_prompt} {topic_sentence(config, topic)}".strip()


class Script(Protocol):
    """The grammar of a tree. Layers count from 1."""

    layers_per_turn: int

    def role(self, layer: int) -> str:
        """``user``, ``assistant`` or ``text``."""
        ...

    def opening(self, root: str | None) -> tuple[int, ...]:
        """Ids before layer 1 for a root prompt; None is the model's default rendering, as in training."""
        ...

    def joint(self, layer: int) -> tuple[int, ...]:
        """Ids between the content of ``layer - 1`` and that of ``layer`` (layer >= 2)."""
        ...

    def closing(self) -> tuple[int, ...]:
        """Ids after the last layer's content; the first of them is what ended it."""
        ...

    def params(self, layer: int) -> SampleParams:
        """Sampling parameters of a layer."""
        ...

    def markers(self) -> tuple[str, ...]:
        """Texts that only the template may write."""
        ...


def prompt_ids(
    script: Script, root: str | None, contents: Sequence[Sequence[int]], *, joint: bool = True
) -> tuple[int, ...]:
    """Opening, then the contents of layers 1..n with the markers between them.

    Args:
        joint: Also append what opens layer n + 1 (a prompt to sample from); False leaves the last content open.
    """
    ids = list(script.opening(root))
    for i, content in enumerate(contents):
        if i:
            ids += script.joint(i + 1)
        ids += content
    if contents and joint:
        ids += script.joint(len(contents) + 1)
    return tuple(ids)


class ChatScript:
    """Odd layers are user turns, even layers assistant turns, by the markers of the tokenizer's own chat template."""

    layers_per_turn = 2

    def __init__(self, config: GrowConfig, tokenizer: Any) -> None:
        self.config = config
        self.tokenizer = tokenizer
        turns = derive_turns(tokenizer)
        self._turns = turns
        self._to_assistant = tuple(turns.encode(tokenizer, turns.assistant_open))
        self._closing = tuple(turns.encode(tokenizer, turns.assistant_close))
        self._to_user = (*self._closing, *turns.encode(tokenizer, turns.user_open))
        question, answer = config.question, config.answer
        self._question = SampleParams(
            max_new_tokens=question.max_new_tokens, temperature=question.temperature, top_p=question.top_p,
            top_k=question.top_k, stop_token_ids=turns.stop_ids("user"),
            stop_strings=tuple(dict.fromkeys((*turns.stop_strings("user"), *question.stop))),
        )  # fmt: skip
        self._answers = [
            SampleParams(
                max_new_tokens=cap,
                temperature=answer.temperature,
                top_p=answer.top_p,
                top_k=answer.top_k,
                stop_token_ids=turns.stop_ids("assistant"),
                stop_strings=turns.stop_strings("assistant"),
            )
            for cap in answer.max_new_tokens
        ]
        self.opening = lru_cache(maxsize=4096)(self._opening)

    def role(self, layer: int) -> str:
        return "user" if layer % 2 else "assistant"

    def _opening(self, root: str | None) -> tuple[int, ...]:
        turns: Turns = self._turns if root is None else self._turns.with_system(root)
        return tuple(turns.encode(self.tokenizer, turns.opening, first=True))

    def joint(self, layer: int) -> tuple[int, ...]:
        return self._to_user if layer % 2 else self._to_assistant

    def closing(self) -> tuple[int, ...]:
        return self._closing

    def params(self, layer: int) -> SampleParams:
        if layer % 2:
            return self._question
        return self._answers[min(layer // 2, len(self._answers)) - 1]

    def markers(self) -> tuple[str, ...]:
        texts = (self._turns.assistant_open, self._turns.assistant_close, self._turns.user_open)
        # A marker such as "</s>[INST]" gives its angle- and square-bracketed pieces; plain words would hit ordinary
        # prose.
        pieces = {piece for text in texts for piece in re.findall(r"<[^<>\s]+>|\[/?[A-Z_]+\]", text)}
        return tuple(sorted(pieces | set(self.tokenizer.all_special_tokens)))
