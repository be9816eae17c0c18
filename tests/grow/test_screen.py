from __future__ import annotations

import pytest

from regrow.grow import screen
from regrow.grow.config import ScreenConfig
from regrow.grow.screen import Screen

GOOD = "Why do rivers bend when they cross flat country?"


def reason(
    text: str,
    *,
    role: str = "assistant",
    finish: str = "stop",
    ids: tuple[int, ...] = (9,),
    trimmed: bool = False,
    **keys: object,
) -> str | None:
    config = ScreenConfig(**keys)  # type: ignore[arg-type]
    return Screen(config, ("<|im_end|>", "[INST]"), frozenset({1, 2})).reason(text, ids, finish, role, trimmed=trimmed)  # type: ignore[arg-type]


def test_good_text_passes() -> None:
    assert reason(GOOD) is None
    assert reason(GOOD, role="user") is None


def test_truncated() -> None:
    assert reason(GOOD, finish="length") == screen.TRUNCATED
    assert reason(GOOD, finish="length", trimmed=True) is None


def test_empty() -> None:
    assert reason("") == screen.EMPTY


def test_too_short() -> None:
    assert reason("Yes, sure.") == screen.TOO_SHORT
    assert reason("Yes, sure.", min_words=2) is None
    assert reason("河流为什么会弯曲", scripts=["cjk"]) is None, "a script without spaces counts characters"


@pytest.mark.parametrize(
    "text",
    [
        "It bends.<|im_end|> and more",
        "It bends. [INST] And then?",
        "It bends.\nUser: And then?",
        "It bends.\n**Assistant**: Then it turns.",
        "Human: why does it bend",
        "### Instruction: say why it bends",
        "<|user|>: why does it bend",
    ],
)
def test_role_leak(text: str) -> None:
    assert reason(text) == screen.ROLE_LEAK
    if "<|im_end|>" not in text:
        assert reason(text, role_leaks=False) is None


def test_special_token_is_a_leak() -> None:
    assert reason(GOOD, ids=(9, 2, 9)) == screen.ROLE_LEAK


def test_prose_about_users_is_no_leak() -> None:
    assert reason("The user interface of the system: a short history of its design.") is None


def test_repeating() -> None:
    loop = "the river bends and the river bends and the river bends and the river bends and"
    assert screen.repeated_4grams("a b c d e f g") == 0
    assert screen.repeated_4grams("a b c d a b c d") == pytest.approx(1 / 5)
    assert reason(loop) == screen.REPEATING
    assert reason(loop, max_repeated_4gram=1.0) is None


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I cannot talk about rivers.",
        "As an AI language model, I have no rivers to look at.",
        "I can't help with that request about rivers.",
        "I don't have access to maps of rivers.",
    ],
)
def test_refusal(text: str) -> None:
    assert reason(text) == screen.REFUSAL
    assert reason(text, refusals=[]) is None


def test_refusal_patterns_are_the_users() -> None:
    assert reason(GOOD, refusals=["rivers bend"]) == screen.REFUSAL
    with pytest.raises(ValueError, match="not a regular expression"):
        ScreenConfig(refusals=["("])


def test_off_language() -> None:
    russian = "Почему реки изгибаются на равнине?"
    assert reason(russian) == screen.OFF_LANGUAGE
    assert reason(russian, scripts=["cyrillic"]) is None
    assert reason(russian, scripts=["latin", "cyrillic"]) is None
    assert reason(russian, scripts=[]) is None
    quoted = "The Russian word for a river is река, as everyone who has been there knows."
    assert reason(quoted) is None
    assert reason(quoted, max_off_script=0.01) == screen.OFF_LANGUAGE
    assert reason("1 + 1 = 2, 2 + 2 = 4") is None, "no letters, no language"


def test_not_a_question() -> None:
    spoken = "Sure! Here is how rivers bend."
    assert reason(spoken, role="user") == screen.NOT_A_QUESTION
    assert reason(spoken, role="assistant") is None
    assert reason(spoken, role="user", question_form=False) is None
    assert reason("Can you tell me how rivers bend?", role="user") is None


def test_sentence_ends() -> None:
    assert all(screen.ends_a_sentence(t) for t in ("It bends.", 'He said "it bends."', "Why? ", "它弯曲。"))
    assert not any(screen.ends_a_sentence(t) for t in ("It bends", "It bends,", "1. rivers\n2."[:-1]))


def test_normal_form() -> None:
    assert screen.normal_form("Why  do rivers\nbend?") == screen.normal_form("why do rivers bend")
