"""`regrow serve`: a vLLM or llama.cpp server for a model, for as long as the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regrow.cli.common import RecipeFile, Sets, settings

KEY_ENV = "REGROW_SERVER_KEY"


def register(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    model: Annotated[str, typer.Argument(help="A folder, a hub name, a .gguf file, or `smollm2`.")],
    engine: Annotated[str, typer.Option(help="vllm or llama.cpp.")] = "vllm",
    python: Annotated[
        Path | None, typer.Option(help="The interpreter that vLLM is installed in. Default: $REGROW_VLLM_PYTHON.")
    ] = None,
    binary: Annotated[
        Path | None, typer.Option(help="llama.cpp's llama-server. Default: $REGROW_LLAMA_SERVER, then the PATH.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: a free one.")] = None,
    recipe: RecipeFile = None,
    set_: Sets = None,
) -> None:
    """Serve MODEL on this machine until Ctrl-C. The server asks for a token: $REGROW_SERVER_KEY, or a random one."""
    import os
    import shlex

    from regrow.engines.serve import start
    from regrow.errors import EngineError
    from regrow.models.load import resolve_config

    if engine not in ("vllm", "llama.cpp"):
        raise EngineError(f"'{engine}' is not a server", where="--engine", hint="vllm or llama.cpp")
    chosen = settings(
        recipe,
        set_,
        model__model_name_or_path=model,
        grow__serve__python=str(python) if python else None,
        grow__serve__binary=str(binary) if binary else None,
    )
    known = os.environ.get(KEY_ENV) or None
    server = start(engine, resolve_config(chosen.model), chosen.grow.serve, port=port, key=known)  # type: ignore[arg-type]
    try:
        print(f"{model} on {engine} at {server.url}/v1")
        if known is None:
            print(f"  export {KEY_ENV}={server.key}")
        print(
            f"  regrow grow {shlex.quote(model)} -o corpus --url {server.url} --set grow.server.api_key_env={KEY_ENV}"
        )
        print("Ctrl-C stops it.", flush=True)
        raise server.failure(f"the server ended with code {server.wait()}")
    except KeyboardInterrupt:
        print("stopped")
    finally:
        server.close()
