"""Writes a curated corpus: the grown files with other flags, streamed as Arrow so that no token becomes an object."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regrow.errors import RunError
from regrow.grow.corpus import CARD, DIALOGUES, FACTS, NODES, card, corpus_facts
from regrow.rows.writers import atomic_path, atomic_write_text

BATCH = 1024
COPIED = ("trees.json",)
"""Files of a corpus that curation does not change."""


def check_replaceable(out: Path, marker: str) -> None:
    """Refuse a folder that is neither empty nor an earlier result.

    Raises:
        RunError: ``out`` is a file, or holds something and not the file ``marker``.
    """
    if out.exists() and not out.is_dir():
        raise RunError("this is a file, a folder is needed", where=str(out))
    if out.is_dir() and any(out.iterdir()) and not (out / marker).is_file():
        raise RunError("the output folder is not empty", where=str(out), hint="give a new folder, or empty this one")


@contextmanager
def replace_folder(out: Path, *, marker: str) -> Iterator[Path]:
    """Yield an empty folder beside ``out``; when the block ends well, it takes the place of ``out``.

    ``out`` may be missing, empty, or an earlier result (it holds the file ``marker``). What a killed process left
    beside it is removed.

    Raises:
        RunError: ``out`` holds something else.
    """
    check_replaceable(out, marker)
    fresh, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        if out.exists() and any(out.iterdir()):
            out.replace(old)
        fresh.replace(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.replace(out)
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_curated(
    source: Path,
    out: Path,
    dropped: Mapping[str, str],
    kept_dialogues: set[str],
    n_paths: Mapping[str, int],
    curated: Mapping[str, Any],
) -> None:
    """Copy a corpus with the drops applied.

    Args:
        source, out: Corpus folders.
        dropped: Node id -> reason, for nodes that were kept until now.
        kept_dialogues: Ids of the dialogues that stay.
        n_paths: Dialogues through each node, 0 when missing.
        curated: Facts for ``corpus.json`` and the card.
    """
    counts: dict[str, Any] = {"nodes": 0, "kept": 0, "dialogues": 0, "kept_tokens": 0, "dropped": {}, "topics": {}}
    with _rewritten(source / NODES, out / NODES) as copy:
        for batch in copy.batches():
            copy.write(_flagged(batch, dropped, n_paths, counts))
    with _rewritten(source / DIALOGUES, out / DIALOGUES) as copy:
        for batch in copy.batches():
            copy.write(_chosen(batch, kept_dialogues, counts))
    for name in COPIED:
        if (source / name).is_file():
            with atomic_path(out / name) as tmp:
                shutil.copyfile(source / name, tmp)
    facts = {**corpus_facts(source), "counts": counts}
    changed = {reason: n["turns"] for reason, n in curated["dropped"].items()}
    facts["curated"] = {"dialogues": curated["dialogues"], "turns dropped": changed}
    atomic_write_text(out / FACTS, json.dumps(facts, indent=1, ensure_ascii=False))
    atomic_write_text(out / CARD, card(facts))


class _Copy:
    def __init__(self, file: Any, writer: Any) -> None:
        self._file, self.write = file, writer.write_batch

    def batches(self) -> Iterator[Any]:
        return iter(self._file.iter_batches(batch_size=BATCH))


@contextmanager
def _rewritten(source: Path, out: Path) -> Iterator[_Copy]:
    import pyarrow.parquet as pq

    with (
        pq.ParquetFile(source) as file,
        atomic_path(out) as tmp,
        pq.ParquetWriter(tmp, file.schema_arrow, compression="zstd") as writer,
    ):
        yield _Copy(file, writer)


def _flagged(batch: Any, dropped: Mapping[str, str], n_paths: Mapping[str, int], counts: dict[str, Any]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = batch["id"].to_pylist()
    kept = [k and i not in dropped for k, i in zip(batch["kept"].to_pylist(), ids, strict=True)]
    reasons = [dropped.get(i, r) for r, i in zip(batch["reason"].to_pylist(), ids, strict=True)]
    lengths = pc.fill_null(pc.list_value_length(batch["token_ids"]), 0).to_pylist()
    counts["nodes"] += len(ids)
    counts["kept"] += sum(kept)
    counts["kept_tokens"] += sum(n for n, k in zip(lengths, kept, strict=True) if k)
    for reason, k in zip(reasons, kept, strict=True):
        if not k and reason:
            counts["dropped"][reason] = counts["dropped"].get(reason, 0) + 1
    new = {
        "kept": kept,
        "reason": reasons,
        "n_paths": [n_paths.get(i, 0) if k else 0 for i, k in zip(ids, kept, strict=True)],
    }
    columns = [
        pa.array(new[f.name], type=f.type) if f.name in new else batch.column(n) for n, f in enumerate(batch.schema)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _chosen(batch: Any, keep: set[str], counts: dict[str, Any]) -> Any:
    import pyarrow as pa

    chosen = batch.filter(pa.array([i in keep for i in batch["id"].to_pylist()]))
    counts["dialogues"] += len(chosen)
    for topic in chosen["topic"].to_pylist():
        counts["topics"][topic] = counts["topics"].get(topic, 0) + 1
    return chosen
