"""Key-value caches of token prefixes that will be continued, as a tree of stretches within a budget of bytes.

A stretch holds the keys and values of some tokens and hangs from the stretch before it, so what several prefixes have
in common is held once. Siblings that begin with the same few tokens are kept apart: splitting a stretch would copy it.
Nothing depends on what is held but speed. A prefix that is not found is computed again, so a stretch may be evicted at
any time; the least recently used goes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from regrow.engines.kv import Blocks


@dataclass(slots=True, eq=False)
class Stretch:
    """The caches of ``ids``, given everything above.

    Attributes:
        parent, offset: It continues the first ``offset`` tokens of ``parent``.
        branches: What continues it, by offset and first token.
        owner: Key of the request that made it; empty for what was computed for several.
        waiting: How many prefixes that end here will be continued.
    """

    ids: tuple[int, ...]
    blocks: Blocks
    parent: Stretch | None
    offset: int
    owner: str = ""
    branches: dict[tuple[int, int], list[Stretch]] = field(default_factory=dict)
    waiting: int = 0
    used: int = 0
    alive: bool = True

    @property
    def bytes(self) -> int:
        """Memory of the blocks."""
        return sum(b.numel() * b.element_size() for b in self.blocks)


Piece = tuple[Stretch, int]
"""A stretch and how many of its tokens are meant."""


class PrefixStore:
    """Stretches of caches by the token ids that lead to them.

    Attributes:
        limit: Most bytes held; see `resize`.
        bytes: Held now; ``peak`` the most so far.
        evicted_tokens: Tokens thrown away for lack of room.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.bytes = self.peak = self.evicted_tokens = 0
        self._root = Stretch((), [], None, 0)
        self._owned: dict[str, list[Stretch]] = {}
        self._clock = 0

    def __len__(self) -> int:
        return sum(1 for _ in self._all())

    def find(self, ids: Sequence[int]) -> list[Piece]:
        """The longest beginning of ``ids`` that is held, as pieces from the root on. Counts as a use of them."""
        _, pieces = _longest(self._root, 0, tuple(ids), 0)
        self._clock += 1
        for stretch, _ in pieces:
            stretch.used = self._clock
        return pieces[1:]

    def add(self, at: Sequence[Piece], ids: Sequence[int], blocks: Blocks, owner: str = "") -> Piece | None:
        """Keep the caches of ``ids``, which continue the prefix that ends ``at``.

        Returns:
            The end of the new prefix; None when it does not fit or ``at`` is gone.
        """
        parent, offset = at[-1] if at else (self._root, 0)
        size = sum(b.numel() * b.element_size() for b in blocks)
        if not ids or not parent.alive or offset > len(parent.ids) or not self._make_room(size) or not parent.alive:
            return None
        self._clock += 1
        stretch = Stretch(tuple(ids), blocks, parent, offset, owner, used=self._clock)
        parent.branches.setdefault((offset, stretch.ids[0]), []).append(stretch)
        if owner:
            self._owned.setdefault(owner, []).append(stretch)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        return stretch, len(stretch.ids)

    def retain(self, owner: str, prompt: Sequence[int], continued: Sequence[Sequence[int]]) -> None:
        """``owner`` has been answered: of all that it made, only what leads to ``continued`` is held on to.

        Args:
            owner: The request's key.
            prompt: Its prompt. The prefix it was waiting for no longer waits for it.
            continued: Prefixes, from the first token of the prompt on, that will be continued.
        """
        path = [stretch for stretch, _ in self.find(prompt)]
        waited = next((stretch for stretch in reversed(path) if stretch.waiting), None)
        if waited is not None:
            waited.waiting -= 1
        needed: set[int] = set()
        ends: dict[int, Piece] = {}
        for ids in continued:
            pieces = self.find(ids)
            needed.update(id(stretch) for stretch, _ in pieces)
            if pieces:
                end, length = pieces[-1]
                ends[id(end)] = (end, max(length, ends[id(end)][1] if id(end) in ends else 0))
                end.waiting += 1
        for end, length in ends.values():
            if end.owner == owner:
                self._cut(end, length)
        # Children come after their parents, so backwards nothing is left hanging.
        for stretch in reversed(self._owned.pop(owner, [])):
            if id(stretch) not in needed:
                self._drop_unused(stretch)
        if path:
            self._drop_unused(path[-1])

    def resize(self, limit: int) -> None:
        """Hold at most ``limit`` bytes from now on."""
        self.limit = max(0, limit)
        self._make_room(0)

    def clear(self) -> None:
        """Free everything."""
        for stretch in list(self._all()):
            stretch.alive, stretch.blocks = False, []
        self._root.branches.clear()
        self._owned.clear()
        self.bytes = 0

    # -- inside ---------------------------------------------------------------------------------------------------

    def _all(self) -> Iterator[Stretch]:
        stack = [self._root]
        while stack:
            for kin in stack.pop().branches.values():
                stack += kin
                yield from kin

    def _make_room(self, size: int) -> bool:
        """Evict leaves, the least recently used first, until ``size`` more bytes fit."""
        if size > self.limit:
            return False
        while self.bytes + size > self.limit:
            for leaf in sorted((s for s in self._all() if not s.branches), key=lambda s: s.used):
                self.evicted_tokens += len(leaf.ids)
                self._remove(leaf)
                if self.bytes + size <= self.limit:
                    break
        return True

    def _drop_unused(self, stretch: Stretch | None) -> None:
        """Free a stretch that nothing continues or waits for, and then those above it that this leaves so."""
        while stretch is not None and stretch.parent is not None and stretch.alive:
            if stretch.branches or stretch.waiting:
                return
            above = stretch.parent
            self._remove(stretch)
            stretch = above

    def _remove(self, stretch: Stretch) -> None:
        assert stretch.parent is not None and not stretch.branches
        place = (stretch.offset, stretch.ids[0])
        kin = stretch.parent.branches[place]
        kin.remove(stretch)
        if not kin:
            del stretch.parent.branches[place]
        self.bytes -= stretch.bytes
        stretch.alive, stretch.blocks = False, []

    def _cut(self, stretch: Stretch, length: int) -> None:
        """Free the tokens past ``length``, unless something continues them (an answer that was trimmed)."""
        length = max([length, *(offset for offset, _ in stretch.branches)])
        if length < len(stretch.ids):
            self.bytes -= stretch.bytes
            stretch.ids = stretch.ids[:length]
            stretch.blocks = [b[:, :, :length].clone() for b in stretch.blocks]
            self.bytes += stretch.bytes


def common_length(a: Sequence[int], b: Sequence[int], at: int = 0) -> int:
    """How many tokens ``a`` and ``b[at:]`` have in common from the beginning on."""
    other = b[at : at + len(a)]
    if a == other:
        return len(a)
    n = 0
    for x, y in zip(a, other, strict=False):
        if x != y:
            break
        n += 1
    return n


def _longest(stretch: Stretch, length: int, ids: tuple[int, ...], at: int) -> tuple[int, list[Piece]]:
    """The longest match of ``ids`` that goes through ``stretch``, whose first ``length`` tokens are ``ids[at:]``'s.

    Returns:
        Where in ``ids`` it ends, and its pieces from ``stretch`` on.
    """
    end, pieces = at + length, [(stretch, length)]
    for (offset, token), kin in stretch.branches.items():
        here = at + offset
        if offset > length or here >= len(ids) or ids[here] != token:
            continue
        for child in kin:
            found, below = _longest(child, common_length(child.ids, ids, here), ids, here)
            if found > end:
                end, pieces = found, [(stretch, offset), *below]
    return end, pieces
