"""From token rows to micro-batches: padding-light layouts without attention across documents.

A *document* is one token row of the mix. A *unit* is a document, or the documents of one tree that follow each other
in the mix (`regrow.train.trees`). What counts as one batch element is a *pack* (`regrow.train.packs`): one unit, or
with packing several. How the units of a micro-batch are laid out in memory is a separate matter that never changes the
loss: `Collator` puts them into as few tensor rows as their lengths allow and lets ``position_ids`` start again at 0
with each document, which transformers' mask code (and FlashAttention's variable-length path) reads as a boundary. A
batch with a tree in it has a mask of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from regrow.errors import RunError
from regrow.train.packs import best_fit_decreasing
from regrow.train.trees import Merged, merge, runs

Layout = Literal["single", "rows", "separate"]
"""``single``: one tensor row (variable-length attention kernels). ``rows``: few rows of packed documents (SDPA, eager:
their cost grows with the square of a row). ``separate``: one document a row, for models that would mix documents."""

SCANNED = 1024
"""Rows of a mix that are looked at together when it is opened."""
ROW_TOKENS = 512
"""Width up to which the ``rows`` layout packs short documents together."""

_COLUMNS = ["id", "source", "input_ids", "loss_weights"]
_TOPK_COLUMNS = ["topk_ids", "topk_logprobs", "topk_k"]
_SHARED = "n_shared"
"""Left out of a mix that was packed into no trees by whoever wrote it: then no row shares anything."""


@dataclass(slots=True)
class Document:
    """One training example, cut to ``max_length``.

    Attributes:
        input_ids: ``(n,)`` int64.
        weights: ``(n,)`` float32, weight of the loss on each token; the first is 0 (nothing predicts it).
        replay: Whether it was grown out of the model.
        top_ids, top_logprobs: ``(number of weights > 0, k)`` or None.
        shared: Tokens at the beginning that are those of the document before it, in the same unit.
    """

    input_ids: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    replay: bool
    top_ids: npt.NDArray[np.int64] | None = None
    top_logprobs: npt.NDArray[np.float32] | None = None
    shared: int = 0


def has_topk_columns(mix_file: Path) -> bool:
    """Whether a mix has a place for the base model's stored top-k; rows may leave it empty."""
    import pyarrow.parquet as pq

    return set(_TOPK_COLUMNS) <= set(pq.read_schema(mix_file).names)


