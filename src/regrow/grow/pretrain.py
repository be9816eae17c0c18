"""TG-PT: Tree Generation from a base model without a chat template (arXiv 2406.11354, section 3.4).

No roles: a lead-in sentence announces useful knowledge, and the model continues it, branch by branch. A root-to-leaf
path is one plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regrow.engines.base import SampleParams
from regrow.grow.config import GrowConfig


class TextScript:
    """Every layer continues the text of the one above it. The lead-in stands before all of it."""

    layers_per_turn = 1

    def __init__(self, config: GrowConfig, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._bos = tuple(tokenizer("")["input_ids"][:1]) if tokenizer.bos_token_id is not None else ()
        end = tokenizer.eos_token_id
        self._end = () if end is None else (int(end),)
        answer = config.answer
        self._params = [
            SampleParams(
                max_new_tokens=cap,
                temperature=answer.temperature,
                top_p=answer.top_p,
                top_k=answer.top_k,
                stop_token_ids=self._end,
                stop_strings=("\n\n",),
            )
            for cap in answer.max_new_tokens
        ]

    def role(self, layer: int) -> str:
        """Always ``text``."""
        return "text"

    def opening(self, root: str | None) -> tuple[int, ...]:
        """Beginning of text, then the lead-in."""
        text: Sequence[int] = self.tokenizer(root, add_special_tokens=False)["input_ids"] if root else ()
        return (*self._bos, *text)

    def joint(self, layer: int) -> tuple[int, ...]:
        """A paragraph break: pieces end at one."""
        return tuple(self.tokenizer("\n\n", add_special_tokens=False)["input_ids"])

    def closing(self) -> tuple[int, ...]:
        """End of text."""
        return self._end

    def params(self, layer: int) -> SampleParams:
        """The answer's sampling, with its cap for this depth."""
        return self._params[min(layer, len(self._params)) - 1]

    def markers(self) -> tuple[str, ...]:
        """Special tokens only."""
        return tuple(sorted(self.tokenizer.all_special_tokens))
