"""The command line: one short file a command, heavy imports inside the command."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from regrow.errors import NO_ROOM, RegrowError

STOPPED = 130


def main() -> None:
    """Entry point. Exit code: 0 ok, 1 error (wrong usage, too), 2 a gate failed, 130 stopped (SIGINT, SIGTERM)."""
    sys.exit(_run())


def build_app() -> typer.Typer:
    """The application with all its commands."""
    from regrow.cli import (
        chat,
        data,
        env,
        evaluate,
        export,
        gate,
        gradual,
        grow,
        merge,
        probe,
        recipe,
        report,
        serve,
        train,
        tune,
        ui,
    )

    app = typer.Typer(
        name="regrow",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Fine-tune a language model without it forgetting.\n\n"
        "`regrow tune MODEL DATA` grows replay data out of the model, mixes it into your data, trains, "
        "and writes a page that shows what was gained and what was kept.",
    )

    @app.callback()
    def _options(
        version: Annotated[
            bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and stop.")
        ] = False,
    ) -> None: ...

    modules = (
        tune,
        recipe,
        probe,
        gradual,
        grow,
        serve,
        data,
        train,
        evaluate,
        gate,
        report,
        ui,
        chat,
        merge,
        export,
        env,
    )
    for module in modules:
        module.register(app)
    return app


def _version(asked: bool) -> None:
    if asked:
        from regrow import __version__

        print(f"regrow {__version__}")
        raise typer.Exit


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _run() -> int:
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's way to stop: the same care and words as for Ctrl-C
    try:
        result = build_app()(standalone_mode=False)
        if result == STOPPED:  # the library turns Ctrl-C into this value
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except RegrowError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        print("stopped. What was finished is kept; the same command continues.", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        return 1
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: a file could not be written, the disk is full: {error.strerror}{where}", file=sys.stderr)
        print("  Free some space; what was finished is kept, and the same command continues.", file=sys.stderr)
        return RegrowError.exit_code
    except Exception as error:
        show = getattr(error, "show", None)  # a usage error of the command-line library
        if show is None:
            raise
        show()
        return 1
