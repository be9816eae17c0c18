"""Normalised words of a text and 64-bit hashes of its n-grams, the same in every process."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_WORD = re.compile(r"[^\W_]+")
# Scripts written without spaces: a "word" there is one character, or no two texts would ever share thirteen of them.
_UNSPACED = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1780-\u17ff\u1000-\u109f]"
)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """Lower-case words without punctuation: Unicode NFKC, case folded, split at everything that is no letter or digit.

    Characters of scripts written without spaces (Chinese, Japanese, Thai, ...) are words of their own.
    """
    if text.isascii():  # most of a corpus; the steps below would change nothing but the case, at four times the cost
        return _WORD.findall(text.lower())
    text = unicodedata.normalize("NFKC", text).casefold()
    # Combining marks (Thai and Indic vowels) are no word characters for `re`; they belong to the letter before.
    text = "".join(c for c in text if not unicodedata.combining(c))
    return _WORD.findall(_UNSPACED.sub(lambda m: f" {m.group()} ", text))


@lru_cache(maxsize=1 << 18)
def word_hash(word: str) -> int:
    """A 64-bit hash that does not depend on PYTHONHASHSEED."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def hash_words(tokens: list[str]) -> Hashes:
    """Hashes of the words, shape (len(tokens),)."""
    return np.fromiter((word_hash(w) for w in tokens), dtype=np.uint64, count=len(tokens))


def ngram_hashes(hashes: Hashes, n: int) -> Hashes:
    """Hashes of the n-grams of a text, in order, shape (max(0, words - n + 1),)."""
    count = len(hashes) - n + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    out = np.zeros(count, np.uint64)
    with np.errstate(over="ignore"):
        for i in range(n):
            out = (out + hashes[i : i + count]) * _MULTIPLIER
            out ^= out >> np.uint64(29)
    return out


def shingles(text: str, n: int) -> Hashes:
    """The sorted set of hashes of the text's n-word shingles; a shorter text is one shingle, an empty one has none."""
    hashed = hash_words(words(text))
    return np.unique(ngram_hashes(hashed, min(n, len(hashed)) or 1))


def jaccard(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Jaccard similarity of two sorted sets; two empty sets are alike (1.0)."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - common
    return common / union if union else 1.0


def natural_key(node_id: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts ``t02/9`` before ``t02/10``."""
    return tuple((0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", node_id) if p)
