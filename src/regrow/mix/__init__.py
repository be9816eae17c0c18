"""Mixes the user's rows with replay: one stream of token rows with a loss weight on every token."""

from regrow.callables import make_callable

make_callable(__name__)
