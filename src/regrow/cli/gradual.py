"""`regrow gradual`: fine-tune in two stages, by what the model half knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regrow.cli.common import RecipeFile, ResumeOption, Seed, Sets, resume_mode, settings


def register(app: typer.Typer) -> None:
    app.command()(gradual)


def gradual(
    model: Annotated[str, typer.Argument(help="A folder, a hub name, a .gguf file, or `smollm2`.")],
    data: Annotated[
        str,
        typer.Argument(
            help="Questions with `answer` or `answers`; a `relation` column groups those that are each other's "
            "examples."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Run folder.")] = Path("runs/gradual"),
    dev: Annotated[
        str | None,
        typer.Option(
            help="Questions that choose the best epoch: a file, or a share or number of yours (default 0.1)."
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(help="Questions that judge the finished models and choose nothing: likewise (default 0.1)."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes of stage 1, and of the one-stage arm (default 10).")
    ] = None,
    epochs2: Annotated[int | None, typer.Option("--epochs2", help="Passes of stage 2 (default 3).")] = None,
    replay: Annotated[
        str | None, typer.Option(help="Of stage 2: highly-known (default), or none. --corpus chooses corpus.")
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Replay dialogues of this grown corpus in stage 2 instead of facts."),
    ] = None,
    replay_ratio: Annotated[float | None, typer.Option(help="Share of stage 2 that is replay (default 0.2).")] = None,
    augment: Annotated[
        bool | None, typer.Option("--augment/--no-augment", help="Add facts that stage 1 raised to MaybeKnown.")
    ] = None,
    compare: Annotated[
        bool | None, typer.Option("--compare/--no-compare", help="Also train on all facts in one stage.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="full or lora.")] = None,
    cost: Annotated[bool, typer.Option("--cost", help="Only say what it would ask and train at most.")] = False,
    seed: Seed = None,
    resume: ResumeOption = "auto",
    recipe: RecipeFile = None,
    set_: Sets = None,
) -> None:
    """Fine-tune MODEL on the facts of DATA by how well it knows them (Gradual Learning).

    Labels each fact (as `regrow probe mastery` does), trains on those that are MaybeKnown, labels again, and trains on
    these, on facts that have become MaybeKnown meanwhile, and on some HighlyKnown ones. Each training keeps the epoch
    that is best on the dev questions. Run the same command again after a crash and it continues.
    """
    from regrow.loops.gradual import gradual_cost, run_gradual
    from regrow.recipe import read_value

    chosen = settings(
        recipe,
        set_,
        model__model_name_or_path=model,
        gradual__dev=None if dev is None else read_value(dev),
        gradual__test=None if test is None else read_value(test),
        gradual__epochs=epochs,
        gradual__stage2__epochs=epochs2,
        gradual__stage2__replay=replay or ("corpus" if corpus else None),
        gradual__stage2__corpus=corpus,
        gradual__stage2__replay_ratio=replay_ratio,
        gradual__stage2__augment=augment,
        gradual__one_stage=compare,
        train__method=method,
        seed=seed,
    )
    if cost:
        print(gradual_cost(chosen, data))
        return
    print(run_gradual(chosen, data, output, resume=resume_mode(resume)).text())