class TokenRows:
    """The mix on disk (``train.parquet``), memory-mapped and read document by document.

    Args:
        path: The Parquet file.
        max_length: Documents are cut after so many tokens.
        topk: Also read the stored top-k (it is most of the file; left alone when the loss does not need it).
        cache_dir: Where the memory-mapped copy goes.
        parts: Files of the same columns whose rows follow, in order.

    Raises:
        RunError: A file is missing, has other columns, or there is no row with a trained token.
    """

    def __init__(
        self, path: Path, *, max_length: int, topk: bool, cache_dir: Path, parts: Sequence[Path] = ()
    ) -> None:
        import pyarrow.parquet as pq
        from datasets import Dataset

        self.path, self.max_length, self.topk = path, max_length, topk
        self.paths = [path, *parts]
        columns = _COLUMNS + (_TOPK_COLUMNS if topk else [])
        there = []
        for file in self.paths:
            if not file.is_file():
                raise RunError("there is no mix here", where=str(file), hint="run `regrow mix` first")
            there.append(set(pq.read_schema(file).names))
            if missing := sorted(set(columns) - there[-1]):
                raise RunError(
                    f"columns are missing: {', '.join(missing)}", where=str(file), hint="run `regrow mix` again"
                )
        files = [str(file) for file in self.paths]
        self._rows = Dataset.from_parquet(files, columns=columns, cache_dir=str(cache_dir)).with_format("numpy")
        self.n_cut = 0
        """Documents that lost their end."""
        self.n_untrained = 0
        """Documents left out: no trained token among the first ``max_length``."""
        self.n_with_topk = 0
        """Replay documents that carry a top-k."""
        self.n_replay = 0
        """Replay documents."""
        self.tokens = {"domain": 0.0, "replay": 0.0}
        """Tokens of the first file by source, after the cut."""
        self.loss = {"domain": 0.0, "replay": 0.0}
        """Their weights in the loss, summed."""
        self.max_id = 0
        """Largest token id."""
        self.kept: list[int] = []
        self.lengths: list[int] = []
        """Tokens of each document, after the cut."""
        self.shared: list[int] = []
        """Tokens each document shares with the one before it, after the cut; 0 where a unit begins."""
        self.units: list[list[int]] = []
        """The documents of each tree that are one sequence of at most ``max_length`` tokens, and documents alone."""
        self.unit_lengths: list[int] = []
        """Tokens of each unit, shared ones once."""
        self.part_of: list[int] = []
        """Of each document, the file it stands in: 0 for the mix, then the parts."""
        first = 0
        for number, (file, names) in enumerate(zip(self.paths, there, strict=True)):
            first = self._scan(file, first, _SHARED in names, counted=number == 0)
            self.part_of += [number] * (len(self.kept) - len(self.part_of))
        if not self.kept:
            raise RunError("no row has a token to train on", where=str(path), hint="look at the drops in mix.json")

    def _scan(self, path: Path, first: int, has_shared: bool, *, counted: bool) -> int:
        """One pass over weights and lengths, record batch by record batch, without a Python loop over tokens.

        Args:
            path: The file.
            first: Rows in the files before it.
            has_shared: Whether it says what rows share.
            counted: Whether its tokens count for the weight of replay, which must not move when rows join.

        Returns:
            Rows up to its end.
        """
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        columns = ["source", "input_ids", "loss_weights"] + (["topk_ids"] if self.topk else [])
        columns += [_SHARED] if has_shared else []
        start, last = first, 0
        shared_since_kept = 0
        for batch in pq.ParquetFile(path).iter_batches(batch_size=SCANNED, columns=columns):
            n = pc.list_value_length(batch["input_ids"]).to_numpy(zero_copy_only=False)
            n_weights = pc.list_value_length(batch["loss_weights"]).to_numpy(zero_copy_only=False)
            weights = pc.list_flatten(batch["loss_weights"]).to_numpy(zero_copy_only=False)
            row_of = np.repeat(np.arange(len(n)), n_weights)
            position = np.arange(len(weights)) - np.repeat(np.cumsum(n_weights) - n_weights, n_weights)
            shared = np.zeros(len(n), np.int64)
            if has_shared:
                shared = pc.fill_null(batch[_SHARED], 0).to_numpy(zero_copy_only=False)
            room = np.minimum(n, np.concatenate([[last], n[:-1]]))
            last = int(n[-1]) if len(n) else last
            for bad, what in (
                ((shared < 0) | (shared > room), "no more shared tokens than itself and the row before it have"),
                (n != n_weights, "as many tokens as loss weights"),
                (
                    np.bincount(row_of, ~(np.isfinite(weights) & (weights >= 0)), len(n)) > 0,
                    "finite loss weights of 0 or more",
                ),
            ):
                if bad.any():
                    where = f"{path}, row {start - first + int(bad.argmax())}"
                    raise RunError(f"a token row must have {what}", where=where, hint="run `regrow mix` again")
            counts = (position >= 1) & (position < self.max_length)
            loss = np.bincount(row_of, weights * counts, len(n))
            trained = loss > 0
            self.n_cut += int((n > self.max_length).sum())
            self.n_untrained += int((~trained).sum())
            for row, size in enumerate(n.tolist()):
                # Shared with the last row that is kept: no more than with any that was left out in between.
                shared_since_kept = min(shared_since_kept, int(shared[row]))
                if trained[row]:
                    self._add(start + row, min(size, self.max_length), min(shared_since_kept, self.max_length))
                    shared_since_kept = size
            self.max_id = max(self.max_id, pc.max(pc.list_flatten(batch["input_ids"])).as_py() or 0)
            replay = np.array(batch["source"].to_pylist()) == "replay"
            self.n_replay += int((replay & trained).sum())
            for source, rows in (("domain", ~replay & trained), ("replay", replay & trained)) if counted else ():
                self.tokens[source] += int(np.minimum(n, self.max_length)[rows].sum())
                self.loss[source] += float(loss[rows].sum())
            if self.topk:
                has_topk = pc.list_value_length(batch["topk_ids"]).to_numpy(zero_copy_only=False) > 0
                self.n_with_topk += int((has_topk & replay & trained).sum())
            start += len(n)
        return start

    def _add(self, row: int, length: int, shared: int) -> None:
        """Note a document; it goes into the unit before it when it shares tokens with it and there is room."""
        if shared and self.unit_lengths[-1] + length - shared <= self.max_length:
            self.units[-1].append(len(self.kept))
            self.unit_lengths[-1] += length - shared
        else:
            shared = 0
            self.units.append([len(self.kept)])
            self.unit_lengths.append(length)
        self.kept.append(row)
        self.lengths.append(length)
        self.shared.append(shared)

    def labels(self, by: Literal["domain", "source", "id"]) -> list[str]:
        """The domain label, the source or the id of each document."""
        import pyarrow.parquet as pq

        column = [value for path in self.paths for value in pq.read_table(path, columns=[by])[by].to_pylist()]
        return [str(column[row]) for row in self.kept]

    def alone(self, index: int) -> Document:
        """A document that shares nothing with the one before it."""
        document = self[index]
        document.shared = 0
        return document

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Document:
        row = self._rows[self.kept[index]]
        weights = np.array(row["loss_weights"], dtype=np.float32)
        top_ids = top_logprobs = None
        if self.topk and row["source"] == "replay" and len(row["topk_ids"]):
            k, n_trained = int(row["topk_k"]), int((weights > 0).sum())
            if k < 1 or len(row["topk_ids"]) != n_trained * k or len(row["topk_logprobs"]) != n_trained * k:
                raise RunError(
                    f"row '{row['id']}' has {len(row['topk_ids'])} top-k entries for {n_trained} tokens of k = {k}",
                    where=str(self.path),
                )
            # Entries exist for every weight > 0 of the whole row: drop those of the first token and of the cut end.
            used = (np.flatnonzero(weights > 0) >= 1) & (np.flatnonzero(weights > 0) < self.max_length)
            top_ids = np.asarray(row["topk_ids"], dtype=np.int64).reshape(n_trained, k)[used]
            top_logprobs = np.asarray(row["topk_logprobs"], dtype=np.float32).reshape(n_trained, k)[used]
        weights = weights[: self.max_length]
        weights[0] = 0.0
        ids = np.asarray(row["input_ids"], dtype=np.int64)[: self.max_length]
        return Document(ids, weights, row["source"] == "replay", top_ids, top_logprobs, self.shared[index])


