"""What waits to be expanded, and what is expanded next.

Batches are of one layer, because prompts of one layer are about equally long and share a cap. The next layer is the
deepest that fills a batch; while none does, the shallowest that has anything, since that makes more work below it. So
batches are full for as long as possible, and at most about a batch's worth of nodes waits in each layer, whatever the
size of the trees: that bounds the caches an engine has to keep alive. An engine that runs short of memory all the same
says so, and gets the deepest nodes there are, whose branches end soonest.

The order changes no node: the randomness of each comes from the run's seed and its own path.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regrow.grow.plan import Want

if TYPE_CHECKING:
    from regrow.grow.tree import Parent


@dataclass(frozen=True, slots=True)
class Open:
    """A kept node that will have children; ``size`` is how many candidates it will ask for."""

    id: str
    tree: int
    want: Want
    size: int


class Frontier:
    """Open nodes by layer (0: the roots), parents to be sampled again first.

    Args:
        roots: Expansions of the roots; taken one at a time, since independent dialogues have one each.
        depth: Layers of the deepest tree.
    """

    def __init__(self, roots: Iterator[Parent], depth: int) -> None:
        self.depth = depth
        self._roots = roots
        self._root: Parent | None = next(roots, None)
        self._open: list[deque[Open]] = [deque() for _ in range(depth)]
        self._again: list[deque[tuple[Parent, int]]] = [deque() for _ in range(depth)]
        self._sizes = [0] * depth

    def push(self, layer: int, node: Open) -> None:
        """A node of ``layer`` waits."""
        self._open[layer].append(node)
        self._sizes[layer] += node.size

    def push_again(self, layer: int, parent: Parent, size: int) -> None:
        """A parent of ``layer`` got too few children and asks for ``size`` candidates more."""
        self._again[layer].append((parent, size))
        self._sizes[layer] += size

    def next_layer(self, batch: int, deepest: bool) -> int | None:
        """The layer to work on; None when nothing waits.

        Args:
            batch: Candidates that fill a batch.
            deepest: Take the deepest, full or not.
        """
        waiting = [layer for layer in range(self.depth) if self._open[layer] or self._again[layer]]
        if self._root is not None and 0 not in waiting:
            waiting.insert(0, 0)
        if not waiting:
            return None
        if deepest:
            return waiting[-1]
        # Roots come from an iterator, so their number is unknown; they are the shallowest in any case.
        return next((layer for layer in reversed(waiting) if layer and self._sizes[layer] >= batch), waiting[0])

    def pop_again(self, layer: int) -> Parent | None:
        """The next parent to be sampled again."""
        if not self._again[layer]:
            return None
        parent, size = self._again[layer].popleft()
        self._sizes[layer] -= size
        return parent

    def pop(self, layer: int) -> Open | None:
        """The next open node of a layer below the roots."""
        if not self._open[layer]:
            return None
        node = self._open[layer].popleft()
        self._sizes[layer] -= node.size
        return node

    def pop_root(self) -> Parent | None:
        """The next expansion of a root."""
        root, self._root = self._root, next(self._roots, None) if self._root is not None else None
        return root
