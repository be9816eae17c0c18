"""Facts any language model may know, out of reference data inside Python packages: no download, no benchmark."""

from __future__ import annotations

from regrow.errors import MissingExtra
from regrow.evaluate.items import Item
from regrow.evaluate.suites.facts.fact import SUITE, Fact, fact_items

__all__ = ["SUITE", "Fact", "all_facts", "build_pool"]


def all_facts() -> list[Fact]:
    """Every fact of every domain, in a fixed order.

    Raises:
        MissingExtra: A package with reference data is not installed.
    """
    from importlib import import_module

    out: list[Fact] = []
    for name in (
        "countries",
        "places",
        "elements",
        "units",
        "nouns",
        "verbs",
        "numbers",
        "dates",
        "translation",
        "computing",
    ):
        module = import_module(f"regrow.evaluate.suites.facts.{name}")
        try:
            out += module.facts()
        except ModuleNotFoundError as e:
            raise MissingExtra(e.name or "?", "demo", "the embedded suite 'facts'") from e
    return out


def build_pool(seed: int = 0) -> list[Item]:
    """All candidate items; the same for the same seed and the same versions of the data packages."""
    return [item for fact in all_facts() for item in fact_items(fact, seed)]
