from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from regrow.mix.config import MixConfig
from regrow.mix.replay import choose, domain_order, interleave, wanted

SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(
    sizes=SIZES,
    domain=st.integers(1, 20_000),
    ratio=st.floats(0.01, 0.9),
    n_topics=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_the_ratio_is_met_within_one_dialogue(sizes, domain, ratio, n_topics, seed) -> None:
    target = wanted(domain, ratio)
    topics = [f"topic {i % n_topics}" for i in range(len(sizes))]
    chosen = choose(sizes, topics, target, max_repeats=1, rng=np.random.default_rng(seed))
    assert len(set(chosen)) == len(chosen)
    got = sum(sizes[i] for i in chosen)
    if sum(sizes) >= target:
        assert abs(got - target) <= max(sizes)
        realised, one = got / (got + domain), max(sizes) / (target + domain)
        assert abs(realised - ratio) <= one
    else:
        assert len(chosen) >= len(sizes) - 1, "a corpus that is too small is used up"


@settings(max_examples=200, deadline=None)
@given(
    sizes=SIZES,
    targets=st.tuples(st.floats(1, 30_000), st.floats(1, 30_000)),
    n_topics=st.integers(1, 5),
    repeats=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_a_nested_choice_is_the_beginning_of_a_larger_one(sizes, targets, n_topics, repeats, seed) -> None:
    topics = [f"topic {i % n_topics}" for i in range(len(sizes))]

    def chosen(target: float) -> list[int]:
        rng = np.random.default_rng(seed)
        return choose(sizes, topics, target, max_repeats=repeats, rng=rng, nested=True)

    less, more = (chosen(t) for t in sorted(targets))
    assert more[: len(less)] == less
    for target, found in zip(sorted(targets), (less, more), strict=True):
        if len(found) < repeats * len(sizes):
            assert abs(sum(sizes[i] for i in found) - target) <= max(sizes) / 2


def test_wanted_is_the_share_of_the_whole() -> None:
    assert wanted(800, 0.2) == pytest.approx(200)
    assert wanted(800, 0.0) == 0


def test_topics_take_turns() -> None:
    topics = ["a"] * 50 + ["b"] * 5 + ["c"] * 20
    chosen = choose([10] * 75, topics, 300, max_repeats=1, rng=np.random.default_rng(0))
    counts = {t: sum(topics[i] == t for i in chosen) for t in "abc"}
    assert counts["b"] == 5
    assert abs(counts["a"] - counts["c"]) <= 1
    assert {topics[i] for i in chosen[:3]} == {"a", "b", "c"}


@pytest.mark.parametrize(("repeats", "uses"), [(1, 1), (3, 3)])
def test_a_small_corpus_is_repeated_up_to_the_cap(repeats: int, uses: int) -> None:
    chosen = choose([10] * 4, ["a"] * 4, 1000, max_repeats=repeats, rng=np.random.default_rng(0))
    assert np.bincount(chosen).tolist() == [uses] * 4


def test_nothing_is_repeated_while_the_corpus_suffices() -> None:
    chosen = choose([30] * 10, ["a"] * 10, 290, max_repeats=4, rng=np.random.default_rng(0))
    assert len(set(chosen)) == len(chosen) == 10


@settings(max_examples=100, deadline=None)
@given(domain=SIZES, replay=st.lists(st.integers(1, 400), max_size=60))
def test_interleaving_keeps_order_and_the_ratio_everywhere(domain: list[int], replay: list[int]) -> None:
    plan = interleave(domain, replay)
    assert [s.index for s in plan if not s.replay] == list(range(len(domain)))
    assert [s.index for s in plan if s.replay] == list(range(len(replay)))
    share = sum(replay) / (sum(domain) + sum(replay))
    done, grown, largest = 0, 0, max([*domain, *replay])
    for slot in plan:
        size = (replay if slot.replay else domain)[slot.index]
        done += size
        grown += size * slot.replay
        assert abs(grown - share * done) <= largest, "no prefix strays from the ratio by more than a row"


def test_the_order_of_rows_depends_on_the_seed_alone() -> None:
    order = domain_order(10, 2.5, seed=4)
    assert len(order) == 25
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10].tolist() != order[10:20].tolist()
    assert domain_order(10, 1, seed=4).tolist() == order[:10].tolist()
    assert domain_order(10, 1, seed=5).tolist() != order[:10].tolist()


@pytest.mark.parametrize("ratio", [1.5, 1.0, -0.1])
def test_a_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValidationError, match="replay_ratio"):
        MixConfig(replay_ratio=ratio)


def test_the_message_names_the_field_and_the_range(tmp_path) -> None:
    from regrow.errors import RecipeError
    from regrow.recipe import parse_recipe

    with pytest.raises(RecipeError) as caught:
        parse_recipe("mix: { replay_ratio: 1.5 }")
    assert "mix.replay_ratio" in str(caught.value)
    assert "less than 1" in str(caught.value)
