"""Finds corpus turns that say what an evaluation item says: shared word n-grams and sentence embeddings.

The n-gram rule is that of GPT-3 (Brown et al. 2020, appendix C): 13 consecutive words after normalisation. Items
shorter than that, as most questions are, must occur as a whole. The embedding rule catches rewordings, which n-grams
cannot (Yang et al. 2023, arXiv 2311.04850).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from regrow.curate.text import Hashes, hash_words, ngram_hashes, words
from regrow.evaluate.items import Item
from regrow.rows.row import Row

MIN_CONTAINED_WORDS = 4
"""An item text with fewer words must equal the turn, not merely occur in it: "the capital of" occurs everywhere."""
BOILERPLATE_ITEMS = 10
"""An n-gram of more items than this is the suite's template ("answer with the letter of the ..."), not an item. Ten
leaves room for several questions about one passage. Where all n-grams of an item are such, all of it must occur."""
BLOCK = 4096


class Encodes(Protocol):
    """A sentence encoder, such as `regrow.models.embed.Encoder`."""

    def encode(self, texts: Sequence[str], *, batch_size: int = 64, progress: Any = None) -> NDArray[np.float32]:
        """Unit vectors, shape (len(texts), d)."""
        ...


class Hit(NamedTuple):
    """A turn that is too close to an evaluation item."""

    item_id: str
    suite: str
    evidence: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Probe:
    """One text that training must not contain. ``kind`` says what it is: a question, or a question with its answer."""

    item_id: str
    suite: str
    kind: str
    text: str


def probes(items: Iterable[Item]) -> list[Probe]:
    """The texts of evaluation items, as `Item.texts` gives them."""
    out = []
    for item in items:
        for kind, text in zip(("question", "answered"), item.texts(), strict=False):
            out.append(Probe(item.id, item.suite, kind, text))
    return [p for p in out if p.text.strip()]


def row_probes(rows: Iterable[Row]) -> list[Probe]:
    """The texts of the user's rows: each user turn, and each answer with the turn it answers."""
    out = []
    for row in rows:
        question = ""
        for message in row.messages:
            text = _plain(message["content"])
            if message["role"] == "user":
                question = text
                out.append(Probe(row.id, "your rows", "question", text))
            elif message["role"] == "assistant":
                out.append(Probe(row.id, "your rows", "answered", f"{question}\n{text}" if question else text))
    return [p for p in out if p.text.strip()]


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(block["text"] for block in content if block.get("type") == "text")


class NgramIndex:
    """Which item shares words with a text.

    Args:
        texts: What must not occur.
        n: Words in a row that count as an overlap; shorter texts must occur whole.
    """

    def __init__(self, texts: Sequence[Probe], n: int) -> None:
        self.n = n
        self._probes = list(texts)
        self._words = [words(p.text) for p in texts]
        self._tables: dict[int, tuple[Hashes, NDArray[np.int64]]] = {}
        self._whole: dict[int, tuple[Hashes, NDArray[np.int64]]] = {}
        long = [i for i, w in enumerate(self._words) if len(w) >= n]
        short = [i for i, w in enumerate(self._words) if MIN_CONTAINED_WORDS <= len(w) < n]
        tiny = [i for i, w in enumerate(self._words) if 0 < len(w) < MIN_CONTAINED_WORDS]
        rows = [(i, ngram_hashes(hash_words(self._words[i]), n)) for i in long]
        template = _shared([(self._probes[i].item_id, grams) for i, grams in rows])
        special: list[tuple[int, Hashes]] = []
        whole: list[tuple[int, Hashes]] = []
        for i, grams in rows:
            own = grams[~np.isin(grams, template)]
            (special if len(own) else whole).append((i, own))
        self._add(self._tables, n, special)
        for i in short + [i for i, _ in whole]:
            length = len(self._words[i])
            self._add(self._tables, length, [(i, ngram_hashes(hash_words(self._words[i]), length))])
        for i in tiny:
            length = len(self._words[i])
            self._add(self._whole, length, [(i, ngram_hashes(hash_words(self._words[i]), length))])
        self._tables = {k: _sorted(v) for k, v in sorted(self._tables.items())}
        self._whole = {k: _sorted(v) for k, v in sorted(self._whole.items())}

    def _add(
        self, tables: dict[int, tuple[Hashes, NDArray[np.int64]]], n: int, rows: list[tuple[int, Hashes]]
    ) -> None:
        if not rows:
            return
        grams = np.concatenate([g for _, g in rows])
        owners = np.concatenate([np.full(len(g), i, np.int64) for i, g in rows])
        if n in tables:
            grams, owners = np.concatenate([tables[n][0], grams]), np.concatenate([tables[n][1], owners])
        tables[n] = (grams, owners)

    def find(self, text: str) -> Hit | None:
        """The item that shares most of its words with ``text``, or None."""
        said = words(text)
        hashed = hash_words(said)
        best: tuple[float, int, str] | None = None
        tables = [*self._tables.items(), *((n, t) for n, t in self._whole.items() if n == len(said))]
        for n, (grams, owners) in tables:
            mine = ngram_hashes(hashed, n)
            if not len(mine):
                continue
            for owner, at in _matches(mine, grams, owners):
                gram = said[at : at + n]
                if not _contains(self._words[owner], gram):  # two n-grams with one 64-bit hash
                    continue
                total = max(1, len(self._words[owner]) - n + 1)
                shared = sum(_contains(said, self._words[owner][k : k + n]) for k in range(total)) / total
                candidate = (shared, -owner, " ".join(gram))
                if best is None or candidate > best:
                    best = candidate
        if best is None:
            return None
        probe = self._probes[-best[1]]
        return Hit(probe.item_id, probe.suite, {"ngram": best[2], "overlap": round(best[0], 4)})


