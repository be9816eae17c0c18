"""`regrow ui`: the live page of a folder of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT = Path("runs")


def register(app: typer.Typer) -> None:
    app.command()(ui)


def ui(
    folder: Annotated[
        Path, typer.Argument(metavar="[RUNS]", help="Where runs are, up to two folders below.")
    ] = DEFAULT,
    host: Annotated[str, typer.Option(help="Address to listen on. Others than this machine need it to be given.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8321,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Follow, compare, start and stop runs in a browser, until Ctrl-C. Runs that were started go on without it."""
    from regrow.errors import MissingExtra

    try:
        from regrow.ui.server import is_loopback, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn", "anyio"):
            raise
        raise MissingExtra(error.name or "fastapi", "ui", "`regrow ui`") from error

    def ready(url: str) -> None:
        print(f"the runs in {folder}: {url}")
        if not is_loopback(host):
            print("Other machines can reach it. The address is the key, and travels unencrypted: use it in a network "
                  "you trust, or keep 127.0.0.1 and an SSH tunnel.")  # fmt: skip
        print("Ctrl-C stops the page; runs go on.", flush=True)
        if open_:
            import webbrowser

            webbrowser.open(url)

    if folder == DEFAULT:
        folder.mkdir(exist_ok=True)
    serve(folder, host=host, port=port, ready=ready)
