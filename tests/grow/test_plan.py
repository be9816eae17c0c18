from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from regrow.grow.plan import Want, node_seed, redistribute, split
from regrow.grow.shapes import Shape, mixed_histogram, mixed_shape


def leaves(shape: Shape, want: Want, seed: int, layers_per_turn: int = 2) -> list[tuple[int, ...]]:
    """Grow without a model: every wanted child lives. A child's place in its parent is drawn, as it would be by
    MMR."""

    def walk(path: tuple[int, ...], want: Want) -> Iterator[tuple[int, ...]]:
        if all(k * layers_per_turn == len(path) for k in want):
            assert want[len(path) // layers_per_turn] == 1
            yield path
            return
        rng = np.random.default_rng(node_seed(seed, str(path), "split"))
        shares = split(shape, len(path), want, rng, layers_per_turn)
        places = rng.choice(shape.children[len(path)], len(shares), replace=False)
        for place, share in zip(places, shares, strict=True):
            yield from walk((*path, int(place)), share)

    return list(walk((), want))


def test_seed_is_stable() -> None:
    assert node_seed(7, "t03/5/0") == 8170969642581002485
    code = "from regrow.grow.plan import node_seed; print(node_seed(7, 't03/5/0'))"
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) == node_seed(7, "t03/5/0")
    seeds = {
        node_seed(s, p, w, a) for s in (0, 1) for p in ("t00", "t01") for w in ("sample", "split") for a in (0, 1)
    }
    assert len(seeds) == 16 and all(0 <= x < 2**63 for x in seeds)


def test_distinct_paths_and_whole_tree() -> None:
    shape = Shape((4, 3, 2, 2))
    for wanted in (1, 7, 47, 48):
        found = leaves(shape, {2: wanted}, seed=wanted)
        assert len(set(found)) == len(found) == wanted


def test_paths_are_uniform() -> None:
    """Every path, and every pair of paths, is as likely as a uniform draw of 3 of 12 makes it."""
    shape, runs = Shape((3, 2, 2, 1)), 6000
    singles: Counter[tuple[int, ...]] = Counter()
    same_first = 0
    for seed in range(runs):
        found = leaves(shape, {2: 3}, seed)
        singles.update(found)
        same_first += len({p[0] for p in found}) == 1
    expected = runs * 3 / 12
    chi2 = sum((singles[p] - expected) ** 2 / expected for p in singles)
    assert len(singles) == 12
    assert chi2 < 31.3  # 99.9 % of chi-squared with 11 degrees of freedom; draws without replacement vary less
    # C(4,3)*3 of the C(12,3) subsets lie under one first question.
    p = 12 / 220
    assert abs(same_first / runs - p) < 4 * (p * (1 - p) / runs) ** 0.5


def test_mixed_turns_end_where_wanted() -> None:
    for wanted in (4, 40, 333):
        histogram = mixed_histogram(wanted)
        shape = mixed_shape(histogram)
        found = leaves(shape, {k: n for k, n in histogram.items() if n}, seed=wanted)
        got = Counter(len(p) // 2 for p in found)
        assert len(set(found)) == len(found)
        assert sum(got.values()) >= 0.95 * wanted, "what does not fit is refilled, but it should be rare"
        for k, n in got.items():
            assert n <= histogram[k]
        starts = {p[:i] for p in found for i in range(1, len(p))}
        assert starts.isdisjoint(found), "a dialogue that is the start of another"


def test_lost_children_pass_on_their_share() -> None:
    shape = Shape((3, 2, 2, 1))
    moved = redistribute(shape, 0, [{2: 2}, {2: 1}], [{2: 3}], np.random.default_rng(0))
    assert sum(s[2] for s in moved) == 6 and all(s[2] <= 4 for s in moved)
    full = redistribute(shape, 0, [{2: 4}], [{2: 3}], np.random.default_rng(0))
    assert full == [{2: 4}], "no more than the subtree holds"
    assert redistribute(shape, 0, [], [{2: 3}], np.random.default_rng(0)) == []
    mixed = [{1: 1}, {2: 2}]
    assert redistribute(shape, 1, mixed, [{2: 1}], np.random.default_rng(0)) == mixed


def test_huge_trees() -> None:
    shares = split(Shape((10**6, 10**6, 10, 10)), 0, {2: 1000}, np.random.default_rng(0))
    assert sum(s[2] for s in shares) == 1000 and len(shares) > 990


@pytest.mark.parametrize("seed", [0, 1])
def test_text_layers(seed: int) -> None:
    found = leaves(Shape((3, 2, 2)), {3: 5}, seed, layers_per_turn=1)
    assert len(set(found)) == 5 and {len(p) for p in found} == {3}
