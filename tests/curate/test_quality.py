from __future__ import annotations

import pytest
from pydantic import ValidationError

from regrow.curate.config import CurateConfig
from regrow.curate.quality import alphanumeric_share, copied_share, judge, repeated_share

CLEAN = "Iron is a metal that rusts when it meets water and oxygen over a long time."


def reason(cfg: CurateConfig, text: str = CLEAN, *, role: str = "assistant", n_tokens: int = 20,
           mean_logprob: float | None = -0.5, question: str = "What is iron?") -> str | None:  # fmt: skip
    verdict = judge(cfg, role=role, text=text, n_tokens=n_tokens, mean_logprob=mean_logprob, question=question)
    return verdict.reason if verdict else None


def test_a_clean_turn_stays() -> None:
    assert reason(CurateConfig()) is None
    assert reason(CurateConfig(), "Paris is the capital of France.", question="What is the capital of France?") is None
    assert reason(CurateConfig(), "1945", n_tokens=4, question="When did the war end?") is None
    assert reason(CurateConfig(), "```python\nx = [i ** 2 for i in range(10)]\nprint(sum(x))\n```") is None
    assert reason(CurateConfig(), "東京は日本の首都です。", question="日本の首都はどこですか？") is None


@pytest.mark.parametrize(
    ("cfg", "kwargs", "wanted"),
    [
        ({"min_answer_tokens": 21}, {}, "answer too short"),
        ({"min_answer_tokens": 20}, {}, None),
        ({"max_answer_tokens": 19}, {}, "answer too long"),
        ({"max_answer_tokens": 20}, {}, None),
        ({}, {"text": "one two three four five " * 6}, "repetition"),
        ({"max_repeated_ngrams": 1.0}, {"text": "one two three four five " * 6}, None),
        ({}, {"text": "--- !!! *** ||| a"}, "symbols"),
        ({"min_alphanumeric": 0.0}, {"text": "--- !!! *** ||| a"}, None),
        ({}, {"text": CLEAN, "question": CLEAN}, "copies question"),
        ({"max_question_copy": 1.0}, {"text": CLEAN, "question": CLEAN}, None),
        ({"min_mean_logprob": -0.4}, {}, "logprob low"),
        ({"min_mean_logprob": -0.6}, {}, None),
        ({"max_mean_logprob": -0.6}, {}, "logprob high"),
        ({"max_mean_logprob": -0.6}, {"mean_logprob": None}, None),
    ],
)
def test_each_filter(cfg: dict, kwargs: dict, wanted: str | None) -> None:
    assert reason(CurateConfig(**cfg), **kwargs) == wanted


def test_user_turns_are_not_judged_as_answers() -> None:
    assert reason(CurateConfig(min_answer_tokens=50, min_mean_logprob=-0.1), role="user") is None
    assert reason(CurateConfig(), "??? !!! ???", role="user") == "symbols"


def test_measures() -> None:
    assert repeated_share("a b c d a b c d") == pytest.approx(1 / 5)
    assert repeated_share("a b") == 0
    assert alphanumeric_share(" a ! ") == 0.5
    assert alphanumeric_share("  ") == 0
    assert copied_share("a b c d e", "b c d e x") == 0.5
    assert copied_share("the first or the second", "the second") == 0
    assert copied_share("Why?", "why") == 1


@pytest.mark.parametrize(
    "bad", [{"ngram": 1}, {"dedup_threshold": 1.2}, {"dedup_method": "magic"}, {"holdout_dialogues": -1}]
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValidationError):
        CurateConfig(**bad)
