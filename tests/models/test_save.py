"""Merging adapters, exporting GGUF, model cards."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from regrow.errors import ModelError
from regrow.models.card import escape
from regrow.models.gguf import convert_gguf, read_gguf
from regrow.models.load import load_model, load_tokenizer, resolve_model
from regrow.models.save import adapter_base, export_gguf, merge_adapter, write_model_card
from tests.fixtures.tiny import save_tiny_adapter, tiny_vocabulary_gguf


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture
def adapter(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A LoRA adapter of the tiny model with weights that matter."""
    return save_tiny_adapter(tiny_model_dir, tmp_path / "adapter")


def adapted(adapter: Path, base: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(load_model(base), str(adapter)).eval()


def test_merged_equals_adapted(adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    out = merge_adapter(adapter, tmp_path / "merged")
    merged = logits(load_model(out))
    torch.testing.assert_close(merged, logits(adapted(adapter, tiny_model_dir)), rtol=1e-4, atol=1e-5)
    assert (merged - logits(load_model(tiny_model_dir))).abs().max() > 0.01, "the adapter changes something"
    assert load_tokenizer(out).chat_template
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_model_has_the_usual_permissions(adapter: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        out = merge_adapter(adapter, tmp_path / "merged")
    finally:
        os.umask(before)
    assert (out / "model.safetensors").is_file()
    assert {oct(p.stat().st_mode & 0o777) for p in out.iterdir()} == {"0o640"}


def test_merged_keeps_the_number_format_of_the_base(adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "bf16"
    load_model(tiny_model_dir, dtype="bfloat16").save_pretrained(base)
    load_tokenizer(tiny_model_dir).save_pretrained(base)
    out = merge_adapter(adapter, tmp_path / "merged", base=resolve_model(base))
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_adapter_where_a_model_is_wanted(
    adapter: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGROW_CACHE", str(tmp_path / "cache"))
    found = resolve_model(adapter)
    assert found.path.is_relative_to(tmp_path / "cache")
    torch.testing.assert_close(
        logits(load_model(found.path)), logits(adapted(adapter, tiny_model_dir)), rtol=1e-4, atol=1e-5
    )
    assert resolve_model(adapter) == found


def test_adapters_that_cannot_be_merged(adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapter"):
        merge_adapter(tiny_model_dir, tmp_path / "x")
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("mine")
    with pytest.raises(ModelError, match="not empty"):
        merge_adapter(adapter, full)
    assert (full / "file").read_text() == "mine"
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "./gone"}))
    with pytest.raises(ModelError, match=r"base model './gone' cannot be used"):
        merge_adapter(adapter, tmp_path / "x")
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base"):
        adapter_base(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        adapter_base(adapter)
    assert not (tmp_path / "x").exists()


def test_an_adapter_of_another_shape(adapter: Path, tmp_path: Path) -> None:
    from tests.fixtures.tiny import tiny_llama, tiny_tokenizer

    other = tmp_path / "other"
    tiny_llama(hidden=32).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    with pytest.raises(ModelError, match="does not fit"):
        merge_adapter(adapter, tmp_path / "x", base=resolve_model(other))


# GGUF


@pytest.fixture(scope="module")
def vocabulary_gguf(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vocabulary_gguf(tiny_model_dir, tmp_path_factory.mktemp("gguf") / "vocabulary.gguf")


@pytest.mark.parametrize(("quant", "tolerance"), [("f16", 2e-3), ("q8_0", 5e-2)])
def test_gguf_round_trip(
    tiny_model_dir: Path,
    vocabulary_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quant: str,
    tolerance: float,
) -> None:
    """Written, read back through transformers, and the same model: weights, template, token ids; trainable and
    saveable."""
    monkeypatch.setenv("REGROW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    file = export_gguf(tiny_model_dir, tmp_path / "tiny.gguf", quant, source=vocabulary_gguf)
    facts = read_gguf(file)
    assert (facts.architecture, facts.has_chat_template) == ("llama", True)
    found = resolve_model(file)
    assert (found.origin, found.gguf) == ("gguf", file)
    model, tokenizer = load_model(found.path), load_tokenizer(found.path)
    torch.testing.assert_close(logits(model), logits(load_model(tiny_model_dir)), rtol=0, atol=tolerance)
    original = load_tokenizer(tiny_model_dir)
    assert tokenizer.chat_template == original.chat_template
    text = "<|im_start|>user\nMean of the data?<|im_end|>\n"
    assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
    assert "quantization_config" not in json.loads((found.path / "config.json").read_text())
    model.train()
    model(torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None
    model.save_pretrained(tmp_path / "again")
    assert resolve_model(file) == found, "converted once"
    again = export_gguf(found.path, tmp_path / "again.gguf", quant)
    assert read_gguf(again).n_tensors == facts.n_tensors, "the conversion remembers the file it came from"


def test_gguf_into_a_folder(tiny_model_dir: Path, vocabulary_gguf: Path, tmp_path: Path) -> None:
    file = export_gguf(tiny_model_dir, tmp_path, source=vocabulary_gguf)
    assert file.parent == tmp_path and file.name == f"{tiny_model_dir.name}-f16.gguf"
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_gguf_refusals(
    tiny_model_dir: Path, vocabulary_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGROW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")
    out = tmp_path / "x.gguf"
    with pytest.raises(ModelError, match="q4_k"):
        export_gguf(tiny_model_dir, out, "q4_k")
    with pytest.raises(ModelError, match=r"ends in \.gguf"):
        export_gguf(tiny_model_dir, tmp_path / "x.bin")
    with pytest.raises(ModelError, match="no GGUF with this model's vocabulary") as caught:
        export_gguf(tiny_model_dir, out)
    assert "convert_hf_to_gguf.py" in (caught.value.hint or "")
    other = Path(shutil.copytree(tiny_model_dir, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(ModelError, match="another model"):
        export_gguf(other, out, source=vocabulary_gguf)
    (other / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    with pytest.raises(ModelError, match="not 'qwen2'"):
        export_gguf(other, out, source=vocabulary_gguf)
    assert not [p for p in tmp_path.iterdir() if "gguf" in p.name], "nothing half-written"


def test_the_ecosystems_converter_comes_first(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "convert_hf_to_gguf"
    tool.write_text('#!/bin/sh\n[ "$5" = f16 ] || { echo "bad type $5" >&2; exit 3; }\necho "$1" > "$3"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    file = export_gguf(tiny_model_dir, tmp_path / "x.gguf")
    assert file.read_text().strip() == str(tiny_model_dir)
    with pytest.raises(ModelError, match="bad type q8_0"):
        export_gguf(tiny_model_dir, tmp_path / "y.gguf", "q8_0")


def test_a_gguf_of_an_unknown_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    monkeypatch.setenv("REGROW_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(file, "rwkv9")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="architecture 'rwkv9'") as caught:
        convert_gguf(file)
    assert "llama" in (caught.value.hint or "")
    file.write_bytes(b"no GGUF at all")
    with pytest.raises(ModelError, match="not a readable GGUF"):
        resolve_model(file)
    file.write_bytes(b"")
    with pytest.raises(ModelError, match="not a readable GGUF"):
        resolve_model(file)


# Model card


def test_card(tmp_path: Path) -> None:
    facts = {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "origin": "hub",
        "license": "apache-2.0",
        "datasets": ["org/data"],
        "arm": "regrow",
        "summary": "Learnt <b>much</b> | forgot *little*",
        "replay": {"dialogues": 200, "replay_ratio asked": 0.2, "replay_ratio realised": 0.19834567},
        "gain": {"loss": {"mean": -0.51234, "low": -0.6, "high": -0.4}},
        "forgetting": [{"suite": "facts", "change": {"value": 0.01, "low": -0.02, "high": 0.04}}],
        "recipe": "seed: 1\n# ```\n",
        "versions": {"torch": "2.13.0"},
        "note": "[click](javascript:1)",
    }
    text = write_model_card(tmp_path, facts).read_text()
    _, header, body = text.split("---\n", 2)
    meta = yaml.safe_load(header)
    assert meta["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert meta["library_name"] == "transformers" and meta["license"] == "apache-2.0"
    assert "-0.5123 [-0.6, -0.4]" in body and "0.01 [-0.02, 0.04]" in body
    assert "0.1983" in body
    assert "&lt;b&gt;much&lt;/b&gt; \\| forgot \\*little\\*" in body
    assert "\\[click\\]" in body
    assert "````yaml\nseed: 1" in body
    for heading in ("Replay corpus", "Gain", "Forgetting", "Recipe", "Versions", "Further facts"):
        assert f"## {heading}" in body


def test_card_of_a_local_base(tmp_path: Path) -> None:
    text = write_model_card(tmp_path, {"base_model": "models/mine", "origin": "folder"}).read_text()
    assert "base_model" not in yaml.safe_load(text.split("---\n")[1]), "on the hub that is somebody else's model"


@pytest.mark.parametrize("text", ["a | b", "line\nbreak", "<script>", "# head", "`code`", "[x](y)", "a_b*c"])
def test_escape(text: str) -> None:
    out = escape(text)
    assert "\n" not in out and "<" not in out
    for mark in "|#`[]*_":
        assert out.count(mark) == out.count("\\" + mark)
