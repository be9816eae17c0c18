"""Near-duplicate search in near-linear time: MinHash for shared words, random hyperplanes for sentence embeddings.

Sources: MinHash and banding, Broder 1997 and Leskovec et al., *Mining of Massive Datasets*, chapter 3; hyperplane
hashing, Charikar 2002. Candidates are always checked exactly, so the searches may miss a pair (the recall aimed at is
`RECALL`) but never report a pair that is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from regrow.curate.text import Hashes, jaccard, shingles

SHINGLE = 3
PERMUTATIONS = 128
RECALL = 0.99
"""Probability that a pair exactly at the threshold is found; pairs above it are found more surely."""
EXACT_LIMIT = 20_000
"""Up to this many vectors every pair is compared: a few seconds of matrix products, and nothing is missed."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
BLOCK = 2048
SMALL_BUCKET = 64

Vectors = NDArray[np.float32]


class Pair(NamedTuple):
    """Two near-duplicates; ``first < second`` are positions in the input."""

    first: int
    second: int
    similarity: float


def _pairs(found: dict[tuple[int, int], float]) -> list[Pair]:
    return [Pair(i, j, found[i, j]) for i, j in sorted(found)]


def bands(threshold: float, permutations: int = PERMUTATIONS, recall: float = RECALL) -> tuple[int, int]:
    """(bands, rows in a band): the longest band that still finds a pair at ``threshold`` with the asked recall."""
    for rows in range(permutations, 1, -1):
        count = permutations // rows
        if 1 - (1 - threshold**rows) ** count >= recall:
            return count, rows
    return permutations, 1


def minhash_signatures(sets: Sequence[Hashes], seed: int, permutations: int = PERMUTATIONS) -> NDArray[np.uint32]:
    """MinHash signatures, shape (len(sets), permutations); an empty set has all ones."""
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 1 << 63, permutations, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    b = rng.integers(0, 1 << 63, permutations, dtype=np.uint64)
    out = np.full((len(sets), permutations), 0xFFFFFFFF, np.uint32)
    with np.errstate(over="ignore"):
        for row, items in enumerate(sets):
            if len(items):
                out[row] = ((items[:, None] * a + b) >> np.uint64(32)).min(axis=0).astype(np.uint32)
    return out


