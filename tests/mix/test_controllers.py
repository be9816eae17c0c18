"""Mixtures by formula: golden numbers, hand-computed updates, state that survives."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.errors import RecipeError
from regrow.mix.controller import Static, inverse, normalised
from regrow.mix.skill_it import SkillIt, diagnosis
from regrow.mix.versatune import Expansion, Fostering, forgetting_degree, potential

SKILLS = [f"s{i}" for i in range(1, 6)]
LEGO = {s: {} for s in SKILLS} | {"s2": {"s1": 0.5, "s3": 0.5, "s4": 0.5}}


def test_skill_it_golden_weights_on_lego():
    """The authors' LEGO script: five skills, eta 0.5; recorded numbers."""
    mixture = SkillIt(LEGO, eta=0.5)
    assert list(mixture.weights().values()) == pytest.approx([0.16348, 0.34608, 0.16348, 0.16348, 0.16348], abs=5e-6)
    mixture.update(dict.fromkeys(SKILLS, 1.0))
    mixture.update(dict(zip(SKILLS, (0.2, 1.5, 0.9, 1.0, 0.4), strict=True)))
    assert list(mixture.weights().values()) == pytest.approx([0.12115, 0.3923, 0.17192, 0.18074, 0.13389], abs=5e-6)


def test_skill_it_golden_weights_with_a_target():
    graph = {"a": {}, "b": {"c": 0.5}, "c": {}}
    shares = SkillIt(graph, eta=0.5, targets=["c"]).weights()
    assert list(shares.values()) == pytest.approx([0.25428, 0.3265, 0.41923], abs=5e-6)


def test_skill_it_sums_its_window_and_forgets_what_is_older():
    mixture = SkillIt({"a": {}, "b": {}}, eta=0.5, window=2)
    for losses in ((1.0, 1.0), (9.0, 1.0), (1.0, 2.0), (1.0, 3.0)):
        mixture.update({"a": losses[0], "b": losses[1]})
    shares = mixture.weights()
    assert shares["b"] / shares["a"] == pytest.approx(math.exp(0.5 * (5 - 2)))
    wanted = SkillIt({"a": {}, "b": {}}, eta=0.5, window=2, targets=["b"])
    wanted.update({"a": 1.0, "b": 1.0})
    wanted.update({"a": 1.0, "b": 2.0})
    wanted.update({"a": 1.0, "b": 4.0})
    shares = wanted.weights()
    assert shares["b"] / shares["a"] == pytest.approx(math.exp(0.5 * 3)), "averaged, not summed, with a target"


def test_skill_it_waits_for_the_first_step_and_for_its_looks():
    """The loss of a model that knows nothing yet would give one skill nearly everything, for as long as it is in the
    window."""
    mixture = SkillIt({"a": {}, "b": {}}, eta=0.5, window=2, looks=3)
    before = mixture.weights()
    for losses in ((9.0, 1.0), (5.0, 1.0), (1.0, 2.0)):
        mixture.update({"a": losses[0], "b": losses[1]})
        assert mixture.weights() == before
    mixture.update({"a": 1.0, "b": 3.0})
    shares = mixture.weights()
    assert shares["b"] / shares["a"] == pytest.approx(math.exp(0.5 * (5 - 2)))
    mixture.update({"a": 7.0, "b": 1.0})
    assert mixture.weights() == shares


def test_skill_it_says_when_its_graph_says_nothing():
    full = {i: dict.fromkeys("abc", 1.0) for i in "abc"}
    assert "full" in str(diagnosis(full))
    assert "no edge" in str(diagnosis({i: {} for i in "abc"}))
    assert diagnosis(LEGO) is None
    with pytest.raises(RecipeError, match="'z' is not a skill"):
        SkillIt({"a": {"z": 1.0}})
    with pytest.raises(RecipeError, match="negative"):
        SkillIt({"a": {"a": -1.0}})


def test_potential_and_forgetting_degree():
    assert potential(2.0, 0.5) == 0.75
    assert potential(0.5, 2.0) == 0.0
    assert forgetting_degree(3.0, 2.0) == 0.5
    assert forgetting_degree(1.0, 2.0) == 0.0


