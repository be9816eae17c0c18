"""`regrow curate` and `regrow mix`: from a grown corpus to the training stream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regrow.cli.common import Output, RecipeFile, Seed, Sets, settings


def register(app: typer.Typer) -> None:
    app.command()(curate)
    app.command()(mix)


def curate(
    corpus: Annotated[Path, typer.Argument(help="A corpus made by `regrow grow`.")],
    output: Output,
    items: Annotated[
        Path | None,
        typer.Option(help="Evaluation items (suites/items.jsonl of a run) that must not occur in the corpus."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Your own data; replay that repeats it is removed.")] = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Sets = None,
) -> None:
    """Remove near-duplicates, bad dialogues and anything an evaluation contains; say why for each."""
    from regrow import stages

    chosen = settings(recipe, set_, data__path=data, seed=seed)
    print(stages.curate_with(chosen, corpus, output, items=items).text())


def mix(
    model: Annotated[str, typer.Argument(help="The model whose tokenizer and chat template are used.")],
    data: Annotated[str, typer.Argument(help="Your data.")],
    output: Output,
    corpus: Annotated[Path | None, typer.Option(help="A (curated) corpus; without it there is no replay.")] = None,
    replay_ratio: Annotated[float | None, typer.Option(help="Share of the training tokens that is replay.")] = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Sets = None,
) -> None:
    """Mix your data with replay at a ratio counted in tokens, ready for training."""
    from regrow import stages

    chosen = settings(
        recipe, set_, model__model_name_or_path=model, data__path=data, mix__replay_ratio=replay_ratio, seed=seed
    )
    print(stages.mix_with(chosen, output, corpus=corpus).text())