def _shared(rows: list[tuple[str, Hashes]]) -> Hashes:
    """N-grams that occur in more than `BOILERPLATE_ITEMS` items."""
    by_item: dict[str, list[Hashes]] = {}
    for item_id, grams in rows:
        by_item.setdefault(item_id, []).append(grams)
    if len(by_item) <= BOILERPLATE_ITEMS:
        return np.empty(0, np.uint64)
    grams, counts = np.unique(
        np.concatenate([np.unique(np.concatenate(g)) for g in by_item.values()]), return_counts=True
    )
    return np.asarray(grams[counts > BOILERPLATE_ITEMS], np.uint64)


def _sorted(table: tuple[Hashes, NDArray[np.int64]]) -> tuple[Hashes, NDArray[np.int64]]:
    grams, owners = table
    order = np.lexsort((owners, grams))
    return grams[order], owners[order]


MATCHES_READ = 8
"""Owners of one n-gram and n-grams of one text that are looked at: enough to name the closest item."""


def _matches(mine: Hashes, grams: Hashes, owners: NDArray[np.int64]) -> Iterable[tuple[int, int]]:
    left = np.searchsorted(grams, mine, "left")
    right = np.searchsorted(grams, mine, "right")
    hits = np.flatnonzero(right > left)
    seen: set[int] = set()
    for at in hits:
        for owner in owners[left[at] : min(right[at], left[at] + MATCHES_READ)]:
            if int(owner) not in seen:
                seen.add(int(owner))
                yield int(owner), int(at)
        if len(seen) > 4 * MATCHES_READ:
            return


def _contains(haystack: list[str], needle: list[str]) -> bool:
    n = len(needle)
    return any(haystack[i] == needle[0] and haystack[i : i + n] == needle for i in range(len(haystack) - n + 1))


class EmbeddingIndex:
    """Which item means the same as a text.

    Args:
        texts: What must not occur; ``kind`` decides what each is compared with.
        encoder: Gives unit vectors.
        threshold: Cosine similarity that counts as the same.
    """

    def __init__(self, texts: Sequence[Probe], encoder: Encodes, threshold: float) -> None:
        self.threshold = threshold
        self._probes: dict[str, list[Probe]] = {}
        self._vectors: dict[str, NDArray[np.float32]] = {}
        for kind in ("question", "answered"):
            chosen = [p for p in texts if p.kind == kind]
            if chosen:
                self._probes[kind] = chosen
                self._vectors[kind] = encoder.encode([p.text for p in chosen])

    def find(self, vectors: NDArray[np.float32], kind: str) -> list[Hit | None]:
        """For each row of ``vectors`` (n, d) the closest item of the kind at or above the threshold, or None."""
        if kind not in self._vectors:
            return [None] * len(vectors)
        out: list[Hit | None] = []
        for start in range(0, len(vectors), BLOCK):
            similarity = vectors[start : start + BLOCK] @ self._vectors[kind].T
            best = similarity.argmax(axis=1)
            for row, column in enumerate(best):
                value = float(similarity[row, column])
                probe = self._probes[kind][column]
                hit = Hit(probe.item_id, probe.suite, {"similarity": round(value, 4), "item_text": probe.text[:300]})
                out.append(hit if value >= self.threshold else None)
        return out
