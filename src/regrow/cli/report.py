"""`regrow report`, `show`, `runs` and `diff`: a run's page and tables, the runs of a folder, two side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    for command in (report, show, runs, diff):
        app.command()(command)


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write. Default: RUN/report.html.")
    ] = None,
) -> None:
    """Write the report page of a run (again)."""
    from regrow.report import gradual
    from regrow.report.build import build_report

    if (facts := gradual.saved(run)) is not None:
        from regrow.runs import read_manifest

        page = output or run / gradual.PAGE
        print(gradual.build_page(facts, read_manifest(run), page, confidence=facts["confidence"]))
        return
    print(build_report(run, output or run / "report.html"))


def show(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="A run folder, or several of runs that differ in the seed.")
    ],
) -> None:
    """Print a run's verdict and its tables; of several seeds, the differences with the seed as a random effect."""
    from regrow.report import gradual
    from regrow.report.build import load_report
    from regrow.report.compare import gaps_table, seeds_table, suites_table
    from regrow.report.lost_view import lost_table

    if len(runs) > 1:
        from regrow.evaluate.saved import load_evaluation
        from regrow.evaluate.seeds import over_seeds

        _print(seeds_table(over_seeds([load_evaluation(r) for r in runs])))
        return
    if (facts := gradual.saved(runs[0])) is not None:
        print(gradual.text_tables(facts))
        return
    found = load_report(runs[0])
    print(found.text_table())
    if found.run.results is not None:
        lost = lost_table(found.run)
        _print(suites_table(found.run), *([lost] if lost is not None else []))
    if (table := gaps_table(found.run)) is not None:
        _print(table)


def runs(
    folder: Annotated[Path, typer.Argument(help="Where runs are, up to two folders below.")] = Path("runs"),
    json_: Json = False,
) -> None:
    """List the runs in a folder: what they were made from, how far they are, and what came out."""
    import json

    from regrow.report.compare import find_runs, runs_table

    found = find_runs(folder)
    if json_:
        keys = ("path", "created", "model", "data", "state", "result", "gain", "change")
        print(json.dumps([{k: str(getattr(line, k)) for k in keys} for line in found], indent=1))
    elif found:
        _print(runs_table(found))
    else:
        print(f"no runs in {folder}")


def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN1", help="A run folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN2", help="Another one.")],
    json_: Json = False,
) -> None:
    """Show which recipe keys differ between two runs, and their numbers side by side."""
    import json

    from regrow.report.compare import diff_runs, diff_tables
    from regrow.report.load import load_run

    found = diff_runs(load_run(first), load_run(second))
    if json_:
        print(json.dumps(found.to_dict(), indent=1, default=str))
        return
    _print(*diff_tables(found, (str(first), str(second))))
    if not found.recipe:
        print("the recipes are the same")
    for text in found.notes:
        print(f"- {text}")


def _print(*tables: Any) -> None:
    """Tables at the width of the terminal, or wide where the output goes elsewhere."""
    import sys

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in tables:
        console.print(table)
        console.print()
