"""One answer to one dialogue, streamed: what `regrow chat` needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from regrow.models.template import Messages
from regrow.models.turns import Turns, derive_turns

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def prompt_ids(turns: Turns, tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of a dialogue that ends with a user message, and of what opens the answer."""
    ids, _ = turns.encode_dialogue(tokenizer, messages)
    return ids + turns.encode(tokenizer, turns.assistant_open)


def chat_once(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    turns: Turns | None = None,
    on_text: Callable[[str], object] | None = None,
) -> str:
    """Answer a dialogue.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer, with a chat template unless ``turns`` is given.
        messages: Optional system message, then user and assistant in turn, the last one from the user.
        max_new_tokens: Where the answer is cut at the latest.
        temperature: 0 is greedy.
        top_p: Nucleus sampling (arXiv 1904.09751); 1 switches it off. Not used when greedy.
        seed: Of the sampling; the global random state is left as it was.
        turns: The model's turn markers; derived from the tokenizer by default.
        on_text: Called with pieces of the answer as they come; together they are the answer.

    Returns:
        The answer, without the marker that ends it and without white space around it.

    Raises:
        ModelError: No usable chat template, or roles that do not alternate.
    """
    import torch

    turns = turns or derive_turns(tokenizer)
    ids = torch.tensor([prompt_ids(turns, tokenizer, messages)], device=model.device)
    stop = list(turns.stop_ids("assistant"))
    strings = list(turns.stop_strings("assistant"))
    how: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        how |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
    if strings:
        how |= {"stop_strings": strings, "tokenizer": tokenizer}
    stream = _Stream(tokenizer, stop, strings, on_text)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            eos_token_id=stop,
            pad_token_id=stop[0],
            streamer=stream,
            **how,
        )
    return stream.text()


class _Stream:
    """Receives token ids from ``generate`` and passes on the text that can no longer change."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: list[int],
        stop_strings: list[str],
        on_text: Callable[[str], object] | None,
    ) -> None:
        self._tokenizer, self._stop_ids, self._stop, self._on_text = tokenizer, stop_ids, stop_strings, on_text
        self._ids: list[int] | None = None
        self._sent = ""

    def put(self, value: Any) -> None:
        if self._ids is None:  # the first call brings the prompt
            self._ids = []
            return
        self._ids.extend(token for token in value.flatten().tolist() if token not in self._stop_ids)
        text = self.text()
        # A half-made character decodes to U+FFFD; the start of a stop string may still become one.
        held = max((n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        ready = text[: len(text) - held]
        if not ready.endswith("�"):
            self._send(ready)

    def end(self) -> None:
        self._send(self.text())

    def _send(self, text: str) -> None:
        if self._on_text is not None and len(text) > len(self._sent) and text.startswith(self._sent):
            self._on_text(text[len(self._sent) :])
            self._sent = text

    def text(self) -> str:
        """The answer so far."""
        text: str = self._tokenizer.decode(self._ids or [], skip_special_tokens=True)
        for stop in self._stop:
            text = text.split(stop)[0]
        return text.strip()
