"""The recipe's `model` section."""

from __future__ import annotations

from typing import Literal

from regrow.section import Section

Dtype = Literal["auto", "float32", "bfloat16"]


class ManualTurns(Section):
    """Turn markers given by hand, for a chat template that cannot be split; see `docs/reference/turns.md`."""

    opening: str
    """All text before the first user message: beginning-of-text token, system prompt, what opens the user's turn."""
    assistant_open: str
    """What stands between a user message and the assistant's answer."""
    assistant_close: str
    """What ends an assistant message; its first special token is what the model emits to stop."""
    user_open: str
    """What stands after `assistant_close` and before the next user message."""


class ModelConfig(Section):
    """Which model, and how it is loaded."""

    model_name_or_path: str = "smollm2"
    """A folder in Hugging Face format, a hub name, a `.gguf` file, or `smollm2` for the embedded model."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository; None takes the default branch. Refused for anything that is not on
    the hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off, because such code can do anything to your machine."""
    turns: ManualTurns | None = None
    """The turn markers, when the chat template cannot be split into them. None: derived from the template."""
