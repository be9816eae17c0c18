"""`regrow train`: fine-tune on a mixed stream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regrow.cli.common import Output, RecipeFile, Seed, Sets, settings


def register(app: typer.Typer) -> None:
    app.command()(train)


def train(
    model: Annotated[str, typer.Argument(help="The model to tune.")],
    mixed: Annotated[Path, typer.Argument(help="A folder made by `regrow mix`.")],
    output: Output,
    method: Annotated[str | None, typer.Option(help="full or lora.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the stream.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Sets = None,
) -> None:
    """Fine-tune MODEL on a mixed stream. The same command continues from the last checkpoint."""
    from regrow import stages

    chosen = settings(
        recipe,
        set_,
        model__model_name_or_path=model,
        train__method=method,
        train__num_train_epochs=epochs,
        train__learning_rate=learning_rate,
        seed=seed,
    )
    print(stages.train_with(chosen, mixed, output).text())
