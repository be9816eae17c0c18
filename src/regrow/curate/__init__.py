"""Cleans a grown corpus: quality filters, decontamination, near-duplicates, held-out dialogues."""
