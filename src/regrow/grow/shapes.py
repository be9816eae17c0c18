"""The shapes of a tree: how many children each layer keeps, what a shape costs, and the named ones of the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

BALANCE = (32, 16, 8, 8)
"""The paper's main configuration: 2 turns, 32 first questions, 16 answers each, 8 follow-ups each, 8 answers each
[P]."""

MIXED_MEAN, MIXED_SD = 2.5, 1.0
MIXED_TURNS = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Shape:
    """One tree's shape.

    Attributes:
        children: N_1, N_2, ...: most children a node of the layer above keeps.
        independent: Every dialogue is its own draw from the root: one candidate for each first question, own seed, no
            choice among siblings (the paper's Wide-Tree, its synthetic baseline).
    """

    children: tuple[int, ...]
    independent: bool = False

    @property
    def depth(self) -> int:
        """Layers below the root."""
        return len(self.children)

    def capacity(self, layer: int, depth: int | None = None) -> int:
        """Paths below one node of ``layer`` (0 = the root) that end at ``depth``."""
        return math.prod(self.children[layer : self.depth if depth is None else depth])


def generations(children: Sequence[int]) -> int:
    """Nodes of a full tree: N1 + N1*N2 + N1*N2*N3 + ... (32,16,8,8: 37,408)."""
    total, width = 0, 1
    for n in children:
        width *= n
        total += width
    return total


def paths(children: Sequence[int]) -> int:
    """Root-to-leaf paths of a full tree, the most dialogues it can give (32,16,8,8: 32,768)."""
    return math.prod(children)


def expected_layers(children: Sequence[int], wanted: int) -> list[float]:
    """Nodes of each layer, in expectation, when ``wanted`` of the tree's paths are drawn without replacement.

    A node with c of the P paths below it is needed unless all draws miss it: 1 - C(P - c, wanted) / C(P, wanted).
    """
    total = paths(children)
    wanted = min(wanted, total)
    layers, width = [], 1
    for n in children:
        width *= n
        below = total // width
        missed = 0.0
        if wanted <= total - below:
            missed = math.exp(
                math.lgamma(total - below + 1)
                - math.lgamma(total - below - wanted + 1)
                - math.lgamma(total + 1)
                + math.lgamma(total - wanted + 1)
            )
        layers.append(width * (1 - missed))
    return layers


def scaled(proportions: Sequence[int], wanted: int) -> tuple[int, ...]:
    """The smallest tree of about these proportions with at least ``wanted`` paths.

    All layers are scaled by one factor and rounded down; then the layer that lags its proportion most (the earlier on
    a tie) gets one child more until the tree is large enough.
    """
    factor = (wanted / math.prod(proportions)) ** (1 / len(proportions))
    children = [max(1, math.floor(n * factor + 1e-9)) for n in proportions]
    # Layers that cannot fall below one child can make a small tree larger than it need be.
    for i in reversed(range(len(children))):
        while children[i] > 1 and math.prod(children) // children[i] * (children[i] - 1) >= wanted:
            children[i] -= 1
    while math.prod(children) < wanted:
        lagging = min(range(len(children)), key=lambda i: (children[i] / proportions[i], i))
        children[lagging] += 1
    return tuple(children)


def balance_proportions(depth: int) -> tuple[int, ...]:
    """32,16,8,8 cut to ``depth`` layers, or continued with 4,4 and 2,2 and so on, as the paper's rules ask."""
    return tuple(BALANCE[i] if i < 4 else max(1, 8 >> ((i - 2) // 2)) for i in range(depth))


def mixed_histogram(wanted: int) -> dict[int, int]:
    """Dialogues of 1, 2, 3 and 4 turns: a Gaussian (mean 2.5, deviation 1) by largest remainder [P:
    Gaussian-shaped]."""
    weights = [math.exp(-((k - MIXED_MEAN) ** 2) / (2 * MIXED_SD**2)) for k in MIXED_TURNS]
    return dict(zip(MIXED_TURNS, apportion(wanted, weights), strict=True))


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Split ``total`` in whole parts by weight (largest remainder; the earlier wins a tie)."""
    scale = sum(weights)
    exact = [total * w / scale for w in weights]
    parts = [math.floor(x + 1e-9) for x in exact]
    rest = sorted(range(len(weights)), key=lambda i: (-round(exact[i] - parts[i], 9), i))
    for i in rest[: total - sum(parts)]:
        parts[i] += 1
    return parts


def mixed_shape(histogram: dict[int, int]) -> Shape:
    """A tree whose branches can end after 1 to 4 turns in these numbers without one dialogue being the start of
    another.

    Branching happens in the first two turns; turns 3 and 4 continue a branch. Large enough for every ending.
    """
    wanted = sum(histogram.values())
    size = wanted
    while True:
        n1, n2, n3, n4 = scaled(BALANCE, size)
        one_turn = histogram.get(1, 0)
        if (n1 * n2 - one_turn) * n3 * n4 >= wanted - one_turn and n1 * n2 > one_turn:
            return Shape((n1, n2, n3, n4, 1, 1, 1, 1))
        size = math.ceil(size * 1.25) + 1


def shape_for(spec: str | Sequence[int], turns: int, wanted: int) -> Shape:
    """The shape of a tree that shall give ``wanted`` dialogues.

    Args:
        spec: ``auto``, ``balance``, ``wide``, ``mixed-turns`` or the children of each layer.
        turns: Turns a dialogue, for ``auto`` and ``wide``.
        wanted: Dialogues wanted from this tree, for the shapes that have no size of their own.
    """
    if spec == "balance":
        return Shape(BALANCE)
    if spec == "wide":
        return Shape((wanted,) + (1,) * (2 * turns - 1), independent=True)
    if spec == "mixed-turns":
        return mixed_shape(mixed_histogram(wanted))
    if spec == "auto":
        return Shape(scaled(balance_proportions(2 * turns), wanted))
    assert not isinstance(spec, str)
    return Shape(tuple(spec))


def warnings_for(children: Sequence[int], question_tokens: int, answer_tokens: Sequence[int]) -> list[str]:
    """The paper's rules that this shape breaks. It calls them typical, and two of its own four shapes break them."""
    said = []
    questions, answers = children[0::2], children[1::2]
    if max(children) > children[0]:
        said.append("N_1 should be the largest layer (it explores the topic)")
    if any(b > a for a, b in pairwise(questions)):
        said.append("later question layers should not be wider than earlier ones")
    if any(b > a for a, b in pairwise(answers)):
        said.append("later answer layers should not be wider than earlier ones")
    if any(b < a for a, b in pairwise(answer_tokens)):
        said.append("answers should be allowed to grow with depth (grow.answer.max_new_tokens falls)")
    if min(answer_tokens) < question_tokens:
        said.append("answers are capped shorter than questions")
    return said
