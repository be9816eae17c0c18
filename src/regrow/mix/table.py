"""Token rows on disk: what is written for the trainer, and what is put aside while the order is not known yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

WRITE_ROWS = 512
"""Rows in one record batch or Parquet row group; what is in memory at once while writing."""

LISTS = {"input_ids": np.int32, "loss_weights": np.float32, "topk_ids": np.int32, "topk_logprobs": np.float32}
_SCALARS = ["id", "source", "domain", "topk_k", "n_tokens", "n_train_tokens", "n_shared"]


def schema() -> Any:
    """Columns of ``train.parquet``."""
    import pyarrow as pa

    return pa.schema(
        {
            "id": pa.string(),
            "source": pa.string(),
            "domain": pa.string(),
            "input_ids": pa.list_(pa.int32()),
            "loss_weights": pa.list_(pa.float32()),
            "topk_ids": pa.list_(pa.int32()),
            "topk_logprobs": pa.list_(pa.float32()),
            "topk_k": pa.int32(),
            "n_tokens": pa.int32(),
            "n_train_tokens": pa.int32(),
            "n_shared": pa.int32(),
        }
    )


def record(
    row_id: str,
    source: str,
    domain: str,
    ids: Sequence[int] | npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32],
    topk: tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]] | None = None,
    shared: int = 0,
) -> dict[str, Any]:
    """One row of the table. ``topk`` is ids and log-probabilities, each of shape (trained tokens, k); ``shared`` the
    tokens at its beginning that the row before it has too and that need no second computation."""
    empty = np.empty((0, 0))
    top_ids, top_logprobs = topk if topk is not None else (empty, empty)
    return {
        "id": row_id,
        "source": source,
        "domain": domain,
        "input_ids": np.asarray(ids, np.int32),
        "loss_weights": np.asarray(weights, np.float32),
        "topk_ids": top_ids.ravel(),
        "topk_logprobs": top_logprobs.ravel(),
        "topk_k": top_ids.shape[1],
        "n_tokens": len(ids),
        "n_train_tokens": int(np.count_nonzero(weights)),
        "n_shared": shared,
    }


def to_batch(records: Sequence[dict[str, Any]]) -> Any:
    """Records as an Arrow record batch, list columns without a Python object a token."""
    import pyarrow as pa

    columns = {}
    for name, dtype in LISTS.items():
        parts = [np.asarray(r[name], dtype) for r in records]
        offsets = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int32)
        columns[name] = pa.ListArray.from_arrays(offsets, np.concatenate(parts) if parts else np.empty(0, dtype))
    columns |= {name: [r[name] for r in records] for name in _SCALARS}
    wanted = schema()
    return pa.RecordBatch.from_arrays(
        [c if not isinstance(c := columns[f.name], list) else pa.array(c, f.type) for f in wanted], schema=wanted
    )


def batches(records: Iterator[dict[str, Any]]) -> Iterator[Any]:
    """Records in record batches of `WRITE_ROWS`; at least one, so that an empty stream keeps its columns."""
    waiting: list[dict[str, Any]] = []
    first = True
    for item in records:
        waiting.append(item)
        if len(waiting) == WRITE_ROWS:
            yield to_batch(waiting)
            waiting, first = [], False
    if waiting or first:
        yield to_batch(waiting)


def write_parquet(path: Path, records: Iterator[dict[str, Any]]) -> None:
    """Stream records to ``path``, which appears whole or not at all."""
    import pyarrow.parquet as pq

    from regrow.rows.writers import atomic_path

    with atomic_path(path) as tmp, pq.ParquetWriter(tmp, schema(), compression="zstd") as writer:
        for batch in batches(records):
            writer.write_batch(batch)


class Shelf:
    """Record batches on disk, memory-mapped, read row by row in any order.

    Args:
        path: An Arrow IPC file written by `shelve`.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._starts = np.concatenate([[0], np.cumsum([b.num_rows for b in self._batches])])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, name: str) -> list[Any]:
        """A whole column as Python objects; for ids and labels."""
        return [value for batch in self._batches for value in batch[name].to_pylist()]

    def value(self, row: int, name: str) -> Any:
        """One cell: an array for a list column (None when null), else the value."""
        at = int(np.searchsorted(self._starts, row, "right")) - 1
        cell = self._batches[at][name][row - int(self._starts[at])]
        if not cell.is_valid:
            return None
        return cell.values.to_numpy(zero_copy_only=False) if hasattr(cell, "values") else cell.as_py()


@contextmanager
def shelve(path: Path, columns: Any) -> Iterator[Any]:
    """Write record batches of the schema ``columns`` to an Arrow IPC file; yields its writer."""
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, columns) as writer:
        yield writer
