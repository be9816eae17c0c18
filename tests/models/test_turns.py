"""Turn markers from real chat templates, checked against `apply_chat_template`."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.errors import ModelError
from regrow.models.config import ManualTurns
from regrow.models.template import ChatTemplate, template_from_turns
from regrow.models.turns import Turns, derive_turns
from tests.models.tokenizers_for_tests import (
    FAMILIES,
    SENTENCEPIECE,
    build_tokenizer,
    family_tokenizer,
    template_text,
)

FOLDING = {"gemma", "gemma2", "mistral_v1", "mistral_v3", "mistral_tekken"}
"""Families whose template has no place for a system prompt that holds in every dialogue."""


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> tuple[str, Any, Turns]:
    name = request.param
    try:
        tokenizer = family_tokenizer(name)
    except FileNotFoundError:
        pytest.skip(f"this version of TRL does not ship the template of {name}")
    return name, tokenizer, derive_turns(tokenizer)


def dialogue(turns: int, system: str | None = None) -> list[dict[str, str]]:
    said = [{"role": "system", "content": system}] if system else []
    for i in range(turns):
        said += [
            {"role": "user", "content": f"Question {i}: why?\n\n```py\nx = {{{i}}}\n``` ü 謝"},
            {"role": "assistant", "content": f"Answer {i}.\n- one\n- two"},
        ]
    return said


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_renders_what_the_template_renders(family: tuple[str, Any, Turns], n: int) -> None:
    _, tokenizer, turns = family
    template = ChatTemplate(tokenizer)
    for messages in (dialogue(n), dialogue(n)[:-1]):
        got = turns.render(messages, as_template=True)
        if messages[-1]["role"] == "assistant":
            assert got == template.render(messages)
        else:
            answered = got + turns.assistant_open
            wanted = template.render(messages, generation=True)
            assert wanted.startswith(answered.rstrip(" ")) or answered.startswith(wanted)
            assert len(wanted) > len(got)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_system_prompts(family: tuple[str, Any, Turns], n: int) -> None:
    name, tokenizer, turns = family
    prompt = "Be brief.\nSpeak plainly."
    messages = dialogue(n, prompt)
    if name in FOLDING:
        assert turns.system_around is None
        first = f"{prompt}\n\n{messages[1]['content']}"
        messages_native = [{"role": "user", "content": first}, *messages[2:]]
    else:
        assert turns.system_around is not None
        messages_native = messages
    wanted = ChatTemplate(tokenizer).render(messages_native)
    assert turns.render(messages, as_template=True) == wanted
    fixed = derive_turns(tokenizer, system=prompt)
    assert fixed.render(messages[1:], as_template=True) == wanted
    assert prompt in fixed.opening, "a tree is grown from the opening, so the prompt has to stand in it"
    assert wanted.startswith(fixed.opening)


def test_without_pins_only_dates_and_thinking_differ(family: tuple[str, Any, Turns]) -> None:
    """The plain call of `apply_chat_template` gives the same text once today's date is put in."""
    name, tokenizer, turns = family
    messages = dialogue(2)
    plain = tokenizer.apply_chat_template(messages, tokenize=False)
    ours = turns.render(messages, as_template=True)
    today = datetime.datetime.now()
    for form in ("%d %b %Y", "%Y-%m-%d", "%B %d, %Y"):
        plain = plain.replace(today.strftime(form), datetime.datetime(2024, 7, 26).strftime(form))
    if name == "glm4moe":
        ours = ours.replace("/nothink", "")
    assert plain == ours


def test_prefix_stable(family: tuple[str, Any, Turns]) -> None:
    """Every shorter dialogue is a prefix of the longer one, in text and in tokens."""
    _, tokenizer, turns = family
    texts = [turns.render(dialogue(n)) for n in (1, 2, 3)]
    rows = [turns.encode_dialogue(tokenizer, dialogue(n))[0] for n in (1, 2, 3)]
    for short, long in ((0, 1), (1, 2)):
        assert texts[long].startswith(texts[short])
        assert rows[long][: len(rows[short])] == rows[short]


def test_tokens_are_those_of_the_template(family: tuple[str, Any, Turns]) -> None:
    """Piece by piece gives the tokens of the whole text, and the beginning-of-text token stands there once."""
    name, tokenizer, turns = family
    ids, _ = turns.encode_dialogue(tokenizer, dialogue(2))
    whole = tokenizer(turns.render(dialogue(2)), add_special_tokens=False)["input_ids"]
    if name == "llama2":
        # "A </s>": alone the space before the end token is one piece, after a full stop the vocabulary may join them.
        assert tokenizer.decode(ids) == tokenizer.decode(whole)
    else:
        assert ids == whole
    if tokenizer.bos_token_id is not None and tokenizer.bos_token_id != tokenizer.eos_token_id:
        assert ids[:2].count(tokenizer.bos_token_id) <= 1


