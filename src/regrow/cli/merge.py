"""`regrow merge`: models made out of models, with no training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(merge)


def merge(
    models: Annotated[
        list[str],
        typer.Argument(
            help="interpolate: BASE TUNED. residual: BASE INSTRUCT CONTINUED. model-stock: BASE TUNED TUNED ..."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new model.")],
    method: Annotated[str, typer.Option(help="interpolate, residual or model-stock.")] = "interpolate",
    weight: Annotated[
        float | None,
        typer.Option(help="interpolate: share of TUNED, 0 to 1 (default 0.5). residual: scale (default 1)."),
    ] = None,
) -> None:
    """Win back what a fine-tune lost, or carry instruction tuning over, by arithmetic on weights alone.

    interpolate stops part of the way from BASE to TUNED. residual adds what instruction tuning changed (INSTRUCT
    minus BASE) to a base that was trained further. model-stock averages several fine-tunes and pulls the average
    towards BASE.
    Compare the result with `regrow eval BASE TUNED OUTPUT`.
    """
    from regrow import api

    print(api.merge(models, output, method=method, weight=weight))
