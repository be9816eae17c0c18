"""Chemical elements: symbol, name, atomic number (periodictable)."""

from __future__ import annotations

from regrow.evaluate.suites.facts.fact import Fact, relation

LAST = 103
"""Beyond lawrencium names are recent and rare in text."""


def facts() -> list[Fact]:
    """About 310 facts."""
    import periodictable

    table = [periodictable.elements[z] for z in range(1, LAST + 1)]
    out = relation(
        "elements/symbol",
        [(e.name, e.symbol) for e in table],
        "What is the chemical symbol of {}?",
        "The chemical symbol of {} is",
        short=True,
    )
    out += relation(
        "elements/name",
        [(e.symbol, e.name) for e in table],
        "Which chemical element has the symbol {}?",
        "{} is the symbol of the element",
        short=True,
    )
    out += relation(
        "elements/number",
        [(e.name, str(e.number)) for e in table],
        "What is the atomic number of {}?",
        "The atomic number of {} is",
    )
    return out
