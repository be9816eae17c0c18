"""The embedded model, really converted and really asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from regrow.models.generate import chat_once, prompt_ids
from regrow.models.load import load_model, load_tokenizer, resolve_model
from regrow.models.turns import derive_turns

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def smollm2(smollm2_dir: Path):  # type: ignore[no-untyped-def]
    return load_model(smollm2_dir), load_tokenizer(smollm2_dir)


def test_resolved() -> None:
    found = resolve_model("smollm2")
    assert (found.origin, found.name) == ("embedded", "smollm2")
    assert found.gguf is not None and found.gguf.stat().st_size == 98_362_432
    config = json.loads((found.path / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"
    assert resolve_model("smollm2") == found


def test_weights_are_those_of_the_gguf(smollm2) -> None:  # type: ignore[no-untyped-def]
    """A few tensors, de-quantised by the gguf package: equal to the last bit, q and k in the order of Hugging Face."""
    import gguf

    source = resolve_model("smollm2").gguf
    tensors = {t.name: t for t in gguf.GGUFReader(source).tensors}
    weights = smollm2[0].state_dict()

    def stored(name: str) -> torch.Tensor:
        return torch.from_numpy(gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type).copy())

    assert torch.equal(weights["model.embed_tokens.weight"], stored("token_embd.weight"))
    assert torch.equal(weights["model.layers.7.mlp.down_proj.weight"], stored("blk.7.ffn_down.weight"))
    q = stored("blk.29.attn_q.weight").reshape(9, 32, 2, 576).swapaxes(1, 2).reshape(576, 576)
    assert torch.equal(weights["model.layers.29.self_attn.q_proj.weight"], q)


def test_capital_of_france(smollm2) -> None:  # type: ignore[no-untyped-def]
    pieces: list[str] = []
    answer = chat_once(*smollm2, QUESTION, max_new_tokens=16, on_text=pieces.append)
    assert answer == "The capital of France is Paris."
    assert "".join(pieces) == answer and len(pieces) > 3


def test_prompt_is_the_templates(smollm2) -> None:  # type: ignore[no-untyped-def]
    tokenizer = smollm2[1]
    turns = derive_turns(tokenizer)
    wanted = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt_ids(turns, tokenizer, QUESTION) == wanted
    assert turns.stop_ids("assistant") == (0, 1, 2)
