"""`regrow report` and `regrow show`: the page of a run, and its table in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(report)
    app.command()(show)


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write. Default: RUN/report.html.")
    ] = None,
) -> None:
    """Write the report page of a run (again)."""
    from regrow.report.build import build_report

    print(build_report(run, output or run / "report.html"))


def show(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Print a run's table: gain, forgetting and what replay won back."""
    from regrow.report.build import load_report

    print(load_report(run).text_table())
