"""The public functions. The command line is a thin face over them.

Every function takes plain values for the usual settings and ``settings`` for all others: a dict of recipe keys with
dots (``{"train.learning_rate": 1e-4}``) or of sections as in a recipe (``{"train": {"learning_rate": 1e-4}}``). Long
work resumes when called again with the same arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regrow.arms import GENERAL, PLAIN, REPLAY, STAGE_TWO, ratio_in
from regrow.compare import compare, compare_sequence
from regrow.errors import DataError, RecipeError, RunError
from regrow.loops.pilot import with_pilot
from regrow.loops.regrowth import with_regrown
from regrow.outputs import check_new
from regrow.pipeline import run as _run
from regrow.recipe import Recipe, load_recipe
from regrow.result import RunResult
from regrow.runs import MANIFEST, Resume, finished_models
from regrow.stages import Settings, StageSummary, curate, grow, mix, recipe_of, train
from regrow.views import Evaluation
from regrow.views import Sequence as SequenceResults

if TYPE_CHECKING:
    from regrow.loops.gradual import GradualResult
    from regrow.report.build import Report

__all__ = [
    "StageSummary", "curate", "evaluate", "evaluate_sequence", "export", "gradual", "grow", "merge", "mix", "report",
    "run", "sweep", "train", "tune",
]  # fmt: skip


def tune(
    model: str,
    data: str | Path,
    output: str | Path = "runs/tune",
    *,
    replay_ratio: float | None = None,
    method: Literal["full", "lora"] | None = None,
    epochs: float | None = None,
    compare: bool = True,
    general: str | Path | None = None,
    auto: bool = False,
    seed: int = 0,
    settings: Settings | None = None,
    resume: Resume = "auto",
) -> RunResult:
    """Fine-tune ``model`` on ``data`` and keep the rest: grow, curate, mix, train, evaluate, report.

    Args:
        model: A folder in Hugging Face format, a hub name, a ``.gguf`` file, or ``smollm2``.
        data: A file, a folder or a hub name; ``demo`` for the built-in example.
        output: The run folder. A run that is there is continued.
        replay_ratio: Share of the final training tokens that is replay.
        method: Train all weights or LoRA adapters.
        epochs: Passes over ``data``.
        compare: Also train on ``data`` alone, so that the report can show what replay saved.
        general: General data of your own, to compare with: one model more, whose replay is drawn from it instead of
            grown, as much of it.
        auto: Let a pilot on some of the rows choose the replay ratio and the topics' shares (recipe section ``auto``).
        seed: All randomness comes from it.
        settings: Any other recipe keys.
        resume: ``auto``, ``always`` or ``never``; see `regrow.runs.open_run`.

    Raises:
        RegrowError: Anything you can mend, with the place and what to do.
    """
    recipe = recipe_of(
        settings,
        model__model_name_or_path=str(model),
        data__path=str(data),
        mix__replay_ratio=replay_ratio,
        train__method=method,
        train__num_train_epochs=epochs,
        compare=compare,
        data__general=None if general is None else str(general),
        seed=seed,
    )
    if auto and replay_ratio is not None:
        raise RecipeError("auto chooses the replay ratio", where="replay_ratio", hint="give one of the two")
    return _run(with_pilot(recipe) if auto else recipe, output, resume=resume)


def sweep(
    model: str,
    data: str | Path,
    output: str | Path = "runs/sweep",
    *,
    replay_ratios: Sequence[float] = (0, 0.01, 0.05, 0.1, 0.2, 0.4),
    equal_tokens: bool = False,
    general: str | Path | None = None,
    regrown: int | None = None,
    method: Literal["full", "lora"] | None = None,
    epochs: float | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    resume: Resume = "auto",
) -> RunResult:
    """Fine-tune ``model`` on ``data`` once for each replay ratio and recommend one of them.

    Args:
        model: As in `tune`.
        data: As in `tune`.
        output: The run folder. A run that is there is continued; other ratios may be added.
        replay_ratios: Shares of the final training tokens that are replay, 0 (plain SFT) among them.
        equal_tokens: Train every model on as many tokens as the one with the most replay.
        general: As in `tune`; one model more for each ratio.
        regrown: Tokens to grow on demand; one model more for each ratio, with as much replay, that follows what is
            being forgotten (docs/systems/regrowth.md).
        method: Train all weights or LoRA adapters.
        epochs: Passes over ``data``.
        seed: All randomness comes from it.
        settings: Any other recipe keys.
        resume: As in `tune`.

    Returns:
        The run; ``results["sweep"]`` holds the comparison and the recommendation.

    Raises:
        RegrowError: Anything you can mend, with the place and what to do.
    """
    recipe = recipe_of(
        settings,
        model__model_name_or_path=str(model),
        data__path=str(data),
        sweep__replay_ratios=list(replay_ratios),
        sweep__equal_tokens=equal_tokens,
        data__general=None if general is None else str(general),
        train__method=method,
        train__num_train_epochs=epochs,
        seed=seed,
    )
    if regrown is not None:
        recipe = with_regrown(recipe, regrown)
    return _run(recipe, output, resume=resume)


def gradual(
    model: str,
    data: str | Path,
    output: str | Path = "runs/gradual",
    *,
    dev: str | Path | float | int = 0.1,
    test: str | Path | float | int = 0.1,
    epochs: int | None = None,
    stage2_epochs: int | None = None,
    corpus: str | Path | None = None,
    replay_ratio: float | None = None,
    compare: bool = True,
    method: Literal["full", "lora"] | None = None,
    seed: int = 0,
    settings: Settings | None = None,
    resume: Resume = "auto",
) -> GradualResult:
    """Fine-tune ``model`` in two stages by how well it knows each fact (Gradual Learning, arXiv 2410.05802).

    Args:
        model: As in `tune`; it needs a chat template (or ``model.turns``).
        data: Questions with answers, as for `regrow.probing.probe_mastery`.
        output: The run folder. A run that is there is continued.
        dev: Questions that choose the best epoch: a file, a share of ``data``, or a number.
        test: Questions that judge the finished models and choose nothing: likewise.
        epochs: Passes of stage 1, and of the one-stage arm.
        stage2_epochs: Passes of stage 2.
        corpus: A grown corpus, replayed in stage 2 in place of HighlyKnown facts.
        replay_ratio: Share of stage 2 that is replay.
        compare: Also train on all facts in one stage.
        method: Train all weights or LoRA adapters.
        seed: All randomness comes from it.
        settings: Any other recipe keys, ``{"probe.mastery.prompts": 5}``.
        resume: As in `tune`.

    Raises:
        RegrowError: Anything you can mend, with the place and what to do.
    """
    from regrow.loops.gradual import run_gradual

    recipe = recipe_of(
        settings,
        model__model_name_or_path=str(model),
        gradual__dev=str(dev) if isinstance(dev, Path) else dev,
        gradual__test=str(test) if isinstance(test, Path) else test,
        gradual__epochs=epochs,
        gradual__stage2__epochs=stage2_epochs,
        gradual__stage2__replay="corpus" if corpus else None,
        gradual__stage2__corpus=str(corpus) if corpus else None,
        gradual__stage2__replay_ratio=replay_ratio,
        gradual__one_stage=compare,
        train__method=method,
        seed=seed,
    )
    return run_gradual(recipe, data, output, resume=resume)


def run(recipe: Recipe | str | Path, output: str | Path, *, resume: Resume = "auto") -> RunResult:
    """Run a recipe (an object or a YAML file) from data to report, or continue it."""
    return _run(recipe if isinstance(recipe, Recipe) else load_recipe(recipe), output, resume=resume)


def evaluate(
    models: Sequence[str],
    output: str | Path,
    *,
    suites: Sequence[str] | None = None,
    data: str | Path | None = None,
    tokenizer: str | Path | None = None,
    reuse: Sequence[str | Path] = (),
    seed: int = 0,
    settings: Settings | None = None,
) -> Evaluation:
    """Score two or more models on the same items, paired, with intervals.

    Args:
        models: The model before, then the model(s) after; ``http://HOST:PORT`` is a model behind a server with the
            completions API.
        output: A folder for items, records and results.
        suites: ``facts``, ``instructions``, ``refusals``, ``lm-eval:TASK``, ``file:PATH.jsonl``; with ``data`` also
            ``heldout``.
        data: Held-out rows, to measure the gain.
        tokenizer: Whose tokenizer the models behind servers have; None for that of the first model that is not.
        reuse: Folders of earlier evaluations; what was scored there is not scored again.
        seed: Choice of items and resampling.
        settings: Any other recipe keys.

    Returns:
        What stands in ``output/eval/results.json``; shows itself in a notebook.
    """
    recipe = recipe_of(
        settings,
        evaluate__suites=list(suites) if suites else None,
        data__path=str(data) if data else None,
        seed=seed,
    )
    reader = str(tokenizer) if tokenizer else None
    found = compare(recipe, models, Path(output), reuse=[Path(r) for r in reuse], tokenizer=reader)
    return Evaluation(found, Path(output))


def evaluate_sequence(
    models: Sequence[str],
    tasks: Sequence[str],
    output: str | Path,
    *,
    suites: Sequence[str] = (),
    reuse: Sequence[str | Path] = (),
    seed: int = 0,
    settings: Settings | None = None,
) -> SequenceResults:
    """Score every model of a sequence of trainings on every task: matrix, forgetting, transfer.

    Args:
        models: The base, then the model after each training, in order.
        tasks: What each training was about: ``file:PATH.jsonl`` or ``lm-eval:TASK``, one for each trained model.
        output: A folder for items, records and results.
        suites: Further suites that no training was about, such as ``facts``.
        reuse: As in `evaluate`.
        seed: Choice of items and resampling.
        settings: Any other recipe keys.

    Returns:
        What stands in ``output/continual.json``; shows itself in a notebook.
    """
    recipe = recipe_of(settings, seed=seed)
    earlier = [Path(r) for r in reuse]
    found = compare_sequence(recipe, models, tasks, Path(output), suites=suites, reuse=earlier)
    return SequenceResults(found, Path(output))


def report(run_folder: str | Path) -> Report:
    """The report of a run: shows itself in a notebook; ``.text_table()`` for a terminal."""
    from regrow.report.build import load_report

    return load_report(Path(run_folder))


def merge(
    models: Sequence[str],
    output: str | Path,
    *,
    method: str = "interpolate",
    weight: float | None = None,
) -> Path:
    """Make a model out of models, with no training.

    Args:
        models: For ``interpolate`` base and tuned; for ``residual`` base, instruct and continued base; for
            ``model-stock`` base and two or more fine-tunes. Each as in `tune`, adapters merged first.
        output: The new model's folder; it must not be there yet, or be empty.
        method: ``interpolate``, ``residual`` or ``model-stock``.
        weight: The tuned model's share (``interpolate``, default 0.5) or the residual's scale (default 1).

    Raises:
        RegrowError: Unknown method, wrong number of models, or models that do not fit together.
    """
    from regrow.models.load import resolve_model
    from regrow.train.interpolate import interpolate
    from regrow.train.merge import add_residual
    from regrow.train.stock import model_stock

    wanted = {
        "interpolate": "BASE TUNED",
        "residual": "BASE INSTRUCT CONTINUED",
        "model-stock": "BASE TUNED TUNED ...",
    }
    if method not in wanted:
        raise DataError(f"'{method}' is not a method", where="--method", hint=", ".join(wanted))
    names = wanted[method].split()
    if len(models) != len(names) and (method != "model-stock" or len(models) < 3):
        raise DataError(f"{method} takes {wanted[method]}, {len(models)} were given", where="MODELS")
    if method == "model-stock" and weight is not None:
        raise DataError("model-stock finds its weight itself", where="--weight", hint="leave it out")
    out = Path(output)
    check_new(out)
    found = [resolve_model(m).path for m in models]
    if method == "interpolate":
        return interpolate(found[0], found[1], 0.5 if weight is None else weight, out)
    if method == "residual":
        return add_residual(found[0], found[1], found[2], out, scale=1.0 if weight is None else weight)
    return model_stock(found[0], found[1:], out)


def export(source: str | Path, output: str | Path, *, to: str, quant: str = "f16") -> Path:
    """Export a corpus (``messages``, ``sharegpt``, ``alpaca``, ``llava``) or a model (``merged``, ``gguf``).

    Args:
        source: A corpus folder, a run folder (its curated corpus, or its regrown model), a model or an adapter folder.
        output: File or folder to write.
        to: The format.
        quant: For gguf: ``f16`` or ``q8_0``.
    """
    source, output = Path(source), Path(output)
    if to in ("messages", "sharegpt", "alpaca", "llava"):
        from regrow.rows.export import export_corpus

        corpus = source / "corpus" if (source / MANIFEST).is_file() else source
        return export_corpus(corpus, output, to=to)  # type: ignore[arg-type]
    if to in ("merged", "gguf"):
        from regrow.models.load import resolve_model
        from regrow.models.save import export_gguf, merge_adapter

        check_new(output)
        folder = _tuned(source)
        if to == "merged":
            return merge_adapter(folder, output)
        return export_gguf(resolve_model(folder).path, output, quant=quant)
    raise DataError(f"'{to}' is not a format", where="--to", hint="messages, sharegpt, alpaca, llava, merged or gguf")


def _tuned(source: Path) -> Path:
    if not (source / MANIFEST).is_file():
        return source
    models = finished_models(source)
    if several := [arm for arm in models if ratio_in(arm) is not None]:
        raise RunError(
            "this run is a sweep and has several models",
            where=str(source),
            hint=f"give the folder of one, such as {models[several[0]]}",
        )
    found = next((models[arm] for arm in (REPLAY, GENERAL, PLAIN, STAGE_TWO) if arm in models), None)
    if found is None:
        raise RunError("no model of this run is finished", where=str(source), hint="run the same command again")
    return found
