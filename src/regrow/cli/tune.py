"""`regrow tune`, `sweep` and `demo`: the whole chain with one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regrow.cli.common import RecipeFile, ResumeOption, Seed, Sets, resume_mode, settings

RATIOS = "0,0.01,0.05,0.1,0.2,0.4"
Method = Annotated[str | None, typer.Option(help="full or lora.")]
General = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="General data of your own, to compare with: also train with replay drawn from it, as much as grown.",
    ),
]
Epochs = Annotated[float | None, typer.Option(help="Passes over your data.")]


def register(app: typer.Typer) -> None:
    app.command()(tune)
    app.command()(sweep)
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
    auto: Annotated[
        bool,
        typer.Option(
            "--auto",
            help="First a pilot on some of the rows, which chooses the replay ratio and each topic's share of the "
            "corpus, and says why.",
        ),
    ] = False,
    general: General = None,
    method: Method = None,
    epochs: Epochs = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Sets = None,
    resume: ResumeOption = "auto",
) -> None:
    """Fine-tune MODEL on DATA and keep the rest: grow, curate, mix, train, evaluate, report.

    Run the same command again after a crash and it continues.
    """
    from regrow.errors import RecipeError
    from regrow.loops.pilot import with_pilot

    if auto and replay_ratio is not None:
        raise RecipeError("--auto chooses the replay ratio", where="--replay-ratio", hint="give one of the two")
    chosen = settings(
        recipe,
        set_,
        model__model_name_or_path=model,
        data__path=data,
        compare=compare,
        data__general=general,
        mix__replay_ratio=replay_ratio,
        train__method=method,
        train__num_train_epochs=epochs,
        seed=seed,
    )
    _go(with_pilot(chosen) if auto else chosen, output, resume)


def sweep(
    model: Annotated[str, typer.Argument(help="As for `regrow tune`.")],
    data: Annotated[str, typer.Argument(help="As for `regrow tune`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Run folder.")] = Path("runs/sweep"),
    replay_ratios: Annotated[
        str | None,
        typer.Option(metavar="R,R,...", help=f"One training each, 0 (plain SFT) among them. Default {RATIOS}."),
    ] = None,
    equal_tokens: Annotated[
        bool | None,
        typer.Option(
            "--equal-tokens", help="As many training tokens for all: less replay means more passes over your data."
        ),
    ] = None,
    general: General = None,
    regrown: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            min=1,
            help="One model more for each ratio, whose replay follows what is being forgotten; up to TOKENS are grown "
            "anew for each.",
        ),
    ] = None,
    method: Method = None,
    epochs: Epochs = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Sets = None,
    resume: ResumeOption = "auto",
) -> None:
    """Fine-tune MODEL on DATA with several replay ratios, chart gain against forgetting, and recommend a ratio.

    Everything before the mix is done once, and all models are scored on the same items. Run it again with another list
    of ratios and only the new ones are trained, as long as the largest stays.
    """
    from regrow.loops.regrowth import with_regrown

    given: dict[str, object] = {
        "model__model_name_or_path": model,
        "data__path": data,
        "sweep__replay_ratios": _numbers(replay_ratios) if replay_ratios is not None else None,
        "sweep__equal_tokens": equal_tokens,
        "data__general": general,
        "train__method": method,
        "train__num_train_epochs": epochs,
        "seed": seed,
    }
    chosen = settings(recipe, set_, **given)
    if not chosen.sweep.replay_ratios:  # neither named here nor in the recipe
        chosen = settings(recipe, set_, **{**given, "sweep__replay_ratios": _numbers(RATIOS)})
    if regrown is not None:
        chosen = with_regrown(chosen, regrown)
    _go(chosen, output, resume)


def _numbers(text: str) -> list[float]:
    """The numbers of ``0,0.05,0.2``."""
    from regrow.errors import RecipeError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"'{text}' is not a list of numbers", where="--replay-ratios", hint=RATIOS) from error


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
