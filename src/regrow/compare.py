"""Models compared without a run: items, scores, results and a page in one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.arms import arms_of
from regrow.data import read_data
from regrow.errors import DataError
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import read_items
from regrow.outputs import own_folder
from regrow.pipeline import sentence_encoder
from regrow.recipe import Recipe

if TYPE_CHECKING:
    from regrow.evaluate.served import ServedModel
    from regrow.models.load import ResolvedModel


def compare(
    recipe: Recipe, models: Sequence[str], output: Path, *, reuse: Sequence[Path] = (), tokenizer: str | None = None
) -> dict[str, Any]:
    """Score the model before and the model(s) after on the same items; see `regrow.api.evaluate`.

    Raises:
        DataError: Fewer than two models, or a suite that cannot be read.
        ModelError: A model cannot be used.
        EngineError: A server cannot be used, or not for a suite.
        RunError: Nothing was scored in a folder of ``reuse``.
    """
    if len(models) < 2:
        raise DataError("one model was given, at least two are compared", hint="regrow eval BEFORE AFTER -o DIR")
    with own_folder(output, "eval"):
        return _evaluate(recipe, dict(zip(arms_of(models), models, strict=True)), output, reuse, tokenizer)


def compare_text(models: Sequence[str], output: Path) -> str:
    """What `compare` found, for the terminal."""
    from regrow.report.build import load_report

    names = "\n".join(f"{arm:<10} {name}" for arm, name in zip(arms_of(models), models, strict=True))
    return f"{load_report(output).text_table()}\n{names}\nreport     {output / 'report.html'}"


def compare_sequence(
    recipe: Recipe,
    models: Sequence[str],
    tasks: Sequence[str],
    output: Path,
    *,
    suites: Sequence[str] = (),
    reuse: Sequence[Path] = (),
) -> dict[str, Any]:
    """Score every model of a sequence of trainings on every task; see `regrow.api.evaluate_sequence`.

    Raises:
        DataError: Tasks and trainings do not match, or a suite cannot be read.
        ModelError: A model cannot be used.
    """
    from regrow.evaluate.continual import check_sequence, sequence_results
    from regrow.evaluate.saved import load_evaluation
    from regrow.evaluate.suites.local import suite_of
    from regrow.rows.writers import atomic_write_text

    names = [suite_of(t) for t in tasks]
    check_sequence(models, names)
    settings = {"suites": [*tasks, *suites], "gain_suites": names}
    recipe = recipe.model_copy(update={"evaluate": EvalConfig(**{**recipe.evaluate.model_dump(), **settings})})
    arms = ["base", *(f"step-{i}" for i in range(1, len(models)))]
    with own_folder(output, "eval"):
        results = _evaluate(recipe, dict(zip(arms, models, strict=True)), output, reuse)
    higher = {name: {s["metric"]: s["higher_is_better"]} for name, s in results["suites"].items()}
    judged_by = {name: s["metric"] for name, s in results["suites"].items()}
    records = load_evaluation(output).records()
    cfg = recipe.evaluate
    found = sequence_results(records, arms, names, cfg, seed=recipe.seed, higher=higher, judged_by=judged_by)
    atomic_write_text(output / "continual.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    return found


def _evaluate(
    recipe: Recipe, models: dict[str, str], output: Path, reuse: Sequence[Path], tokenizer: str | None = None
) -> dict[str, Any]:
    """``models`` is arm -> what the user typed; the first is ``base``."""
    from regrow.evaluate.saved import score_files
    from regrow.evaluate.served import ServedModel
    from regrow.evaluate.stage import build_suites
    from regrow.evaluate.stage import evaluate as stage
    from regrow.report.build import build_report

    earlier = [file for folder in reuse for file in score_files(folder)]
    found = _models(recipe, models, tokenizer)
    wanted = [s for s in recipe.evaluate.suites if s != "own-dialogues" and (s != "heldout" or recipe.data.path)]
    cfg = recipe.evaluate.model_copy(update={"suites": wanted})
    output.mkdir(parents=True, exist_ok=True)
    heldout = read_data(recipe).rows if recipe.data.path and "heldout" in wanted else []
    suites = build_suites(cfg, found["base"], heldout, output / "suites", seed=recipe.seed, reuse=earlier)
    known = score_files(output / "suites", required=False)
    done = stage(
        {a: m if isinstance(m, ServedModel) else m.path for a, m in found.items()},
        read_items(suites),
        cfg,
        output / "eval",
        seed=recipe.seed,
        reuse=[*known, *earlier],
        encoder=lambda: sentence_encoder(recipe),
    )
    build_report(output, output / "report.html")
    return done.results


def _models(recipe: Recipe, names: dict[str, str], tokenizer: str | None) -> dict[str, ResolvedModel | ServedModel]:
    """What was typed as models: folders, files, hub names, and addresses of servers.

    Raises:
        DataError: A model behind a server has no tokenizer to read it with, or one was given for nothing.
    """
    from regrow.evaluate.served import is_url, served_model
    from regrow.models.load import resolve_model

    trust = recipe.model.trust_remote_code
    local = {a: resolve_model(m, trust_remote_code=trust) for a, m in names.items() if not is_url(m)}
    if len(local) == len(names):
        if tokenizer is not None:
            raise DataError("a tokenizer was given, but no model is behind a server", where="--tokenizer")
        return dict(local)
    if tokenizer is None and not local:
        raise DataError("all models are behind servers, so nothing says how text becomes tokens",
                        where="--tokenizer", hint="Give a folder or hub name with the tokenizer.")  # fmt: skip
    reader = resolve_model(tokenizer, trust_remote_code=trust) if tokenizer else next(iter(local.values()))
    return {a: local[a] if a in local else served_model(m, reader, recipe.grow.server) for a, m in names.items()}
