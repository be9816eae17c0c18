"""The base model's whole opinion: its k likeliest tokens at every position of a kept answer.

One scoring pass over the dialogues. Each node is scored once, in the first dialogue that holds it; siblings' beginnings
are not scored again but read as context. What stands in front is by default the tokenizer's default rendering, not the
growing prompt: soft replay compares the student with the base on the rows it trains on, so the prompts must be the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from regrow.engines.base import Engine, ScoreRow
from regrow.grow.script import Script
from regrow.grow.store import Store
from regrow.grow.tree import path_ids
from regrow.progress import task

_ROWS = 64
"""Dialogues scored between two commits."""


@dataclass(slots=True)
class _Job:
    row: ScoreRow
    nodes: list[tuple[str, int, int, bool]]
    """Node id, first and last + 1 position of its content, whether a closing token follows."""


def fill_topk(store: Store, script: Script, engine: Engine, k: int, roots: dict[int, str | None]) -> None:
    """Store the top-k of every assistant (or text) node on a finished dialogue that has none yet. Resumable.

    Args:
        store: The corpus.
        script: Roles and markers.
        engine: One that can score: the same weights as the model that grew the corpus.
        k: How many.
        roots: Tree -> root prompt in front, None for the model's default rendering.
    """
    leaves = list(store.leaf_ids())
    with task("scoring the corpus", len(leaves), "dialogues") as bar:
        for start in range(0, len(leaves), _ROWS):
            jobs = list(_jobs(store, script, leaves[start : start + _ROWS], roots))
            rows = []
            for job, score in zip(jobs, engine.score([j.row for j in jobs], top_k=k), strict=True):
                assert score.top_ids is not None and score.top_logprobs is not None
                first = job.row.start
                for node, a, b, closed in job.nodes:
                    ids = np.asarray(score.top_ids[a - first : b - first], dtype="<i4")
                    logprobs = np.asarray(score.top_logprobs[a - first : b - first], dtype="<f2")
                    end = slice(b - first, b - first + 1) if closed else slice(0, 0)
                    rows.append(
                        (
                            node,
                            k,
                            ids.tobytes(),
                            logprobs.tobytes(),
                            np.asarray(score.top_ids[end], dtype="<i4").tobytes(),
                            np.asarray(score.top_logprobs[end], dtype="<f2").tobytes(),
                        )
                    )
            if rows:
                store.add_topk(rows)
            bar.advance(min(_ROWS, len(leaves) - start))


def _jobs(store: Store, script: Script, leaves: Sequence[str], roots: dict[int, str | None]) -> Iterator[_Job]:
    paths = [path_ids(leaf) for leaf in leaves]
    spoken = {n for path in paths for layer, n in enumerate(path, 1) if script.role(layer) != "user"}
    open_nodes = set(store.without_topk(sorted(spoken)))
    contents = store.contents([n for path in paths for n in path])
    for path in paths:
        mine = [n for n in path if n in open_nodes]
        if not mine:
            continue
        open_nodes -= set(mine)
        tree = int(path[0].split("/")[0][1:])
        ids = list(script.opening(roots[tree]))
        spans: list[tuple[str, int, int, bool]] = []
        for layer, node in enumerate(path, 1):
            if layer > 1:
                ids += script.joint(layer)
            start = len(ids)
            ids += contents[node][0]
            if node in mine:
                spans.append((node, start, len(ids), True))
        ids += script.closing()
        spans = [(n, a, b, b < len(ids)) for n, a, b, _ in spans]
        yield _Job(ScoreRow(ids, start=max(1, spans[0][1])), spans)