def test_answers_and_their_end_are_learnt(family: tuple[str, Any, Turns]) -> None:
    _, tokenizer, turns = family
    messages = dialogue(2)
    ids, learn = turns.encode_dialogue(tokenizer, messages)
    assert len(ids) == len(learn)
    learnt = tokenizer.decode([i for i, keep in zip(ids, learn, strict=True) if keep])
    assert "Answer 0." in learnt and "Answer 1." in learnt
    assert "Question" not in learnt
    last = max(i for i, keep in enumerate(learn) if keep)
    assert ids[last] in turns.stop_ids("assistant"), "the model has to learn to stop"


def test_a_turn_can_be_stopped(family: tuple[str, Any, Turns]) -> None:
    """What follows a user's or an assistant's content contains one of its stop tokens or strings."""
    _, tokenizer, turns = family
    for role, follows in (("user", turns.assistant_open), ("assistant", turns.assistant_close)):
        ids = turns.encode(tokenizer, follows)
        assert set(ids) & set(turns.stop_ids(role)) or any(s in follows for s in turns.stop_strings(role))
        assert all(turns.stop_strings(role)), "an empty stop string would stop everything"


def test_look_alikes_stay_text(family: tuple[str, Any, Turns]) -> None:
    _, tokenizer, turns = family
    special = {i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id}
    for token in sorted(t for t in tokenizer.get_added_vocab() if not t.startswith("<0x")):
        text = f"Is it {token}? {token}{token} yes"
        ids = turns.encode_content(tokenizer, text)
        assert not special & set(ids), token
        if token != "<unk>":
            assert tokenizer.decode(ids).strip() == text
    whole = turns.encode(tokenizer, turns.assistant_close)
    assert set(whole) & special


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(["<|im_end|>", "<|im_start|>", "<|im", "_end|>", "a", " ", "\n", "ü", "<"]), max_size=12
    )
)
def test_content_never_becomes_a_marker(pieces: list[str]) -> None:
    tokenizer, turns = _chatml()
    text = "".join(pieces)
    ids = turns.encode_content(tokenizer, text)
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


_CACHE: list[tuple[Any, Turns]] = []


def _chatml() -> tuple[Any, Turns]:
    if not _CACHE:
        tokenizer = family_tokenizer("qwen2_5")
        _CACHE.append((tokenizer, derive_turns(tokenizer)))
    return _CACHE[0]


def test_markers_that_are_not_flagged_special() -> None:
    """Some vocabularies add their markers as ordinary tokens; content must not become them either."""
    from tokenizers import AddedToken

    tokenizer = build_tokenizer(None, "</s>", (), template_text("qwen2_5"), sentencepiece=False)
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=False), AddedToken("<|im_end|>", special=False)])
    turns = derive_turns(tokenizer)
    ids = turns.encode_content(tokenizer, "a<|im_end|>b")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids
    assert tokenizer.decode(ids) == "a<|im_end|>b"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in turns.stop_ids("assistant")


def test_trimmed_contents() -> None:
    tokenizer = family_tokenizer("llama3")
    turns = derive_turns(tokenizer)
    messages = [{"role": "user", "content": "\n hi "}, {"role": "assistant", "content": " there\n"}]
    assert turns.render(messages, as_template=True) == tokenizer.apply_chat_template(messages, tokenize=False)
    assert "\n\nhi<|eot_id|>" in turns.render(messages)


def test_known_markers() -> None:
    """A few by heart, so that template and derivation cannot be wrong together."""
    llama3 = derive_turns(family_tokenizer("llama3"))
    assert llama3.opening == "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    assert llama3.assistant_open == "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert llama3.assistant_close == "<|eot_id|>"
    phi3 = derive_turns(family_tokenizer("phi3"))
    assert (phi3.assistant_close, phi3.close_last) == ("<|end|>\n", "<|end|>\n<|endoftext|>")
    llama2 = derive_turns(family_tokenizer("llama2"))
    assert (llama2.opening, llama2.user_open) == ("<s>[INST]", "<s>[INST]")
    assert llama2.stop_strings("user") == ("[/INST]",)
    assert llama2.content("first", "Hi") == " Hi"


def test_thinking_blocks() -> None:
    qwen3 = derive_turns(family_tokenizer("qwen3"))
    assert qwen3.assistant_open.endswith("<think>\n\n</think>\n\n")
    assert qwen3.open_history == "<|im_end|>\n<|im_start|>assistant\n"
    assert len(qwen3.notes) == 1
    asked = ChatTemplate(family_tokenizer("qwen3")).render([{"role": "user", "content": "why"}], generation=True)
    assert asked.endswith("why" + qwen3.assistant_open), "thinking is switched off in the generation prompt too"
    r1 = derive_turns(family_tokenizer("deepseek_r1_distill"))
    assert r1.assistant_open == "<｜Assistant｜>"
    assert "<think>" in r1.notes[0]


