"""Cleans a grown corpus: quality filters, decontamination, near-duplicates, held-out dialogues."""

from regrow.callables import make_callable

make_callable(__name__)