def test_fostering_moves_as_the_formula_says():
    mixture = Fostering({"law": 1, "code": 3}, {"law": 1.0}, sigma=0.5)
    mixture.update({"law": 2.0, "code": 1.0})
    assert mixture.weights() == {"law": 0.25, "code": 0.75}, "before training nothing moves"
    mixture.update({"law": 2.0, "code": 1.0})
    law, code = 0.25 * (1 + 0.5 * 0.5), 0.75 * (1 + 0.5 * 1.0)
    assert mixture.weights() == pytest.approx({"law": law / (law + code), "code": code / (law + code)})


def test_the_released_update_uses_raw_losses():
    mixture = Fostering({"law": 0.5, "code": 0.5}, {"law": 1.9}, rule="code")
    for _ in range(2):
        mixture.update({"law": 2.0, "code": 1.0})
    assert mixture.weights()["law"] == pytest.approx(math.e / (1 + math.e))


def test_expansion_raises_the_target_while_the_others_hold():
    mixture = Expansion({"law": 0.2, "code": 0.4, "rest": 0.4}, "law")
    mixture.update({"law": 2.0, "code": 1.0, "rest": 1.0})
    mixture.update({"law": 1.5, "code": 1.0, "rest": 1.0})
    assert mixture.weights() == pytest.approx({"law": 0.3, "code": 0.35, "rest": 0.35})
    mixture.update({"law": 1.4, "code": 3.0, "rest": 1.0})
    shares = mixture.weights()
    assert shares["law"] == pytest.approx(0.3), "too much is being forgotten"
    assert shares["code"] / shares["rest"] == pytest.approx(1 + 0.5 * 2.0), "what is forgotten gets weight back"
    assert math.fsum(shares.values()) == pytest.approx(1)
    for _ in range(30):
        mixture.update({"law": 1.0, "code": 1.0, "rest": 1.0})
    assert mixture.weights()["law"] == pytest.approx(0.9), "never beyond max_share"
    with pytest.raises(RecipeError, match="one of two or more"):
        Expansion({"law": 1.0}, "law")


def test_static_mixtures():
    assert inverse({"a": 0.5, "b": 0.25, "c": 0.25}) == pytest.approx({"a": 0.25, "b": 0.375, "c": 0.375})
    held = Static({"a": 1, "b": 3})
    held.update({"a": 9.0, "b": 0.1})
    assert held.weights() == {"a": 0.25, "b": 0.75}
    with pytest.raises(RecipeError, match="weight 0"):
        normalised({"a": 0.0})
    with pytest.raises(RecipeError, match="not a number"):
        normalised({"a": math.nan})


LOSSES = st.lists(st.fixed_dictionaries({d: st.floats(0.01, 20) for d in "abc"}), min_size=1, max_size=6)


@pytest.mark.parametrize("kind", ["fostering", "code", "expansion", "skill-it", "static"])
@given(losses=LOSSES, cut=st.integers(0, 5))
def test_shares_stay_shares_and_a_resumed_mixture_goes_on_alike(kind, losses, cut):
    def make():
        start = {"a": 0.2, "b": 0.3, "c": 0.5}
        return {
            "fostering": lambda: Fostering(start, {"a": 0.5}),
            "code": lambda: Fostering(start, rule="code"),
            "expansion": lambda: Expansion(start, "a"),
            "skill-it": lambda: SkillIt({"a": {"b": 0.5}, "b": {}, "c": {}}, initial=start, looks=2),
            "static": lambda: Static(start),
        }[kind]()

    whole, first = make(), make()
    for measured in losses:
        whole.update(measured)
    for measured in losses[:cut]:
        first.update(measured)
    second = make()
    second.load_state_dict(first.state_dict())
    for measured in losses[cut:]:
        second.update(measured)
    assert whole.weights() == second.weights()
    assert math.fsum(whole.weights().values()) == pytest.approx(1)
    assert all(w >= 0 for w in whole.weights().values())
