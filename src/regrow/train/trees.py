"""Documents that share their beginnings as one sequence, in which every token is computed once.

The documents of a tree follow each other, and each says how many tokens it shares with the one before it. Laid out one
after the other without what they share, the tokens stand in depth-first order. In that order the descendants of a
token are the tokens behind it up to its *end*, so the whole tree mask is one number a token: query ``q`` sees key
``k`` when ``k <= q < end[k]``. In a document by itself, as in padding, every token ends where the document does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from regrow.errors import RunError

if TYPE_CHECKING:
    from regrow.train.batches import Document


@dataclass(slots=True)
class Merged:
    """One or more documents as ``m`` tokens in depth-first order.

    Attributes:
        input_ids: ``(m,)`` int64.
        positions: ``(m,)`` place of each token on its own path, from 0.
        ends: ``(m,)`` index behind the last token that sees this one.
        before: ``(m,)`` index of the token before it on its path, which predicts it; -1 for the first.
        weights: ``(m,)`` float32, the weights of the loss on it in all documents through it, added up.
        counts: ``(m,)`` int64, documents that train it.
        replay: Whether the documents were grown out of the model.
        tokens: Tokens of the documents one by one.
        top_ids, top_logprobs: ``(number of weights > 0, k)`` or None.
        documents: How many.
    """

    input_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    replay: bool
    tokens: int
    top_ids: npt.NDArray[np.int64] | None
    top_logprobs: npt.NDArray[np.float32] | None
    documents: int


def runs(documents: Sequence[Document]) -> list[list[Document]]:
    """Documents by tree: one that shares tokens with the document before it belongs to the same tree."""
    out: list[list[Document]] = []
    for document in documents:
        if document.shared and out:
            out[-1].append(document)
        else:
            out.append([document])
    return out


def merge(documents: Sequence[Document]) -> Merged:
    """Put the documents of one tree together; of a single document nothing changes.

    A token that starts several branches is computed once, and each branch's first token has it as ``before``: it
    predicts them all.

    Raises:
        RunError: A document does not begin as the one before it, or has another top-k there.
    """
    shared = [0] + [d.shared for d in documents[1:]]
    size = sum(len(d.input_ids) - s for d, s in zip(documents, shared, strict=True))
    ids, positions = np.empty(size, np.int64), np.empty(size, np.int64)
    ends, before = np.full(size, size, np.int64), np.full(size, -1, np.int64)
    weights, counts = np.zeros(size, np.float64), np.zeros(size, np.int64)
    path = np.empty(0, np.int64)
    at = 0
    for document, s in zip(documents, shared, strict=True):
        n = len(document.input_ids)
        if s > len(path) or not np.array_equal(ids[path[:s]], document.input_ids[:s]):
            raise _foreign("begin")
        if document.replay != documents[0].replay:
            raise _foreign("have the source")
        ends[path[s:]] = at  # nothing below them follows
        new = np.arange(at, at + n - s)
        ids[new], positions[new] = document.input_ids[s:], np.arange(s, n)
        path = np.concatenate([path[:s], new])
        before[new] = np.concatenate([[-1], path[:-1]])[s:]
        weights[path] += document.weights
        counts[path] += document.weights > 0
        at += n - s
    top_ids, top_logprobs = _top(documents, shared, counts > 0) if len(documents) > 1 else (None, None)
    if len(documents) == 1:
        top_ids, top_logprobs = documents[0].top_ids, documents[0].top_logprobs
    return Merged(
        ids,
        positions,
        ends,
        before,
        weights.astype(np.float32),
        counts,
        documents[0].replay,
        sum(len(d.input_ids) for d in documents),
        top_ids,
        top_logprobs,
        len(documents),
    )


def _top(
    documents: Sequence[Document], shared: Sequence[int], trained: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.float32] | None]:
    """The stored top-k of the trained tokens, in their order; each token's is the same in all documents through it."""
    with_top = [d for d in documents if d.top_ids is not None]
    if not with_top:
        return None, None
    if len(with_top) < len(documents):
        raise _foreign("carry a top-k")
    first = with_top[0].top_ids
    assert first is not None
    k = first.shape[1]
    ids = np.full((len(trained), k), -1, np.int64)
    logprobs = np.full((len(trained), k), -np.inf, np.float32)
    known = np.zeros(len(trained), bool)
    path = np.empty(0, np.int64)
    at = 0
    for document, s in zip(documents, shared, strict=True):
        n = len(document.input_ids)
        path = np.concatenate([path[:s], np.arange(at, at + n - s)])
        at += n - s
        nodes = path[document.weights > 0]
        assert document.top_ids is not None and document.top_logprobs is not None
        if document.top_ids.shape[1] != k:
            raise _foreign("store the top-k")
        old = known[nodes]
        if not (
            np.array_equal(ids[nodes[old]], document.top_ids[old])
            and np.array_equal(logprobs[nodes[old]], document.top_logprobs[old])
        ):
            raise _foreign("store the top-k")
        ids[nodes[~old]], logprobs[nodes[~old]] = document.top_ids[~old], document.top_logprobs[~old]
        known[nodes] = True
    return ids[trained], logprobs[trained]


def _foreign(what: str) -> RunError:
    return RunError(
        f"rows of one tree do not {what} alike where n_shared says so",
        where="train.parquet",
        hint="run `regrow mix` again",
    )
