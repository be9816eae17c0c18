"""Weight interpolation: exact at both ends, linear between, streamed over shards."""

from __future__ import annotations

import pytest
import torch

from regrow.errors import ModelError, RecipeError
from regrow.train.interpolate import interpolate
from tests.fixtures.tiny import tiny_llama
from tests.train.helpers import weights_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_model_dir):
    """A base in one file and a descendant in several, in other places."""
    tuned = tmp_path_factory.mktemp("tuned")
    model = tiny_llama(seed=1, vocab_size=weights_of(tiny_model_dir)["model.embed_tokens.weight"].shape[0])
    model.save_pretrained(tuned, max_shard_size="100KB")
    assert len(list(tuned.glob("*.safetensors"))) > 1
    return tiny_model_dir, tuned


def test_ends_are_bit_equal_and_the_middle_is_the_mean(folders, tmp_path):
    base, tuned = folders
    a, b = weights_of(base), weights_of(tuned)
    for alpha in (0.0, 0.25, 1.0):
        mixed = weights_of(interpolate(base, tuned, alpha, tmp_path / str(alpha)))
        assert mixed.keys() == a.keys()
        for name, value in mixed.items():
            if alpha in (0.0, 1.0):
                assert torch.equal(value, b[name] if alpha else a[name])
            else:
                assert torch.allclose(value, 0.75 * a[name] + 0.25 * b[name], atol=1e-6)


def test_the_result_is_a_model_with_its_tokenizer_in_either_direction(folders, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, tuned = folders
    out = interpolate(base, tuned, 0.5, tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(out)(torch.tensor([[3, 4]])).logits.isfinite().all()
    assert AutoTokenizer.from_pretrained(out).chat_template
    back = interpolate(tuned, base, 0.5, tmp_path / "back")  # sharded base
    assert len(list(back.glob("*.safetensors"))) == len(list(tuned.glob("*.safetensors")))
    one, two = weights_of(out), weights_of(back)
    assert all(torch.allclose(one[n], two[n], atol=1e-7) for n in one)


def test_half_precision_keeps_its_dtype(folders, tmp_path):
    base, tuned = folders
    from transformers import AutoModelForCausalLM

    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    mixed = weights_of(interpolate(half, tuned, 0.5, tmp_path / "out"))
    assert {t.dtype for t in mixed.values()} == {torch.bfloat16}
    wanted = torch.lerp(weights_of(half)["model.norm.weight"].float(), weights_of(tuned)["model.norm.weight"], 0.5)
    assert torch.equal(mixed["model.norm.weight"], wanted.bfloat16())


def test_strangers_and_bad_alphas_are_refused(folders, tmp_path):
    base, tuned = folders
    with pytest.raises(RecipeError, match="not between 0"):
        interpolate(base, tuned, 1.5, tmp_path / "out")
    other = tmp_path / "other"
    tiny_llama(layers=1).save_pretrained(other)
    with pytest.raises(ModelError, match="tensors are in one model only"):
        interpolate(base, other, 0.5, tmp_path / "out")
    wide = tmp_path / "wide"
    tiny_llama(hidden=128).save_pretrained(wide)
    with pytest.raises(ModelError, match="in one and"):
        interpolate(base, wide, 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.tmp").exists()
