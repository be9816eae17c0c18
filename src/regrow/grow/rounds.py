"""What is planted when: the budget by topic, the first round of trees, and the rounds that make up for branches that
died."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regrow.grow.config import GrowConfig
from regrow.grow.plan import Want
from regrow.grow.records import TreeRow
from regrow.grow.script import root_prompt
from regrow.grow.shapes import apportion, expected_layers, mixed_histogram, mixed_shape, shape_for
from regrow.grow.topics import quotas

DEFAULT_DIALOGUES = 1000
FIRST_SHARE = 0.6
"""Of a token budget, what the first round aims at; the rounds after it know how long this model's dialogues are."""

TOKENS_PER_QUESTION, TOKENS_PER_ANSWER = 20, 150
"""First guess at the length of a turn, before any is grown; answers are also bounded by their cap."""
FIT_SHARE = 0.8
"""First guess at the share of candidates that pass the screens; only the estimate before a run uses it."""


def turns_of(config: GrowConfig) -> int:
    """Turns of a dialogue (layers of a text in pretrain mode) for shapes of one depth."""
    if config.shape == "balance":
        layers = 4
    elif isinstance(config.shape, list):
        layers = len(config.shape)
    else:
        layers = 2 * config.turns
    return layers if config.mode == "pretrain" else layers // 2


def budget(config: GrowConfig, topics: Sequence[str]) -> int | None:
    """Dialogues wanted in all; None when the budget is in tokens."""
    if config.tokens is not None:
        return None
    if config.dialogues == "all":
        return len(topics) * shape_for(config.shape, config.turns, 1).capacity(0)
    return config.dialogues or DEFAULT_DIALOGUES


def deficits(
    config: GrowConfig,
    topics: Sequence[str],
    target: int,
    finished: Mapping[tuple[int, int], int],
    layers_per_turn: int,
) -> dict[int, Want]:
    """Dialogues still wanted: topic number -> turns -> how many. Empty when the budget is met.

    A topic that gave nothing in the rounds so far (a model may refuse it throughout) gives its share to the others.
    """
    shares = quotas(config, topics, target)
    done = [sum(n for (topic, _), n in finished.items() if topic == i) for i in range(len(topics))]
    missing = target - sum(done)
    if missing <= 0:
        return {}
    alive = [share > 0 and (done[i] > 0 or not finished) for i, share in enumerate(shares)]
    open_ = [max(0, share - done[i]) if alive[i] else 0 for i, share in enumerate(shares)]
    extra = missing - sum(open_)
    if extra > 0:
        if not any(alive):
            return {}
        more = apportion(extra, [float(share) if alive[i] else 0.0 for i, share in enumerate(shares)])
        open_ = [a + b for a, b in zip(open_, more, strict=True)]
    elif extra < 0:
        open_ = apportion(missing, [float(n) for n in open_])
    wants: dict[int, Want] = {}
    for i, n in enumerate(open_):
        if n and config.shape == "mixed-turns":
            wants[i] = mixed_want(i, n, done[i], finished, layers_per_turn)
        elif n:
            wants[i] = {turns_of(config): n}
    return wants


def mixed_want(topic: int, n: int, done: int, finished: Mapping[tuple[int, int], int], layers_per_turn: int) -> Want:
    """``n`` more dialogues, so that the whole keeps the histogram's form."""
    whole = mixed_histogram(done + n)
    gaps = {k: max(0, c - finished.get((topic, k * layers_per_turn), 0)) for k, c in whole.items()}
    turns = [k for k, gap in gaps.items() if gap]
    return {k: c for k, c in zip(turns, apportion(n, [float(gaps[k]) for k in turns]), strict=True) if c}


def trees_for(
    config: GrowConfig, topics: Sequence[str], wants: Mapping[int, Want], first: int, round_: int
) -> list[TreeRow]:
    """The trees of one round. A topic gets as many trees as its dialogues need: one, unless the shape is too small."""
    trees: list[TreeRow] = []
    for topic, want in sorted(wants.items()):
        total = sum(want.values())
        if config.shape == "mixed-turns":
            parts = [(mixed_shape(want), want)]
        else:
            ((turns, _),) = want.items()
            shape = shape_for(config.shape, config.turns, total)
            sizes = apportion(total, [1.0] * math.ceil(total / shape.capacity(0)))
            parts = [(shape, {turns: n}) for n in sizes if n]
        for shape, share in parts:
            name = topics[topic]
            trees.append(TreeRow(first + len(trees), topic, name, root_prompt(config, name), round_, shape, share))
    return trees


