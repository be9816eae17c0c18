from __future__ import annotations

import numpy as np
import pytest
import torch

from regrow.engines.base import Engine, Request, SampleParams, ScoreRow
from regrow.engines.hf import TransformersEngine
from regrow.errors import EngineError
from tests.engines.gtest import filtered, p_value
from tests.engines.helpers import ids, prompts, requests
from tests.fixtures.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def tok():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def llama(tok):
    return tiny_llama(vocab_size=len(tok))


def gemma3(vocabulary):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, sliding_window=8, query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    return Gemma3ForCausalLM(config).float().eval()


def capped(vocabulary):
    """Gemma 2 caps its logits after the head."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, sliding_window=8, final_logit_softcapping=0.4, attn_logit_softcapping=50.0,
        query_pre_attn_scalar=16,
    )  # fmt: skip
    return Gemma2ForCausalLM._from_config(config, attn_implementation="eager").float().eval()


def gpt2(vocabulary):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_positions=128, n_embd=64, n_layer=2, n_head=4)).eval()


def sharp_llama(vocabulary, scale):
    """A tiny LLaMA with a head of its own, and clear preferences among the tokens: logits of deviation 8 x scale."""
    model = tiny_llama(seed=3, vocab_size=vocabulary)
    model.lm_head.weight = torch.nn.Parameter(scale * torch.randn(vocabulary, 64))
    return model


MODELS = {"llama": lambda v: tiny_llama(vocab_size=v), "gemma3": gemma3, "gemma2-capped": capped, "gpt2": gpt2}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tok):
    return MODELS[request.param](len(tok))


def naive(model, row):
    with torch.no_grad():
        return model(torch.tensor([list(row)])).logits[0].float()


def test_is_an_engine(llama, tok):
    engine = TransformersEngine.from_model(llama, tok)
    assert isinstance(engine, Engine)
    assert engine.info.gives_logprobs and engine.info.can_score and engine.info.dtype == "float32"


def test_logprobs_of_sampled_tokens_are_those_of_a_plain_forward_pass(model, tok):
    engine = TransformersEngine.from_model(model, tok, batch_size=7)
    asked = requests(prompts(12, len(tok)), params=SampleParams(12, 0.8, 0.9, 50, stop_token_ids=(2, 5, 9)))
    answers = dict(engine.sample(asked))
    assert sorted(answers) == list(range(12))
    seen = 0
    for i, request in enumerate(asked):
        assert len(answers[i]) == request.n
        for c in answers[i]:
            row = [*request.prompt_ids, *c.token_ids]
            exact = naive(model, row).log_softmax(-1)
            expected = [float(exact[t - 1, row[t]]) for t in range(len(request.prompt_ids), len(row))]
            assert np.allclose(c.logprobs, expected, atol=1e-4)
            assert c.text == tok.decode(c.token_ids, clean_up_tokenization_spaces=False)
            assert (c.finish == "length") == (len(c.token_ids) == 12)
            seen += len(c.token_ids)
    assert seen > 200


def test_the_batch_does_not_change_the_draws(model, tok):
    """Rounding could flip a token; at these sizes and seeds it does not."""
    asked = requests(prompts(10, len(tok)), n=3)
    together = ids(TransformersEngine.from_model(model, tok, batch_size=8).sample(asked))
    large = ids(TransformersEngine.from_model(model, tok, batch_size=64).sample(asked))
    single = TransformersEngine.from_model(model, tok, batch_size=1)
    alone = {i: ids(single.sample([r]))[0] for i, r in enumerate(asked)}
    backwards = ids(TransformersEngine.from_model(model, tok, batch_size=8).sample(asked[::-1]))
    assert together == large == alone == {9 - i: v for i, v in backwards.items()}
    assert len({tuple(c) for cs in together.values() for c in cs}) > 20


def test_a_continuation_belongs_to_its_index(llama, tok):
    engine = TransformersEngine.from_model(llama, tok)
    prompt = prompts(1, len(tok))[0]
    params = SampleParams(10)
    few, many = (dict(engine.sample([Request("a", prompt, n, 5, params)]))[0] for n in (2, 6))
    assert [c.token_ids for c in many[:2]] == [c.token_ids for c in few]
    other = dict(engine.sample([Request("a", prompt, 2, 6, params)]))[0]
    assert [c.token_ids for c in other] != [c.token_ids for c in few]


@pytest.mark.parametrize("setting", [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 12}], ids=str)
def test_next_token_frequencies_are_exact(tok, setting):
    sharp = sharp_llama(len(tok), 0.25)
    engine = TransformersEngine.from_model(sharp, tok, batch_size=64)
    first, second = prompts(2, len(tok))
    params = SampleParams(1, **setting)
    asked = [Request(f"{i}", (first, second)[i % 2], 50, i, params) for i in range(120)]
    answers = dict(engine.sample(asked))
    for which, prompt in enumerate((first, second)):
        tokens = [c.token_ids[0] for i in range(which, 120, 2) for c in answers[i]]
        logits = naive(sharp, prompt)[-1].numpy()
        assert len(tokens) == 3000
        assert p_value(tokens, filtered(logits, **setting)) > 1e-4
        wrong = {**setting, "temperature": setting.get("temperature", 1.0) * 1.3}
        assert p_value(tokens, filtered(logits, **wrong)) < 1e-4


def test_later_tokens_have_the_right_frequencies_too(tok):
    """Second tokens given a first one, out of a ragged batch that decodes together."""
    sharp = sharp_llama(len(tok), 0.3)
    engine = TransformersEngine.from_model(sharp, tok, batch_size=48)
    found = prompts(3, len(tok), seed=4)
    asked = [Request(f"{i}", found[i % 3], 50, i, SampleParams(2)) for i in range(180)]
    pairs = [c.token_ids for i, cs in dict(engine.sample(asked)).items() if i % 3 == 0 for c in cs]
    first = max({p[0] for p in pairs}, key=[p[0] for p in pairs].count)
    tokens = [p[1] for p in pairs if p[0] == first]
    logits = naive(sharp, [*found[0], first])[-1].numpy()
    assert len(tokens) > 200
    assert p_value(tokens, filtered(logits)) > 1e-4


def test_stop_tokens_end_a_completion_and_are_not_in_it(llama, tok):
    engine = TransformersEngine.from_model(llama, tok, batch_size=5)
    asked = requests(prompts(6, len(tok)), n=8, params=SampleParams(40, stop_token_ids=tuple(range(0, len(tok), 12))))
    found = [c for cs in dict(engine.sample(asked)).values() for c in cs]
    assert {c.finish for c in found} == {"stop", "length"}
    assert not any(t % 12 == 0 for c in found for t in c.token_ids)
    assert all(len(c.token_ids) == 40 for c in found if c.finish == "length")


def test_stop_strings_cut_the_text_where_they_begin(llama, tok):
    engine = TransformersEngine.from_model(llama, tok)
    prompt = prompts(1, len(tok))[0]
    plain = dict(engine.sample([Request("a", prompt, 30, 5, SampleParams(40))]))[0]
    stops = ("e", "th", "\n")
    cut = dict(engine.sample([Request("a", prompt, 30, 5, SampleParams(40, stop_strings=stops))]))[0]
    hits = 0
    for whole, c in zip(plain, cut, strict=True):
        at = min((whole.text.find(s) for s in stops if s in whole.text), default=-1)
        assert c.text == (whole.text if at < 0 else whole.text[:at])
        assert c.finish == ("length" if at < 0 else "stop")
        assert tok.decode(c.token_ids) == c.text and len(c.logprobs) == len(c.token_ids)
        hits += at > 0
    assert hits > 10


def test_nothing_asked_nothing_sampled(llama, tok):
    engine = TransformersEngine.from_model(llama, tok)
    prompt = prompts(1, len(tok))[0]
    assert list(engine.sample([])) == []
    answers = dict(
        engine.sample([Request("a", prompt, 0, 1, SampleParams(5)), Request("b", prompt, 2, 1, SampleParams(0))])
    )
    assert answers[0] == [] and [c.token_ids for c in answers[1]] == [[], []]


def test_long_runs_slide_their_cache(tok):
    """Short and long answers mixed, so that the columns of the cache run out many times over."""
    model = tiny_llama(vocab_size=len(tok))
    found = prompts(40, len(tok), shared=3)
    asked = [Request(f"{i}", p, 2, i, SampleParams(4 + 9 * (i % 7))) for i, p in enumerate(found)]
    packed = ids(TransformersEngine.from_model(model, tok, batch_size=6).sample(asked))
    alone = TransformersEngine.from_model(model, tok, batch_size=2)
    assert packed == {i: ids(alone.sample([r]))[0] for i, r in enumerate(asked)}


def test_memory_bounds_the_batch(llama, tok):
    engine = TransformersEngine.from_model(llama, tok, batch_size=512, memory_gib=0.002)
    assert 1 <= engine._places(100) < 40
    assert TransformersEngine.from_model(llama, tok, batch_size=512, memory_gib=2.0)._places(100) == 512


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("t/1", (), 1, 0, SampleParams(4)), "no tokens"),
        (Request("t/1", (3,) * 1020, 1, 0, SampleParams(8)), "exceed the context of 1024"),
        (Request("t/1", (3,), 1, 0, SampleParams(4, temperature=-1)), "out of range"),
        (Request("t/1", (3,), 1, 0, SampleParams(4, top_p=0)), "out of range"),
        (Request("t/1", (3,), 1, 0, SampleParams(4, stop_strings=("",))), "stop string is empty"),
    ],
)
def test_bad_requests_are_refused_by_name(llama, tok, request_, message):
    with pytest.raises(EngineError, match=message) as caught:
        TransformersEngine.from_model(llama, tok).sample([request_])
    assert "t/1" in str(caught.value)


def test_recurrent_models_are_refused(tok):
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=len(tok), hidden_size=32, num_hidden_layers=1, state_size=4))
    with pytest.raises(EngineError, match="Mamba"):
        TransformersEngine.from_model(model, tok)


def test_scores_are_those_of_plain_forward_passes(model, tok):
    engine = TransformersEngine.from_model(model, tok)
    rng = np.random.default_rng(2)
    rows = [
        ScoreRow(rng.integers(0, len(tok), int(rng.integers(4, 60))).tolist(), start=int(rng.integers(1, 3)))
        for _ in range(20)
    ]
    for row, score in zip(rows, engine.score(rows, top_k=7), strict=True):
        logp = naive(model, row.token_ids)[row.start - 1 : -1].log_softmax(-1)
        targets = torch.tensor(row.token_ids[row.start :])
        assert np.allclose(score.logprobs, logp.gather(-1, targets[:, None])[:, 0], atol=1e-4)
        assert np.array_equal(score.greedy, (logp.argmax(-1) == targets).numpy())
        assert np.allclose(score.entropy, -(logp.exp() * logp).sum(-1), atol=1e-4)
        top, top_ids = logp.topk(7)
        assert score.top_ids.dtype == np.int32 and score.top_logprobs.dtype == np.float16
        assert np.allclose(score.top_logprobs, top, atol=6e-3)
        assert (score.top_ids == top_ids.numpy()).mean() > 0.99


def test_padding_and_chunks_do_not_change_a_score(llama, tok):
    rng = np.random.default_rng(3)
    rows = [ScoreRow(rng.integers(0, len(tok), int(n)).tolist()) for n in rng.integers(2, 80, 25)]
    large = list(TransformersEngine.from_model(llama, tok).score(rows))
    small = TransformersEngine.from_model(llama, tok, memory_gib=1e-4)
    for together, chunked, row in zip(large, small.score(rows), rows, strict=True):
        (alone,) = small.score([row])
        assert np.allclose(together.logprobs, alone.logprobs, atol=1e-5)
        assert np.allclose(chunked.logprobs, alone.logprobs, atol=1e-5)
        assert np.allclose(together.entropy, alone.entropy, atol=1e-5)


def test_a_row_with_nothing_to_score(llama, tok):
    engine = TransformersEngine.from_model(llama, tok)
    (empty,) = engine.score([ScoreRow([3, 4], start=2)], top_k=3)
    assert empty.logprobs.shape == (0,) and empty.top_ids.shape == (0, 3)
    first, second = engine.score([ScoreRow([3, 4], start=2), ScoreRow([3, 4, 5])])
    assert len(first.logprobs) == 0 and len(second.logprobs) == 2


def test_impossible_rows_are_refused(llama, tok):
    engine = TransformersEngine.from_model(llama, tok)
    for row in (ScoreRow([3, 4], start=0), ScoreRow([3], start=2), ScoreRow([3] * 1025)):
        with pytest.raises(EngineError, match="score row 1"):
            engine.score([ScoreRow([3, 4]), row])
    with pytest.raises(EngineError, match="top_k"):
        engine.score([ScoreRow([3, 4])], top_k=10_000)


def test_close_twice_then_refuse(tok):
    engine = TransformersEngine.from_model(tiny_llama(vocab_size=len(tok)), tok)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.score([ScoreRow([3, 4])])


def test_bfloat16_samples_and_scores(tok):
    model = tiny_llama(vocab_size=len(tok)).to(torch.bfloat16)
    engine = TransformersEngine.from_model(model, tok, batch_size=8)
    assert engine.info.dtype == "bfloat16"
    asked = requests(prompts(5, len(tok)))
    for i, found in dict(engine.sample(asked)).items():
        for c in (c for c in found if c.token_ids):
            row = ScoreRow([*asked[i].prompt_ids, *c.token_ids], start=len(asked[i].prompt_ids))
            assert np.allclose(next(engine.score([row])).logprobs, c.logprobs, atol=0.1)