class Collator:
    """Lays the documents of a micro-batch out in tensors.

    Called with ``[{"documents": [index, ...]}, ...]``; returns tensors over ``B`` tensor rows of ``L`` tokens, ``p``
    positions that predict something and ``n`` loss terms (trained tokens; what several documents share counts once):

    ``input_ids (B, L)``, ``position_ids (B, L)`` (from 0 in every document; the padding at the end of a row is
    documents of its own), ``predict (B, L)`` bool, the ``p`` positions whose output predicts a trained token, and
    ``sources (n,)``, which of those positions predicts each term (in order, one each, without trees; a token at which
    a tree branches predicts several), ``targets (n,)``, ``weights (n,)``, ``counts (n,)`` (documents of the term),
    ``replay (n,)`` bool, and when the rows carry a top-k ``top_ids (n, k)`` (-1 where nothing is stored) and
    ``top_logprobs (n, k)``. ``ends (B, L)`` (see `regrow.train.trees.Merged`) is there when a tree is. A
    micro-batch without a document is two tokens of padding and ``n = 0``. Weights of replay are multiplied by
    ``replay_weight``.
    """

    def __init__(
        self,
        rows: TokenRows,
        *,
        pad_token_id: int,
        layout: Layout = "rows",
        trees: bool = True,
        replay_weight: float = 1.0,
    ) -> None:
        self.rows, self.pad_token_id, self.layout, self.trees = rows, pad_token_id, layout, trees
        self.replay_weight = replay_weight

    def __call__(self, packs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.collate([self.rows[i] for pack in packs for i in pack["documents"]])

    def collate(self, documents: Sequence[Document]) -> dict[str, torch.Tensor]:
        """Lay ``documents`` out; see the class."""
        units = [merge(run) for run in (runs(documents) if self.trees else [[d] for d in documents])]
        lengths = [len(u.input_ids) for u in units]
        if not units:
            bins: list[list[int]] = [[]]
        elif self.layout == "single":
            bins = [list(range(len(units)))]
        elif self.layout == "separate":
            bins = [[i] for i in range(len(units))]
        else:
            bins = best_fit_decreasing(lengths, max(ROW_TOKENS, *lengths))
        longest = max((int(u.positions.max()) + 1 for u in units), default=2)
        shape = (len(bins), max(sum(lengths[i] for i in b) for b in bins) or 2)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        position_ids = np.zeros(shape, dtype=np.int64)
        ends = np.full(shape, shape[1], dtype=np.int64)
        predict = np.zeros(shape, dtype=bool)
        k = max((u.top_ids.shape[1] for u in units if u.top_ids is not None), default=0)
        terms: list[tuple[npt.NDArray[Any], ...]] = []
        for r, members in enumerate(bins):
            at = 0
            for i in members:
                unit, end = units[i], at + lengths[i]
                input_ids[r, at:end] = unit.input_ids
                position_ids[r, at:end] = unit.positions
                ends[r, at:end] = unit.ends + at
                # A document's first token is never trained, so the one before a trained token is on the same path.
                trained = np.flatnonzero(unit.counts)
                sources = unit.before[trained] + at
                predict[r, sources] = True
                terms.append(
                    (
                        sources + r * shape[1],
                        unit.input_ids[trained],
                        unit.weights[trained] * np.float32(self.replay_weight if unit.replay else 1.0),
                        unit.counts[trained],
                        np.full(len(trained), unit.replay),
                        *_padded_top(unit, len(trained), k),
                    )
                )
                at = end
            # No position that no document has: a model may have learned a vector for so many and no more.
            position_ids[r, at:] = np.arange(shape[1] - at) % longest
        if not terms:
            terms.append(tuple(np.zeros(0, kind) for kind in (np.int64, np.int64, np.float32, np.int64, np.bool_)))
        columns = [np.concatenate(column) for column in zip(*terms, strict=True)]
        rank = np.cumsum(predict.ravel()) - 1
        batch = {
            "input_ids": torch.from_numpy(input_ids),
            "position_ids": torch.from_numpy(position_ids),
            "predict": torch.from_numpy(predict),
            "sources": torch.from_numpy(rank[columns[0]]),
            "targets": torch.from_numpy(columns[1]),
            "weights": torch.from_numpy(columns[2]),
            "counts": torch.from_numpy(columns[3]),
            "replay": torch.from_numpy(columns[4]),
            "n_tokens": torch.tensor(sum(u.tokens for u in units)),
            "n_computed": torch.tensor(sum(lengths)),
        }
        if k:
            batch["top_ids"] = torch.from_numpy(columns[5])
            batch["top_logprobs"] = torch.from_numpy(columns[6])
        if any(u.documents > 1 for u in units):
            batch["ends"] = torch.from_numpy(ends)
        return batch


def _padded_top(unit: Merged, n: int, k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The unit's top-k as ``(n, k)``, -1 where there is none."""
    ids, logprobs = np.full((n, k), -1, dtype=np.int64), np.zeros((n, k), dtype=np.float32)
    if unit.top_ids is not None and unit.top_logprobs is not None:
        ids[:, : unit.top_ids.shape[1]] = unit.top_ids
        logprobs[:, : unit.top_ids.shape[1]] = unit.top_logprobs
    return ids, logprobs
