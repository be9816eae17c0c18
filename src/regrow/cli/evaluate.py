"""`regrow eval` and `regrow eval-sequence`: compare models item by item."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regrow.cli.common import Output, RecipeFile, Seed, Sets, settings

Reuse = Annotated[
    list[Path] | None,
    typer.Option(help="Folder of an earlier evaluation: what was scored there is taken over. Repeatable."),
]


def register(app: typer.Typer) -> None:
    app.command(name="eval")(evaluate)
    app.command(name="eval-sequence")(evaluate_sequence)


def evaluate(
    models: Annotated[list[str], typer.Argument(help="The model before, then the model(s) after.")],
    output: Output,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="facts, instructions, refusals, lm-eval:TASK, file:PATH.jsonl or recipe:PATH.yaml. Repeatable. "
            "Default: facts."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Held-out rows of your own, to measure the gain.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub name with the tokenizer of models behind servers. Default: that of the first model "
            "that is not behind one."
        ),
    ] = None,
    reuse: Reuse = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Sets = None,
) -> None:
    """Score two or more models on the same items and say what was gained and lost, with intervals.

    A model is a folder, a folder of a LoRA adapter, a .gguf file, a hub name, or a server with the completions API
    (http://HOST:PORT, or http://HOST:PORT#NAME where it serves several models). The same command continues after a
    crash, and with more models or suites scores only what is new.
    """
    from regrow.compare import compare, compare_text

    chosen = settings(recipe, set_, data__path=data, evaluate__suites=suite, seed=seed)
    compare(chosen, models, output, reuse=reuse or [], tokenizer=tokenizer)
    print(compare_text(models, output))


def evaluate_sequence(
    models: Annotated[list[str], typer.Argument(help="The base, then the model after each training, in order.")],
    output: Output,
    task: Annotated[
        list[str],
        typer.Option(help="What each training was about, in order: file:PATH, recipe:PATH or lm-eval:TASK."),
    ],
    suite: Annotated[
        list[str] | None, typer.Option(help="A further suite that no training was about, such as facts. Repeatable.")
    ] = None,
    reuse: Reuse = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Sets = None,
) -> None:
    """Score each model of a sequence of trainings on each task: matrix, forgetting, backward and forward transfer."""
    from regrow.compare import compare_sequence
    from regrow.evaluate.continual import sequence_text

    chosen = settings(recipe, set_, seed=seed)
    found = compare_sequence(chosen, models, task, output, suites=suite or [], reuse=reuse or [])
    print(sequence_text(found))
    print("\n".join(f"{arm:<10} {name}" for arm, name in zip(found["models"], models, strict=True)))
    print(f"written    {output / 'continual.json'}")
