"""`regrow chat`: talk to the base and the tuned model side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(chat)


def chat(
    run: Annotated[Path, typer.Argument(help="A run folder, or a model folder.")],
    arm: Annotated[
        list[str] | None, typer.Option(help="Arms to talk to. Default: base and regrow. Repeatable.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    system: Annotated[str | None, typer.Option(help="System prompt; default is the model's own.")] = None,
) -> None:
    """Type a message, read each model's answer. /reset forgets the dialogue, /quit leaves."""
    from regrow.chat import talk

    talk(run, arms=arm, max_new_tokens=max_new_tokens, temperature=temperature, system=system)
