"""Answering one dialogue, on the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regrow.errors import ModelError
from regrow.models.generate import chat_once
from regrow.models.load import load_model, load_tokenizer
from regrow.models.turns import Turns, derive_turns

QUESTION = [{"role": "user", "content": "Mean?"}]


@pytest.fixture(scope="module")
def pair(tiny_model_dir: Path):  # type: ignore[no-untyped-def]
    return load_model(tiny_model_dir), load_tokenizer(tiny_model_dir)


def test_pieces_are_the_answer(pair) -> None:  # type: ignore[no-untyped-def]
    pieces: list[str] = []
    answer = chat_once(*pair, QUESTION, max_new_tokens=40, temperature=1.0, seed=1, on_text=pieces.append)
    assert answer and "".join(pieces) == answer


def test_seeded(pair) -> None:  # type: ignore[no-untyped-def]
    state = torch.get_rng_state()
    first = chat_once(*pair, QUESTION, max_new_tokens=20, temperature=1.0, seed=1)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state is left alone"
    assert chat_once(*pair, QUESTION, max_new_tokens=20, temperature=1.0, seed=1) == first
    assert chat_once(*pair, QUESTION, max_new_tokens=20, temperature=1.0, seed=2) != first
    greedy = chat_once(*pair, QUESTION, max_new_tokens=20)
    assert chat_once(*pair, QUESTION, max_new_tokens=20, seed=5) == greedy


def test_stop_strings_end_the_answer(pair) -> None:  # type: ignore[no-untyped-def]
    model, tokenizer = pair
    full = chat_once(model, tokenizer, QUESTION, max_new_tokens=40, temperature=1.0, seed=1)
    stop = full[len(full) // 2 : len(full) // 2 + 3]
    turns = derive_turns(tokenizer)
    turns._stop_strings["assistant"] = (stop,)
    pieces: list[str] = []
    cut = chat_once(
        model, tokenizer, QUESTION, max_new_tokens=40, temperature=1.0, seed=1, turns=turns, on_text=pieces.append
    )
    assert cut == full[: full.index(stop)].strip() and stop not in "".join(pieces)


def test_no_template(pair) -> None:  # type: ignore[no-untyped-def]
    model, tokenizer = pair
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(ModelError, match="no chat template"):
            chat_once(model, tokenizer, QUESTION)
    finally:
        tokenizer.chat_template = template
    assert isinstance(derive_turns(tokenizer), Turns)
