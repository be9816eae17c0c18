"""Rendering a chat template reproducibly, and cutting one rendering into its turn markers."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regrow.errors import ModelError
from regrow.models.config import ManualTurns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, Any]]

PINNED_DATE = datetime.datetime(2024, 7, 26)
"""Templates that print today's date print this one, the default of Llama-3.1: a run resumed tomorrow must see the same
prompts."""

BY_HAND = (
    "Give the strings by hand in the recipe: model.turns: {opening: ..., assistant_open: ..., assistant_close: ..., "
    "user_open: ...} (docs/reference/turns.md)."
)


THINKING = ("enable_thinking", "thinking")
"""Template variables that switch the thinking of reasoning models; set to false where a template reads them."""


class TemplateRefusal(Exception):
    """The template raised on this dialogue (no system role, roles must alternate ...)."""


# `strftime_now` as a macro over the formats that the template names; the empty expression keeps jinja from trimming
# what follows.
_PINNED_NOW = "{% macro strftime_now(format) %}{{ pinned_dates[format] }}{% endmacro %}{{ '' }}"


class ChatTemplate:
    """The chat template of a tokenizer, with everything that varies held still: dates pinned, thinking switched off.

    Attributes:
        kwargs: What has to be passed to ``apply_chat_template`` to get the same text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        template: str = tokenizer.get_chat_template()
        self.kwargs: dict[str, Any] = {name: False for name in THINKING if re.search(rf"\b{name}\b", template)}
        if "strftime_now" in template:
            formats = re.findall(r"""strftime_now\(\s*(["'])(.*?)\1""", template)
            self.kwargs["pinned_dates"] = {fmt: PINNED_DATE.strftime(fmt) for _, fmt in formats}
            self.kwargs["chat_template"] = _PINNED_NOW + template

    def render(self, messages: Messages, *, generation: bool = False) -> str:
        """The dialogue as text. Raises `TemplateRefusal` when the template does."""
        import jinja2

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=generation, **self.kwargs
            )
        except (jinja2.TemplateError, TypeError, KeyError, ValueError, IndexError) as error:
            raise TemplateRefusal(str(error)) from error
        return str(text)


@dataclass(frozen=True)
class Split:
    """The pieces of a template, before they are proven.

    Attributes:
        opening: Text before the first user content, when there is no system message.
        open_history, open_last: Between a user message and the answer, for earlier answers and for the last one (Qwen3
            puts an empty thinking block before the last only).
        open_generation: After the last user message when an answer is to be generated.
        close, close_last: After an answer that is followed by a user message (up to that message's opening), and after
            the last.
        user_open: Before a later user message.
    """

    opening: str
    open_history: str
    open_last: str
    open_generation: str
    close: str
    close_last: str
    user_open: str


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


# Letters and digits only: nothing that a template trims, escapes or looks for.
U1, A1, U2, A2, S0 = "Quzuser1first", "Ranswer1first", "Quzuser2second", "Ranswer2second", "Vsystem0prompt"


def cut(text: str, *contents: str) -> list[str]:
    """Cut ``text`` at each of ``contents``, which must occur once each and in this order; n contents give n + 1
    pieces."""
    pieces = []
    for content in contents:
        if text.count(content) != 1:
            raise TemplateRefusal(f"a message occurs {text.count(content)} times in the rendered dialogue")
        before, _, text = text.partition(content)
        pieces.append(before)
    return [*pieces, text]


def split_template(template: ChatTemplate) -> Split:
    """Cut the template into its pieces by rendering dialogues of marker words.

    Raises:
        ModelError: The template cannot be cut: a message is missing, repeated or moved.
    """
    try:
        opening, open_generation = cut(template.render([user(U1)], generation=True), U1)
        _, open_last, close_last = cut(template.render([user(U1), assistant(A1)]), U1, A1)
        long = template.render([user(U1), assistant(A1), user(U2)], generation=True)
        _, open_history, between, _ = cut(long, U1, A1, U2)
    except TemplateRefusal as error:
        raise ModelError(f"the chat template cannot be split into turns: {error}", hint=BY_HAND) from error
    close = common_start(close_last, between, marker_tokens(template.tokenizer))
    if not close:
        # The template leaves its last answer open; an answer before a question ends with its first special token.
        first = units(between, marker_tokens(template.tokenizer))[:1]
        close = first[0] if first and first[0] in marker_tokens(template.tokenizer) else ""
    return Split(opening, open_history, open_last, open_generation, close, close_last, between[len(close) :])


def marker_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Every string that the tokenizer reads as one added token (special or not), such as ``<|im_start|>``."""
    return frozenset(tokenizer.get_added_vocab()) | frozenset(t for t in tokenizer.all_special_tokens if t)


def units(text: str, tokens: frozenset[str]) -> list[str]:
    """``text`` as added tokens and single characters: the finest places where it may be cut."""
    if not tokens:
        return list(text)
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=lambda t: (-len(t), t)))
    return re.findall(rf"{pattern}|.", text, flags=re.DOTALL)


def common_start(a: str, b: str, tokens: frozenset[str]) -> str:
    """The longest common start of two strings that does not cut an added token in two.

    Phi-3 ends an inner answer with ``<|end|>\\n<|user|>`` and the last with ``<|end|>\\n<|endoftext|>``: the closing
    is ``<|end|>\\n``.
    """
    same = []
    for x, y in zip(units(a, tokens), units(b, tokens), strict=False):
        if x != y:
            break
        same.append(x)
    return "".join(same)


def trimmed_roles(template: ChatTemplate) -> frozenset[str]:
    """Which roles' contents the template strips, seen by rendering contents with white space around them."""
    padded = template.render([user(f" \n{U1}\n "), assistant(f" \n{A1}\n "), user(f" \n{U2}\n ")])
    plain = template.render([user(U1), assistant(A1), user(U2)])
    found = set()
    if padded == plain:
        return frozenset({"user", "assistant"})
    if f" \n{U1}\n " not in padded:
        found.add("user")
    if f" \n{A1}\n " not in padded:
        found.add("assistant")
    return frozenset(found)


def template_from_turns(turns: ManualTurns) -> str:
    """A chat template (Jinja) that renders the four strings of ``turns``; it refuses a system role."""
    text = {name: json.dumps(value, ensure_ascii=False) for name, value in turns.model_dump().items()}
    return (
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}"
        f"{{{{ ({text['opening']} if loop.first else {text['user_open']}) + message['content'] }}}}"
        "{% elif message['role'] == 'assistant' %}"
        f"{{{{ {text['assistant_open']} + message['content'] + {text['assistant_close']} }}}}"
        "{% else %}{{ raise_exception('only user and assistant can speak') }}{% endif %}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {text['assistant_open']} }}}}{{% endif %}}"
    )
