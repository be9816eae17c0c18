"""vLLM and llama.cpp themselves, serving SmolLM2, against a forward pass of the weights that they serve.

They run where ``REGROW_VLLM_PYTHON`` names an interpreter with vLLM and ``REGROW_LLAMA_SERVER`` a llama-server.
"""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from regrow.engines.base import Engine, Request, SampleParams, ScoreRow
from regrow.engines.choose import make_engine
from regrow.engines.config import ServeConfig, ServerConfig
from tests.engines.gtest import filtered, p_value

PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n"
)
WEIGHTS = {"vllm": ["--dtype", "float32", "--enforce-eager"], "llama.cpp": []}


def installed(name):
    if name == "vllm":
        return shutil.which(os.environ.get("REGROW_VLLM_PYTHON", "")) is not None
    return shutil.which(os.environ.get("REGROW_LLAMA_SERVER", "llama-server")) is not None


def slow(name):
    variable = {"vllm": "REGROW_VLLM_PYTHON", "llama.cpp": "REGROW_LLAMA_SERVER"}[name]
    return pytest.param(
        name,
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not installed(name), reason=f"{name} is not installed ({variable} says where it is)"),
        ],
    )


@pytest.fixture(scope="module", params=[slow("vllm"), slow("llama.cpp")])
def engine(request, smollm2):
    serve = ServeConfig(quant="f16", context=1024, slots=8, arguments=WEIGHTS[request.param])
    engine = make_engine(request.param, smollm2, server=ServerConfig(cache=False), serve=serve)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(smollm2):
    from regrow.engines.hf import TransformersEngine

    return TransformersEngine(smollm2)


@pytest.fixture(scope="module")
def prompt(reference):
    return tuple(reference._tokenizer.encode(PROMPT, add_special_tokens=False))


def logits(reference, row):
    import torch

    with torch.no_grad():
        return reference._model(torch.tensor([list(row)])).logits[0, -1].numpy()


def inside(tokens, row, top_p=1.0, **rest):
    """The tokens of the nucleus. Weights in 16 bits move its edge by a few tokens, and no token may be further out."""
    wider, nucleus = (filtered(row, top_p=p, **rest) > 0 for p in (min(1.0, top_p + 0.003), top_p))
    assert wider[tokens].all() and np.mean(nucleus[tokens]) > 0.99
    return [token for token in tokens if nucleus[token]]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("setting", [{}, {"temperature": 1.2, "top_p": 0.9}, {"top_k": 30}], ids=str)
def test_next_token_frequencies_are_those_of_the_model(engine, reference, prompt, setting):
    asked = [Request(f"{i}", prompt, 40, 7919 * i, SampleParams(1, **setting)) for i in range(30)]
    answers = dict(engine.sample(asked))
    tokens = [c.token_ids[0] for i in range(30) for c in answers[i]]
    assert len(tokens) == 1200
    row = logits(reference, prompt)
    assert p_value(inside(tokens, row, **setting), filtered(row, **setting)) > 1e-4
    wrong = {**setting, "temperature": setting.get("temperature", 1.0) * 1.2}
    assert p_value(tokens, filtered(row, **wrong)) < 1e-4


@pytest.mark.timeout(1800)
def test_logprobs_are_at_temperature_one_without_filters(engine, reference, prompt):
    assert isinstance(engine, Engine) and engine.info.gives_logprobs
    asked = [Request(f"{i}", prompt, 4, i, SampleParams(24, 0.7, 0.9, stop_token_ids=(2,))) for i in range(8)]
    found = dict(engine.sample(asked))
    rows = [(c, ScoreRow([*prompt, *c.token_ids], len(prompt))) for i in range(8) for c in found[i]]
    ours = np.concatenate([c.logprobs for c, _ in rows])
    exact = np.concatenate([s.logprobs for s in reference.score([r for _, r in rows])])
    assert len(ours) > 200 and np.sqrt(np.mean((ours - exact) ** 2)) < 0.01


