"""The page of a run, its charts and its model card."""

from regrow.callables import make_callable

make_callable(__name__)
