"""Turn markers: all that is specific to a model when a dialogue is grown, trained on or scored.

They are derived from the tokenizer's own chat template, never from a table of model names, and proven by rendering
dialogues of one, two and three turns, with and without a system prompt, and comparing with ``apply_chat_template``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from regrow.errors import ModelError
from regrow.models.config import ManualTurns
from regrow.models.encoding import encode_broken, encode_inner
from regrow.models.template import (
    BY_HAND,
    S0,
    U1,
    ChatTemplate,
    Messages,
    Split,
    TemplateRefusal,
    assistant,
    cut,
    marker_tokens,
    split_template,
    system,
    trimmed_roles,
    units,
    user,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SpeakingRole = Literal["user", "assistant"]

FOLD = "\n\n"
"""Between a system prompt and the first user message where the template has no system role."""


END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<eos>", "</s>")
"""Where a vocabulary has one of these, it ends any turn: chat models also emit the end token of their base model."""


@dataclass(frozen=True)
class Turns:
    """The turn markers of a model.

    A dialogue is ``opening  user  assistant_open  answer  assistant_close  user_open  user  assistant_open ...``, and
    every start of that
    text is a start of every longer dialogue: trees share their prefixes.

    Attributes:
        opening: All text before the first user content: beginning-of-text token, system prompt, what opens the user's
            turn.
        assistant_open: Closes the user's turn and opens the assistant's. With an empty thinking block where the
            model's template puts one.
        assistant_close: Ends an answer.
        user_open: Opens a later user turn.
        close_last: What the template puts after the last answer; differs from ``assistant_close`` for Phi-3, which
            adds a token.
        open_history: What the template puts before earlier answers; differs from ``assistant_open`` for Qwen3 (no
            thinking block).
        system_around: Text before and after a system prompt in the opening; None when the template has no place for
            one, and it is put before the first user message instead.
        lead: Whether the content of a role is preceded by a space that belongs to its first token (``[INST] Hello``).
        trims: Roles whose content the template strips of white space.
        notes: In what the markers differ from the template on purpose; empty for most templates.
    """

    opening: str
    assistant_open: str
    assistant_close: str
    user_open: str
    close_last: str = ""
    open_history: str = ""
    system_around: tuple[str, str] | None = None
    lead: frozenset[str] = frozenset()
    trims: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    default_opening: str = ""
    default_lead: bool = False
    system_lead: bool = False
    _marker_ids: frozenset[int] = frozenset()
    _stop_ids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _stop_strings: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def content(self, role: str, text: str) -> str:
        """``text`` as it stands in a rendered dialogue: trimmed where the template trims, with its leading space.

        Args:
            role: ``user``, ``assistant``, ``system``, or ``first`` for the first user message, which may have no
                leading space where later ones do.
            text: What was said.
        """
        speaker = "user" if role == "first" else role
        text = text.strip() if speaker in self.trims else text
        return f" {text}" if role in self.lead else text

    def with_system(self, prompt: str) -> Turns:
        """The same markers with ``prompt`` as the system prompt of the opening."""
        opening, leads = self._opening_for(prompt)
        rest = self.lead - {"first"}
        return replace(self, opening=opening, lead=rest | {"first"} if leads else rest)

    def pieces(self, messages: Messages, *, as_template: bool = False) -> Iterator[tuple[str | None, str]]:
        """The dialogue as ``(role, text)``: role None for markers, else content; joined they are `render`.

        The last answer is followed by ``assistant_close``; after a last user message comes nothing (add
        ``assistant_open`` to have it answered).

        Args:
            messages: An optional system message (else the opening of `derive_turns` holds), then user and assistant in
                turn.
            as_template: What the chat template gives, with ``open_history`` and ``close_last``; not prefix-stable.

        Raises:
            ModelError: The roles do not alternate, start with an answer, or a content is not text.
        """
        said = list(messages)
        if said and said[0]["role"] == "system":
            yield from self.with_system(_text(said[0])).pieces(said[1:], as_template=as_template)
            return
        for position, message in enumerate(said):
            role, last = message["role"], position == len(said) - 1
            if role != ("user" if position % 2 == 0 else "assistant"):
                raise ModelError(f"message {position + 1} is from '{role}'; user and assistant have to alternate")
            if position == 0:
                yield None, self.opening
            elif role == "user":
                yield None, self.user_open
            else:
                yield None, self.open_history if as_template and not last else self.assistant_open
            yield role, self.content("first" if position == 0 else role, _text(message))
            if role == "assistant":
                yield None, self.close_last if as_template and last else self.assistant_close

    def render(self, messages: Messages, *, as_template: bool = False) -> str:
        """The dialogue as text; see `pieces`."""
        return "".join(text for _, text in self.pieces(messages, as_template=as_template))

    def _opening_for(self, prompt: str) -> tuple[str, bool]:
        """The opening with a system prompt, and whether the first user content then has a leading space."""
        prompt = prompt.strip() if "system" in self.trims else prompt
        if self.system_around is not None:
            before, after = self.system_around
            return f"{before}{prompt}{after}", self.system_lead
        return f"{self.default_opening}{' ' if self.default_lead else ''}{prompt}{FOLD}", False

    def encode(self, tokenizer: PreTrainedTokenizerBase, text: str, *, first: bool | None = None) -> list[int]:
        """Token ids of marker text: markers parse as special tokens, nothing is added before or after.

        Args:
            tokenizer: The tokenizer the turns were derived from.
            text: One marker or several after each other.
            first: Whether the dialogue begins with it, where a SentencePiece tokenizer puts a space; by default when
                it starts with ``opening``.
        """
        if first is None:
            first = text.startswith(self.opening) and self.opening != self.user_open
        return encode_inner(tokenizer, text, first=first)

    def encode_content(self, tokenizer: PreTrainedTokenizerBase, text: str, role: str | None = None) -> list[int]:
        """Token ids of what a person or model said. Text that looks like a special token is encoded as plain text.

        Args:
            tokenizer: The tokenizer the turns were derived from.
            text: The content; `content` (trim, leading space) is applied when ``role`` is given.
            role: Who said it.

        Raises:
            ModelError: The tokenizer insists on special tokens.
        """
        if role is not None:
            text = self.content(role, text)
        ids = encode_inner(tokenizer, text, plain=True)
        if not self._marker_ids.isdisjoint(ids):
            ids = encode_broken(tokenizer, text, self._marker_ids)
        if not self._marker_ids.isdisjoint(ids):
            raise ModelError(
                "the tokenizer reads ordinary text as special tokens", hint="Use a tokenizer with a tokenizer.json."
            )
        return ids

    def encode_dialogue(self, tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[list[int], list[int]]:
        """Token ids of a dialogue and, for each, 1 where the model is to learn it: answers and the marker that ends
        them.

        Piece by piece, so that content never turns into markers. Of ``assistant_close`` only what comes up to its
        first special token
        is learnt: the model is stopped there and never writes the rest.
        """
        ids: list[int] = []
        learn: list[int] = []
        previous: str | None = None
        for role, text in self.pieces(messages):
            if role is None:
                new = self.encode(tokenizer, text, first=not ids)
            else:
                new = self.encode_content(tokenizer, text)
            ids += new
            if role == "assistant":
                learn += [1] * len(new)
            elif previous == "assistant":
                stop = next((i for i, token in enumerate(new) if token in self._marker_ids), len(new) - 1)
                learn += [int(i <= stop) for i in range(len(new))]
            else:
                learn += [0] * len(new)
            previous = role
        return ids, learn

    def stop_ids(self, role: SpeakingRole) -> tuple[int, ...]:
        """Token ids that end a turn of ``role``, sorted: the first special token of what follows it, and the
        end-of-text tokens."""
        return self._stop_ids[role]

    def stop_strings(self, role: SpeakingRole) -> tuple[str, ...]:
        """Strings that end a turn of ``role`` where no special token does (``[/INST]``, ``ASSISTANT:``)."""
        return self._stop_strings[role]


def derive_turns(
    tokenizer: PreTrainedTokenizerBase, system: str | None = None, *, manual: ManualTurns | None = None
) -> Turns:
    """The turn markers of ``tokenizer``.

    Args:
        tokenizer: With its chat template, unless ``manual`` is given.
        system: The system prompt of the opening; None for what the template does on its own.
        manual: Markers by hand instead of the template.

    Raises:
        ModelError: There is no template, it cannot be split, or the split does not reproduce it; with the way to give
            them by hand.
    """
    if manual is not None:
        return _finish(tokenizer, _from_hand(manual), system)
    if not tokenizer.chat_template:
        from regrow.models.load import NO_TEMPLATE_HINT

        raise ModelError("the tokenizer has no chat template", where=_name(tokenizer), hint=NO_TEMPLATE_HINT)
    template = ChatTemplate(tokenizer)
    try:
        turns = _from_split(split_template(template))
        turns = replace(turns, trims=trimmed_roles(template))
        _prove(template, turns, None)
        turns = _add_system(template, turns)
    except ModelError as error:
        error.where = error.where or _name(tokenizer)
        raise
    return _finish(tokenizer, turns, system)


def _name(tokenizer: PreTrainedTokenizerBase) -> str | None:
    return str(tokenizer.name_or_path) or None


def _text(message: dict[str, object]) -> str:
    content = message["content"]
    if isinstance(content, list) and all(isinstance(b, dict) and b.get("type") == "text" for b in content):
        return "".join(str(block["text"]) for block in content)
    if not isinstance(content, str):
        raise ModelError(
            f"the content of a message from '{message['role']}' is {type(content).__name__}, text was expected"
        )
    return content


def _from_hand(manual: ManualTurns) -> Turns:
    if not manual.assistant_open.strip() or not manual.assistant_close.strip():
        raise ModelError(
            "assistant_open and assistant_close must not be blank: nothing would end a turn", where="model.turns"
        )
    return Turns(
        opening=manual.opening,
        assistant_open=manual.assistant_open,
        assistant_close=manual.assistant_close,
        user_open=manual.user_open,
        close_last=manual.assistant_close,
        open_history=manual.assistant_open,
    )


def _from_split(split: Split) -> Turns:
    notes = []
    if split.open_last != split.open_history:
        if not split.open_last.startswith(split.open_history):
            raise ModelError(
                "the chat template cannot be split into turns: it opens the last answer differently", hint=BY_HAND
            )
        extra = split.open_last[len(split.open_history) :]
        notes.append(f"earlier answers keep {extra!r}, which the template puts before the last answer only")
    asked, answered = split.open_generation.rstrip(" "), split.open_last.rstrip(" ")
    if asked != answered:
        if not asked.startswith(answered) and not answered.startswith(asked):
            raise ModelError(
                "the chat template cannot be split into turns: its generation prompt is not how its answers begin",
                hint=BY_HAND,
            )
        if asked.startswith(answered):
            notes.append(f"answers are begun without {asked[len(answered) :]!r}, which the generation prompt adds")
    if not split.close:
        raise ModelError(
            "the chat template cannot be split into turns: nothing marks the end of an answer", hint=BY_HAND
        )
    return Turns(
        opening=split.opening,
        assistant_open=split.open_last,
        assistant_close=split.close,
        user_open=split.user_open,
        close_last=split.close_last,
        open_history=split.open_history,
        notes=tuple(notes),
    )


def _add_system(template: ChatTemplate, turns: Turns) -> Turns:
    """Find the place of a system prompt; without one that holds in every dialogue it goes before the first user
    message."""
    try:
        before, after, _ = cut(template.render([system(S0), user(U1)]), S0, U1)
        padded = template.render([system(f" \n{S0}\n "), user(U1)])
    except TemplateRefusal:
        return turns
    trims = turns.trims if f" \n{S0}\n " in padded else turns.trims | {"system"}
    placed = replace(turns, system_around=(before, after), trims=trims)
    try:
        _prove(template, placed, "Answer in one word.\nBe kind.")
    except ModelError:
        # Mistral v3 moves the system prompt to the last user message: no prefix of such a dialogue is stable.
        return turns
    return placed


DIALOGUE = (
    ("What is 2 + 2?", "It is 4."),
    ("Und auf Deutsch, bitte?\n\n- kurz\n- höflich", "Vier.\n\n```python\nprint(2 + 2)  # 4\n```"),
    ("謝謝 🙂 <b>bold</b>", "Gern geschehen: {{ no template }} [here]"),
)


def _prove(template: ChatTemplate, turns: Turns, prompt: str | None) -> None:
    """Render dialogues of one to three turns both ways; raise when a character differs."""
    start = [] if prompt is None else [system(prompt)]
    placed = replace(turns, default_opening=turns.opening)
    for n in (1, 2, 3):
        done = [message for q, a in DIALOGUE[:n] for message in (user(q), assistant(a))]
        for messages in ([*start, *done], [*start, *done[:-1]]):
            generation = messages[-1]["role"] == "user"
            try:
                wanted = template.render(messages, generation=generation)
            except TemplateRefusal as error:
                raise ModelError(
                    f"the chat template refuses a dialogue of {n} turns: {error}", hint=BY_HAND
                ) from error
            got = placed.render(messages, as_template=True)
            if generation:
                # Only that the answer begins as the generation prompt does; what thinking models add to it was looked
                # at before.
                wanted, got = wanted[: len(got)], got
            if wanted != got:
                at = next(
                    (i for i, (x, y) in enumerate(zip(wanted, got, strict=False)) if x != y),
                    min(len(wanted), len(got)),
                )
                raise ModelError(
                    f"the turn markers do not reproduce the chat template: "
                    f"it gives {wanted[at : at + 40]!r}, they give {got[at : at + 40]!r}",
                    hint=BY_HAND,
                )


def _finish(tokenizer: PreTrainedTokenizerBase, turns: Turns, prompt: str | None) -> Turns:
    """Move leading spaces to the contents, put the system prompt in, look up the ids."""
    # One space before a content belongs to its first token in every BPE vocabulary ("▁Hello", "ĠHello").
    opening, default_lead = _take_space(turns.opening)
    user_open, user_lead = _take_space(turns.user_open)
    assistant_open, history, system_lead, around = turns.assistant_open, turns.open_history, False, turns.system_around
    lead = {name for name, found in (("first", default_lead), ("user", user_lead)) if found}
    if assistant_open.endswith(" ") and history.endswith(" "):
        assistant_open, history = assistant_open[:-1], history[:-1]
        lead.add("assistant")
    if around is not None:
        after, system_lead = _take_space(around[1])
        around = (around[0], after)
    turns = replace(
        turns,
        opening=opening,
        user_open=user_open,
        assistant_open=assistant_open,
        open_history=history,
        system_around=around,
        lead=frozenset(lead),
        default_opening=opening,
        default_lead=default_lead,
        system_lead=system_lead,
    )
    if prompt is not None:
        turns = turns.with_system(prompt)
    tokens = marker_tokens(tokenizer)
    markers = turns.opening + turns.assistant_open + turns.assistant_close + turns.user_open + turns.close_last
    used = {unit for unit in units(markers, tokens) if unit in tokens} | {t for t in tokenizer.all_special_tokens if t}
    ids = frozenset(int(tokenizer.convert_tokens_to_ids(token)) for token in used)
    ends = {"user": turns.assistant_open, "assistant": turns.assistant_close}
    ending = [tokenizer.bos_token, tokenizer.eos_token, *(token for token in END_OF_TEXT if token in tokens)]
    eos = {int(tokenizer.convert_tokens_to_ids(token)) for token in ending if token}
    leak_id, leak_string = _stops(tokenizer, turns.user_open, tokens)
    stop_ids, stop_strings = {}, {}
    for role, marker in ends.items():
        found_id, found_string = _stops(tokenizer, marker, tokens)
        stop_ids[role] = tuple(sorted(found_id | leak_id | eos))
        # Words such as "User:" may well stand in an answer that ends with a token of its own.
        stop_strings[role] = tuple(sorted(found_string if found_id else found_string | leak_string))
    return replace(turns, _marker_ids=ids, _stop_ids=stop_ids, _stop_strings=stop_strings)


def _take_space(marker: str) -> tuple[str, bool]:
    return (marker[:-1], True) if marker.endswith(" ") else (marker, False)


def _stops(tokenizer: PreTrainedTokenizerBase, marker: str, tokens: frozenset[str]) -> tuple[set[int], set[str]]:
    """The first added token of ``marker`` as an id; text before it (all of it, when there is none) as a string."""
    plain, found = "", set()
    for unit in units(marker, tokens):
        if unit in tokens:
            found.add(int(tokenizer.convert_tokens_to_ids(unit)))
            break
        plain += unit
    return found, {plain.strip(" ")} if plain.strip() else set()
