"""OpenVINO GenAI on the real SmolLM2, against transformers on the same weights."""

from __future__ import annotations

import numpy as np
import pytest

from regrow.engines.base import Engine, Request, SampleParams, ScoreRow
from regrow.errors import EngineError
from tests.engines.gtest import filtered, p_value

pytest.importorskip("openvino_genai")
pytestmark = pytest.mark.slow

PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n"
)


@pytest.fixture(scope="module")
def exact(smollm2):
    from regrow.engines.openvino import OpenVinoEngine

    engine = OpenVinoEngine(smollm2, dtype="float32", memory_gib=1.0)
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


def errors(engine, reference, asked):
    """Log-probability of the engine minus that of a forward pass in transformers, over all sampled tokens."""
    found = dict(engine.sample(asked))
    rows = [ScoreRow([*asked[i].prompt_ids, *c.token_ids], len(asked[i].prompt_ids)) for i in found for c in found[i]]
    ours = [c.logprobs for i in found for c in found[i]]
    return np.concatenate([a - s.logprobs for a, s in zip(ours, reference.score(rows), strict=True)])


@pytest.mark.parametrize("setting", [{}, {"temperature": 1.2, "top_p": 0.9}, {"top_k": 30}], ids=str)
def test_next_token_frequencies_are_those_of_the_model(exact, reference, prompt, setting):
    asked = [Request(f"{i}", prompt, 40, 7919 * i, SampleParams(1, **setting)) for i in range(100)]
    answers = dict(exact.sample(asked))
    tokens = [c.token_ids[0] for i in range(100) for c in answers[i]]
    assert len(tokens) == 4000
    row = logits(reference, prompt)
    assert p_value(tokens, filtered(row, **setting)) > 1e-4
    wrong = {**setting, "temperature": setting.get("temperature", 1.0) * 1.2}
    assert p_value(tokens, filtered(row, **wrong)) < 1e-4


def test_logprobs_are_at_temperature_one_without_filters(exact, reference, prompt):
    asked = [Request(f"{i}", prompt, 4, i, SampleParams(24, 0.7, 0.9, stop_token_ids=(2,))) for i in range(8)]
    found = errors(exact, reference, asked)
    assert len(found) > 200 and np.sqrt(np.mean(found**2)) < 0.01


def test_the_default_weights_stay_near_the_model(smollm2, reference, prompt):
    """Q8_0 is the model within a tenth of a nat; the 4-bit file itself, read by OpenVINO, is off by nearly one."""
    from regrow.engines.openvino import OpenVinoEngine

    engine = OpenVinoEngine(smollm2, memory_gib=1.0)
    assert engine.info.dtype == "q8_0"
    asked = [Request(f"{i}", prompt, 4, i, SampleParams(24, stop_token_ids=(2,))) for i in range(8)]
    found = errors(engine, reference, asked)
    assert np.sqrt(np.mean(found**2)) < 0.1
    engine.close()


def test_the_batch_does_not_change_a_request(exact, prompt):
    """But for rounding: a number drawn just where two tokens meet takes either, once in hundreds of tokens; which
    ones depends on the load. Were the randomness not the request's own, nearly all completions would differ."""
    assert isinstance(exact, Engine)
    asked = [Request(f"{i}", (*prompt, i + 40), 1 + i % 3, 100 + i, SampleParams(12)) for i in range(10)]
    together = dict(exact.sample(asked))
    backwards = dict(exact.sample(asked[::-1]))
    differ = 0
    for i, request in enumerate(asked):
        alone = dict(exact.sample([request]))[0]
        assert len(alone) == len(together[i]) == len(backwards[9 - i]) == request.n
        for three in zip(alone, together[i], backwards[9 - i], strict=True):
            differ += len({tuple(c.token_ids) for c in three}) > 1
    assert differ <= 5, f"{differ} of {sum(r.n for r in asked)} completions"


def test_stop_tokens_and_stop_strings(exact, prompt):
    params = SampleParams(40, stop_token_ids=(2,), stop_strings=("?", " you"))
    found = [c for cs in dict(exact.sample([Request("a", prompt, 24, 3, params)])).values() for c in cs]
    assert {c.finish for c in found} == {"stop", "length"}
    for c in found:
        assert 2 not in c.token_ids and "?" not in c.text and " you" not in c.text
        assert exact._tokenizer.decode(c.token_ids) == c.text and len(c.logprobs) == len(c.token_ids)
        assert c.finish == "stop" or len(c.token_ids) == 40
    free = [c for cs in dict(exact.sample([Request("a", prompt, 8, 3, SampleParams(30))])).values() for c in cs]
    assert all(c.finish == "length" and len(c.token_ids) == 30 for c in free)
    assert any(2 in c.token_ids for c in free), "the model's own end token is no stop unless it is asked to be"
    params = SampleParams(30, stop_token_ids=(28, 30))
    dots = [c for cs in dict(exact.sample([Request("a", prompt, 16, 3, params)])).values() for c in cs]
    assert any(2 in c.token_ids for c in dots) and not any({28, 30} & set(c.token_ids) for c in dots)


def test_greedy_is_the_arg_max_and_an_abandoned_call_leaves_nothing_behind(exact, reference, prompt):
    asked = [Request(f"{i}", prompt, 2, i, SampleParams(6, temperature=0)) for i in range(6)]
    begun = exact.sample(asked)
    next(begun)
    begun.close()
    assert not exact._pipeline.has_non_finished_requests()
    first, second = dict(exact.sample(asked[:1]))[0]
    assert first.token_ids == second.token_ids
    assert first.token_ids == dict(reference.sample(asked[:1]))[0][0].token_ids


def test_refusals(exact, prompt):
    with pytest.raises(EngineError, match="cannot score"):
        exact.score([ScoreRow([1, 2])])
    with pytest.raises(EngineError, match="exceed the context"):
        exact.sample([Request("a", prompt, 1, 1, SampleParams(10_000))])
