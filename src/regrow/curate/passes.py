"""The passes of curation over a forest: quality, decontamination, duplicates, held-out dialogues."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from regrow.curate.config import CurateConfig
from regrow.curate.decontaminate import EmbeddingIndex, Encodes, NgramIndex, Probe
from regrow.curate.dedup import BLOCK, Pair, embedding_pairs, exact_pairs, minhash_pairs
from regrow.curate.forest import HELD, HELD_OUT, WATCHED, Forest, Turn
from regrow.curate.quality import judge
from regrow.curate.text import jaccard, shingles
from regrow.errors import RecipeError
from regrow.evaluate.items import Item
from regrow.grow.corpus import Dialogue
from regrow.progress import task

DUPLICATE = "near-duplicate"
CONTAMINATED = "evaluation item"
YOURS = "repeats a row of yours"
NEAR_HELD_OUT = "near a held-out dialogue"
SUITE = "own-dialogues"
SHINGLE = 3


class Vectors:
    """Embeddings of turns, each computed once: a question alone, an answer with its question.

    Args:
        forest: Whose turns.
        encoder: None when no setting needs one.
    """

    def __init__(self, forest: Forest, encoder: Encodes | None) -> None:
        self._forest, self._encoder = forest, encoder
        self._rows: dict[str, int] = {}
        self._parts: list[NDArray[np.float32]] = []
        self._all: NDArray[np.float32] | None = None

    def of(self, turns: Sequence[Turn]) -> NDArray[np.float32]:
        """Unit vectors, shape (len(turns), d)."""
        new = [t for t in turns if t.id not in self._rows]
        if new or self._all is None:
            encoder = self.encoder()
            with task("embedding turns", len(new), "turns") as bar:
                part = encoder.encode([self._forest.said(t) for t in new], progress=bar.advance)
            start = len(self._rows)
            self._rows.update((t.id, start + i) for i, t in enumerate(new))
            self._parts.append(np.asarray(part, np.float32).reshape(len(new), -1))
            self._parts = [np.concatenate([p for p in self._parts if len(p)] or self._parts[:1])]
            self._all = self._parts[0]
        return self._all[[self._rows[t.id] for t in turns]]

    def encoder(self) -> Encodes:
        """The encoder; RecipeError when there is none."""
        if self._encoder is None:
            raise RecipeError(
                "needs a sentence encoder",
                where="curate.dedup_method and curate.embedding_threshold",
                hint="set grow.encoder, or dedup_method to minhash or none and embedding_threshold to null",
            )
        return self._encoder


def drop_low_quality(forest: Forest, cfg: CurateConfig) -> None:
    """Drop turns that fail a filter of `regrow.curate.quality`."""
    for turn in forest.alive():
        verdict = judge(
            cfg,
            role="assistant" if turn.role == "text" else turn.role,
            text=turn.text,
            n_tokens=turn.n_tokens,
            mean_logprob=turn.mean_logprob,
            question=forest.question(turn),
        )
        if verdict is not None:
            forest.drop(turn.id, verdict.reason, verdict.evidence)


def drop_contaminated(
    forest: Forest, cfg: CurateConfig, probes: Sequence[Probe], vectors: Vectors, *, reason: str
) -> None:
    """Drop turns that say, in the same words or by meaning, what one of ``probes`` says."""
    if probes:
        index = NgramIndex(probes, cfg.ngram)
        turns = forest.alive()
        with task("decontaminating", len(turns), "turns") as bar:
            for turn in turns:
                hit = index.find(_in_context(forest, turn, cfg.ngram))
                if hit is not None:
                    forest.drop(turn.id, reason, {"item": hit.item_id, "suite": hit.suite, **hit.evidence})
                bar.advance(1)
    if cfg.embedding_threshold is None or not probes:
        return
    meaning = EmbeddingIndex(probes, vectors.encoder(), cfg.embedding_threshold)
    for role, kinds in (("user", ["question"]), ("assistant", ["answered"]), ("text", ["question", "answered"])):
        turns = forest.alive(role)
        if not turns:
            continue
        for kind in kinds:
            for turn, hit in zip(turns, meaning.find(vectors.of(turns), kind), strict=True):
                if hit is not None:
                    forest.drop(turn.id, reason, {"item": hit.item_id, "suite": hit.suite, **hit.evidence})


def _in_context(forest: Forest, turn: Turn, ngram: int) -> str:
    """A turn with what it continues, so that an overlap across the border is seen."""
    parent = forest.turns.get(turn.parent)
    if turn.role == "text" and parent is not None:
        return " ".join([*parent.text.split()[1 - ngram :], turn.text])
    return forest.said(turn)


def drop_duplicates(forest: Forest, cfg: CurateConfig, vectors: Vectors, seed: int) -> None:
    """Drop near-duplicate answers; the earlier one in tree order stays.

    Across bushes the first question + answer is compared, by hashing; inside a bush every question + answer, and
    answers to one question by themselves (their shared question would make them all alike).
    """
    if cfg.dedup_method == "none":
        return
    turns = [t for t in forest.alive() if t.role != "user"]
    at = {t.id: i for i, t in enumerate(turns)}
    by_words, by_meaning = cfg.dedup_method in ("minhash", "both"), cfg.dedup_method in ("embedding", "both")
    found: dict[int, list[tuple[int, float, str]]] = {}
    if by_meaning:
        vectors.of(turns)  # all in one go: batches of like length, and one array

    def add(members: Sequence[Turn], pairs: Sequence[Pair], by: str, *, inside: bool) -> None:
        for pair in pairs:
            a, b = members[pair.first], members[pair.second]
            siblings = a.parent == b.parent and a.role == "assistant"
            if (a.bush == b.bush) == inside and not siblings:
                found.setdefault(at[b.id], []).append((at[a.id], pair.similarity, by))

    first = [t for t in turns if t.layer <= 2 and (t.role == "assistant" or t.layer == 1)]
    if by_words:
        add(
            first,
            minhash_pairs([forest.said(t) for t in first], cfg.minhash_threshold, seed=seed),
            "words",
            inside=False,
        )
    if by_meaning and first:
        pairs = embedding_pairs(vectors.of(first), cfg.dedup_threshold, seed=seed)
        add(first, pairs, "meaning", inside=False)
    for members in _groups(turns, "bush"):
        if by_words:
            said = [forest.said(t) for t in members]
            add(members, minhash_pairs(said, cfg.minhash_threshold, seed=seed), "words", inside=True)
        if by_meaning:
            add(members, exact_pairs(vectors.of(members), cfg.dedup_threshold), "meaning", inside=True)
    for members in _groups([t for t in turns if t.role == "assistant"], "parent"):
        sets = [shingles(t.text, SHINGLE) for t in members]
        for j, b in enumerate(members):
            for i, a in enumerate(members[:j]):
                similarity = jaccard(sets[i], sets[j])
                if similarity >= cfg.minhash_threshold:
                    found.setdefault(at[b.id], []).append((at[a.id], similarity, "words"))
    # In tree order: an earlier turn's fate is settled, so each removed turn has a near-duplicate that stays.
    for j in sorted(found):
        if turns[j].id in forest.dropped:
            continue
        alive = [f for f in found[j] if turns[f[0]].id not in forest.dropped]
        if alive:
            i, similarity, by = max(alive, key=lambda f: (f[1], -f[0], f[2]))
            forest.drop(turns[j].id, DUPLICATE, {"of": turns[i].id, "similarity": round(similarity, 4), "by": by})


def _groups(turns: Sequence[Turn], by: str) -> list[list[Turn]]:
    groups: dict[str, list[Turn]] = {}
    for turn in turns:
        groups.setdefault(getattr(turn, by), []).append(turn)
    return [g for g in groups.values() if len(g) > 1]


def hold_out(forest: Forest, cfg: CurateConfig, seed: int) -> list[Dialogue]:
    """Take whole bushes out of training, trees in turn, and return the dialogues that become evaluation items.

    Never more than half of the bushes; from one bush at most ``holdout_per_bush`` dialogues.
    """
    bushes: dict[str, list[Dialogue]] = {}
    for dialogue in forest.whole():
        bushes.setdefault(dialogue.bush, []).append(dialogue)
    amount, most = cfg.holdout_dialogues, len(bushes) // 2
    if not amount or not most:
        return []
    share = isinstance(amount, float)
    limit = min(most, max(1, round(amount * len(bushes)))) if share else most
    rng = np.random.default_rng([seed, 0x0D1A])
    chosen: list[Dialogue] = []
    for bush in _round_robin(forest, list(bushes), rng)[:limit]:
        if not share and len(chosen) >= amount:
            break
        paths = bushes[bush]
        picked = sorted(rng.permutation(len(paths))[: cfg.holdout_per_bush].tolist())
        chosen += [paths[i] for i in picked]
        forest.drop(bush, HELD_OUT, {})
    return chosen if share else chosen[: int(amount)]


def watch(forest: Forest, cfg: CurateConfig, seed: int) -> list[Dialogue]:
    """Take whole bushes out of training to be measured meanwhile; returns their dialogues, topic by topic.

    ``watch_dialogues`` of each topic, out of at most a quarter of its bushes (one at least, when it has two).
    """
    bushes: dict[str, dict[str, list[Dialogue]]] = {}
    for dialogue in forest.whole():
        bushes.setdefault(dialogue.topic, {}).setdefault(dialogue.bush, []).append(dialogue)
    chosen: list[Dialogue] = []
    for number, topic in enumerate(sorted(bushes)):
        mine = list(bushes[topic])
        limit = max(len(mine) // 4, 1 if len(mine) > 1 else 0)
        rng = np.random.default_rng([seed, 0x3A7C, number])
        of_topic: list[Dialogue] = []
        for at in rng.permutation(len(mine))[:limit]:
            if len(of_topic) >= cfg.watch_dialogues:
                break
            paths = bushes[topic][mine[at]]
            picked = sorted(rng.permutation(len(paths))[: cfg.holdout_per_bush].tolist())
            of_topic += [paths[i] for i in picked]
            forest.drop(mine[at], WATCHED, {})
        chosen += of_topic[: cfg.watch_dialogues]
    return chosen


def _round_robin(forest: Forest, bushes: list[str], rng: np.random.Generator) -> list[str]:
    """The bushes in random order, one of each tree in turn."""
    by_tree: dict[int, list[str]] = {}
    for bush in bushes:
        by_tree.setdefault(forest.turns[bush].tree, []).append(bush)
    piles = [[pile[i] for i in rng.permutation(len(pile))] for _, pile in sorted(by_tree.items())]
    piles = [piles[i] for i in rng.permutation(len(piles))]
    return [pile[i] for i in range(max(map(len, piles), default=0)) for pile in piles if i < len(pile)]


def drop_near_held_out(forest: Forest, cfg: CurateConfig, vectors: Vectors, seed: int) -> None:
    """Drop what is left in training that nearly repeats a held-out turn; "never trained on" means nothing without it.

    First questions are compared with first questions (the whole bush goes), answers with their question at any depth.
    Words are always compared, meaning when duplicates are looked for by meaning.
    """
    held = [t for t in forest.turns.values() if t.id in forest.dropped and _is_held(forest, t)]
    for kind in ("first question", "answer"):
        mine = [t for t in forest.alive() if _compared_as(t) == kind]
        theirs = [t for t in held if _compared_as(t) == kind]
        if not mine or not theirs:
            continue
        both = [*theirs, *mine]  # held-out first: copies of one text are paired with the first of them
        for pair in minhash_pairs([forest.said(t) for t in both], cfg.minhash_threshold, seed=seed):
            if pair.first < len(theirs) <= pair.second:
                _near(forest, both[pair.second], both[pair.first], pair.similarity, "words")
        if cfg.dedup_method not in ("embedding", "both"):
            continue
        targets = vectors.of(theirs)
        for start in range(0, len(mine), BLOCK):
            block = mine[start : start + BLOCK]
            similarity = vectors.of(block) @ targets.T
            best = similarity.argmax(axis=1)
            for row, column in enumerate(best):
                if (value := float(similarity[row, column])) >= cfg.dedup_threshold:
                    _near(forest, block[row], theirs[int(column)], value, "meaning")


def _is_held(forest: Forest, turn: Turn) -> bool:
    return forest.dropped[turn.id].reason in HELD


def _compared_as(turn: Turn) -> str | None:
    if turn.role == "user":
        return "first question" if turn.layer == 1 else None
    return "answer"


def _near(forest: Forest, turn: Turn, other: Turn, similarity: float, by: str) -> None:
    forest.drop(turn.id, NEAR_HELD_OUT, {"of": other.id, "similarity": round(similarity, 4), "by": by})


def as_items(dialogues: Sequence[Dialogue]) -> list[Item]:
    """Held-out dialogues as evaluation items of kind ``dialogue``."""
    out = []
    for d in dialogues:
        text = len(d.messages) == 1 and d.messages[0]["role"] == "assistant"
        meta = {"kind": "text", "tree": d.tree} if text else {"tree": d.tree}
        out.append(Item(d.id, SUITE, d.topic, "dialogue", d.messages, meta=meta))
    return out
