from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.engines.dummy import ByteTokenizer
from regrow.engines.stopping import completion, ends_with_stop
from tests.fixtures.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def tok():
    return tiny_tokenizer()


def test_a_stop_string_inside_a_token_leaves_what_came_before_it(tok):
    ids = tok.encode("a mean value", add_special_tokens=False)
    pieces = [tok.decode([i]) for i in ids]
    token = max(range(len(ids)), key=lambda i: len(pieces[i]))
    assert len(pieces[token]) >= 3, pieces
    stop = pieces[token][1:]
    c = completion(tok, ids, "length", [-0.5] * len(ids), [stop])
    assert c.text == "".join(pieces[:token]) + pieces[token][0]
    assert c.finish == "stop" and tok.decode(c.token_ids) == c.text
    assert c.logprobs.sum() == pytest.approx(-0.5 * (token + 1))


def test_the_first_of_several_stop_strings_counts():
    tok = ByteTokenizer()
    c = completion(tok, list(b"one\ntwo. three"), "length", None, [". ", "\n"])
    assert (c.text, c.finish, c.logprobs) == ("one", "stop", None)


def test_without_a_stop_string_nothing_changes():
    c = completion(ByteTokenizer(), list(b"one"), "length", [-1, -2, -3], ["x"])
    assert (c.text, c.finish, c.logprobs.dtype) == ("one", "length", np.float32)


def test_a_stop_string_at_the_beginning_leaves_nothing():
    c = completion(ByteTokenizer(), list(b"\n"), "length", [-1.0], ["\n"])
    assert (c.token_ids, c.text, c.finish, len(c.logprobs)) == ([], "", "stop", 0)


@settings(max_examples=80, deadline=None)
@given(st.text("ab\né ", max_size=30), st.sampled_from(["a", "ab", "\n\n", "é a"]))
def test_the_tail_finds_what_the_whole_text_holds(text, stop):
    """A stop string is noticed at the token that completes it."""
    tok = tiny_tokenizer_once()
    ids = tok.encode(text, add_special_tokens=False)
    whole = next((n for n in range(1, len(ids) + 1) if stop in tok.decode(ids[:n])), None)
    noticed = next((n for n in range(1, len(ids) + 1) if ends_with_stop(tok, ids[:n], [stop])), None)
    assert noticed == whole


_TOK = []


def tiny_tokenizer_once():
    if not _TOK:
        _TOK.append(tiny_tokenizer())
    return _TOK[0]