@pytest.mark.timeout(1800)
def test_stops_lengths_and_seeds(engine, prompt):
    params = SampleParams(40, stop_token_ids=(2, 28), stop_strings=("?", " you"))
    asked = [Request(f"{i}", prompt, 6, i, params) for i in range(6)]
    first, second = dict(engine.sample(asked)), dict(engine.sample(asked))
    found = [c for i in range(6) for c in first[i]]
    assert {c.finish for c in found} == {"stop", "length"}
    for c in found:
        assert not {2, 28} & set(c.token_ids) and "?" not in c.text and " you" not in c.text
        assert engine._tokenizer.decode(c.token_ids) == c.text
        assert c.finish == "stop" or len(c.token_ids) == 40
    long = [c.text for c in found if len(c.token_ids) > 8]  # "Can", cut before " you", is likely more than once
    assert len(long) > 10 and len({*long}) == len(long)
    same = [a.token_ids == b.token_ids for i in range(6) for a, b in zip(first[i], second[i], strict=True)]
    # The batch may flip a token by rounding; llama.cpp, with caches in 16 bits, did in 13 of 36 texts.
    assert np.mean(same) > 0.4


@pytest.mark.timeout(1800)
def test_a_small_growth(engine, smollm2, tmp_path):
    from regrow.grow.config import GrowConfig
    from regrow.grow.corpus import read_dialogues, read_nodes
    from regrow.grow.stage import grow

    cfg = GrowConfig(
        shape=[3, 2], dialogues=8, topics=["rivers", "bread"], encoder="none", answer={"max_new_tokens": [48]}
    )
    done = grow(cfg, smollm2, tmp_path, seed=1, engine=engine)
    assert done.dialogues >= 6 and done.engine == engine.info.name
    assert {len(d.node_ids) for d in read_dialogues(tmp_path)} == {2}
    kept = [n for n in read_nodes(tmp_path) if n.kept]
    assert all(n.token_logprobs is None or len(n.token_logprobs) == len(n.token_ids) for n in kept)
    assert any(n.token_logprobs for n in kept)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", [slow("vllm"), slow("llama.cpp")])
def test_a_served_model_is_evaluated_as_its_folder(kind, smollm2, tmp_path, monkeypatch):
    """Through the command's own function, on answers to choose from and on answers to write; folder in float32."""
    import json

    from regrow.compare import compare
    from regrow.engines.serve import start
    from regrow.recipe import parse_recipe

    asked = [
        {"question": "What is the capital of France?", "choices": ["Lima", "Paris", "Oslo"], "answer": 1},
        {"question": "How many legs has a spider?", "choices": ["eight", "two", "a hundred"], "answer": 0},
        {"question": "Which of these is a fruit?", "choices": ["iron", "a chair", "an apple"], "answer": 2},
    ]
    (tmp_path / "picked.jsonl").write_text("".join(json.dumps(r) + "\n" for r in asked))
    short = [{"question": f"What is {k} plus {k}?", "answers": [str(2 * k)]} for k in range(1, 4)]
    (tmp_path / "short.jsonl").write_text("".join(json.dumps(r) + "\n" for r in short))
    (tmp_path / "wrote.yaml").write_text("scenario: short.jsonl\ninferencer: generate\nmetric: contains\n")
    names = [f"file:{tmp_path / 'picked.jsonl'}", f"recipe:{tmp_path / 'wrote.yaml'}"]
    recipe = parse_recipe("", overrides=[
        f"evaluate.suites={json.dumps(names)}", "evaluate.bootstrap=200", "evaluate.max_new_tokens=12",
        "grow.encoder=none", "grow.server.api_key_env=THE_KEY",
    ])  # fmt: skip
    server = start(kind, smollm2, ServeConfig(quant="f16", context=1024, slots=4, arguments=WEIGHTS[kind]))
    try:
        monkeypatch.setenv("THE_KEY", server.key)
        results = compare(recipe, [str(smollm2.path), server.url], tmp_path / "out")
    finally:
        server.close()
    records = [json.loads(line) for line in (tmp_path / "out/eval/records.jsonl").read_text().splitlines()]
    by = {(r["suite"], r["item_id"], r["arm"]): r for r in records}
    picked = [(key, r) for key, r in by.items() if key[0] == "picked" and key[2] == "after"]
    assert len(picked) == 3 and set(results["suites"]) == {"picked", "wrote"}
    for (suite, name, _), theirs in picked:
        ours = by[suite, name, "base"]["metrics"]
        assert theirs["metrics"]["acc"] == ours["acc"] and set(theirs["metrics"]) == set(ours)
        for metric in ("nll", "margin"):
            if metric in ours:
                assert theirs["metrics"][metric] == pytest.approx(ours[metric], abs=0.02), metric
    written = [(r["output"], by["wrote", key[1], "base"]["output"]) for key, r in by.items()
               if key[0] == "wrote" and key[2] == "after"]  # fmt: skip
    assert len(written) == 3 and all(a.split()[:2] == b.split()[:2] for a, b in written), written
