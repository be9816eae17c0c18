"""TG-PT: Tree Generation for a base model without a chat template.

No roles are switched: a lead-in announces useful knowledge, each layer continues the text of the one above, and a
root-to-leaf path is one plain document to train on as ordinary language modelling.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from regrow.engines.base import SampleParams
from regrow.grow.config import GrowConfig


class TextScript:
    """Every layer is a stretch of text. Its sampling parameters are those of ``grow.answer``, one cap a layer."""

    layers_per_turn = 1

    def __init__(self, config: GrowConfig, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._bos = tuple(tokenizer("")["input_ids"][:1])
        eos = tokenizer.eos_token_id
        self._closing = () if eos is None else (int(eos),)
        answer = config.answer
        self._caps = answer.max_new_tokens
        self._params = SampleParams(
            max_new_tokens=self._caps[0],
            temperature=answer.temperature,
            top_p=answer.top_p,
            top_k=answer.top_k,
            stop_token_ids=self._closing,
        )
        self.opening = lru_cache(maxsize=4096)(self._opening)

    def role(self, layer: int) -> str:
        return "text"

    def _opening(self, root: str | None) -> tuple[int, ...]:
        lead = [] if root is None else self._tokenizer(root, add_special_tokens=False)["input_ids"]
        return (*self._bos, *lead)

    def joint(self, layer: int) -> tuple[int, ...]:
        return ()

    def closing(self) -> tuple[int, ...]:
        return self._closing

    def params(self, layer: int) -> SampleParams:
        return replace(self._params, max_new_tokens=self._caps[min(layer, len(self._caps)) - 1])

    def markers(self) -> tuple[str, ...]:
        return tuple(sorted(self._tokenizer.all_special_tokens))
