"""Keys whose effect is not seen elsewhere, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from regrow.errors import RecipeError
from regrow.grow.config import GrowConfig
from regrow.grow.topics import DEFAULT_TOPICS, configured_topics, distinct, parse_topics, quotas, read_topics
from tests.grow.helpers import HashEncoder


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"dialogues": 5, "tokens": 5}, "not both"),
        ({"shape": "bushy"}, "a shape is one of"),
        ({"shape": "3,2,x"}, "a shape is one of"),
        ({"shape": [3, 2, 1]}, "even number"),
        ({"shape": [3, 0]}, "at least one child"),
        ({"shape": "wide", "dialogues": "all"}, "a size of its own"),
        ({"topics": ["a"], "ask_topics": 3}, "only one of"),
        ({"topic_sentence": "About."}, "must hold"),
        ({"quota": {"a": -1}}, "shares must be"),
        ({"quota": {"a": float("nan")}}, "shares must be"),
        ({"mode": "pretrain", "shape": "mixed-turns"}, "no turns"),
        ({"dialogues": 0}, "at least 1"),
        ({"answer": {"max_new_tokens": [256, 0]}}, "at least 1 token"),
        ({"tempreature": 1}, "Extra inputs"),
    ],
)
def test_refused(keys: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        GrowConfig(**keys)  # type: ignore[arg-type]


def test_shapes_as_text() -> None:
    assert GrowConfig(shape="32,16,8,8").shape == [32, 16, 8, 8]
    assert GrowConfig(shape="32/16/8/8").shape == [32, 16, 8, 8]
    assert GrowConfig(shape="Balance").shape == "balance"
    assert GrowConfig(answer={"max_new_tokens": 99}).answer.max_new_tokens == [99]


def test_every_key_says_what_it_does() -> None:
    for section in (
        GrowConfig,
        *(GrowConfig.model_fields[k].annotation for k in ("question", "answer", "screen", "ray")),
    ):
        for name, field in section.model_fields.items():  # type: ignore[union-attr]
            assert field.description, name


def test_topics(tmp_path: Path) -> None:
    assert configured_topics(GrowConfig()) == list(DEFAULT_TOPICS)
    assert configured_topics(GrowConfig(quota={"a": 1, "b": 2})) == ["a", "b"]
    assert configured_topics(GrowConfig(topics=["a", " a ", "b"])) == ["a", "b"]
    assert configured_topics(GrowConfig(ask_topics=3)) == []
    assert quotas(GrowConfig(quota={"a": 1, "b": 3}), ["a", "b"], 8) == [2, 6]
    with pytest.raises(RecipeError, match=r"unknown: c; without a share: b"):
        configured_topics(GrowConfig(topics=["a", "b"], quota={"a": 1, "c": 1}))
    with pytest.raises(RecipeError, match="cannot read"):
        read_topics(tmp_path / "none")
    (tmp_path / "t").write_text("# only this\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="holds no topic"):
        read_topics(tmp_path / "t")
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="cannot read"):
        read_topics(tmp_path / "b")


def test_topics_of_a_model() -> None:
    text = "Here are some:\n1. Art History\n2) **World Music**: songs\n- NASA missions\n* x\n4. " + "long " * 30
    assert parse_topics(text) == ["art History", "world Music", "NASA missions"]
    assert distinct(["law", "Law", "tea"], None, 5) == ["law", "tea"]
    assert distinct(["law of states", "states of law", "tea"], HashEncoder(), 5) == ["law of states", "tea"]
    assert distinct(["a", "b", "c"], HashEncoder(), 2) == ["a", "b"]
