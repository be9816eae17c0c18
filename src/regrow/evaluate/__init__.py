"""Scores models on the same items and says what was gained and lost, with intervals."""

from regrow.callables import make_callable

make_callable(__name__)