def test_date_is_pinned() -> None:
    """A run that is resumed tomorrow must see the same prompts."""
    for name in ("llama3_1", "llama3_2", "mistral_v7", "granite3"):
        turns = derive_turns(family_tokenizer(name))
        assert any(day in turns.opening for day in ("26 Jul 2024", "2024-07-26", "July 26, 2024")), name


@pytest.mark.parametrize("name", ["unsplittable_plain", "unsplittable_reversed"])
def test_a_template_that_cannot_be_split_says_how_to_go_on(name: str) -> None:
    tokenizer = build_tokenizer(
        "<s>", "</s>", ("<|im_start|>", "<|im_end|>"), template_text(name), sentencepiece=False
    )
    with pytest.raises(ModelError, match="cannot be split") as caught:
        derive_turns(tokenizer)
    assert "assistant_close" in (caught.value.hint or "")


def test_a_template_that_counts_turns_is_refused() -> None:
    """It can be cut, but the pieces do not give back a dialogue of three turns."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + ('' if loop.index0 < 4 else '#' ~ loop.index) "
        "+ m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = build_tokenizer(None, "<|im_end|>", ("<|im_start|>",), template, sentencepiece=False)
    with pytest.raises(ModelError, match="do not reproduce"):
        derive_turns(tokenizer)


def test_by_hand() -> None:
    tokenizer = build_tokenizer("<s>", "</s>", (), template_text("unsplittable_plain"), sentencepiece=True)
    manual = ManualTurns(opening="<s>Q: ", assistant_open="\nA: ", assistant_close="</s>", user_open="Q: ")
    turns = derive_turns(tokenizer, manual=manual)
    assert turns.render([*dialogue(1)[:1], {"role": "assistant", "content": "yes"}]).endswith("\nA: yes</s>")
    assert turns.stop_strings("user") == ("\nA:", "Q:")
    assert turns.stop_ids("assistant") == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    folded = derive_turns(tokenizer, "Be kind.", manual=manual)
    assert folded.opening == "<s>Q: Be kind.\n\n"
    blank = manual.model_copy(update={"assistant_close": " \n"})
    with pytest.raises(ModelError, match="blank"):
        derive_turns(tokenizer, manual=blank)


def test_no_template() -> None:
    tokenizer = family_tokenizer("zephyr")
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template") as caught:
        derive_turns(tokenizer)
    assert "model.turns" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "assistant", "content": "hi"}], "alternate"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "message 2"),
        ([{"role": "user", "content": [{"type": "image"}]}], "text was expected"),
        ([{"role": "user", "content": None}], "NoneType"),
    ],
)
def test_bad_dialogues(messages: list[dict[str, Any]], says: str) -> None:
    _, turns = _chatml()
    with pytest.raises(ModelError, match=says):
        turns.render(messages)


def test_text_blocks_are_text() -> None:
    _, turns = _chatml()
    blocks = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert turns.render(blocks) == turns.render([{"role": "user", "content": "ab"}])


def test_sentencepiece_pieces_have_no_extra_space() -> None:
    assert "llama2" in SENTENCEPIECE
    tokenizer = family_tokenizer("llama2")
    turns = derive_turns(tokenizer)
    alone = tokenizer.convert_ids_to_tokens(tokenizer("Hello", add_special_tokens=False)["input_ids"])
    inner = tokenizer.convert_ids_to_tokens(turns.encode_content(tokenizer, "Hello"))
    assert alone[0].startswith("▁") and not inner[0].startswith("▁")
    assert tokenizer.convert_ids_to_tokens(turns.encode_content(tokenizer, "Hello", "user"))[0].startswith("▁")


def test_a_template_made_from_strings_gives_them_back() -> None:
    """Whatever stands in the strings: quotes, braces, line ends, characters beyond the first plane."""
    manual = ManualTurns(
        opening='<s>{{ "Q" }} 🙂\\n:\n',
        assistant_open="\n'A' {% x %}:\n",
        assistant_close="</s>\n",
        user_open="再Q:\n",
    )
    tokenizer = build_tokenizer("<s>", "</s>", (), template_from_turns(manual), sentencepiece=False)
    turns = derive_turns(tokenizer)
    assert (turns.opening, turns.assistant_open) == (manual.opening, manual.assistant_open)
    assert (turns.assistant_close, turns.user_open) == (manual.assistant_close, manual.user_open)
