from __future__ import annotations

import pytest

from regrow.engines import choose
from regrow.engines.choose import make_engine
from regrow.errors import EngineError, MissingExtra
from regrow.models.load import ResolvedModel


@pytest.fixture
def tiny(tiny_model_dir):
    return ResolvedModel(tiny_model_dir, "tiny", "abc")


def without_openvino(monkeypatch):
    monkeypatch.setattr(choose, "find_spec", lambda name: None)


def test_auto_is_transformers_without_a_gguf_and_says_why(tiny, capsys):
    engine = make_engine("auto", tiny)
    assert engine.info.name == "transformers" and engine.info.model == "tiny" and engine.info.revision == "abc"
    assert "neither a GGUF nor an OpenVINO form" in capsys.readouterr().err


def test_auto_says_when_openvino_is_missing(tiny, capsys, monkeypatch):
    without_openvino(monkeypatch)
    assert make_engine("auto", tiny).info.name == "transformers"
    assert "openvino-genai is not installed" in capsys.readouterr().err


def test_auto_falls_back_when_openvino_cannot_have_the_model(tiny, capsys, tmp_path, monkeypatch):
    """A GGUF of another model: the weights do not fit it, so nothing is written and transformers takes over."""
    monkeypatch.setenv("REGROW_CACHE", str(tmp_path))
    (tmp_path / "other.gguf").write_bytes(b"not a gguf")
    model = ResolvedModel(tiny.path, "tiny", "abc", gguf=tmp_path / "other.gguf")
    assert make_engine("auto", model).info.name == "transformers"
    assert "cannot be written for OpenVINO" in capsys.readouterr().err
    with pytest.raises(EngineError, match="cannot be written for OpenVINO") as caught:
        make_engine("openvino", model)
    assert caught.value.hint == "engine: transformers"


def test_openvino_not_installed(tiny, monkeypatch):
    without_openvino(monkeypatch)
    with pytest.raises(MissingExtra, match="openvino-genai"):
        make_engine("openvino", tiny)


def test_dummy_takes_the_models_tokenizer_and_the_seed(tiny):
    one, two = make_engine("dummy", tiny, seed=1), make_engine("dummy", tiny, seed=2)
    assert one.info.name == "dummy" and one.info.model == "tiny"
    from regrow.engines.base import Request, SampleParams

    asked = [Request("a", (1,), 5, 3, SampleParams(50))]
    assert dict(one.sample(asked))[0][0].text != dict(two.sample(asked))[0][0].text


def test_settings_reach_the_engine(tiny):
    engine = make_engine("transformers", tiny, dtype="bfloat16", batch_size=3, memory_gib=1.0)
    assert engine.info.dtype == "bfloat16" and engine._places(20) == 3


def test_unknown_name(tiny):
    with pytest.raises(EngineError, match="no engine 'sglang'") as caught:
        make_engine("sglang", tiny)
    assert "openai, vllm, llama.cpp" in caught.value.hint


def test_a_server_needs_an_address(tiny):
    with pytest.raises(EngineError, match="no server is given"):
        make_engine("openai", tiny)
