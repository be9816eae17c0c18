"""The kept turns of a corpus and what is dropped of them, without the tokens: what curation decides on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from regrow.curate.text import natural_key
from regrow.errors import DataError
from regrow.grow.corpus import Dialogue, read_dialogues, read_nodes

COLUMNS = ["id", "parent", "tree", "topic", "layer", "role", "token_ids", "text", "logprob", "kept"]

FOLLOWS = "follows a dropped turn"
NO_DIALOGUE = "no dialogue left"
HELD_OUT = "held out"
WATCHED = "held out to be watched"
HELD = (HELD_OUT, WATCHED)


class Drop(NamedTuple):
    """Why a turn is out. ``cause`` is the turn that was judged: itself, or the one it follows."""

    reason: str
    evidence: dict[str, Any]
    cause: str


@dataclass(slots=True)
class Turn:
    """A kept node that lies on a dialogue. ``n_bytes`` is its UTF-8 length, ``mean_logprob`` nats a token or None."""

    id: str
    parent: str
    tree: int
    topic: str
    layer: int
    role: str
    text: str
    n_tokens: int
    mean_logprob: float | None
    bush: str
    children: list[str] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        return len(self.text.encode("utf-8", "surrogatepass"))


class Forest:
    """All trees of a corpus.

    Args:
        corpus_dir: A grown corpus.

    Raises:
        RunError: There is no corpus, or it is damaged.
        DataError: A dialogue names a node that is not there or was dropped while growing.
    """

    def __init__(self, corpus_dir: Path) -> None:
        self.dialogues: list[Dialogue] = sorted(read_dialogues(corpus_dir), key=lambda d: natural_key(d.id))
        bush_of = {node: d.node_ids[0] for d in self.dialogues for node in d.node_ids}
        found: list[Turn] = []
        self.n_nodes = 0
        for node in read_nodes(corpus_dir, COLUMNS):
            self.n_nodes += 1
            if node.id not in bush_of or not node.kept:
                continue
            n_tokens = len(node.token_ids)
            mean = None if node.logprob is None or not n_tokens else node.logprob / n_tokens
            found.append(
                Turn(
                    node.id, node.parent, node.tree, node.topic, node.layer, node.role, node.text, n_tokens, mean,
                    bush_of[node.id],
                )
            )  # fmt: skip
        found.sort(key=lambda t: natural_key(t.id))
        self.turns: dict[str, Turn] = {t.id: t for t in found}
        if missing := sorted(bush_of.keys() - self.turns.keys(), key=natural_key):
            raise DataError(
                f"dialogues name {len(missing)} nodes that are missing or not kept, the first is '{missing[0]}'",
                where=str(corpus_dir),
                hint="grow the corpus again",
            )
        for turn in found:
            if turn.parent in self.turns:
                self.turns[turn.parent].children.append(turn.id)
        self.dropped: dict[str, Drop] = {}

    def alive(self, role: str | None = None) -> list[Turn]:
        """Turns that are still in, parents before children, of one role or all."""
        return [t for t in self.turns.values() if t.id not in self.dropped and (role is None or t.role == role)]

    def question(self, turn: Turn) -> str:
        """The user turn that ``turn`` answers; empty for user turns and plain text."""
        parent = self.turns.get(turn.parent)
        return parent.text if turn.role == "assistant" and parent is not None else ""

    def said(self, turn: Turn) -> str:
        """What duplicates are compared by: question + answer, or the text alone."""
        question = self.question(turn)
        return f"{question}\n{turn.text}" if question else turn.text

    def drop(self, turn_id: str, reason: str, evidence: dict[str, Any]) -> None:
        """Take a turn out, and all that grew from it. What is out already keeps its first reason."""
        if turn_id in self.dropped:
            return
        self.dropped[turn_id] = Drop(reason, evidence, turn_id)
        waiting = list(self.turns[turn_id].children)
        while waiting:
            child = waiting.pop()
            if child not in self.dropped:
                # A bush is held out as one: its turns are not casualties of the first question.
                follows = reason if reason in HELD else FOLLOWS
                self.dropped[child] = Drop(follows, {"turn": turn_id}, turn_id)
                waiting += self.turns[child].children

    def whole(self) -> Iterator[Dialogue]:
        """Dialogues all of whose turns are still in."""
        return (d for d in self.dialogues if not any(n in self.dropped for n in d.node_ids))

    def prune(self) -> None:
        """Take out turns through which no whole dialogue leads any more."""
        used = {n for d in self.whole() for n in d.node_ids}
        for turn in self.alive():
            if turn.id not in used:
                self.dropped[turn.id] = Drop(NO_DIALOGUE, {}, turn.id)

    def lost(self) -> dict[str, int]:
        """Dialogues that are out, by the reason of whichever of their turns went first."""
        rank = {turn: n for n, turn in enumerate(self.dropped)}
        counts: dict[str, int] = {}
        for dialogue in self.dialogues:
            gone = [n for n in dialogue.node_ids if n in rank]
            if gone:
                reason = self.dropped[self.dropped[min(gone, key=rank.__getitem__)].cause].reason
                counts[reason] = counts.get(reason, 0) + 1
        return counts


def paths_through(dialogues: Iterable[Dialogue]) -> dict[str, int]:
    """Number of dialogues through each node."""
    counts: dict[str, int] = {}
    for dialogue in dialogues:
        for node in dialogue.node_ids:
            counts[node] = counts.get(node, 0) + 1
    return counts
