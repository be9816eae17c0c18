from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.grow.mmr import mmr


def unit(*rows: tuple[float, ...]) -> np.ndarray:
    a = np.asarray(rows, dtype=np.float32)
    return a / np.linalg.norm(a, axis=1, keepdims=True)


ANCHOR = unit((1.0, 0.0, 0.0))[0]
# Cosines to the anchor: a 1, b 0.96, c 0.6, d 0. Cosine a-b 0.96, a-c 0.6, b-c 0.8 (0.96*0.6 + 0.28*0.8), a-d 0, b-d
# 0, c-d 0.
FOUR = unit((1.0, 0.0, 0.0), (0.96, 0.28, 0.0), (0.6, 0.8, 0.0), (0.0, 0.0, 1.0))


def test_by_hand() -> None:
    # lam 0.5. First: 0.5*1, 0.48, 0.3, 0 -> a. Then b 0.48-0.48 = 0, c 0.3-0.3 = 0, d 0-0 = 0: a tie, b is the
    # earliest. Then c 0.3 - 0.5*max(0.6, 0.8) = -0.1, d 0 -> d. Then c.
    assert mmr(FOUR, ANCHOR, 4, lam=0.5) == ([0, 1, 3, 2], set())


def test_relevance_alone_and_novelty_alone() -> None:
    assert mmr(FOUR, ANCHOR, 3, lam=1.0)[0] == [0, 1, 2]
    # lam 0: all tie at first, so a; then the least similar to it, d; then the one whose nearest chosen is farthest, c.
    assert mmr(FOUR, ANCHOR, 3, lam=0.0)[0] == [0, 3, 2]


def test_novelty_weight_decides() -> None:
    # lam 0.3 after a: b 0.288-0.672, c 0.18-0.42 = -0.24, d 0 -> d, then c (-0.24) before b (-0.384).
    assert mmr(FOUR, ANCHOR, 4, lam=0.3)[0] == [0, 3, 2, 1]


def test_hard_limit_drops_for_good() -> None:
    assert mmr(FOUR, ANCHOR, 4, lam=1.0, max_similarity=0.9) == ([0, 2, 3], {1})
    assert mmr(FOUR, ANCHOR, 1, lam=1.0, max_similarity=0.9) == ([0], {1})


def test_noise_of_the_encoder_does_not_decide() -> None:
    same = np.repeat(unit((0.6, 0.8, 0.0)), 5, axis=0)
    noisy = same + np.random.default_rng(0).normal(0, 1e-8, same.shape).astype(np.float32)
    assert mmr(noisy, ANCHOR, 3)[0] == [0, 1, 2]


@given(st.integers(0, 8), st.integers(1, 8), st.floats(0, 1), st.floats(-1, 1), st.integers(0, 2**31))
def test_properties(m: int, n: int, lam: float, limit: float, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(m, 5)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    chosen, out = mmr(rows, unit((1.0, 2.0, 0.0, 0.0, 1.0))[0], n, lam=lam, max_similarity=limit)
    assert len(chosen) == len(set(chosen)) <= n
    assert out.isdisjoint(chosen)
    assert all(rows[i] @ rows[j] <= limit + 1e-4 for i in chosen for j in chosen if i != j)
    assert len(chosen) == n or len(chosen) + len(out) == m


@pytest.mark.parametrize("n", [1, 3])
def test_none(n: int) -> None:
    assert mmr(np.zeros((0, 3), dtype=np.float32), ANCHOR, n) == ([], set())
