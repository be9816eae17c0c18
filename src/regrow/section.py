"""The base of every recipe section: a typed object whose unknown keys are errors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of a recipe. Each stage defines its own, next to the code that reads it."""

    model_config = ConfigDict(
        extra="forbid", validate_default=True, validate_assignment=True, use_attribute_docstrings=True
    )