def _band_keys(part: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row, shape (n,): sorting numbers is many times as fast as sorting rows, and two rows with
    one hash are only one more candidate to check."""
    keys = np.zeros(len(part), np.uint64)
    with np.errstate(over="ignore"):
        for column in part.T:
            keys = (keys + column) * _MULTIPLIER
            keys ^= keys >> np.uint64(29)
    return keys


def _buckets(keys: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Ascending positions of equal keys, for every key that occurs more than once."""
    if not len(keys):
        return
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    lengths = np.diff(np.concatenate([starts, [len(ranked)]]))
    for k in np.flatnonzero(lengths > 1):
        yield order[starts[k] : starts[k] + lengths[k]]


def minhash_pairs(texts: Sequence[str], threshold: float, *, seed: int) -> list[Pair]:
    """Pairs of texts whose sets of three-word shingles have a Jaccard similarity of at least ``threshold``.

    Copies (identical sets) are searched for once: each pairs with the first of its kind and with what that one
    pairs with, so that a thousand copies make a thousand pairs and not half a million. Texts without words pair with
    nothing.
    """
    sets = [shingles(t, SHINGLE) for t in texts]
    found: dict[tuple[int, int], float] = {}
    first_of: dict[bytes, int] = {}
    copies: dict[int, list[int]] = {}
    distinct: list[int] = []
    for i, items in enumerate(sets):
        if not len(items):
            continue
        first = first_of.setdefault(items.tobytes(), i)
        if first == i:
            distinct.append(i)
        else:
            copies.setdefault(first, []).append(i)
    signatures = minhash_signatures([sets[i] for i in distinct], seed)
    count, rows = bands(threshold)
    seen: set[tuple[int, int]] = set()
    for band in range(count):
        for bucket in _buckets(_band_keys(signatures[:, band * rows : (band + 1) * rows])):
            for at, y in enumerate(bucket):
                for x in bucket[:at]:
                    pair = (distinct[x], distinct[y])
                    if pair in seen:
                        continue
                    seen.add(pair)
                    similarity = jaccard(sets[pair[0]], sets[pair[1]])
                    if similarity >= threshold:
                        found[pair] = similarity
    for (i, j), similarity in list(found.items()):
        for original, partner in ((i, j), (j, i)):
            for copy in copies.get(original, ()):
                found[min(copy, partner), max(copy, partner)] = similarity
    for original, same in copies.items():
        for copy in same:
            found[original, copy] = 1.0
    return _pairs(found)


def exact_pairs(vectors: Vectors, threshold: float) -> list[Pair]:
    """All pairs of unit vectors (n, d) with a cosine of at least ``threshold``, by blocked matrix products."""
    found: dict[tuple[int, int], float] = {}
    _compare(vectors, np.arange(len(vectors)), threshold, found)
    return _pairs(found)


def _compare(
    vectors: Vectors, members: NDArray[np.int64], threshold: float, found: dict[tuple[int, int], float]
) -> None:
    for start in range(0, len(members), BLOCK):
        rows = members[start : start + BLOCK]
        for other in range(start, len(members), BLOCK):
            columns = members[other : other + BLOCK]
            similarity = vectors[rows] @ vectors[columns].T
            for r, c in zip(*np.nonzero(similarity >= threshold), strict=True):
                i, j = int(rows[r]), int(columns[c])
                if i < j:
                    found[i, j] = float(similarity[r, c])


def hyperplanes(n: int, threshold: float, recall: float = RECALL) -> tuple[int, int]:
    """(tables, bits in a key) so that a pair at cosine ``threshold`` meets in some table with the asked recall.

    Bits grow with log2 n, so that buckets of unrelated vectors stay small; tables follow from the recall.
    """
    agree = 1 - math.acos(min(1.0, threshold)) / math.pi
    for bits in range(max(4, min(62, round(math.log2(max(2, n))))), 0, -1):
        hit = agree**bits
        tables = 1 if hit >= recall else math.ceil(math.log(1 - recall) / math.log(1 - hit))
        if tables <= 64:
            return tables, bits
    return 64, 1


def embedding_pairs(vectors: Vectors, threshold: float, *, seed: int, exact_limit: int = EXACT_LIMIT) -> list[Pair]:
    """Pairs of unit vectors, shape (n, d), with a cosine of at least ``threshold``.

    Exact up to ``exact_limit`` vectors; beyond, hyperplane hashing with a recall of at least `RECALL` a pair.
    """
    if len(vectors) <= exact_limit:
        return exact_pairs(vectors, threshold)
    tables, bits = hyperplanes(len(vectors), threshold)
    rng = np.random.default_rng(seed)
    powers = np.uint64(1) << np.arange(bits, dtype=np.uint64)
    found: dict[tuple[int, int], float] = {}
    for _ in range(tables):
        planes = rng.standard_normal((vectors.shape[1], bits)).astype(np.float32)
        keys = np.empty(len(vectors), np.uint64)
        for start in range(0, len(vectors), 65_536):
            side = (vectors[start : start + 65_536] @ planes) > 0
            keys[start : start + len(side)] = side.astype(np.uint64) @ powers
        large = _compare_small_buckets(vectors, keys, threshold, found)
        for bucket in large:
            _compare(vectors, bucket, threshold, found)
    return _pairs(found)


def _compare_small_buckets(
    vectors: Vectors, keys: NDArray[np.uint64], threshold: float, found: dict[tuple[int, int], float]
) -> list[NDArray[np.int64]]:
    """Compare within buckets of up to `SMALL_BUCKET` vectors, all buckets at once; returns the larger ones.

    Most buckets hold a handful of vectors; a call for each would cost more than the products.
    """
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    lengths = np.diff(np.concatenate([starts, [len(ranked)]]))
    size = np.repeat(lengths, lengths)
    small = size <= SMALL_BUCKET
    for step in range(1, min(SMALL_BUCKET, len(ranked))):
        at = np.flatnonzero((ranked[step:] == ranked[:-step]) & small[:-step])
        if not len(at):
            break
        for part in np.array_split(at, -(-len(at) // BLOCK)):
            i, j = order[part], order[part + step]
            similarity = np.einsum("nd,nd->n", vectors[i], vectors[j])
            for hit in np.flatnonzero(similarity >= threshold):
                found[int(i[hit]), int(j[hit])] = float(similarity[hit])
    return [order[s : s + n] for s, n in zip(starts, lengths, strict=True) if n > SMALL_BUCKET]


def keep_earliest(n: int, pairs: Sequence[Pair]) -> dict[int, Pair]:
    """Greedy removal in input order: position -> the pair that removes it, with the kept one as ``first``.

    A position is removed when it pairs with an earlier one that is itself kept; so what is removed always has a
    near-duplicate left in the corpus, and a chain of similar texts does not vanish down to its first link.
    """
    earlier: dict[int, list[Pair]] = {}
    for pair in pairs:
        earlier.setdefault(pair.second, []).append(pair)
    removed: dict[int, Pair] = {}
    for j in sorted(earlier):
        alive = [p for p in earlier[j] if p.first not in removed]
        if alive:
            removed[j] = max(alive, key=lambda p: (p.similarity, -p.first))
    if removed and max(removed) >= n:
        raise ValueError("a pair points outside the input")
    return removed
