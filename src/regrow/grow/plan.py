"""Which paths of a tree are grown: a uniformly random subset, decided node by node from the run's seed.

A budget of L dialogues out of a tree with P = N1*N2*... paths asks for a uniformly random set of L distinct paths. It
is
never written down: each node carries how many of them run through it, and on expansion that number is split over its N
children by the multivariate hypergeometric law, which is exactly how such a set falls apart. So nothing is held in
memory, and the split depends on the seed and the node's own path alone, not on the order of work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from regrow.grow.shapes import Shape

Want = dict[int, int]
"""Turns (in pretrain mode: layers) -> dialogues that shall end at that depth below a node."""

_HYPERGEOMETRIC_LIMIT = 10**9


def node_seed(run_seed: int, path: str, what: str = "sample", attempt: int = 0) -> int:
    """A 63-bit seed from the run's seed and a tree path; the same on every platform and in every order of work."""
    text = f"regrow:{run_seed}:{path}:{what}:{attempt}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _spread(rng: np.random.Generator, room: list[int], wanted: int) -> list[int]:
    """Draw ``wanted`` of the ``sum(room)`` paths without replacement; how many fall in each child."""
    wanted = min(wanted, sum(room))
    if sum(room) < _HYPERGEOMETRIC_LIMIT:
        return [int(x) for x in rng.multivariate_hypergeometric(room, wanted, method="marginals")]
    # So many paths that drawing one twice is out of the question; numpy's sampler ends here too.
    share = np.asarray(room, dtype=np.float64) / float(sum(room))
    return [int(x) for x in rng.multinomial(wanted, share)]


def split(shape: Shape, layer: int, want: Want, rng: np.random.Generator, layers_per_turn: int = 2) -> list[Want]:
    """How the dialogues wanted below a node of ``layer`` are split over its children (only children with a share).

    With one depth for all dialogues the law is exact. With mixed depths, an answer that ends a dialogue gets no
    children, and each longer dialogue goes to a child drawn by the room it has; what does not fit is left out (and
    refilled later).
    """
    n = shape.children[layer]
    if len(want) == 1:
        ((turns, wanted),) = want.items()
        counts = _spread(rng, [shape.capacity(layer + 1, turns * layers_per_turn)] * n, wanted)
        return [{turns: c} for c in counts if c]
    return _split_mixed(shape, layer, want, rng)


def _split_mixed(shape: Shape, layer: int, want: Want, rng: np.random.Generator) -> list[Want]:
    n = shape.children[layer]
    shares: list[Want] = [{} for _ in range(n)]
    child_is_answer = layer % 2 == 1
    turn = layer // 2 + 1
    open_children = list(range(n))
    if child_is_answer:
        ending = min(want.get(turn, 0), n)
        for i in range(ending):
            shares[i] = {turn: 1}
        open_children = list(range(ending, n))
    longer = [k for k, c in want.items() if not (child_is_answer and k == turn) for _ in range(c)]
    rng.shuffle(longer)
    for k in longer:
        fitting = [i for i in open_children if _has_room(shape, layer + 1, shares[i], k)]
        if not fitting:
            continue
        share = shares[fitting[int(rng.integers(len(fitting)))]]
        share[k] = share.get(k, 0) + 1
    return [s for s in shares if s]


def _has_room(shape: Shape, layer: int, share: Mapping[int, int], turns: int) -> bool:
    """Whether a child of ``layer`` that already has ``share`` can take one more dialogue of ``turns`` turns."""
    after = dict(share)
    after[turns] = after.get(turns, 0) + 1
    deepest = 2 * max(after)
    if layer % 2 == 0:
        return sum(after.values()) <= shape.capacity(layer, deepest)
    turn = (layer + 1) // 2
    ending = after.get(turn, 0)
    longer = sum(after.values()) - ending
    room_below = shape.capacity(layer + 1, deepest)
    return ending + -(-longer // max(1, room_below)) <= shape.children[layer]


def redistribute(
    shape: Shape, layer: int, kept: list[Want], lost: list[Want], rng: np.random.Generator, layers_per_turn: int = 2
) -> list[Want]:
    """Give the dialogues of children that could not be had to their siblings, by the room these have left.

    ``kept`` are the shares of the children that exist. For dialogues of one depth the result is what sampling paths
    from the smaller tree gives. With mixed depths nothing moves (an ended branch cannot go on); the refill makes up
    for it.
    """
    depths = {k for share in (*kept, *lost) for k in share}
    if not kept or not lost or len(depths) != 1:
        return kept
    (turns,) = depths
    capacity = shape.capacity(layer + 1, turns * layers_per_turn)
    extra = _spread(rng, [capacity - share[turns] for share in kept], sum(share[turns] for share in lost))
    return [{turns: share[turns] + more} for share, more in zip(kept, extra, strict=True)]
