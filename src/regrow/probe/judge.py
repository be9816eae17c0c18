"""A judge that says which domain a text belongs to: logistic regression on sentence embeddings.

It learns from labelled texts, and what it is worth is measured on labelled texts that it did not learn from.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from regrow.errors import DataError
from regrow.probe.draws import seed_for

Floats = npt.NDArray[np.float64]

PENALTIES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""Weights of the squared norm that cross-validation chooses from, strongest first."""


class TextEncoder(Protocol):
    """What of `regrow.models.embed.Encoder` is needed."""

    def encode(
        self, texts: Sequence[str], *, batch_size: int = 64, progress: Callable[[int], object] | None = None
    ) -> npt.NDArray[np.float32]: ...


class Judge(Protocol):
    """Says how likely each domain is for a text."""

    classes: list[str]

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """``(len(texts), len(classes))``; rows sum to 1."""
        ...


@dataclass(frozen=True, slots=True)
class Quality:
    """What a judge is worth, on labelled texts it did not learn from.

    Attributes:
        trained, tested: Labelled texts of each kind.
        accuracy: Share of the tested texts whose likeliest domain is their label.
        majority: What always naming the most frequent label would get.
        loss: Mean minus log-probability of the label, nats; of a fair guess it is ``log(classes)``.
        recall: Label -> share of its tested texts that were found.
        confusion: Label -> named domain -> tested texts.
        penalty: The regularisation that cross-validation chose.
    """

    trained: int
    tested: int
    accuracy: float
    majority: float
    loss: float
    recall: dict[str, float]
    confusion: dict[str, dict[str, int]]
    penalty: float


def fit_softmax(x: Floats, y: npt.NDArray[np.int64], classes: int, penalty: float) -> Floats:
    """Multinomial logistic regression: minimises mean cross-entropy + ``penalty / 2`` times the squared weights.

    Args:
        x: ``(n, d)`` features.
        y: ``(n,)`` labels, ``0 .. classes - 1``.
        classes: Number of labels k.
        penalty: Above 0, so that the minimum exists; the intercepts are free.

    Returns:
        ``(d + 1, k)``; the last row holds the intercepts.
    """
    import torch

    features = torch.cat([torch.from_numpy(x), torch.ones(len(x), 1, dtype=torch.float64)], 1)
    labels = torch.from_numpy(y)
    w = torch.zeros(features.shape[1], classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [w], max_iter=1000, tolerance_grad=1e-9, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = torch.nn.functional.cross_entropy(features @ w, labels) + penalty / 2 * w[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    found: Floats = w.detach().numpy()
    return found


def softmax(x: Floats, weights: Floats) -> Floats:
    """Probabilities ``(n, k)`` under weights of `fit_softmax`."""
    logits = x @ weights[:-1] + weights[-1]
    logits -= logits.max(1, keepdims=True)
    e = np.exp(logits)
    out: Floats = e / e.sum(1, keepdims=True)
    return out


class EncoderJudge:
    """`Judge` on a sentence encoder; see `train_judge`."""

    def __init__(self, encoder: TextEncoder, classes: list[str], weights: Floats) -> None:
        self.classes = classes
        self._encoder, self._weights = encoder, weights

    def probabilities(self, texts: Sequence[str]) -> Floats:
        return softmax(self._encoder.encode(texts).astype(np.float64), self._weights)


def train_judge(
    texts: Sequence[str], labels: Sequence[str], encoder: TextEncoder, *, test_size: float, folds: int, seed: int
) -> tuple[EncoderJudge, Quality]:
    """Hold texts out, choose the penalty by cross-validated loss on the others, fit on these, measure on the former.

    Args:
        texts, labels: Equally many; a text may occur once only.
        encoder: Of sentences.
        test_size: Share held out of every label, at least one text.
        folds: Of the cross-validation.
        seed: Of the split and the folds.

    Returns:
        The judge that was measured (the held-out texts are never added), and its quality.

    Raises:
        DataError: Fewer than two labels, or a label with too few texts.
    """
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise DataError(
            f"all labelled texts have the label {classes[0]!r}; a judge needs at least two domains", where="--labels",
            hint="Give each row its domain in the column 'domain'; add a domain for everything else.",
        )  # fmt: skip
    train, test = _split(labels, test_size, seed)
    fewest = min(classes, key=lambda c: sum(labels[i] == c for i in train))
    if (have := sum(labels[i] == fewest for i in train)) < folds:
        raise DataError(
            f"the domain {fewest!r} has {have} text(s) to learn from, {folds} are needed", where="--labels",
            hint="Label more texts, or set fewer folds (--set probe.domains.folds=2).",
        )  # fmt: skip
    x = encoder.encode(texts).astype(np.float64)
    y = np.array([classes.index(label) for label in labels], dtype=np.int64)
    penalty = _choose(x[train], y[train], len(classes), folds, seed)
    weights = fit_softmax(x[train], y[train], len(classes), penalty)
    return EncoderJudge(encoder, classes, weights), _quality(x[test], y[test], len(train), classes, weights, penalty)


def _split(labels: Sequence[str], test_size: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train and to test on, each label cut at the same share."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        groups[label].append(i)
    test: list[int] = []
    for label, members in groups.items():
        rng = random.Random(seed_for(seed, "judge", "split", label))
        test += rng.sample(members, max(1, round(test_size * len(members))))
    held = set(test)
    return [i for i in range(len(labels)) if i not in held], sorted(test)


def _choose(x: Floats, y: npt.NDArray[np.int64], classes: int, folds: int, seed: int) -> float:
    """The penalty with the lowest cross-validated loss; the stronger one when two are equal."""
    fold = np.zeros(len(y), dtype=np.int64)
    rng = np.random.default_rng(seed_for(seed, "judge", "folds"))
    for c in range(classes):
        mine = np.flatnonzero(y == c)
        fold[rng.permutation(mine)] = np.arange(len(mine)) % folds
    losses = []
    for penalty in PENALTIES:
        total = 0.0
        for f in range(folds):
            inside, outside = fold != f, fold == f
            p = softmax(x[outside], fit_softmax(x[inside], y[inside], classes, penalty))
            total += float(-np.log(np.maximum(p[np.arange(len(p)), y[outside]], 1e-300)).sum())
        losses.append(total)
    return PENALTIES[int(np.argmin(losses))]


def _quality(
    x: Floats, y: npt.NDArray[np.int64], trained: int, classes: list[str], weights: Floats, penalty: float
) -> Quality:
    p = softmax(x, weights)
    named = p.argmax(1)
    confusion = {
        c: {d: int(((y == i) & (named == j)).sum()) for j, d in enumerate(classes)} for i, c in enumerate(classes)
    }
    return Quality(
        trained=trained, tested=len(y), accuracy=float((named == y).mean()),
        majority=float(np.bincount(y).max() / len(y)),
        loss=float(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-300)).mean()),
        recall={c: confusion[c][c] / sum(confusion[c].values()) for c in classes}, confusion=confusion,
        penalty=penalty,
    )  # fmt: skip
