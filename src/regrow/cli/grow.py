"""`regrow grow`: dump a model's knowledge as dialogues."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regrow.cli.common import Output, RecipeFile, Seed, Sets, settings


def register(app: typer.Typer) -> None:
    app.command()(grow)


def grow(
    model: Annotated[str, typer.Argument(help="A folder, a hub name, a .gguf file, or `smollm2`.")],
    output: Output,
    shape: Annotated[
        str | None, typer.Option(help="Children per node and layer (32,16,8,8), or balance, wide, mixed-turns, auto.")
    ] = None,
    dialogues: Annotated[int | None, typer.Option(help="How many dialogues.")] = None,
    tokens: Annotated[int | None, typer.Option(help="How many tokens (instead of --dialogues).")] = None,
    topics: Annotated[Path | None, typer.Option(help="A file with one topic a line.")] = None,
    ask_topics: Annotated[int | None, typer.Option(help="Ask the model for this many topics.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, transformers, openvino, openai, vllm, llama.cpp, ray or dummy.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A server with the OpenAI completions API that serves MODEL (engine openai).")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="With --engine ray: local, auto or HOST:PORT of the cluster's head.")
    ] = None,
    top_logprobs: Annotated[
        int | None, typer.Option(help="Keep the model's k likeliest tokens at each position (soft replay).")
    ] = None,
    seed: Seed = None,
    recipe: RecipeFile = None,
    set_: Sets = None,
) -> None:
    """Grow a corpus of dialogues out of MODEL, branch by branch. The same command continues after a crash."""
    from regrow import stages

    chosen = settings(
        recipe,
        set_,
        model__model_name_or_path=model,
        grow__shape=shape,
        grow__dialogues=dialogues,
        grow__tokens=tokens,
        grow__topics_file=str(topics) if topics else None,
        grow__ask_topics=ask_topics,
        grow__engine=engine or ("openai" if url else None),
        grow__server__url=url,
        grow__ray__address=ray_address,
        grow__top_logprobs=top_logprobs,
        seed=seed,
    )
    print(stages.grow_with(chosen, output).text())
