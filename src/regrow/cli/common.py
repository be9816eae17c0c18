"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from regrow.recipe import Recipe

Output = Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any recipe key, for example --set train.learning_rate=1e-5. Repeatable."
    ),
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="Take the settings from this recipe file.")]
Seed = Annotated[int | None, typer.Option("--seed", help="All randomness comes from it.")]
ResumeOption = Annotated[
    str,
    typer.Option(
        "--resume",
        metavar="auto|always|never",
        help="auto: continue and redo what changed; always: insist that nothing changed; never: a new folder only.",
    ),
]


def settings(file: Path | None, sets: list[str] | None, **direct: Any) -> Recipe:
    """A recipe out of a file (or the defaults), options given by name (``grow__shape="8,4"``), then ``--set``.

    Options that are None were not given and change nothing.
    """
    from regrow.recipe import load_recipe, parse_recipe

    options = {key.replace("__", "."): value for key, value in direct.items() if value is not None}
    if file:
        return load_recipe(file, sets or [], options)
    return parse_recipe("", overrides=sets or [], options=options)


def resume_mode(value: str) -> Any:
    """Check ``--resume``."""
    from regrow.errors import RecipeError

    if value not in ("auto", "always", "never"):
        raise RecipeError(f"'{value}' is not one of auto, always, never", where="--resume")
    return value
