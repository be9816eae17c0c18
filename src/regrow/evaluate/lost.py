"""What was lost, in words: lost items that mean alike, named by their terms, and the grown branches next to them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from regrow.evaluate.items import Item
from regrow.evaluate.suites.facts.fact import rng_for
from regrow.progress import task

Vectors = npt.NDArray[np.float32]

TOGETHER = 0.35
"""Mean cosine between two groups of lost items from which they are one topic. Our choice for all-MiniLM-L6-v2, under
which questions of one relation ("What is the capital of ...?") lie at 0.34 to 0.59, those of two relations below 0.25
(the twelve questions of a test)."""
NEAR = 0.45
"""Cosine to a grown first question from which a lost item counts as covered. Our choice, for the same encoder: "What
are the capitals of the countries of Africa?" lies at 0.44 to 0.67 to questions for single capitals, "Which metals
rust?" at 0.31 to 0.45 to those for chemical symbols. The similarities are in the results, for who draws another line.
"""
LEAST_ITEMS = 3
"""Fewer lost items make no topic; they are counted as scattered."""
TERMS = 5
NEAREST = 3
MOST_ITEMS = 1000
"""Items that are embedded for one arm: all lost ones up to here, then kept ones. Each costs about 10 ms on a core."""
MOST_BRANCHES = 1000
MOST_CHARS = 400

_TERM = re.compile(r"[^\W\d_]{3,}")


class Encodes(Protocol):
    """A sentence encoder, such as `regrow.models.embed.Encoder`."""

    name: str

    def encode(self, texts: Sequence[str], *, progress: Callable[[int], object] | None = None) -> Vectors:
        """``(len(texts), d)`` unit vectors."""
        ...


@dataclass(frozen=True, slots=True)
class Branch:
    """A first question of the grown corpus, which stands for all dialogues that begin with it."""

    id: str
    topic: str
    text: str


def read_branches(corpus: Path) -> list[Branch]:
    """The branches of a curated (or grown) corpus, one for each first question, in the order of their ids.

    Raises:
        RunError: There is no corpus, or it is damaged.
    """
    from regrow.grow.corpus import read_dialogues

    found: dict[str, Branch] = {}
    for d in read_dialogues(corpus):
        first = str(d.messages[0]["content"]) if d.messages else ""
        if first.strip():
            found.setdefault(d.bush, Branch(d.bush, d.topic, first[:MOST_CHARS]))
    return list(found.values())


def group(vectors: Vectors, together: float = TOGETHER) -> list[list[int]]:
    """Average-linkage clustering: the two groups with the highest mean cosine are joined until that is below
    ``together``.

    Args:
        vectors: ``(n, d)`` unit vectors.
        together: Where joining ends.

    Returns:
        Indices of each group, rising; the largest group first, ties by first index.
    """
    n = len(vectors)
    groups = {i: [i] for i in range(n)}
    similar = (vectors @ vectors.T).astype(np.float64)
    np.fill_diagonal(similar, -np.inf)
    while len(groups) > 1:
        a, b = divmod(int(similar.argmax()), n)
        if similar[a, b] < together:
            break
        size_a, size_b = len(groups[a]), len(groups[b])
        joined = (size_a * similar[a] + size_b * similar[b]) / (size_a + size_b)
        similar[a], similar[:, a] = joined, joined
        similar[b], similar[:, b] = -np.inf, -np.inf
        similar[a, a] = -np.inf
        groups[a] += groups.pop(b)
    return sorted((sorted(g) for g in groups.values()), key=lambda g: (-len(g), g[0]))


def telling_terms(classes: Sequence[Sequence[str]], n: int = TERMS) -> list[list[str]]:
    """The most telling words of each class of texts, by c-TF-IDF (Grootendorst, arXiv 2203.05794, eq. 2).

    The weight of term t in class c is tf(t, c) log(1 + A / f(t)), with tf its share of the words of the class, f its
    count over all classes and A the mean number of words a class. Words have three letters or more.

    Args:
        classes: Texts of each class.
        n: Words a class.

    Returns:
        For each class its words, heaviest first, ties in alphabetical order.
    """
    counts = [Counter(w for text in texts for w in _TERM.findall(text.casefold())) for texts in classes]
    everywhere: Counter[str] = Counter()
    for c in counts:
        everywhere.update(c)
    mean = everywhere.total() / max(1, len(counts))
    out = []
    for c in counts:
        total = max(1, c.total())
        weight = {t: k / total * np.log1p(mean / everywhere[t]) for t, k in c.items()}
        out.append(sorted(weight, key=lambda t: (-weight[t], t))[:n])
    return out


def lost_topics(
    results: dict[str, Any],
    items: Sequence[Item],
    right: dict[str, list[str]],
    encoder: Encodes,
    branches: Sequence[Branch] | None,
    *,
    seed: int,
) -> dict[str, Any]:
    """Topics of the lost items of each arm; see ``docs/reference/results.md``, key ``lost_topics``.

    Args:
        results: With ``lost``: arm -> ``suite:item_id`` of the items that the base had right and the arm has wrong.
        items: All items.
        right: Arm -> the items that both have right.
        encoder: Gives unit vectors.
        branches: Of the corpus that was replayed; None when there is none.
        seed: Which kept items and branches are looked at where there are too many.
    """
    texts = {f"{i.suite}:{i.id}": i.texts()[-1][-MOST_CHARS:] for i in items}
    chosen: dict[str, tuple[list[str], list[str]]] = {}
    for arm, names in results["lost"].items():
        lost = _some([n for n in names if n in texts], MOST_ITEMS, seed)
        kept = _some([n for n in right[arm] if n in texts], MOST_ITEMS - len(lost), seed)
        chosen[arm] = (lost, kept)
    wanted = list(dict.fromkeys(n for lost, kept in chosen.values() if len(lost) >= LEAST_ITEMS for n in lost + kept))
    searched = _some(branches or [], MOST_BRANCHES, seed) if wanted else []
    with task("what was lost", len(wanted) + len(searched), "texts") as bar:
        vectors = encoder.encode([texts[n] for n in wanted], progress=bar.advance)
        grown = encoder.encode([b.text for b in searched], progress=bar.advance)
    of = {name: vectors[k] for k, name in enumerate(wanted)}
    return {
        "encoder": encoder.name,
        "together": TOGETHER,
        "near": NEAR,
        "branches": None if branches is None else len(branches),
        "searched": len(searched),
        "arms": {
            arm: _topics(lost, kept, texts, of, searched, grown) if len(lost) >= LEAST_ITEMS else _none(len(lost))
            for arm, (lost, kept) in chosen.items()
        },
    }


def _none(n: int) -> dict[str, Any]:
    return {"n": n, "scattered": n, "topics": []}


def _some(values: Sequence[Any], n: int, seed: int) -> list[Any]:
    if len(values) <= n:
        return list(values)
    return [values[i] for i in sorted(rng_for(seed, "lost topics").sample(range(len(values)), n))]


def _topics(
    lost: list[str],
    kept: list[str],
    texts: dict[str, str],
    of: dict[str, Any],
    branches: Sequence[Branch],
    grown: Vectors,
) -> dict[str, Any]:
    mine = np.stack([of[n] for n in lost])
    groups = [g for g in group(mine) if len(g) >= LEAST_ITEMS]
    if not groups:
        return _none(len(lost))
    others = np.stack([of[n] for n in kept]) if kept else np.zeros((0, mine.shape[1]), np.float32)
    centres = np.stack([mine[g].mean(axis=0) for g in groups])
    beside = others @ centres.T  # mean cosine of each kept item to the items of each group
    # What was kept is one class more, so that words that every question has tell little of any topic.
    named = telling_terms([*([texts[lost[i]] for i in g] for g in groups), [texts[n] for n in kept]])
    topics = []
    for k, g in enumerate(groups):
        near_kept = int(((beside.argmax(axis=1) == k) & (beside[:, k] >= TOGETHER)).sum())
        topics.append(
            {
                "terms": named[k],
                "n": len(g),
                "of": len(g) + near_kept,
                "items": [lost[i] for i in g],
                "corpus": _corpus(mine[g], centres[k], branches, grown) if branches else None,
            }
        )
    return {"n": len(lost), "scattered": len(lost) - sum(map(len, groups)), "topics": topics}


def _corpus(vectors: Vectors, centre: Vectors, branches: Sequence[Branch], grown: Vectors) -> dict[str, Any]:
    best = (vectors @ grown.T).max(axis=1)
    to_centre = grown @ centre  # mean cosine to the items of the group
    order = np.argsort(-to_centre, kind="stable")[:NEAREST]
    return {
        "covered": int((best >= NEAR).sum()),
        "similarity": round(float(best.mean()), 4),
        "nearest": [
            {"branch": branches[i].id, "topic": branches[i].topic, "text": branches[i].text,
             "similarity": round(float(to_centre[i]), 4)}
            for i in order
        ],
    }  # fmt: skip
