"""Small corpora written with the real writer, for the tests of curation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regrow.grow.corpus import Dialogue, Node, write_corpus

Tree = Mapping[str, Any]
"""Text of a turn -> the turns below it; an empty mapping is a leaf."""


def grow_by_hand(folder: Path, trees: Sequence[Tree], *, role: str = "chat", top_k: int = 0) -> Path:
    """Write trees as a corpus. A text that starts with ``!`` becomes a node that growing dropped."""
    nodes: list[Node] = []
    dialogues: list[Dialogue] = []

    def visit(tree: Tree, number: int, parent: str, layer: int, path: list[Node]) -> None:
        for child, (text, below) in enumerate(tree.items()):
            dropped = text.startswith("!")
            ids = [ord(c) % 300 for c in text[:12]]
            node = Node(
                id=f"{parent}/{child}", parent=parent, tree=number, topic=f"topic {number}", layer=layer,
                role="text" if role == "text" else ("user" if layer % 2 else "assistant"), token_ids=ids, text=text,
                logprob=-0.5 * len(ids), token_logprobs=None, finish="stop", kept=not dropped,
                reason="too short" if dropped else None, seed=1, n_paths=99,
                top_ids=list(range(top_k)) * len(ids) if top_k else None,
                top_logprobs=[-1.0] * (top_k * len(ids)) if top_k else None,
            )  # fmt: skip
            nodes.append(node)
            if below:
                visit(below, number, node.id, layer + 1, [*path, node])
            elif not dropped:
                dialogues.append(_dialogue([*path, node], role))

    for number, tree in enumerate(trees):
        visit(tree, number, f"t{number:02d}", 1, [])
    write_corpus(folder, nodes, dialogues, {"model": "by hand", "trees": len(trees)})
    return folder


def _dialogue(path: list[Node], role: str) -> Dialogue:
    if role == "text":
        messages = [{"role": "assistant", "content": "".join(n.text for n in path)}]
    else:
        messages = [{"role": n.role, "content": n.text} for n in path]
    size = sum(len(n.token_ids) for n in path)
    return Dialogue(path[-1].id, messages, [n.id for n in path], path[0].topic, path[0].tree, size)
