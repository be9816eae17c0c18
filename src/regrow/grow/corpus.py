"""A corpus on disk: the tree's nodes and the dialogues that are views over them, in Parquet, with a dataset card.

from datasets import load_dataset
load_dataset("DIR")["train"]            # dialogues
load_dataset("DIR", "nodes")["train"]   # every node, dropped ones too
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regrow.errors import RunError
from regrow.rows.row import Message
from regrow.rows.writers import atomic_path, atomic_write_text

NODES, DIALOGUES, CARD, FACTS = "nodes.parquet", "dialogues.parquet", "README.md", "corpus.json"
WATCHED = "watched.parquet"
"""Dialogues that are measured while a model trains, and never trained on; only where curation was asked for some."""
_GROUP = 1024
GROWN = (
    "synthetic",
    "A corpus grown out of a language model",
    """Dialogues that the model below wrote in both roles (Tree Generation, arXiv 2406.11354), made by Regrow to be
replayed while that model is fine-tuned. `dialogues.parquet` holds root-to-leaf paths, `nodes.parquet` every
node with its provenance, dropped candidates and their reasons included.

The text is what a model said, not checked for truth. It falls under the licence of that model.""",
)
GIVEN = (
    "general",
    "General data to replay",
    """Rows that a user of Regrow has, drawn at random and laid out as a grown corpus is, to be replayed while a
model is fine-tuned. Nothing of it was grown. It falls under the licence of those rows.""",
)
"""What a corpus's card says of it: a tag, a title, a text."""


@dataclass(slots=True)
class Node:
    """A node of a tree.

    Attributes:
        id: Tree path: ``t03/5/0/2/1``, the tree and the number of the child in each layer.
        parent: The parent's id; the tree (``t03``) for layer 1.
        tree, topic: Number of the tree, and its topic.
        layer: 1 is the first question; odd layers are users, even ones assistants.
        role: ``user``, ``assistant`` or ``text``.
        token_ids: What the model sampled, without the token that ended it.
        text: Their text.
        logprob: Sum of the sampled tokens' log-probabilities (nats), None where the engine cannot tell.
        token_logprobs: One a token, or None.
        finish: ``stop`` or ``length``.
        kept: Whether it is part of the corpus.
        reason: Why not, else None.
        seed: Of the draw it came from.
        n_paths: Kept dialogues through it.
        top_ids, top_logprobs: The base's k likeliest tokens at each position and their log-probabilities (nats), flat,
            row-major; ``len(token_ids)`` rows, plus one for the token that ends the turn where it was scored. None
            when they were not asked for.
    """

    id: str
    parent: str
    tree: int
    topic: str
    layer: int
    role: str
    token_ids: list[int]
    text: str
    logprob: float | None
    token_logprobs: list[float] | None
    finish: str
    kept: bool
    reason: str | None
    seed: int
    n_paths: int = 0
    top_ids: list[int] | None = None
    top_logprobs: list[float] | None = None


@dataclass(slots=True)
class Dialogue:
    """A root-to-leaf path.

    Attributes:
        id: The leaf's id.
        messages: ``{"role", "content"}`` in turn; one ``assistant`` message for a plain text.
        node_ids: Root to leaf, one a layer.
        topic, tree: Of its tree.
        n_tokens: Content tokens.
    """

    id: str
    messages: list[Message]
    node_ids: list[str]
    topic: str
    tree: int
    n_tokens: int

    @property
    def bush(self) -> str:
        """The first question's id: dialogues of one bush share their beginning."""
        return self.node_ids[0]


def _node_schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        {
            "id": pa.string(),
            "parent": pa.string(),
            "tree": pa.int32(),
            "topic": pa.string(),
            "layer": pa.int16(),
            "role": pa.string(),
            "token_ids": pa.list_(pa.int32()),
            "text": pa.string(),
            "logprob": pa.float32(),
            "token_logprobs": pa.list_(pa.float32()),
            "finish": pa.string(),
            "kept": pa.bool_(),
            "reason": pa.string(),
            "seed": pa.int64(),
            "n_paths": pa.int32(),
            "top_ids": pa.list_(pa.int32()),
            "top_logprobs": pa.list_(pa.float32()),
        }
    )


def _dialogue_schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        {
            "id": pa.string(),
            "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
            "node_ids": pa.list_(pa.string()),
            "topic": pa.string(),
            "tree": pa.int32(),
            "n_tokens": pa.int32(),
        }
    )


