"""What experiments with small models from random weights share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


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


def save_llama(folder: Path, seed: int, vocab_size: int, *, hidden: int, layers: int, positions: int) -> Path:
    """A Llama with random weights; id 0 pads and ends."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=positions, pad_token_id=0, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
