"""The base model's whole opinion of replay that it did not write: soft replay on text of others.

A grown corpus carries the base's likeliest tokens since it grew. General data has none, so a mix of it is read once by
the base, and what it says at every trained position goes into the mix: then both kinds of replay have the same loss,
and what differs is the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from regrow.engines.base import Engine, Score, ScoreRow
from regrow.mix.table import LISTS, WRITE_ROWS, write_parquet
from regrow.mix.tokenize import NO_ID
from regrow.progress import task


def add_top_logprobs(mix_dir: Path, engine: Engine, k: int, max_length: int) -> int:
    """Store the ``k`` likeliest tokens and their log-probabilities at each trained position of the replay rows that
    have none, in ``train.parquet``, and ``topk`` in ``mix.json``.

    A first token that nothing stands before (a text, by a model without a token for its beginning) has no
    distribution; it is not trained either.

    Args:
        mix_dir: A finished mix.
        engine: Of the base model, one that can score.
        k: How many.
        max_length: Where training cuts a row (``train.max_length``); nothing is read behind it.

    Returns:
        Rows scored.

    Raises:
        EngineError: A row is longer than the model's context.
    """
    import pyarrow.parquet as pq

    from regrow.rows.writers import atomic_write_text

    path, facts = mix_dir / "train.parquet", mix_dir / "mix.json"
    scored = 0

    def records() -> Iterator[dict[str, Any]]:
        nonlocal scored
        with (
            pq.ParquetFile(path) as file,
            task("reading general data with the base", file.metadata.num_rows, "rows") as bar,
        ):
            for batch in file.iter_batches(batch_size=WRITE_ROWS):
                rows = batch.to_pylist()
                rows = [r | {name: np.asarray(r[name], dtype) for name, dtype in LISTS.items()} for r in rows]
                bare = [r for r in rows if r["source"] == "replay" and not r["topk_k"]]
                asked = [ScoreRow(r["input_ids"][:max_length].tolist()) for r in bare]
                for row, score in zip(bare, engine.score(asked, top_k=k), strict=True):
                    row |= _columns(row, score, k)
                    scored += 1
                for row in rows:
                    bar.advance(1)
                    yield row

    write_parquet(path, records())
    told = json.loads(facts.read_text(encoding="utf-8"))
    atomic_write_text(facts, json.dumps(told | {"topk": k}, indent=1) + "\n")
    return scored


def _columns(row: dict[str, Any], score: Score, k: int) -> dict[str, Any]:
    assert score.top_ids is not None and score.top_logprobs is not None
    n = len(row["input_ids"])
    ids, logprobs = np.full((n, k), NO_ID, dtype=np.int32), np.full((n, k), -np.inf, dtype=np.float32)
    read = 1 + len(score.top_ids)
    ids[1:read], logprobs[1:read] = score.top_ids, score.top_logprobs
    trained = row["loss_weights"] > 0
    return {"topk_ids": ids[trained].ravel(), "topk_logprobs": logprobs[trained].ravel(), "topk_k": k}
