"""What experiments with small models from random weights share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def write_token_mix(folder: Path, rows: Mapping[str, Sequence[tuple[Sequence[int], Sequence[float]]]]) -> Path:
    """Rows of tokens and their loss weights, by domain, as a mix that `regrow train` reads; domains take turns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = [
        {"id": f"{domain}/{k}", "source": "domain", "domain": domain, "input_ids": list(found[k][0]),
         "loss_weights": list(found[k][1]), "topk_ids": [], "topk_logprobs": [], "topk_k": 0,
         "n_tokens": len(found[k][0]), "n_train_tokens": sum(w > 0 for w in found[k][1])}
        for k in range(max(map(len, rows.values()))) for domain, found in rows.items() if k < len(found)
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(table), folder / "train.parquet")
    return folder


def save_random(folder: Path, seed: int, config: PretrainedConfig) -> Path:
    """A model with random weights."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
