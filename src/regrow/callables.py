"""Packages that can be called: ``regrow.grow`` is the room of a stage and, for a user of the library, its function.

Python binds a package in its parent as soon as anything in it is imported, and so hides the function of the same name.
A module whose class has ``__call__`` is both.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from regrow import api

        return getattr(api, self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(package: str) -> None:
    """Let a package be called as the function of `regrow.api` that has its name."""
    sys.modules[package].__class__ = _Callable