def _rows(path: Path, columns: Sequence[str] | None, known: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a file of ours with columns out of ``known``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise RunError("no corpus is here", where=str(path), hint="`regrow grow` makes one")
    try:
        file = pq.ParquetFile(path)
        if strange := sorted(set(file.schema_arrow.names) - set(known)):
            raise RunError(
                f"the file is damaged: it has a column '{strange[0]}'", where=str(path), hint="grow or curate again"
            )
        for batch in file.iter_batches(batch_size=_GROUP, columns=list(columns) if columns else None):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RunError(f"the file is damaged: {error}", where=str(path), hint="grow or curate again") from error


def read_nodes(folder: Path, columns: Sequence[str] | None = None) -> Iterator[Node]:
    """All nodes in the order of their ids, read in pieces.

    Args:
        folder: The corpus.
        columns: Read only these fields; the others are None.

    Raises:
        RunError: There is no corpus, or it is damaged.
    """
    blank: dict[str, Any] = dict.fromkeys(Node.__dataclass_fields__)
    for row in _rows(folder / NODES, columns, list(blank)):
        yield Node(**(blank | row))


def read_dialogues(folder: Path, name: str = DIALOGUES) -> list[Dialogue]:
    """All dialogues (or those of `WATCHED`), in the order of their ids. Raises RunError as `read_nodes`."""
    rows = _rows(folder / name, None, list(Dialogue.__dataclass_fields__))
    try:
        found = [Dialogue(**row) for row in rows]
        whole = all(m.keys() == {"role", "content"} for d in found for m in d.messages)
    except (TypeError, AttributeError) as error:
        raise RunError("the file is damaged: a column is missing", where=str(folder / name),
                       hint="grow or curate again") from error  # fmt: skip
    if not whole:
        raise RunError("the file is damaged: a message has no 'role' or no 'content'", where=str(folder / name),
                       hint="grow or curate again")  # fmt: skip
    return found


def write_dialogues(path: Path, dialogues: Iterable[Dialogue]) -> None:
    """Write a file that `read_dialogues` reads; it appears whole or not at all."""
    rows = ({name: getattr(d, name) for name in Dialogue.__dataclass_fields__} for d in dialogues)
    _write(path, rows, _dialogue_schema())


def corpus_facts(folder: Path) -> dict[str, Any]:
    """What `write_corpus` was told about the corpus (model, engine, settings, counts)."""
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot be read: {error}", where=str(folder / FACTS)) from error
    return facts


@dataclass(slots=True)
class Counts:
    """What `write_corpus` wrote."""

    nodes: int = 0
    kept: int = 0
    dialogues: int = 0
    kept_tokens: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    topics: dict[str, int] = field(default_factory=dict)


def write_corpus(
    folder: Path,
    nodes: Iterable[Node],
    dialogues: Iterable[Dialogue],
    card_facts: Mapping[str, Any],
    *,
    about: tuple[str, str, str] = GROWN,
) -> Counts:
    """Write nodes, dialogues, the card and ``corpus.json``; each file appears whole or not at all.

    Args:
        folder: Created if needed.
        nodes: In order of id; streamed.
        dialogues: Likewise.
        card_facts: JSON-able: model, revision, engine, settings, seed. Counts are added.
        about: Tag, title and text of the card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts = Counts()

    def counted_nodes() -> Iterator[dict[str, Any]]:
        for node in nodes:
            counts.nodes += 1
            if node.kept:
                counts.kept += 1
                counts.kept_tokens += len(node.token_ids)
            elif node.reason:
                counts.dropped[node.reason] = counts.dropped.get(node.reason, 0) + 1
            yield {name: getattr(node, name) for name in Node.__dataclass_fields__}

    def counted_dialogues() -> Iterator[dict[str, Any]]:
        for d in dialogues:
            counts.dialogues += 1
            counts.topics[d.topic] = counts.topics.get(d.topic, 0) + 1
            yield {name: getattr(d, name) for name in Dialogue.__dataclass_fields__}

    _write(folder / NODES, counted_nodes(), _node_schema())
    _write(folder / DIALOGUES, counted_dialogues(), _dialogue_schema())
    facts = {
        **card_facts,
        **({"about": list(about)} if about != GROWN else {}),
        "counts": {name: getattr(counts, name) for name in Counts.__dataclass_fields__},
    }
    atomic_write_text(folder / FACTS, json.dumps(facts, indent=1, ensure_ascii=False, default=str))
    atomic_write_text(folder / CARD, card(facts))
    return counts


def _write(path: Path, rows: Iterator[dict[str, Any]], schema: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_path(path) as tmp, pq.ParquetWriter(tmp, schema, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _GROUP:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def card(facts: Mapping[str, Any]) -> str:
    """The dataset card: YAML that `datasets` reads, then what was grown and how."""
    counts = facts["counts"]
    tag, title, text = facts.get("about", GROWN)
    # `datasets` caches a folder by its name and these lines, so without a version of its own a second folder called
    # "corpus", or this one grown on, would be read as the first.
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    version = f"version: 0.0.{int.from_bytes(digest.digest()[:4])}"
    lines = [
        "---",
        "configs:",
        f"- {{config_name: default, default: true, {version}, data_files: [{{split: train, path: {DIALOGUES}}}]}}",
        f"- {{config_name: nodes, {version}, data_files: [{{split: train, path: {NODES}}}]}}",
        f"tags: [regrow, {tag}, replay]",
        "---",
        "",
        f"# {title}",
        "",
        text,
        "",
        "| | |",
        "| --- | --- |",
    ]
    shown = {k: v for k, v in facts.items() if k not in ("about", "counts", "config", "trees")}
    shown |= {"dialogues": counts["dialogues"], "kept nodes": f"{counts['kept']} of {counts['nodes']}"}
    shown |= {"kept tokens": counts["kept_tokens"]}
    lines += [f"| {_cell(k)} | {_cell(v)} |" for k, v in shown.items()]
    if counts["dropped"]:
        lines += ["", "Dropped candidates:", "", "| Reason | Nodes |", "| --- | --- |"]
        lines += [f"| {_cell(k)} | {v} |" for k, v in sorted(counts["dropped"].items(), key=lambda x: -x[1])]
    if "config" in facts:
        settings = json.dumps(facts["config"], indent=1, ensure_ascii=False, default=str).replace("```", "'''")
        lines += ["", "Settings:", "", "```json", settings, "```"]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    text = str(value).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
    return text if len(text) <= 200 else text[:197] + "..."
