"""The corpus for the page: a tree to unfold, a few dialogues, and what was dropped."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regrow.errors import RunError
from regrow.report.load import RunData, read_jsonl
from regrow.report.numbers import is_number

MAX_NODES = 3000
MAX_NODE_CHARS = 600
MAX_TREE_BYTES = 1_200_000
SAMPLE_DIALOGUES = 6
MAX_MESSAGE_CHARS = 1500


@dataclass(slots=True)
class TreeNode:
    """A node as the page shows it. ``hidden`` counts children that the page leaves out."""

    role: str
    text: str
    kept: bool
    reason: str | None
    children: list[TreeNode] = field(default_factory=list)
    hidden: int = 0

    def to_json(self) -> list[Any]:
        """Compact: ``[role initial, text, reason or 0, children, hidden]``."""
        reason = 0 if self.kept else (self.reason or "dropped")
        return [self.role[:1], self.text, reason, [c.to_json() for c in self.children], self.hidden]


@dataclass(slots=True)
class TopicTree:
    """One topic's tree."""

    topic: str
    n_nodes: int
    n_kept: int
    roots: list[TreeNode]
    hidden: int = 0


@dataclass(slots=True)
class CorpusView:
    """What the page says about the corpus.

    Attributes:
        trees: One a topic.
        n_nodes, n_kept, n_shown: Counts over all nodes, those kept, and those embedded in the page.
        n_dialogues: Dialogues, None when the file is missing.
        dialogues: A spread sample, each ``{"topic", "messages"}``.
        dropped: Stage name -> reason -> count.
    """

    trees: list[TopicTree] = field(default_factory=list)
    n_nodes: int = 0
    n_kept: int = 0
    n_shown: int = 0
    n_dialogues: int | None = None
    dialogues: list[dict[str, Any]] = field(default_factory=list)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)


def clip(text: Any, limit: int) -> str:
    """At most ``limit`` characters, with an ellipsis where it was cut."""
    said = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return said if len(said) <= limit else said[: limit - 1].rstrip() + "…"


def load_corpus(run: RunData, *, max_nodes: int = MAX_NODES) -> CorpusView | None:
    """Read the corpus of a run; None when it has none.

    Raises:
        RunError: A Parquet file is damaged or lacks a column.
    """
    if run.corpus_dir is None:
        return None
    view = CorpusView()
    columns = _read_columns(
        run.corpus_dir / "nodes.parquet", ["id", "parent", "topic", "role", "text", "kept", "reason"]
    )
    _build_trees(view, columns, max_nodes)
    if (dialogues := run.corpus_dir / "dialogues.parquet").is_file():
        rows = _read_columns(dialogues, ["id", "messages", "topic"])
        view.n_dialogues = len(rows["id"])
        view.dialogues = _spread(rows)
    _count_drops(view, run, columns)
    return view


def _read_columns(path: Path, columns: list[str]) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=columns)
        found: dict[str, list[Any]] = table.to_pydict()
    except (pa.ArrowInvalid, OSError) as error:
        raise RunError(f"cannot be read: {error}", where=str(path), hint="grow or curate this corpus again") from error
    missing = [c for c in columns if c not in found]
    if missing:
        raise RunError(
            f"column '{missing[0]}' is missing", where=str(path), hint="this is not a corpus written by regrow grow"
        )
    return found


def _path_key(node_id: str) -> tuple[tuple[int, int | str], ...]:
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in node_id.split("/"))


