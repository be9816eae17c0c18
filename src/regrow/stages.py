"""The stages as functions, each alone: grow, curate, mix, train.

Settings are given as in `regrow.api`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regrow.data import read_data
from regrow.errors import RunError
from regrow.evaluate.items import read_items
from regrow.outputs import hold_beside, own_folder
from regrow.pipeline import sentence_encoder
from regrow.preflight import check_trainable
from regrow.recipe import Recipe, parse_recipe
from regrow.views import facts_html, in_words

if TYPE_CHECKING:
    from regrow.models.load import ResolvedModel

Settings = Mapping[str, Any]
UNTOLD = ("config", "versions", "fingerprint")
NOTHING: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True)
class StageSummary:
    """What one stage did: its folder and its facts (counts, tokens, seconds)."""

    stage: str
    path: Path
    facts: dict[str, Any]

    def text(self) -> str:
        """For the terminal: one fact a line; settings and versions stand in the folder."""
        told = {k: v for k, v in self.facts.items() if k not in UNTOLD and v not in NOTHING}
        width = max((len(k) for k in told), default=0)
        lines = [f"  {key.replace('_', ' '):<{width}}  {in_words(value)}" for key, value in told.items()]
        return "\n".join([f"{self.stage}: {self.path}", *lines])

    def _repr_html_(self) -> str:
        return facts_html(self.stage, self.path, self.facts)


def recipe_of(settings: Settings | None, **direct: Any) -> Recipe:
    """A recipe out of arguments (``grow__shape``; None is not given) and, over them, ``settings``."""
    given = {key.replace("__", "."): value for key, value in direct.items() if value is not None}
    return parse_recipe("", file="settings", options={**given, **(settings or {})})


def grow(
    model: str,
    output: str | Path,
    *,
    shape: str | Sequence[int] | None = None,
    dialogues: int | None = None,
    tokens: int | None = None,
    topics: Sequence[str] | None = None,
    engine: str | None = None,
    url: str | None = None,
    top_logprobs: int | None = None,
    seed: int = 0,
    settings: Settings | None = None,
) -> StageSummary:
    """Grow a corpus of dialogues out of ``model`` (Tree Generation, arXiv 2406.11354).

    Args:
        model: As in `tune`.
        output: The corpus folder; ``datasets.load_dataset(output)`` reads it.
        shape: Most children per node and layer, or ``balance``, ``wide``, ``mixed-turns``, ``auto``.
        dialogues: How many dialogues (or give ``tokens``).
        tokens: How many tokens of distinct turns.
        topics: One tree a topic; built-in fields of knowledge by default.
        engine: ``auto``, ``transformers``, ``openvino``, ``openai``, ``vllm``, ``llama.cpp``, ``ray`` or
            ``dummy``.
        url: A server with the OpenAI completions API that serves ``model`` (engine ``openai``).
        top_logprobs: Keep the k likeliest tokens of each position (for soft replay).
        seed: All randomness comes from it.
        settings: Any other recipe keys.
    """
    recipe = recipe_of(
        settings,
        model__model_name_or_path=str(model),
        grow__shape=list(shape) if shape is not None and not isinstance(shape, str) else shape,
        grow__dialogues=dialogues,
        grow__tokens=tokens,
        grow__topics=list(topics) if topics is not None else None,
        grow__engine=engine or ("openai" if url else None),
        grow__server__url=url,
        grow__top_logprobs=top_logprobs,
        seed=seed,
    )
    return grow_with(recipe, Path(output))


def grow_with(recipe: Recipe, output: Path) -> StageSummary:
    """`grow` with the settings of a recipe."""
    from regrow.grow.stage import grow as stage

    with own_folder(output, "grow"):
        done = stage(recipe.grow, _model(recipe), output, seed=recipe.seed)
    return StageSummary("grow", output, done.to_dict())


def curate(
    corpus: str | Path,
    output: str | Path,
    *,
    items: str | Path | None = None,
    data: str | Path | None = None,
    seed: int = 0,
    settings: Settings | None = None,
) -> StageSummary:
    """Clean a corpus: near-duplicates, quality, decontamination against ``items`` and ``data``.

    Args:
        corpus: A folder made by `grow`.
        output: A new folder with the same layout; the source stays as it is.
        items: Evaluation items (``suites/items.jsonl`` of a run) that must not occur in it.
        data: Your own rows; replay that repeats them is removed.
        seed: Chooses the held-out dialogues.
        settings: Any other recipe keys.
    """
    recipe = recipe_of(settings, data__path=str(data) if data else None, seed=seed)
    return curate_with(recipe, Path(corpus), Path(output), items=Path(items) if items else None)


def curate_with(recipe: Recipe, corpus: Path, output: Path, *, items: Path | None = None) -> StageSummary:
    """`curate` with the settings of a recipe."""
    from regrow.curate.stage import curate as stage

    with hold_beside(output):
        done = stage(
            corpus,
            recipe.curate,
            output,
            items=read_items(items) if items else [],
            domain_rows=read_data(recipe).rows if recipe.data.path else [],
            encoder=sentence_encoder(recipe),
            seed=recipe.seed,
        )
    return StageSummary("curate", output, done.to_dict())


def mix(
    model: str,
    data: str | Path,
    output: str | Path,
    *,
    corpus: str | Path | None = None,
    replay_ratio: float | None = None,
    seed: int = 0,
    settings: Settings | None = None,
) -> StageSummary:
    """Mix your data with replay at a ratio counted in tokens.

    Args:
        model: Whose tokenizer and chat template are used.
        data: Your rows.
        output: A new folder: ``train.parquet`` (token rows in training order) and ``mix.json``.
        corpus: A grown (and curated) corpus; None for no replay.
        replay_ratio: Share of the final training tokens that is replay.
        seed: Order of rows and choice of dialogues.
        settings: Any other recipe keys.
    """
    recipe = recipe_of(
        settings, model__model_name_or_path=str(model), data__path=str(data), mix__replay_ratio=replay_ratio, seed=seed
    )
    return mix_with(recipe, Path(output), corpus=Path(corpus) if corpus else None)


def mix_with(recipe: Recipe, output: Path, *, corpus: Path | None) -> StageSummary:
    """`mix` with the settings of a recipe."""
    from regrow.mix.stage import mix as stage

    with own_folder(output, "mix"):
        done = stage(
            read_data(recipe).rows,
            corpus,
            _model(recipe).path,
            recipe.mix,
            output,
            seed=recipe.seed,
            epochs=1.0,  # one pass; `train` goes over it num_train_epochs times
        )
    return StageSummary("mix", output, done.to_dict())


def train(
    model: str,
    mixed: str | Path,
    output: str | Path,
    *,
    method: Literal["full", "lora"] | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    settings: Settings | None = None,
) -> StageSummary:
    """Fine-tune on a folder made by `mix`.

    Args:
        model: The model to tune.
        mixed: The folder.
        output: ``output/model`` (and ``output/adapter``) in Hugging Face format, ``output/log.jsonl``.
        method: Train all weights or LoRA adapters.
        learning_rate: Peak learning rate.
        seed: Order of batches, initial adapters.
        settings: Any other recipe keys.
    """
    recipe = recipe_of(
        settings,
        model__model_name_or_path=str(model),
        train__method=method,
        train__learning_rate=learning_rate,
        seed=seed,
    )
    return train_with(recipe, Path(mixed), Path(output))


def train_with(recipe: Recipe, mixed: Path, output: Path) -> StageSummary:
    """`train` with the settings of a recipe."""
    from regrow.train.checkpoints import other_settings
    from regrow.train.stage import train as stage

    found = _model(recipe)
    check_trainable(found)
    model = found.path
    with own_folder(output, "train"):
        if other_settings(output, recipe.train, model, mixed, recipe.seed):
            raise RunError(
                "the folder holds a training with other settings, data or model",
                where=str(output),
                hint="choose another folder with -o; the same command as before continues this one",
            )
        done = stage(model, mixed, recipe.train, output, seed=recipe.seed)
    return StageSummary("train", output, done.to_dict())


def _model(recipe: Recipe) -> ResolvedModel:
    from regrow.models.load import resolve_config

    return resolve_config(recipe.model)
