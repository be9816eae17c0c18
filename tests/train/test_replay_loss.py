"""The replay losses against the full-logit formulas and their gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, log_softmax

from regrow.train.objectives.replay import hard_loss, soft_loss, topk_kl

V = 37


def base_and_student(n: int = 11, seed: int = 0, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = log_softmax(scale * torch.randn(n, V, generator=generator), -1)
    return base, (scale * torch.randn(n, V, generator=generator)).requires_grad_()


def full_kl(base: torch.Tensor, student: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    log_p, log_q = log_softmax(base / temperature, -1), log_softmax(student / temperature, -1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize(("tail", "temperature"), [("bucket", 1.0), ("renormalise", 1.0), ("renormalise", 2.5)])
def test_equals_the_full_kl_and_its_gradient_when_k_is_the_vocabulary(tail, temperature):
    base, student = base_and_student()
    ids = torch.stack([torch.randperm(V, generator=torch.Generator().manual_seed(i)) for i in range(len(base))])
    ours = topk_kl(student, ids, base.gather(-1, ids), temperature=temperature, tail=tail)
    wanted = full_kl(base, student, temperature)
    assert torch.allclose(ours, wanted, atol=1e-5)
    weights = torch.linspace(0.1, 1.0, len(base))
    g_ours = torch.autograd.grad((ours * weights).sum(), student, retain_graph=True)[0]
    g_wanted = torch.autograd.grad((wanted * weights).sum(), student)[0]
    assert torch.allclose(g_ours, g_wanted, atol=1e-5)
    assert g_wanted.abs().max() > 1e-2


@pytest.mark.parametrize("k", [1, 5, V - 1])
def test_bucket_is_the_kl_of_the_merged_distributions(k):
    base, student = base_and_student(seed=1)
    top = base.topk(k, dim=-1)
    ours = topk_kl(student, top.indices, top.values)
    q = student.softmax(-1)
    merged_p = torch.cat([top.values.exp(), 1 - top.values.exp().sum(-1, keepdim=True)], -1)
    q_top = q.gather(-1, top.indices)
    merged_q = torch.cat([q_top, 1 - q_top.sum(-1, keepdim=True)], -1)
    naive = (merged_p * (merged_p.log() - merged_q.log())).sum(-1)
    assert torch.allclose(ours, naive, atol=1e-5)
    g_ours = torch.autograd.grad(ours.sum(), student, retain_graph=True)[0]
    g_naive = torch.autograd.grad(naive.sum(), student)[0]
    assert torch.allclose(g_ours, g_naive, atol=1e-5)
    # Merging outcomes can only lose divergence.
    assert (ours <= full_kl(base, student) + 1e-5).all()


def test_bucket_gradient_in_closed_form():
    """dKL/dz = q - p on the top-k, and q * (1 - p_rest / q_rest) on the tail."""
    base, student = base_and_student(seed=2)
    top = base.topk(4, dim=-1)
    gradient = torch.autograd.grad(topk_kl(student, top.indices, top.values).sum(), student)[0]
    q = student.detach().softmax(-1)
    p_rest = 1 - top.values.exp().sum(-1, keepdim=True)
    q_rest = 1 - q.gather(-1, top.indices).sum(-1, keepdim=True)
    wanted = (q * (1 - p_rest / q_rest)).scatter(-1, top.indices, q.gather(-1, top.indices) - top.values.exp())
    assert torch.allclose(gradient, wanted, atol=1e-5)


def test_renormalise_ignores_the_tail():
    base, student = base_and_student(seed=3)
    top = base.topk(6, dim=-1)
    gradient = torch.autograd.grad(
        topk_kl(student, top.indices, top.values, temperature=2.0, tail="renormalise").sum(), student
    )[0]
    assert gradient.scatter(-1, top.indices, 0.0).abs().max() == 0
    assert gradient.gather(-1, top.indices).abs().max() > 1e-3


def test_fewer_than_k_entries_are_filled_with_minus_one():
    base, student = base_and_student(seed=4)
    top = base.topk(3, dim=-1)
    filled = torch.cat([top.indices, torch.full((len(base), 2), -1)], -1)
    values = torch.cat([top.values, torch.zeros(len(base), 2)], -1)
    for tail in ("bucket", "renormalise"):
        a = topk_kl(student, top.indices, top.values, tail=tail)
        b = topk_kl(student, filled, values, tail=tail)
        assert torch.allclose(a, b, atol=1e-6)
        assert torch.isfinite(torch.autograd.grad(b.sum(), student)[0]).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 2, 8, V]),
    st.floats(0.01, 60.0),
    st.sampled_from(["bucket", "renormalise"]),
)
def test_never_negative_and_always_finite_even_for_sharp_half_precision_logprobs(seed, k, scale, tail):
    base, student = base_and_student(4, seed, scale)
    top = base.topk(k, dim=-1)
    stored = top.values.half().float()  # as in the corpus; sums may pass 1
    kl = topk_kl(student, top.indices, stored, tail=tail)
    gradient = torch.autograd.grad(kl.sum(), student)[0]
    assert torch.isfinite(kl).all() and torch.isfinite(gradient).all()
    assert (kl > -2e-2).all()
    assert gradient.abs().max() <= 1.1


def test_an_outcome_the_base_rules_out_costs_nothing():
    base, student = base_and_student(seed=5)
    ids = torch.arange(V).expand(len(base), V)
    certain = torch.full_like(base, -torch.inf)
    certain[:, 7] = 0.0
    kl = topk_kl(student, ids, certain)
    assert torch.allclose(kl, -log_softmax(student, -1)[:, 7], atol=1e-5)


def test_weight_mixes_cross_entropy_and_kl():
    base, student = base_and_student(seed=6)
    top, targets = base.topk(5, dim=-1), torch.arange(len(base))
    kl = topk_kl(student, top.indices, top.values)
    ce = cross_entropy(student, targets, reduction="none")
    for weight in (0.25, 1.0):
        loss, ce_out, kl_out = soft_loss(student, targets, top.indices, top.values, weight=weight)
        assert torch.allclose(loss, (1 - weight) * ce + weight * kl, atol=1e-5)
        assert torch.allclose(ce_out, ce, atol=1e-5) and torch.allclose(kl_out, kl)
    assert torch.allclose(hard_loss(student, targets), ce)


def test_temperature_with_a_bucket_is_refused():
    base, student = base_and_student()
    with pytest.raises(ValueError, match="temperature 1"):
        topk_kl(student, base.topk(2).indices, base.topk(2).values, temperature=2.0)
