"""What moved between two classifications, on counts made by hand."""

from __future__ import annotations

import pytest

from regrow.probe.transitions import shift, transitions

H, M, W, U = "HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"


def test_every_fact_is_counted_once_where_it_went():
    before = {"a": H, "b": H, "c": M, "d": W, "e": U, "f": U, "g": H}
    after = {"a": H, "b": W, "c": H, "d": M, "e": M, "f": U, "g": U}
    matrix = transitions(before, after)
    assert matrix == {
        H: {H: 1, M: 0, W: 1, U: 1},
        M: {H: 1, M: 0, W: 0, U: 0},
        W: {H: 0, M: 1, W: 0, U: 0},
        U: {H: 0, M: 1, W: 0, U: 1},
    }
    found = shift(matrix)
    assert (found.facts, found.raised, found.lowered, found.to_maybe_known) == (7, 3, 2, 2)
    assert found.highly_known == (3, 2) and found.forgotten == 2 and found.forgotten_share == pytest.approx(2 / 3)


def test_a_fall_to_maybe_known_is_no_upgrade_and_nothing_forgotten_has_no_share():
    found = shift(transitions({"a": M, "b": U}, {"a": M, "b": W}))
    assert (found.raised, found.to_maybe_known, found.forgotten, found.forgotten_share) == (1, 0, 0, None)
    assert shift(transitions({"a": H}, {"a": M})).to_maybe_known == 0


def test_other_facts_are_refused():
    with pytest.raises(ValueError, match="same facts"):
        transitions({"a": H}, {"b": H})
