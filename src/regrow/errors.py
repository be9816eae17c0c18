"""Errors a user can act on. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

import errno

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Codes of an OSError that says that there is no room for a file: the disk, a quota, a limit on its size."""


class RegrowError(Exception):
    """Something the user can mend.

    Args:
        message: What is wrong, in one sentence.
        where: The place: ``file:line``, a recipe field such as ``mix.replay_ratio``, or a folder.
        hint: What to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message = message
        self.where = where
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  {self.hint}" if self.hint else text


class DataError(RegrowError):
    """A row, a file or a dataset cannot be used."""


class RecipeError(RegrowError):
    """A recipe (or an option that overrides it) is wrong."""


class ModelError(RegrowError):
    """A model, tokenizer or chat template cannot be used."""


class EngineError(RegrowError):
    """A generation engine cannot be had or failed."""


class TrainError(RegrowError):
    """A process that trains ended without a model."""


class RunError(RegrowError):
    """A run directory is locked, foreign, damaged or does not fit the recipe."""


class MissingExtra(RegrowError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, why: str) -> None:
        super().__init__(
            f"{why} needs the package '{package}', which is not installed", hint=f"pip install 'regrow[{extra}]'"
        )
