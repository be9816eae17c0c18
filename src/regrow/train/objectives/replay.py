r"""Replay losses: `hard` (cross-entropy, the paper) and `soft` (KL from the base model's stored top-k).

For one replay token let :math:`z` be the student's logits, :math:`q = \mathrm{softmax}(z)`, and let the corpus hold
the base model's :math:`k` likeliest tokens :math:`S` with probabilities :math:`p_i`. Then

.. math::
    \ell = (1 - w)\,(-\log q_y) + w\,\mathrm{KL}

with ``tail="bucket"`` (one further outcome for everything outside :math:`S`,
:math:`p_r = 1 - \sum_S p_i`, :math:`q_r = 1 - \sum_S q_i`)

.. math::
    \mathrm{KL} = \sum_{i \in S} p_i \log\frac{p_i}{q_i} + p_r \log\frac{p_r}{q_r}

and with ``tail="renormalise"`` (:math:`p^T_i \propto p_i^{1/T}`, :math:`q^T_i \propto e^{z_i/T}`, both over :math:`S`)

.. math::
    \mathrm{KL} = T^2 \sum_{i \in S} p^T_i \log\frac{p^T_i}{q^T_i}

The bucket loses information by merging outcomes, so it is a lower bound of the full KL (data-processing inequality);
both forms equal the full-logit KL when :math:`S` is the vocabulary. The factor :math:`T^2` keeps the gradient's size
(Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import cross_entropy, log_softmax

if TYPE_CHECKING:
    from torch import Tensor

Tail = Literal["bucket", "renormalise"]


def hard_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy per token in nats; ``logits (n, V)``, ``targets (n,)`` to ``(n,)`` float32."""
    return cross_entropy(logits.float(), targets, reduction="none")


def topk_kl(
    logits: Tensor, top_ids: Tensor, top_logprobs: Tensor, *, temperature: float = 1.0, tail: Tail = "bucket"
) -> Tensor:
    """KL(base || student) per token in nats, from the base model's stored top-k; see the module's formula.

    Args:
        logits: ``(n, V)`` of the student.
        top_ids: ``(n, k)`` distinct token ids; -1 fills up rows with fewer than k. At least one id a row is needed.
        top_logprobs: ``(n, k)`` natural-log probabilities of the base at temperature 1; ignored where the id is -1.
        temperature: Softens both sides; must be 1 with ``tail="bucket"``.
        tail: ``bucket`` or ``renormalise``.

    Returns:
        ``(n,)`` float32, never negative but for rounding.

    Raises:
        ValueError: ``temperature`` is not 1 with the bucket tail.
    """
    if tail == "bucket" and temperature != 1.0:
        raise ValueError("the bucket tail is defined at temperature 1 only")
    logits = logits.float()
    there = top_ids >= 0
    ids = top_ids.clamp(min=0).long()
    # An outcome the base rules out (log 0) must give 0 * finite, not 0 * inf.
    log_p = top_logprobs.float().clamp(min=-1e4).masked_fill(~there, -torch.inf)
    picked = logits.gather(-1, ids)
    if tail == "renormalise":
        log_p = log_softmax(log_p / temperature, dim=-1)
        log_q = log_softmax((picked / temperature).masked_fill(~there, -torch.inf), dim=-1)
        return temperature**2 * _kl_terms(log_p, log_q, there).sum(-1)

    # Logprobs are stored in half precision, so their sum may pass 1 by a little: then there is no tail.
    mass = log_p.exp().sum(-1, keepdim=True)
    log_p = log_p - mass.clamp(min=1.0).log()
    p_rest = (1.0 - mass.squeeze(-1)).clamp(min=0.0)
    log_z = logits.logsumexp(-1, keepdim=True)
    kl = _kl_terms(log_p, picked - log_z, there).sum(-1)
    if ids.shape[-1] >= logits.shape[-1] and bool(there.all()):
        return kl  # k = V: nothing is outside
    # The student's tail mass by a sum over the tail itself: 1 - sum(q_i) has no correct digit left when q_i is near 1.
    vocabulary = logits.shape[-1]
    hidden_ids = torch.where(there, ids, vocabulary)
    padded = torch.cat([logits, logits.new_full((logits.shape[0], 1), -torch.inf)], dim=-1)
    log_q_rest = padded.scatter(-1, hidden_ids, -torch.inf).logsumexp(-1) - log_z.squeeze(-1)
    return kl + torch.where(p_rest > 0, p_rest * (p_rest.clamp(min=1e-30).log() - log_q_rest), 0.0)


def _kl_terms(log_p: Tensor, log_q: Tensor, there: Tensor) -> Tensor:
    """``p * (log p - log q)`` where an outcome exists and 0 elsewhere, with finite gradients in both places."""
    log_p, log_q = log_p.masked_fill(~there, 0.0), log_q.masked_fill(~there, 0.0)
    return torch.where(there, log_p.exp() * (log_p - log_q), 0.0)


def soft_loss(
    logits: Tensor,
    targets: Tensor,
    top_ids: Tensor,
    top_logprobs: Tensor,
    *,
    weight: float = 1.0,
    temperature: float = 1.0,
    tail: Tail = "bucket",
) -> tuple[Tensor, Tensor, Tensor]:
    """The soft replay loss per token, ``(1 - weight) * CE + weight * KL``; shapes as in `topk_kl`.

    Returns:
        ``(loss, ce, kl)``, each ``(n,)`` in nats. ``ce`` is detached when ``weight`` is 1: it is only reported then.
    """
    kl = topk_kl(logits, top_ids, top_logprobs, temperature=temperature, tail=tail)
    if weight == 1.0:
        with torch.no_grad():
            return kl, hard_loss(logits, targets), kl
    ce = hard_loss(logits, targets)
    return (1.0 - weight) * ce + weight * kl, ce, kl
