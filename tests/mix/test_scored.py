"""The base's distribution over replay that others wrote, stored in the mix."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from regrow.engines.base import Score, ScoreRow
from regrow.mix.scored import add_top_logprobs
from regrow.mix.table import record, write_parquet
from regrow.mix.tokenize import NO_ID

K = 3


class Counting:
    """Says of position t that t, t + 1, t + 2 are likeliest."""

    asked: list[list[int]]

    def __init__(self) -> None:
        self.asked = []

    def score(self, rows: Sequence[ScoreRow], top_k: int = 0) -> Iterator[Score]:
        for row in rows:
            self.asked.append(list(row.token_ids))
            at = np.arange(row.start, len(row.token_ids))
            ids = (at[:, None] + np.arange(top_k)).astype(np.int32)
            nothing = np.zeros(len(at), np.float32)
            yield Score(nothing, nothing > 0, nothing, ids, np.full(ids.shape, -1.5, np.float16))


def made(folder: Path) -> Path:
    weights = np.array([1, 0, 1, 0.5], np.float32)
    own = np.full((3, 2), 7, np.int32), np.full((3, 2), -0.5, np.float32)
    rows = [
        record("mine", "domain", "d", [5, 6, 7, 8], weights),
        record("theirs", "replay", "general", [1, 2, 3, 4], weights),
        record("grown", "replay", "rivers", [9, 9, 9, 9], weights, own),
    ]
    folder.mkdir()
    write_parquet(folder / "train.parquet", iter(rows))
    (folder / "mix.json").write_text(json.dumps({"topk": 0, "epochs": 2.0}))
    return folder


def test_replay_that_has_none_gets_it_at_its_trained_positions(tmp_path: Path) -> None:
    folder, engine = made(tmp_path / "mix"), Counting()
    before = pq.read_table(folder / "train.parquet").to_pylist()
    assert add_top_logprobs(folder, engine, K, 100) == 1  # type: ignore[arg-type]
    mine, theirs, grown = pq.read_table(folder / "train.parquet").to_pylist()
    assert engine.asked == [[1, 2, 3, 4]] and (mine, grown) == (before[0], before[2])
    assert theirs["topk_k"] == K
    assert theirs["topk_ids"] == [*[NO_ID] * K, 2, 3, 4, 3, 4, 5], "nothing stands before the first token"
    assert theirs["topk_logprobs"] == [*[-np.inf] * K, *[-1.5] * 2 * K]
    assert {k: v for k, v in theirs.items() if "topk" not in k} == {
        k: v for k, v in before[1].items() if "topk" not in k
    }
    assert json.loads((folder / "mix.json").read_text()) == {"topk": K, "epochs": 2.0}


def test_nothing_is_read_behind_the_cut(tmp_path: Path) -> None:
    folder, engine = made(tmp_path / "mix"), Counting()
    add_top_logprobs(folder, engine, K, 3)  # type: ignore[arg-type]
    theirs = pq.read_table(folder / "train.parquet").to_pylist()[1]
    assert engine.asked == [[1, 2, 3]]
    assert theirs["topk_ids"] == [*[NO_ID] * K, 2, 3, 4, *[NO_ID] * K], "as many entries as trained tokens"
