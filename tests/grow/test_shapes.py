from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.grow import shapes
from regrow.grow.shapes import Shape


def test_the_papers_cost() -> None:
    assert shapes.generations(shapes.BALANCE) == 37_408
    assert shapes.paths(shapes.BALANCE) == 32_768
    assert Shape(shapes.BALANCE).capacity(0) == 32_768
    assert Shape(shapes.BALANCE).capacity(2) == 64
    assert sum(shapes.expected_layers(shapes.BALANCE, 32_768)) == pytest.approx(37_408)


def test_wide_costs_four_generations_a_dialogue() -> None:
    wide = shapes.shape_for("wide", 2, 500)
    assert wide == Shape((500, 1, 1, 1), independent=True)
    assert shapes.generations(wide.children) == 4 * 500
    assert shapes.shape_for("wide", 3, 7).children == (7, 1, 1, 1, 1, 1)


def test_named_and_listed() -> None:
    assert shapes.shape_for("balance", 2, 5) == Shape((32, 16, 8, 8))
    assert shapes.shape_for([4, 3], 2, 5) == Shape((4, 3))


@pytest.mark.parametrize(
    ("wanted", "children"), [(20, (5, 3, 2, 1)), (1, (1, 1, 1, 1)), (2, (2, 1, 1, 1)), (32_768, (32, 16, 8, 8))]
)
def test_auto_scales_the_proportions(wanted: int, children: tuple[int, ...]) -> None:
    assert shapes.shape_for("auto", 2, wanted).children == children


@given(st.integers(1, 200_000), st.integers(1, 4))
def test_auto_is_large_enough_and_monotone(wanted: int, turns: int) -> None:
    children = shapes.shape_for("auto", turns, wanted).children
    assert len(children) == 2 * turns
    assert math.prod(children) >= wanted
    assert not shapes.warnings_for(children, 64, [256, 512])


def test_deeper_balance_keeps_falling() -> None:
    assert shapes.balance_proportions(8) == (32, 16, 8, 8, 4, 4, 2, 2)
    assert shapes.balance_proportions(2) == (32, 16)


def test_mixed_turns_are_gaussian() -> None:
    histogram = shapes.mixed_histogram(1000)
    weights = [math.exp(-((k - 2.5) ** 2) / 2) for k in (1, 2, 3, 4)]
    assert sum(histogram.values()) == 1000
    for k, w in zip((1, 2, 3, 4), weights, strict=True):
        assert histogram[k] == pytest.approx(1000 * w / sum(weights), abs=1)


@given(st.integers(1, 3000))
def test_mixed_shape_has_room(wanted: int) -> None:
    histogram = shapes.mixed_histogram(wanted)
    n1, n2, n3, n4, *rest = shapes.mixed_shape(histogram).children
    assert rest == [1, 1, 1, 1]
    assert (n1 * n2 - histogram[1]) * n3 * n4 >= wanted - histogram[1]


def test_rules_are_warnings() -> None:
    assert shapes.warnings_for((32, 16, 8, 8), 64, [256, 512]) == []
    assert len(shapes.warnings_for((4, 8, 8, 16), 300, [256, 128])) == 5


def test_expected_layers_by_simulation() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    children, wanted = (4, 3, 2), 6
    counts = np.zeros(3)
    for _ in range(4000):
        leaves = rng.choice(24, wanted, replace=False)
        counts += [len(set(leaves // 6)), len(set(leaves // 2)), len(set(leaves))]
    assert shapes.expected_layers(children, wanted) == pytest.approx(list(counts / 4000), rel=0.02)


@given(st.integers(0, 500), st.lists(st.floats(0.01, 10), min_size=1, max_size=12))
def test_apportion(total: int, weights: list[float]) -> None:
    parts = shapes.apportion(total, weights)
    assert sum(parts) == total
    assert all(abs(p - total * w / sum(weights)) < 1.0001 for p, w in zip(parts, weights, strict=True))
