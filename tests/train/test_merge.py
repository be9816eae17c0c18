"""Models made out of models: the residual is exact, Model Stock follows its formula, strangers are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from regrow import api
from regrow.errors import DataError, ModelError, RunError
from regrow.train.merge import add_residual
from regrow.train.stock import model_stock
from tests.fixtures.tiny import tiny_llama
from tests.train.helpers import weights_of


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, Path]:
    """A base and three descendants; ``half`` pairs are in bfloat16."""
    root = tmp_path_factory.mktemp("family")
    vocab = weights_of(tiny_model_dir)["model.embed_tokens.weight"].shape[0]
    found = {"base": tiny_model_dir}
    for seed, name in enumerate(("instruct", "continued", "other"), 1):
        model, step = AutoModelForCausalLM.from_pretrained(tiny_model_dir), tiny_llama(seed=seed, vocab_size=vocab)
        with torch.no_grad():
            for p, q in zip(model.parameters(), step.parameters(), strict=True):
                # Far enough from the base that a residual in float32 would round.
                p.mul_(1 / 3).add_(0.1 * q)
        model.save_pretrained(root / name)
        AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(root / name)
        found[name] = root / name
    for name in ("base", "instruct"):
        half = AutoModelForCausalLM.from_pretrained(found[name], dtype=torch.bfloat16)
        half.save_pretrained(root / f"half-{name}")
        found[f"half-{name}"] = root / f"half-{name}"
    return found


@pytest.mark.parametrize("kind", ["", "half-"])
def test_the_residual_on_its_own_base_is_the_instruct_model_bit_for_bit(family, tmp_path, kind):
    base, instruct = family[f"{kind}base"], family[f"{kind}instruct"]
    back = weights_of(add_residual(base, instruct, base, tmp_path / "out"))
    wanted = weights_of(instruct)
    assert back.keys() == wanted.keys()
    for name, value in back.items():
        assert value.dtype == wanted[name].dtype
        assert torch.equal(value, wanted[name]), name


def test_the_residual_is_added_with_its_scale(family, tmp_path):
    base, instruct, continued = (weights_of(family[n]) for n in ("base", "instruct", "continued"))
    for scale in (0.0, 0.5, 1.0):
        out = add_residual(family["base"], family["instruct"], family["continued"], tmp_path / str(scale), scale=scale)
        for name, value in weights_of(out).items():
            exact = continued[name].double() + scale * (instruct[name].double() - base[name].double())
            assert torch.equal(value, exact.float())


def test_more_tokens_in_the_instruct_model_keep_their_rows(family, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(family["instruct"])
    before = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(before + 3, mean_resizing=False)
    model.save_pretrained(tmp_path / "more")
    out = add_residual(family["base"], tmp_path / "more", family["continued"], tmp_path / "out")
    got, had = weights_of(out)["model.embed_tokens.weight"], weights_of(tmp_path / "more")["model.embed_tokens.weight"]
    assert got.shape[0] == before + 3
    assert torch.equal(got[before:], had[before:])
    half = add_residual(family["base"], tmp_path / "more", family["continued"], tmp_path / "half", scale=0.5)
    assert torch.equal(weights_of(half)["model.embed_tokens.weight"][before:], had[before:] / 2), "zero, not anything"
    with pytest.raises(ModelError, match="more tokens"):
        add_residual(tmp_path / "more", family["instruct"], family["continued"], tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_model_stock_follows_the_formula(family, tmp_path):
    out = model_stock(family["base"], [family["instruct"], family["continued"], family["other"]], tmp_path / "out")
    base, *tuned = (weights_of(family[n]) for n in ("base", "instruct", "continued", "other"))
    for name, value in weights_of(out).items():
        steps = [(t[name] - base[name]).double().flatten() for t in tuned]
        pairs = [(0, 1), (0, 2), (1, 2)]
        cos = sum(float(torch.cosine_similarity(steps[i], steps[j], dim=0)) for i, j in pairs) / 3
        t = 3 * cos / (1 + 2 * cos)
        wanted = base[name].double() + t * (sum(steps) / 3).view_as(base[name])
        assert torch.allclose(value.double(), wanted, atol=1e-5), name
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert not list(out.glob("mergekit*"))
    with pytest.raises(ModelError, match="two or more"):
        model_stock(family["base"], [family["instruct"]], tmp_path / "refused")


def test_merging_by_name(family, tmp_path):
    base, tuned = str(family["base"]), str(family["instruct"])
    out = api.merge([base, tuned], tmp_path / "half", weight=0.25)
    a, b, c = (weights_of(folder)["model.norm.weight"] for folder in (family["base"], family["instruct"], out))
    assert torch.allclose(c, torch.lerp(a, b, 0.25))
    assert AutoModelForCausalLM.from_pretrained(out)(torch.tensor([[3, 4]])).logits.isfinite().all()
    for models, method, weight, said in (
        ([base], "interpolate", None, "takes BASE TUNED, 1 were given"),
        ([base, tuned], "residual", None, "takes BASE INSTRUCT CONTINUED"),
        ([base, tuned, tuned], "model-stock", 0.5, "finds its weight itself"),
        ([base, tuned], "average", None, "not a method"),
    ):
        with pytest.raises(DataError, match=said):
            api.merge(models, tmp_path / "no", method=method, weight=weight)
    with pytest.raises(RunError, match="something already"):
        api.merge([base, tuned], family["instruct"])
