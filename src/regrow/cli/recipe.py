"""`regrow init`, `regrow validate`, `regrow run`: work with a recipe file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from regrow.cli.common import ResumeOption, Sets, resume_mode


def register(app: typer.Typer) -> None:
    app.command()(init)
    app.command()(validate)
    app.command(name="run")(run_)


def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("recipe.yaml"),
    model: Annotated[str, typer.Option(help="Filled in as the model.")] = "smollm2",
    data: Annotated[str, typer.Option(help="Filled in as the data.")] = "data.jsonl",
    all_: Annotated[bool, typer.Option("--all", help="Show every key, not only the main ones.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented recipe: the main keys with their defaults, or all of them."""
    from regrow.errors import RecipeError
    from regrow.recipe import commented_recipe
    from regrow.rows.writers import atomic_write_text

    if path.exists() and not force:
        raise RecipeError("the file exists already", where=str(path), hint="--force overwrites it")
    atomic_write_text(path, commented_recipe(model, data, every=all_))
    print(f"wrote {path}; next: regrow validate {path}")


def validate(
    path: Annotated[Path, typer.Argument(help="The recipe.")],
    set_: Sets = None,
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Measure this machine for a few seconds to estimate the time.")
    ] = True,
) -> None:
    """Check a recipe and its data, and say what it will cost, before anything is spent."""
    from regrow.cost import estimate, measure
    from regrow.recipe import load_recipe

    recipe = load_recipe(path, set_ or [])
    cost = estimate(recipe)
    print(cost.text(), flush=True)
    if timing:
        print("  timing this machine ...", file=sys.stderr, flush=True)
        measure(recipe, cost)
        print(cost.times())


def run_(
    path: Annotated[Path, typer.Argument(help="The recipe.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Run folder. Default: runs/NAME_OF_THE_RECIPE.")
    ] = None,
    set_: Sets = None,
    resume: ResumeOption = "auto",
) -> None:
    """Run a recipe; run it again to continue after a crash or to redo only what changed."""
    from regrow.pipeline import run
    from regrow.recipe import load_recipe

    result = run(load_recipe(path, set_ or []), output or Path("runs") / path.stem, resume=resume_mode(resume))
    print(result.text())
