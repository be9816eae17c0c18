"""What moved between two classifications of the same facts.

Li et al., "Gradual Learning: Optimizing Fine-Tuning with Partially Mastered Knowledge in Large Language Models" (arXiv
2410.05802) compares the SliCK category of every fact before and after a stage of training, and with that of a second
classification of the untrained model, which moves facts too: the prompts are drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from regrow.probe.mastery import CATEGORIES

Matrix = dict[str, dict[str, int]]
"""Category before -> category after -> facts; every category is there, best known first."""
RANK: dict[str, int] = {name: place for place, name in enumerate(CATEGORIES)}


def transitions(before: Mapping[str, str], after: Mapping[str, str]) -> Matrix:
    """Count the facts that went from each category to each.

    Args:
        before, after: Id -> category, of the same facts.

    Raises:
        ValueError: The ids differ.
    """
    if before.keys() != after.keys():
        raise ValueError("the two classifications are not of the same facts")
    matrix: Matrix = {one: dict.fromkeys(CATEGORIES, 0) for one in CATEGORIES}
    for fact, category in before.items():
        matrix[category][after[fact]] += 1
    return matrix


@dataclass(frozen=True, slots=True)
class Shift:
    """A matrix in a few numbers.

    Attributes:
        facts: All of them.
        raised, lowered: Facts that are better, or less well, known after.
        highly_known: Facts in HighlyKnown, before and after.
        forgotten: Facts that went from HighlyKnown to any lower category.
        forgotten_share: Of the HighlyKnown ones before; None when there were none.
        to_maybe_known: Facts that went from WeaklyKnown or Unknown to MaybeKnown.
    """

    facts: int
    raised: int
    lowered: int
    highly_known: tuple[int, int]
    forgotten: int
    forgotten_share: float | None
    to_maybe_known: int

    def to_dict(self) -> dict[str, Any]:
        """JSON shape."""
        return asdict(self)


def shift(matrix: Matrix) -> Shift:
    """Sum a matrix of `transitions` up."""
    moves = [(RANK[one], RANK[two], n) for one, row in matrix.items() for two, n in row.items()]
    top, maybe = RANK["HighlyKnown"], RANK["MaybeKnown"]
    before = sum(n for one, _, n in moves if one == top)
    forgotten = sum(n for one, two, n in moves if one == top and two > top)
    return Shift(
        facts=sum(n for _, _, n in moves),
        raised=sum(n for one, two, n in moves if two < one),
        lowered=sum(n for one, two, n in moves if two > one),
        highly_known=(before, sum(n for _, two, n in moves if two == top)),
        forgotten=forgotten,
        forgotten_share=forgotten / before if before else None,
        to_maybe_known=sum(n for one, two, n in moves if one > maybe and two == maybe),
    )
