"""Grows a corpus of dialogues out of a model, branch by branch (Tree Generation)."""

from regrow.callables import make_callable

make_callable(__name__)
