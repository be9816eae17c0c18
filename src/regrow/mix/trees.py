"""Which replay dialogues stand together, so that the trainer computes the beginnings they share once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regrow.mix.grown import GrownPath


@dataclass(slots=True)
class Bundle:
    """Dialogues that follow each other in the stream.

    Attributes:
        members: ``(dialogue, use)``: its index, and how often it was used before; depth first over the tree.
        tokens: Tokens of all dialogues in full.
        unique_tokens: Tokens with each shared beginning once.
    """

    members: list[tuple[int, int]]
    tokens: int
    unique_tokens: int


def shared_nodes(a: GrownPath, b: GrownPath) -> int:
    """How many nodes two dialogues have in common, from the root."""
    if a.system != b.system or a.text != b.text:
        return 0
    n = 0
    for one, two in zip(a.nodes, b.nodes, strict=False):
        if one != two:
            break
        n += 1
    return n


def shared_tokens(a: GrownPath, b: GrownPath) -> int:
    """Tokens of the beginning two dialogues share: their common nodes and the markers up to the first other node.

    0 for dialogues without a common node: a system prompt alone is no reason to train two dialogues in one step.
    """
    n = shared_nodes(a, b)
    return min(p.starts[n] if n < len(p.nodes) else p.size for p in (a, b)) if n else 0


def alone(paths: Sequence[GrownPath], chosen: Sequence[int]) -> list[Bundle]:
    """Every dialogue a bundle of its own, in the order chosen."""
    return [Bundle([member], paths[member[0]].size, paths[member[0]].size) for member in _uses(chosen)]


def bundle(paths: Sequence[GrownPath], chosen: Sequence[int], max_tokens: float) -> list[Bundle]:
    """Put dialogues that share nodes together, at most ``max_tokens`` unique tokens in a bundle.

    Dialogues are walked through depth first; a bundle ends where the next one would not fit or shares nothing with the
    one before it. So a bundle is a part of one tree between two of its leaves, and what is computed twice is the
    path at which a tree was cut. The second use of a dialogue goes with other second uses: it is a second pass,
    which should come at another time.

    Args:
        paths: The dialogues.
        chosen: Indices into them, in the order chosen, some more than once.
        max_tokens: Room of a bundle.

    Returns:
        Bundles in the order in which the first of their dialogues was chosen. A pure function of its arguments.
    """
    members = _uses(chosen)
    # Equal nodes sort next to each other, and so do the paths below them.
    order = sorted(
        range(len(members)),
        key=lambda k: (members[k][1], paths[members[k][0]].system or "", paths[members[k][0]].nodes),
    )
    found: list[tuple[int, Bundle]] = []
    previous: tuple[int, int] | None = None
    for k in order:
        index, use = members[k]
        path = paths[index]
        shared = shared_tokens(paths[previous[0]], path) if previous is not None and previous[1] == use else 0
        last = found[-1][1] if found else None
        if last is not None and shared and last.unique_tokens + path.size - shared <= max_tokens:
            last.members.append(members[k])
            last.tokens += path.size
            last.unique_tokens += path.size - shared
            found[-1] = (min(found[-1][0], k), last)
        else:
            found.append((k, Bundle([members[k]], path.size, path.size)))
        previous = members[k]
    return [b for _, b in sorted(found, key=lambda pair: pair[0])]


def _uses(chosen: Sequence[int]) -> list[tuple[int, int]]:
    seen: Counter[int] = Counter()
    out = []
    for index in chosen:
        out.append((index, seen[index]))
        seen[index] += 1
    return out
