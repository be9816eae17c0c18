"""What the store of a growing corpus keeps: its tables, and the records that go in and come out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from regrow.grow.plan import Want
from regrow.grow.shapes import Shape

SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE trees(
    tree INTEGER PRIMARY KEY, topic INTEGER NOT NULL, name TEXT NOT NULL, root TEXT NOT NULL, round INTEGER NOT NULL,
    children TEXT NOT NULL, independent INTEGER NOT NULL, want TEXT NOT NULL);
CREATE TABLE nodes(
    id TEXT PRIMARY KEY, parent TEXT NOT NULL, tree INTEGER NOT NULL, layer INTEGER NOT NULL, role TEXT NOT NULL,
    token_ids BLOB NOT NULL, n_tokens INTEGER NOT NULL, text TEXT NOT NULL, logprob REAL, token_logprobs BLOB,
    finish TEXT NOT NULL, kept INTEGER NOT NULL, reason TEXT, seed INTEGER NOT NULL, leaf INTEGER NOT NULL, want TEXT);
CREATE INDEX open_nodes ON nodes(layer, id) WHERE kept = 1 AND leaf = 0;
CREATE INDEX leaves ON nodes(tree, layer, id) WHERE leaf = 1;
CREATE TABLE expansions(
    unit TEXT PRIMARY KEY, candidates INTEGER NOT NULL, kept INTEGER NOT NULL, wanted INTEGER NOT NULL,
    attempts INTEGER NOT NULL, tokens INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE drops(reason TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE topk(
    id TEXT PRIMARY KEY, k INTEGER NOT NULL, ids BLOB NOT NULL, logprobs BLOB NOT NULL);
"""


@dataclass(slots=True)
class TreeRow:
    """One planted tree: ``tree`` is its number, ``topic`` the number of its topic, ``root`` the root prompt."""

    tree: int
    topic: int
    name: str
    root: str
    round: int
    shape: Shape
    want: Want

    @property
    def id(self) -> str:
        """The root's tree path: ``t00``, ``t01``, ..."""
        return f"t{self.tree:02d}"


@dataclass(slots=True)
class StoredNode:
    """A node as the store keeps it; see `regrow.grow.corpus.Node` for the fields' meaning."""

    id: str
    parent: str
    tree: int
    layer: int
    role: str
    token_ids: Sequence[int]
    text: str
    finish: str
    kept: bool
    reason: str | None
    seed: int
    leaf: bool = False
    want: Want | None = None
    token_logprobs: npt.NDArray[np.float32] | None = None


@dataclass(slots=True)
class Expansion:
    """What is committed at once: one parent's children (``nodes`` holds dropped candidates too)."""

    unit: str
    nodes: list[StoredNode]
    wanted: int
    attempts: int
    tokens: int
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Totals:
    """Counts over all that is committed."""

    candidates: int = 0
    kept: int = 0
    tokens: int = 0
    expansions: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


def want_to_json(want: Want) -> str:
    return json.dumps({str(k): v for k, v in sorted(want.items())})


def want_from_json(text: str | None) -> Want:
    return {int(k): v for k, v in json.loads(text or "{}").items()}


def ints(blob: bytes) -> list[int]:
    return [int(x) for x in np.frombuffer(blob, dtype="<i4")]


def node_values(node: StoredNode) -> tuple[Any, ...]:
    logprobs = node.token_logprobs
    return (
        node.id, node.parent, node.tree, node.layer, node.role, np.asarray(node.token_ids, dtype="<i4").tobytes(),
        len(node.token_ids), node.text, None if logprobs is None else float(np.sum(logprobs, dtype=np.float64)),
        None if logprobs is None else np.asarray(logprobs, dtype="<f4").tobytes(), node.finish, node.kept, node.reason,
        node.seed, node.leaf, None if node.want is None else want_to_json(node.want),
    )  # fmt: skip
