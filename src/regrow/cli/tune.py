"""`regrow tune` and `regrow demo`: the whole chain with one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regrow.cli.common import RecipeFile, ResumeOption, Seed, Sets, resume_mode, settings


def register(app: typer.Typer) -> None:
    app.command()(tune)
    app.command()(demo)


def tune(
    model: Annotated[
        str, typer.Argument(help="A folder, a hub name, a .gguf file, or `smollm2` (comes inside a Python package).")
    ],
    data: Annotated[str, typer.Argument(help="A file, a folder or a hub name; `demo` for the built-in example.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Run folder.")] = Path("runs/tune"),
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Also train on your data alone, to show what replay saved.")
    ] = True,
    replay_ratio: Annotated[
        float | None, typer.Option(help="Share of the training tokens that is replay. Default 0.2.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="full or lora.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over your data.")] = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Sets = None,
    resume: ResumeOption = "auto",
) -> None:
    """Fine-tune MODEL on DATA and keep the rest: grow, curate, mix, train, evaluate, report.

    Run the same command again after a crash and it continues.
    """
    chosen = settings(
        recipe,
        set_,
        model__model_name_or_path=model,
        data__path=data,
        compare=compare,
        mix__replay_ratio=replay_ratio,
        train__method=method,
        train__num_train_epochs=epochs,
        seed=seed,
    )
    _go(chosen, output, resume)


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Run folder.")] = Path("runs/demo"),
    set_: Sets = None,
    resume: ResumeOption = "auto",
) -> None:
    """Teach SmolLM2-135M an API on two CPU cores, with and without replay, and see the difference."""
    from importlib import resources

    from regrow.recipe import parse_recipe

    text = resources.files("regrow").joinpath("recipes/demo.yaml").read_text(encoding="utf-8")
    _go(parse_recipe(text, file="demo.yaml", overrides=set_ or []), output, resume)


def _go(recipe: object, output: Path, resume: str) -> None:
    from regrow.pipeline import run
    from regrow.recipe import Recipe

    assert isinstance(recipe, Recipe)
    result = run(recipe, output, resume=resume_mode(resume))
    print(result.text())
