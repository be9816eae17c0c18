"""The base model's whole opinion: its k likeliest tokens and their log-probabilities at every kept token.

Soft replay pulls the tuned model to the base's distribution on the rows it trains on. That distribution depends on
what stands before the dialogue. Training rows are rendered as the model will be used, without the growing prompt, so
the scoring pass does the same by default (``context: training``): the token ids are the ones that were sampled, only
the prompt in front of them differs. ``context: growing`` scores under the prompt they were sampled from.

A path is scored in one pass, and the nodes it shares with paths scored before are skipped, so each node is scored
once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from regrow.engines.base import Engine, ScoreRow
from regrow.errors import EngineError
from regrow.grow.script import Script
from regrow.grow.store import Store
from regrow.grow.tree import path_ids
from regrow.progress import Task

_PATHS = 64
NO_ID = -1
"""Stands for a token where no distribution exists; its log-probability is minus infinity."""


def add_top_logprobs(
    store: Store,
    script: Script,
    engine: Engine,
    k: int,
    bar: Task,
    *,
    context: Literal["training", "growing"] = "training",
) -> int:
    """Score every node on a dialogue that has no top-k row yet; goes on where an earlier run stopped.

    Args:
        store: The grown corpus.
        script: Its roles and markers.
        engine: One that can score.
        k: Tokens to keep at each position.
        bar: Advanced by dialogues.
        context: What stands before the dialogue: the default rendering of training, or the growing prompt.

    Returns:
        Nodes scored now.

    Raises:
        EngineError: The engine cannot score.
    """
    if not engine.info.can_score:
        raise EngineError(
            f"the engine {engine.info.name!r} cannot score",
            where="grow.top_logprobs",
            hint="Use engine: transformers.",
        )
    if store.get("topk") != {"k": k, "context": context}:
        store.clear_topk()
        store.put("topk", {"k": k, "context": context})
    roots = {t.id: (t.root if context == "growing" else None) for t in store.trees()}
    scored = 0
    for leaves in _chunks(store.leaf_ids(), _PATHS):
        paths = [path_ids(leaf) for leaf in leaves]
        fresh = set(store.without_topk([step for path in paths for step in path]))
        contents = store.contents([step for path in paths for step in path])
        rows: list[ScoreRow] = []
        wanted: list[list[tuple[str, int, int]]] = []
        for path in paths:
            mine = [step for step in path if step in fresh]
            fresh.difference_update(mine)
            if not mine:
                continue
            ids, spans = _row(script, roots[path[0].split("/")[0]], [contents[step][0] for step in path])
            places = [(step, *span) for step, span in zip(path, spans, strict=True) if step in mine]
            rows.append(ScoreRow(ids, start=max(1, places[0][1])))
            wanted.append(places)
        for row, places, score in zip(rows, wanted, engine.score(rows, top_k=k), strict=True):
            assert score.top_ids is not None and score.top_logprobs is not None
            found = []
            for step, a, b in places:
                top = slice(max(0, a - row.start), b - row.start)
                ids_, logprobs = score.top_ids[top], score.top_logprobs[top]
                if a < row.start:  # nothing stands before a text without BOS: its first token has no distribution
                    ids_ = np.concatenate([np.full((1, k), NO_ID, ids_.dtype), ids_])
                    logprobs = np.concatenate([np.full((1, k), -np.inf, logprobs.dtype), logprobs])
                found.append((step, k, ids_.astype("<i4").tobytes(), logprobs.astype("<f2").tobytes()))
            store.add_topk(found)
            scored += len(found)
        bar.advance(len(leaves), nodes=scored)
    return scored


def _row(
    script: Script, root: str | None, contents: Sequence[Sequence[int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The path's token ids, and where each node lies in them, the token that ends an answer (or text) included."""
    ids = list(script.opening(root))
    spans = []
    for i, content in enumerate(contents, 1):
        start = len(ids)
        ids += content
        last = i == len(contents)
        after = script.closing() if last else script.joint(i + 1)
        # What ends the node is predicted from its last token: one more position, whose distribution says "stop here".
        ends = script.role(i) == "assistant" or (script.role(i) == "text" and last)
        spans.append((start, start + len(content) + (1 if ends and after else 0)))
        ids += after
    return ids, spans


def unpack(k: int, ids: bytes, logprobs: bytes) -> tuple[list[int], list[float]]:
    """A stored top-k row as flat lists."""
    return (
        [int(x) for x in np.frombuffer(ids, dtype="<i4")],
        [float(x) for x in np.frombuffer(logprobs, dtype="<f2")],
    )


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
