"""`regrow eval`: compare models item by item."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regrow.cli.common import Output, RecipeFile, Seed, Sets, settings


def register(app: typer.Typer) -> None:
    app.command(name="eval")(evaluate)


def evaluate(
    models: Annotated[list[str], typer.Argument(help="The model before, then the model(s) after.")],
    output: Output,
    suite: Annotated[
        list[str] | None, typer.Option(help="facts, lm-eval:TASK or file:PATH.jsonl. Repeatable. Default: facts.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Held-out rows of your own, to measure the gain.")] = None,
    reuse: Annotated[
        list[Path] | None, typer.Option(help="Folder of an earlier evaluation: what was scored there is taken over.")
    ] = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Sets = None,
) -> None:
    """Score two or more models on the same items and say what was gained and lost, with intervals.

    A model is a folder, a folder of a LoRA adapter, a .gguf file, or a hub name. The same command continues after a
    crash, and with more models or suites scores only what is new.
    """
    from regrow import api

    chosen = settings(recipe, set_, data__path=data, evaluate__suites=suite, seed=seed)
    print(api.evaluate_with(chosen, models, output, reuse=reuse or []))