def next_target(config: GrowConfig, topics: Sequence[str], tokens: int, dialogues: int, layers_per_turn: int) -> int:
    """Dialogues to have in all after the next round, for a token budget.

    Args:
        tokens, dialogues: What there is so far; the next round goes by their ratio.
    """
    assert config.tokens is not None
    if not dialogues:
        return max(1, math.floor(FIRST_SHARE * _dialogues_for(config, topics, layers_per_turn)))
    return dialogues + max(1, math.ceil((config.tokens - tokens) * dialogues / max(1, tokens)))


def _dialogues_for(config: GrowConfig, topics: Sequence[str], layers_per_turn: int) -> float:
    """Dialogues that the token budget is guessed to give. Found by iteration: in a larger tree more turns are
    shared."""
    assert config.tokens is not None
    dialogues = max(1.0, config.tokens / 300)
    for _ in range(8):
        n = max(1, round(dialogues))
        trees = trees_for(config, topics, deficits(config, topics, n, {}, layers_per_turn), 0, 0)
        dialogues = n * config.tokens / guess_tokens(config, trees)
    return dialogues


def layers_of(tree: TreeRow, layers_per_turn: int) -> list[float]:
    """Nodes that a tree is expected to keep in each layer."""
    layers = [0.0] * tree.shape.depth
    for turns, n in tree.want.items():
        for i, nodes in enumerate(expected_layers(tree.shape.children[: turns * layers_per_turn], n)):
            layers[i] += nodes
    return layers


def guess_length(config: GrowConfig, layer: int) -> int:
    """Guessed tokens of a turn of ``layer`` (1 is the first)."""
    caps = config.answer.max_new_tokens
    if config.mode == "pretrain":
        return caps[min(layer, len(caps)) - 1]
    if layer % 2:
        return min(TOKENS_PER_QUESTION, config.question.max_new_tokens)
    return min(TOKENS_PER_ANSWER, caps[min(layer // 2, len(caps)) - 1])


def guess_tokens(config: GrowConfig, trees: Sequence[TreeRow]) -> float:
    """Tokens of the distinct turns of these trees, by the guessed lengths."""
    lpt = 1 if config.mode == "pretrain" else 2
    return sum(
        nodes * guess_length(config, layer) for tree in trees for layer, nodes in enumerate(layers_of(tree, lpt), 1)
    )


@dataclass(frozen=True, slots=True)
class GrowCost:
    """What growing will take, before a token is sampled.

    Attributes:
        dialogues: Wanted.
        trees: Planted in the first round.
        kept_nodes: Distinct turns in the corpus.
        generations: Candidates sampled for them.
        kept_tokens, sampled_tokens: Tokens of both.
    """

    dialogues: int
    trees: int
    kept_nodes: int
    generations: int
    kept_tokens: int
    sampled_tokens: int


def estimate_cost(config: GrowConfig, topics: Sequence[str]) -> GrowCost:
    """Estimate the cost of a configuration from its shape and caps alone.

    Nodes follow from the shape; the lengths of turns are a guess (`TOKENS_PER_QUESTION`, `TOKENS_PER_ANSWER`), and so
    is the share of candidates that pass the screens (`FIT_SHARE`).
    """
    lpt = 1 if config.mode == "pretrain" else 2
    target = budget(config, topics)
    if target is None:
        target = max(1, round(_dialogues_for(config, topics, lpt)))
    trees = trees_for(config, topics, deficits(config, topics, target, {}, lpt), 0, 0)
    kept = sampled = nodes = generations = 0.0
    for tree in trees:
        parents = 1.0
        for layer, here in enumerate(layers_of(tree, lpt), 1):
            # Single children are sampled once; of k children all are oversampled.
            siblings = 0.0 if tree.shape.independent else min(1.0, here / max(parents, 1e-9) - 1)
            drawn = here * (1 + (config.oversample - 1) * max(0.0, siblings)) / FIT_SHARE
            length = guess_length(config, layer)
            nodes, generations = nodes + here, generations + drawn
            kept, sampled = kept + here * length, sampled + drawn * length
            parents = here
    if config.tokens is not None:
        kept, sampled = float(config.tokens), sampled * config.tokens / kept
    return GrowCost(target, len(trees), round(nodes), math.ceil(generations), round(kept), math.ceil(sampled))
