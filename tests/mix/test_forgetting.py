"""The shares of topics by how much is forgotten, against values by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.errors import RecipeError
from regrow.mix.forgetting import Forgetting, missing

INITIAL = {"a": 0.5, "b": 0.3, "c": 0.2}


def after(values: dict[str, float], *, tilt: float = 0.5, base: dict[str, float] | None = None) -> dict[str, float]:
    mixture = Forgetting(INITIAL, tilt=tilt)
    mixture.update(base or dict.fromkeys(values, 0.0))
    mixture.update(values)
    return mixture.weights()


def test_by_the_formula():
    # sum p f = 0.5*0.2 + 0.3*0 + 0.2*0.5 = 0.2, so the tilted shares are 0.5, 0 and 0.5.
    assert after({"a": 0.2, "b": 0.0, "c": 0.5}) == pytest.approx({"a": 0.5, "b": 0.15, "c": 0.35})
    assert after({"a": 0.2, "b": 0.0, "c": 0.5}, tilt=1.0) == pytest.approx({"a": 0.5, "b": 0.0, "c": 0.5})
    assert after({"a": 0.2, "b": 0.0, "c": 0.5}, tilt=0.0) == pytest.approx(INITIAL)


def test_a_loss_counts_from_its_first_value_and_what_fell_is_not_forgotten():
    base = {"a": 2.0, "b": 1.0, "c": 3.0}
    assert after({"a": 2.2, "b": 0.4, "c": 3.5}, base=base) == pytest.approx({"a": 0.5, "b": 0.15, "c": 0.35})


def test_before_anything_is_measured_or_forgotten_the_shares_are_the_first_ones():
    mixture = Forgetting(INITIAL)
    assert mixture.weights() == INITIAL
    mixture.update({"a": 1.0, "b": 1.0, "c": 1.0})
    assert mixture.weights() == INITIAL
    mixture.update({"a": 0.5, "b": 0.9, "c": 1.0})
    assert mixture.weights() == INITIAL


def test_it_does_not_compound():
    mixture = Forgetting(INITIAL)
    for value in (0.0, 0.3, 0.3, 0.3):
        mixture.update({"a": value, "b": 0.0, "c": 0.0})
    assert mixture.weights() == pytest.approx({"a": 0.75, "b": 0.15, "c": 0.1})
    mixture.update(dict.fromkeys(INITIAL, 0.0))
    assert mixture.weights() == INITIAL


@given(st.lists(st.floats(0, 10), min_size=3, max_size=3), st.floats(0, 1))
def test_shares_add_up_and_keep_their_floor(values, tilt):
    shares = after(dict(zip("abc", values, strict=True)), tilt=tilt)
    assert math.fsum(shares.values()) == pytest.approx(1)
    assert all(shares[d] >= (1 - tilt) * INITIAL[d] - 1e-9 for d in INITIAL)


@given(st.floats(0.001, 10), st.floats(0, 1))
def test_topics_forgotten_alike_keep_their_shares(value, tilt):
    assert after(dict.fromkeys(INITIAL, value), tilt=tilt) == pytest.approx(INITIAL)


def test_a_topic_that_is_not_measured_keeps_its_share():
    shares = after({"a": 0.1, "b": 0.4})
    assert shares["c"] == pytest.approx(0.2)
    # f of c is the mean (0.5*0.1 + 0.3*0.4) / 0.8, so sum p f = 0.17 / 0.8.
    assert shares["b"] == pytest.approx(0.5 * 0.3 + 0.5 * 0.3 * 0.4 / (0.17 / 0.8))


def test_its_state_comes_back():
    one = Forgetting(INITIAL)
    one.update(dict.fromkeys(INITIAL, 1.0))
    one.update({"a": 1.5, "b": 1.1, "c": 1.0})
    two = Forgetting(INITIAL)
    two.load_state_dict(one.state_dict())
    assert two.weights() == one.weights() != INITIAL


@pytest.mark.parametrize("losses", [{"a": math.nan, "b": 1, "c": 1}, {"z": 1.0}])
def test_what_cannot_be_used_is_refused(losses):
    with pytest.raises(RecipeError):
        Forgetting(INITIAL).update(losses)


def test_missing_is_what_risen_topics_will_be_asked_for_beyond_what_is_fresh():
    shares = {"a": 0.4, "b": 0.4, "c": 0.2}
    assert missing(shares, INITIAL, 1000, {"a": 0, "b": 150}) == {"a": 0.0, "b": 250.0, "c": 0.0}
    assert missing(shares, INITIAL, 1000, {"a": 0, "b": 500}) == {"a": 0.0, "b": 0.0, "c": 0.0}
