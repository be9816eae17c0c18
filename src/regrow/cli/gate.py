"""`regrow gate`: stop a pipeline when a fine-tune forgot too much or learned too little."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FAILED = 2


def register(app: typer.Typer) -> None:
    app.command()(gate)


def gate(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="A run (or an output folder of `regrow eval`). Several runs of several seeds are judged together.",
        ),
    ],
    max_forgetting: Annotated[
        float | None, typer.Option(help="Most that may be lost, in percentage points (suites of right and wrong).")
    ] = None,
    max_forgetting_nats: Annotated[
        float | None, typer.Option(help="Most that may be lost on suites measured in nats per token.")
    ] = None,
    min_gain: Annotated[float | None, typer.Option(help="Least gain on held-out rows, in percentage points.")] = None,
    min_gain_nats: Annotated[
        float | None, typer.Option(help="Least gain on held-out rows measured by token loss, in nats per token.")
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="Retention suite to check. Repeatable. Default: all unselected ones.")
    ] = None,
    arm: Annotated[str | None, typer.Option(help="Which model. Default: regrow, else the last.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit XML report here.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write a JSON summary here.")] = None,
) -> int:
    """Hold a finished run against limits; exit code 2 when it does not keep them.

    Decided on the bounds of the intervals: forgetting by the upper one, gain by the lower one.
    """
    from regrow.evaluate.gate import Limits, judge, write_summaries
    from regrow.evaluate.saved import load_evaluation

    limits = Limits(max_forgetting, max_forgetting_nats, min_gain, min_gain_nats)
    decided = judge([load_evaluation(r) for r in runs], limits, suites=suite or [], arm=arm)
    write_summaries(decided, junit=junit, summary=json_)
    print(decided.text())
    return 0 if decided.passed else FAILED
