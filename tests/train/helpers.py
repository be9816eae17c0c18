"""Token rows for the trainer's tests: random ids, real layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
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


def token_row(
    ids: list[int], weights: list[float], source: str = "domain", name: str = "r", **topk: Any
) -> dict[str, Any]:
    """One row of ``train.parquet``."""
    row = {
        "id": name,
        "source": source,
        "domain": source,
        "input_ids": ids,
        "loss_weights": weights,
        "topk_ids": [],
        "topk_logprobs": [],
        "topk_k": 0,
        "n_tokens": len(ids),
        "n_train_tokens": int(sum(w > 0 for w in weights)),
        "n_shared": 0,
    }
    return row | topk


def random_rows(n: int, *, seed: int = 0, k: int = 0, replay_every: int = 3, vocab: int = 300) -> list[dict[str, Any]]:
    """Rows of 6 to 40 tokens, the last two thirds trained with weights of different sizes; every third is replay."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        length = int(rng.integers(6, 41))
        ids = rng.integers(3, vocab, length).tolist()
        first = length // 3
        weights = [0.0] * first + rng.choice([0.25, 0.5, 1.0], length - first).tolist()
        source = "replay" if i % replay_every == 1 else "domain"
        topk: dict[str, Any] = {}
        if k and source == "replay":
            logits = np.sort(rng.normal(size=(length - first, vocab)))[:, ::-1]
            logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            chosen = np.stack([rng.permutation(vocab)[:k] for _ in range(length - first)])
            topk = {
                "topk_ids": chosen.ravel().tolist(),
                "topk_logprobs": logprobs[:, :k].ravel().tolist(),
                "topk_k": k,
            }
        rows.append(token_row(ids, weights, source, f"r{i}", **topk))
    return rows


def tree_rows(
    shape: tuple[int, ...] = (1, 2, 1, 3), *, seed: int = 0, k: int = 0, vocab: int = 300, once: bool = False,
    tokens: int = 6, name: str = "t",
) -> list[dict[str, Any]]:  # fmt: skip
    """A full tree's dialogues as the mix writes them for tree packing: layer by layer ``shape[i]`` children a node of
    ``tokens`` to ``2 * tokens - 1`` tokens, questions untrained, answers with weight 1, or (``once``) 1 / paths."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []

    def visit(path: list[tuple[list[int], float, list[int], list[float]]], layer: int) -> None:
        if layer == len(shape):
            ids = [t for node in path for t in node[0]]
            weights = [node[1] for node in path for _ in node[0]]
            topk = {}
            if k:
                stored = [node for node in path if node[1]]
                topk = {"topk_k": k, "topk_ids": [i for n in stored for i in n[2]],
                        "topk_logprobs": [p for n in stored for p in n[3]]}  # fmt: skip
            row = token_row(ids, weights, "replay", f"{name}{len(rows)}", **topk)
            if rows:
                before = rows[-1]["input_ids"]
                equal = [a == b for a, b in zip(ids, before, strict=False)]
                row["n_shared"] = equal.index(False) if False in equal else len(equal)
            rows.append(row)
            return
        for child in range(shape[layer]):
            n = int(rng.integers(tokens, 2 * tokens))
            # The children of a node begin with tokens of their own, so that what is shared are whole nodes.
            ids = [3 + child, *rng.integers(3, vocab, n - 1).tolist()]
            paths = int(np.prod(shape[layer + 1 :]))
            weight = 0.0 if layer % 2 == 0 else (1.0 / paths if once else 1.0)
            top_ids = np.stack([rng.permutation(vocab)[:k] for _ in range(n)]).ravel().tolist() if k else []
            logprobs = np.log(rng.dirichlet(np.ones(vocab), n))
            top = np.sort(logprobs)[:, ::-1][:, :k].ravel().astype(np.float32).tolist()
            visit([*path, (ids, weight, top_ids, top)], layer + 1)

    visit([], 0)
    return rows


def write_mix(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write ``folder/train.parquet`` and return ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "train.parquet")
    return folder


def weights_of(folder: Path) -> dict[str, Any]:
    """All tensors of a saved model or adapter."""
    from safetensors.torch import load_file

    out: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        out |= load_file(path)
    return out


def largest_difference(a: Path, b: Path) -> float:
    """Largest absolute difference between the weights of two folders with the same tensors."""
    one, two = weights_of(a), weights_of(b)
    assert one.keys() == two.keys() and one
    return max(float((one[k].double() - two[k].double()).abs().max()) for k in one)


def log_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
