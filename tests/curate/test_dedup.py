from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.curate.dedup import (
    Pair,
    bands,
    embedding_pairs,
    exact_pairs,
    hyperplanes,
    keep_earliest,
    minhash_pairs,
    minhash_signatures,
)
from regrow.curate.text import jaccard, natural_key, shingles, words

VOCABULARY = [f"word{i}" for i in range(500)]


def noisy_copies(n: int, seed: int) -> list[str]:
    """``n`` texts of 60 words; a third of them are copies of an earlier one with a few words exchanged."""
    rng = np.random.default_rng(seed)
    texts: list[list[str]] = []
    for _ in range(n):
        if texts and rng.random() < 1 / 3:
            text = list(texts[rng.integers(len(texts))])
            for _ in range(int(rng.integers(0, 6))):
                text[rng.integers(len(text))] = str(rng.choice(VOCABULARY))
        else:
            text = [str(w) for w in rng.choice(VOCABULARY, 60)]
        texts.append(text)
    return [" ".join(t) for t in texts]


def brute_force(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    sets = [shingles(t, 3) for t in texts]
    return {(i, j) for j in range(len(sets)) for i in range(j) if jaccard(sets[i], sets[j]) >= threshold}


def test_minhash_finds_what_the_exact_search_finds() -> None:
    texts = noisy_copies(400, seed=0)
    wanted = brute_force(texts, 0.8)
    found = {(p.first, p.second) for p in minhash_pairs(texts, 0.8, seed=1)}
    assert len(wanted) > 50
    assert found <= wanted, "a reported pair is below the threshold"
    # Copies of one text are paired with the first only, so what counts is which texts go.
    gone = set(keep_earliest(400, [Pair(i, j, 1.0) for i, j in sorted(wanted)]))
    assert len(gone & set(keep_earliest(400, minhash_pairs(texts, 0.8, seed=1)))) >= 0.98 * len(gone) > 30


def test_minhash_estimates_jaccard() -> None:
    a, b = shingles(" ".join(VOCABULARY[:200]), 3), shingles(" ".join(VOCABULARY[100:300]), 3)
    signatures = minhash_signatures([a, b], seed=0, permutations=4096)
    assert (signatures[0] == signatures[1]).mean() == pytest.approx(jaccard(a, b), abs=0.03)


def test_copies_make_few_pairs_and_all_but_the_first_go() -> None:
    text = "the same answer once more in just these words"
    pairs = minhash_pairs([text] * 300, 0.8, seed=0)
    assert len(pairs) == 299
    assert sorted(keep_earliest(300, pairs)) == list(range(1, 300))


def test_copies_of_a_near_duplicate_go_with_it() -> None:
    base = " ".join(VOCABULARY[:60])
    near = " ".join([*VOCABULARY[:59], "other"])
    removed = keep_earliest(4, minhash_pairs([base, near, near, near], 0.8, seed=0))
    assert sorted(removed) == [1, 2, 3]


def test_texts_without_words_are_no_duplicates() -> None:
    assert minhash_pairs(["", "...", "!!", ""], 0.5, seed=0) == []


def clustered(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n // 2, 64))
    vectors = np.concatenate([centres, centres[: n // 4] + 0.25 * rng.standard_normal((n // 4, 64))])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_hyperplane_search_finds_what_the_exact_search_finds() -> None:
    vectors = clustered(2000, seed=0)
    wanted = {(p.first, p.second) for p in exact_pairs(vectors, 0.95)}
    found = {(p.first, p.second) for p in embedding_pairs(vectors, 0.95, seed=1, exact_limit=10)}
    assert len(wanted) > 200
    assert found <= wanted
    assert len(found) >= 0.98 * len(wanted)


def test_exact_search_is_the_full_matrix() -> None:
    vectors = clustered(300, seed=2)
    full = vectors @ vectors.T
    wanted = {(i, j) for i in range(len(full)) for j in range(i + 1, len(full)) if full[i, j] >= 0.5}
    assert {(p.first, p.second) for p in exact_pairs(vectors, 0.5)} == wanted


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_and_tables_reach_the_recall(threshold: float) -> None:
    count, rows = bands(threshold)
    assert 1 - (1 - threshold**rows) ** count >= 0.99
    tables, bits = hyperplanes(1_000_000, max(threshold, 0.8))
    agree = 1 - np.arccos(max(threshold, 0.8)) / np.pi
    assert 1 - (1 - agree**bits) ** tables >= 0.99


def test_hyperplane_work_grows_slower_than_pairs() -> None:
    # Expected candidates between unrelated vectors: tables * n^2 / 2^bits.
    work = {n: (lambda t, b, n=n: t * n * n / 2**b)(*hyperplanes(n, 0.95)) for n in (10_000, 1_000_000)}
    assert work[1_000_000] / work[10_000] < 100**1.5


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 12), st.data())
def test_keep_earliest_leaves_no_pair_and_removes_nothing_alone(n: int, data: st.DataObject) -> None:
    edges = data.draw(st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda e: e[0] < e[1])))
    removed = keep_earliest(n, [Pair(i, j, 0.9) for i, j in sorted(edges)])
    kept = set(range(n)) - set(removed)
    assert not any(i in kept and j in kept for i, j in edges)
    assert all(pair.first in kept and (pair.first, j) in edges for j, pair in removed.items())


def test_pairs_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "from regrow.curate.dedup import minhash_pairs;"
        "print(minhash_pairs(['a b c d e f', 'a b c d e f g', 'x y z q w', 'a b c d e f'], 0.5, seed=3))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": s},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for s in ("0", "1", "77")
    }
    assert len(seen) == 1


@given(st.text(st.characters(max_codepoint=127)))
def test_plain_ascii_has_the_words_that_the_whole_normalisation_gives(text: str) -> None:
    assert words(f"{text} é") == [*words(text), "é"]


def test_words_are_normalised() -> None:
    assert words("Who's  the KING—of “Spain”?") == ["who", "s", "the", "king", "of", "spain"]
    assert words("Ｆｕｌｌ ﬁne Straße") == ["full", "fine", "strasse"]
    assert words("東京タワー") == ["東", "京", "タ", "ワ", "ー"]
    assert words("a_b") == ["a", "b"]


def test_natural_order() -> None:
    assert sorted(["t00/10", "t00/9", "t00", "t00/9/1", "t1/0"], key=natural_key) == [
        "t00", "t00/9", "t00/9/1", "t00/10", "t1/0",
    ]  # fmt: skip
