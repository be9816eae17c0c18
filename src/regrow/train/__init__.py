"""Trains on a mix: TRL's trainer with per-token weights and replay losses."""

from regrow.callables import make_callable

make_callable(__name__)
