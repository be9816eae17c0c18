from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.engines.base import SampleParams
from regrow.engines.draws import draw, uniforms
from tests.engines.gtest import filtered, p_value

ALPHA = 1e-4
N = 6000


def test_uniforms_are_the_streams_own():
    first = uniforms(7, 3, 10)
    assert np.array_equal(first[:4], uniforms(7, 3, 4))
    assert not np.array_equal(first, uniforms(7, 4, 10))
    assert not np.array_equal(first, uniforms(8, 3, 10))
    assert first.min() >= 0 and first.max() < 1
    many = np.concatenate([uniforms(2**62 + s, 0, 1) for s in range(4000)])
    assert abs(many.mean() - 0.5) < 0.02 and abs(np.corrcoef(many[:-1], many[1:])[0, 1]) < 0.06


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.3, "top_p": 0.9},
        {"top_k": 20},
        {"top_k": 40, "top_p": 0.8, "temperature": 0.9},
    ],
    ids=str,
)
def test_draws_have_the_filtered_distribution(setting):
    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 2, 500).astype(np.float32))
    u = torch.from_numpy(uniforms(11, 0, N))
    tokens, logprobs = draw(logits.expand(N, -1), u, SampleParams(1, **setting))
    exact = filtered(logits.numpy(), **setting)
    assert p_value(tokens.numpy(), exact) > ALPHA
    assert p_value(tokens.numpy(), filtered(logits.numpy(), **{**setting, "temperature": 1.15})) < ALPHA
    assert torch.allclose(logprobs, logits.log_softmax(-1)[tokens], atol=1e-5)


def test_a_nucleus_wider_than_the_first_look_is_sorted_in_full():
    logits = torch.zeros(2, 1500)
    logits[1, 7] = 20
    u = torch.tensor([0.999999, 0.999999], dtype=torch.float64)
    tokens, _ = draw(logits, u, SampleParams(1, top_p=0.9))
    assert tokens[1] == 7
    drawn, _ = draw(logits[:1].expand(2000, -1), torch.from_numpy(uniforms(1, 1, 2000)), SampleParams(1, top_p=0.9))
    assert 900 < drawn.unique().numel() <= 1350


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 40),
    st.floats(0.05, 1),
    st.floats(0.1, 3),
)
def test_no_draw_falls_outside_the_filter(values, u, top_k, top_p, temperature):
    logits = torch.tensor([values])
    token, _ = draw(logits, torch.tensor([u], dtype=torch.float64), SampleParams(1, temperature, top_p, top_k))
    value = values[int(token)]
    assert sum(v > value for v in values) < (top_k or len(values))
    p = np.exp((np.array(values) - max(values)) / temperature)
    best = np.sort(p)[::-1][: top_k or len(p)]
    above = best[best > p[int(token)] * (1 + 1e-5)].sum() / best.sum()
    assert above < top_p + 1e-5


def test_greedy_is_the_arg_max_and_ignores_the_uniform():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    tokens, _ = draw(logits, torch.tensor([0.99, 0.99], dtype=torch.float64), SampleParams(1, temperature=0))
    assert tokens.tolist() == [1, 0]