def _build_trees(view: CorpusView, columns: dict[str, list[Any]], max_nodes: int) -> None:
    ids: list[str] = columns["id"]
    order = sorted(range(len(ids)), key=lambda i: _path_key(ids[i]))
    index = {node_id: i for i, node_id in enumerate(ids)}
    children: dict[int, list[int]] = defaultdict(list)
    roots: dict[str, list[int]] = defaultdict(list)
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for i in order:
        topic = columns["topic"][i] or ""
        totals[topic][0] += 1
        totals[topic][1] += bool(columns["kept"][i])
        parent = columns["parent"][i]
        if parent in index:
            children[index[parent]].append(i)
        else:
            roots[topic].append(i)
    view.n_nodes, view.n_kept = len(ids), sum(map(bool, columns["kept"]))
    # Kept nodes come first among siblings, so that a capped list shows them rather than what was dropped.
    for siblings in (*children.values(), *roots.values()):
        siblings.sort(key=lambda i: not columns["kept"][i])
    cap = _widest_cap(roots, children, max_nodes)
    text_limit = min(MAX_NODE_CHARS, max(60, MAX_TREE_BYTES // max(1, min(view.n_nodes, max_nodes))))

    def make(i: int) -> TreeNode:
        view.n_shown += 1
        below = children.get(i, [])
        return TreeNode(
            role=str(columns["role"][i]),
            text=clip(columns["text"][i] or "", text_limit),
            kept=bool(columns["kept"][i]),
            reason=columns["reason"][i],
            children=[make(c) for c in below[:cap]],
            hidden=max(0, len(below) - cap),
        )

    for topic, firsts in roots.items():
        n, kept = totals[topic]
        view.trees.append(TopicTree(topic, n, kept, [make(i) for i in firsts[:cap]], max(0, len(firsts) - cap)))


def _widest_cap(roots: dict[str, list[int]], children: dict[int, list[int]], max_nodes: int) -> int:
    """The largest number of children a parent may show so that all trees together fit into ``max_nodes``."""

    def count(cap: int) -> int:
        total, level = 0, [i for firsts in roots.values() for i in firsts[:cap]]
        while level:
            total += len(level)
            level = [c for i in level for c in children.get(i, ())[:cap]]
        return total

    widest = max((len(c) for c in (*roots.values(), *children.values())), default=1)
    low, high = 1, max(1, widest)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(middle) <= max_nodes else (low, middle - 1)
    return low


def _spread(rows: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """A few dialogues spread evenly over the topics, the same ones every time."""
    by_topic: dict[str, list[int]] = defaultdict(list)
    for i in sorted(range(len(rows["id"])), key=lambda i: _path_key(str(rows["id"][i]))):
        by_topic[rows["topic"][i] or ""].append(i)
    topics = list(by_topic)
    step = max(1, len(topics) // SAMPLE_DIALOGUES)
    chosen = [by_topic[t][len(by_topic[t]) // 2] for t in topics[::step]][:SAMPLE_DIALOGUES]
    rest = [i for t in topics for i in by_topic[t] if i not in chosen]
    while len(chosen) < SAMPLE_DIALOGUES and rest:
        chosen.append(rest.pop(len(rest) // 2))
    return [
        {
            "topic": rows["topic"][i] or "",
            "messages": [
                {"role": str(m.get("role", "")), "text": clip(m.get("content") or "", MAX_MESSAGE_CHARS)}
                for m in _messages(rows["messages"][i])
            ],
        }
        for i in chosen
    ]


def _messages(value: Any) -> list[dict[str, Any]]:
    found = json.loads(value) if isinstance(value, str) else value
    return [m for m in found if isinstance(m, dict)]


def _count_drops(view: CorpusView, run: RunData, columns: dict[str, list[Any]]) -> None:
    def reasons(kept: list[Any], why: list[Any]) -> Counter[str]:
        return Counter(str(r or "no reason recorded") for k, r in zip(kept, why, strict=True) if not k)

    grown = run.path / "grow" / "nodes.parquet"
    counted = (run.stage("grow").get("facts") or {}).get("dropped")
    at_growth: Counter[str] = Counter()
    if grown.is_file():
        rows = _read_columns(grown, ["kept", "reason"])
        at_growth = reasons(rows["kept"], rows["reason"])
    # The stage's own count also has candidates that were never stored as nodes.
    if isinstance(counted, dict) and all(is_number(n) for n in counted.values()):
        view.dropped["While growing"] = dict(sorted(counted.items(), key=lambda kv: (-kv[1], kv[0])))
    elif grown.is_file():
        view.dropped["While growing"] = dict(at_growth.most_common())
    dropped = run.path / "corpus" / "dropped.jsonl"
    if dropped.is_file():
        found = Counter(str(row.get("reason") or "no reason recorded") for row in read_jsonl(dropped))
        view.dropped["While curating"] = dict(found.most_common())
    elif run.corpus_dir is not None and run.corpus_dir.name == "corpus":
        found = reasons(columns["kept"], columns["reason"]) - at_growth
        view.dropped["While curating"] = dict(found.most_common())
