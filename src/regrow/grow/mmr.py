"""Maximal marginal relevance (Carbonell and Goldstein, 1998): the semantic deduplication of Tree Generation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

# Encoders differ in the last digits with batch shape and thread count. Scores are compared on this grid, so that such
# noise does not decide between candidates; on a tie the earlier candidate wins.
_GRID = 1e-5


def _snap(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    snapped: npt.NDArray[np.float64] = np.round(np.asarray(values, dtype=np.float64) / _GRID) * _GRID
    return snapped


def mmr(
    candidates: Vectors, anchor: Vectors, n: int, *, lam: float = 0.5, max_similarity: float = 1.0
) -> tuple[list[int], set[int]]:
    """Choose up to ``n`` candidates that are relevant to the anchor and unlike each other.

    ``next = argmax_c [ lam * cos(c, anchor) - (1 - lam) * max_{s in S} cos(c, s) ]``, the second term being 0 while S
    is empty. A candidate whose cosine to a chosen one exceeds ``max_similarity`` is out for good, whatever its score.

    Args:
        candidates: ``(m, d)`` float32, rows of length 1.
        anchor: ``(d,)`` float32 of length 1.
        n: Most candidates to choose.
        lam: Weight of relevance, 0 to 1.
        max_similarity: Cosine above which a candidate counts as a duplicate of a chosen one.

    Returns:
        Indices in the order chosen, and the indices that were out as too similar (disjoint from the former).
    """
    m = len(candidates)
    relevance = _snap(candidates @ anchor)
    similarity = _snap(candidates @ candidates.T)
    closest = np.zeros(m)
    alive = np.ones(m, dtype=bool)
    chosen: list[int] = []
    too_similar: set[int] = set()
    while len(chosen) < n and alive.any():
        score = _snap(lam * relevance - (1 - lam) * closest)
        pick = int(np.argmax(np.where(alive, score, -np.inf)))
        alive[pick] = False
        closest = similarity[pick].copy() if not chosen else np.maximum(closest, similarity[pick])
        chosen.append(pick)
        out = alive & (similarity[pick] > max_similarity)
        too_similar.update(int(i) for i in np.flatnonzero(out))
        alive &= ~out
    return chosen, too_similar
