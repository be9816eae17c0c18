"""`regrow export`: a corpus for other trainers, a model for other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(export)


def export(
    source: Annotated[
        Path, typer.Argument(help="A corpus folder, a run folder, a model folder or a LoRA adapter folder.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", help="Corpus: messages, sharegpt, alpaca, llava. Model: merged (adapter into weights), gguf."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="File or folder to write.")],
    quant: Annotated[str, typer.Option(help="For gguf: f16 or q8_0.")] = "f16",
) -> None:
    """Export a grown corpus for TRL, LLaMA-Factory, ms-swift or LLaVA, or a tuned model as merged weights or GGUF."""
    from regrow import api

    print(api.export(source, output, to=to, quant=quant))
