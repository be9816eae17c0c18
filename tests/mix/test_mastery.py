"""The sets of gradual fine-tuning, by hand."""

from __future__ import annotations

import pytest

from regrow.mix.mastery import stage_one, stage_two

BEFORE = {
    "a": "MaybeKnown", "b": "WeaklyKnown", "c": "Unknown", "d": "HighlyKnown", "e": "MaybeKnown", "f": "HighlyKnown",
    "g": "WeaklyKnown", "h": "Unknown", "i": "HighlyKnown", "j": "HighlyKnown", "k": "WeaklyKnown",
}  # fmt: skip
AFTER = BEFORE | {
    "a": "HighlyKnown", "b": "MaybeKnown", "c": "MaybeKnown", "d": "MaybeKnown", "g": "HighlyKnown", "k": "Unknown",
    "h": "WeaklyKnown",
}  # fmt: skip
DEFAULTS = {"augment": True, "replay_ratio": 0.2, "replay_of": "stage", "seed": 0}


def test_stage_1_is_what_is_half_known():
    assert stage_one(BEFORE) == ["a", "e"]


def test_stage_2_keeps_adds_and_replays():
    second = stage_two(BEFORE, AFTER, **DEFAULTS)
    # d fell to MaybeKnown and g rose past it: neither is an upgrade to MaybeKnown.
    assert second.kept == ["a", "e"] and second.upgraded == ["b", "c"]
    assert len(second.replay) == second.replay_wanted == 1, "0.2 of five is one"
    assert set(second.replay) < {"d", "f", "i", "j"}
    assert second.ids() == ["a", "e", "b", "c", *second.replay]


@pytest.mark.parametrize(
    ("change", "upgraded", "replay", "wanted"),
    [
        ({"augment": False, "replay_ratio": 0.5}, [], 2, 2),
        ({"replay_ratio": 0.0}, ["b", "c"], 0, 0),
        ({"replay_ratio": 0.5, "replay_of": "pool"}, ["b", "c"], 2, 2),
        ({"replay_ratio": 0.25, "replay_of": "pool"}, ["b", "c"], 1, 1),
        ({"replay_ratio": 0.6}, ["b", "c"], 4, 6),
    ],
)
def test_strategies_are_settings(change, upgraded, replay, wanted):
    second = stage_two(BEFORE, AFTER, **DEFAULTS | change)
    assert (second.upgraded, len(second.replay), second.replay_wanted) == (upgraded, replay, wanted)


def test_the_replay_is_drawn_by_seed():
    draws = [tuple(stage_two(BEFORE, AFTER, **DEFAULTS | {"seed": s}).replay) for s in range(40)]
    assert len(set(draws)) == 4 and draws[0] == tuple(stage_two(BEFORE, AFTER, **DEFAULTS).replay)
