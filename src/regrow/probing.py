"""The public functions of `regrow probe`: what does this model know, before anything is trained?

Each works in a run folder (manifest, lock, resume) and writes its own part of it: ``min-k/``, ``mastery/``,
``domains/``, ``skills/``, and the page ``probe.html`` over all of them. Called again with the same arguments they
continue.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.errors import RunError
from regrow.recipe import Recipe, parse_recipe
from regrow.runs import Resume, open_run

if TYPE_CHECKING:
    from regrow.engines.base import Engine
    from regrow.engines.config import EngineName
    from regrow.models.load import ResolvedModel

Settings = Mapping[str, Any]
PAGE = "probe.html"


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        probe: ``min-k``, ``mastery``, ``domains`` or ``skills``.
        path: Its folder.
        facts: What stands in its JSON file.
        page: The page over all probes of the run folder.
    """

    probe: str
    path: Path
    facts: dict[str, Any]
    page: Path

    def text(self) -> str:
        """The table for the terminal, and where everything is."""
        from regrow.report.probes import text_table

        return f"{text_table(self.probe, self.facts)}\n\nfiles   {self.path}\npage    {self.page}"

    def _repr_html_(self) -> str:
        from regrow.views import text_html

        return text_html(self.text())


def probe_min_k(
    model: str, data: str | Path, output: str | Path = "runs/probe", *, k: float | None = None,
    control: str | Path | None = None, reference: str | None = None, seed: int = 0,
    settings: Settings | None = None, resume: Resume = "auto",
) -> ProbeResult:  # fmt: skip
    """Has ``model`` seen these texts? Min-K% (arXiv 2310.16789) and Min-K%++ (2404.02936), with their baselines.

    Args:
        model: As in `regrow.api.tune`.
        data: Rows in any format, a ``.txt`` file (a text a paragraph), questions with answers, or a grown corpus.
        output: The run folder; ``output/min-k/scores.jsonl`` holds a line a text.
        k: Share of the least likely tokens.
        control: Texts of the same kind that are surely new to the model; they make scores into evidence: AUC with an
            interval, and a threshold above which texts are flagged.
        reference: A model that has not seen the texts, for one more baseline.
        seed: Of the resampling.
        settings: Any other recipe keys, ``{"probe.min_k.max_tokens": 256}``.
        resume: See `regrow.runs.open_run`.

    Raises:
        RegrowError: Anything you can mend, with the place and what to do.
    """
    recipe = _recipe(settings, model__model_name_or_path=str(model), probe__min_k__k=k, seed=seed)
    return min_k_with(recipe, data, Path(output), control=control, reference=reference, resume=resume)


def min_k_with(
    recipe: Recipe, data: str | Path, output: Path, *, control: str | Path | None = None,
    reference: str | None = None, resume: Resume = "auto",
) -> ProbeResult:  # fmt: skip
    """`probe_min_k` with the settings of a recipe."""
    from regrow.models.load import load_tokenizer, resolve_model
    from regrow.probe.min_k import probe_texts
    from regrow.probe.texts import read_texts

    texts = read_texts(data)
    others = read_texts(control) if control is not None else []
    model = _model(recipe)
    second = None if reference is None else resolve_model(reference)
    cfg = recipe.probe.min_k
    inputs = {
        "data": _fingerprint([asdict(t) for t in texts]),
        "control": _fingerprint([asdict(t) for t in others]),
        "reference": None if second is None else second.revision,
        "settings": cfg.model_dump(),
    }

    def work(folder: Path) -> dict[str, Any]:
        engine = _engine(recipe, model, "transformers")
        other = None if second is None else (_engine(recipe, second, "transformers"), load_tokenizer(second.path))
        try:
            return probe_texts(
                texts, others, cfg, folder, engine=engine, tokenizer=load_tokenizer(model.path), reference=other,
                confidence=recipe.probe.confidence, seed=recipe.seed,
            ).to_dict()  # fmt: skip
        finally:
            engine.close()
            if other is not None:
                other[0].close()

    return _stage(recipe, model, output, "min-k", inputs, work, resume)


def probe_mastery(
    model: str, data: str | Path, output: str | Path = "runs/probe", *, prompts: int | None = None,
    shots: int | None = None, samples: int | None = None, engine: str | None = None, seed: int = 0,
    settings: Settings | None = None, resume: Resume = "auto",
) -> ProbeResult:  # fmt: skip
    """How well does ``model`` know each of these facts? SliCK's four categories (arXiv 2405.05904).

    Args:
        model: As in `regrow.api.tune`.
        data: Questions with answers; a ``relation`` column groups those that serve as each other's examples.
        output: The run folder; ``output/mastery/labels.jsonl`` is the file with the labels as columns.
        prompts: Few-shot prompts a question.
        shots: Answered questions in a prompt.
        samples: Sampled answers a prompt.
        engine: ``auto``, ``transformers``, ``openvino`` or ``dummy``.
        seed: Of the prompts and the sampled answers.
        settings: Any other recipe keys, ``{"probe.mastery.sample": "all"}``.
        resume: See `regrow.runs.open_run`.

    Raises:
        RegrowError: Anything you can mend, with the place and what to do.
    """
    recipe = _recipe(
        settings, model__model_name_or_path=str(model), probe__mastery__prompts=prompts, probe__mastery__shots=shots,
        probe__mastery__samples=samples, probe__mastery__engine=engine, seed=seed,
    )  # fmt: skip
    return mastery_with(recipe, data, Path(output), resume=resume)


def mastery_with(recipe: Recipe, data: str | Path, output: Path, *, resume: Resume = "auto") -> ProbeResult:
    """`probe_mastery` with the settings of a recipe."""
    from regrow.models.load import load_tokenizer
    from regrow.probe.mastery import probe_mastery as stage
    from regrow.probe.texts import read_questions

    questions = read_questions(data)
    model = _model(recipe)
    cfg = recipe.probe.mastery
    inputs = {"data": _fingerprint([asdict(q) for q in questions]), "settings": cfg.model_dump()}

    def work(folder: Path) -> dict[str, Any]:
        engine = _engine(recipe, model, cfg.engine)
        try:
            return stage(
                questions, cfg, folder, engine=engine, tokenizer=load_tokenizer(model.path),
                confidence=recipe.probe.confidence, seed=recipe.seed,
            ).to_dict()  # fmt: skip
        finally:
            engine.close()

    return _stage(recipe, model, output, "mastery", inputs, work, resume)


def mastery_cost(recipe: Recipe, data: str | Path) -> str:
    """What `mastery_with` would ask of the engine, without starting one."""
    from regrow.models.load import load_tokenizer
    from regrow.probe.mastery import Prompter, estimate
    from regrow.probe.texts import read_questions

    questions = read_questions(data)
    cfg = recipe.probe.mastery
    prompter = Prompter(questions, cfg, load_tokenizer(_model(recipe).path), recipe.seed)
    return estimate(questions, cfg, prompter).text()


def probe_domains(
    model: str, labels: str | Path, output: str | Path = "runs/probe", *, samples: int | None = None,
    repeats: int | None = None, hard: bool = False, engine: str | None = None, seed: int = 0,
    settings: Settings | None = None, resume: Resume = "auto",
) -> ProbeResult:  # fmt: skip
    """What does ``model`` talk about when nobody asks? VersaTune's domain knowledge distribution (arXiv 2411.11266).

    Args:
        model: As in `regrow.api.tune`.
        labels: Rows with a ``domain`` column, from which the judge learns what belongs to which domain. Give one
            domain for everything else, or everything else will be put among the others.
        output: The run folder; ``output/domains/domains.json`` holds the shares.
        samples: Texts a repetition.
        repeats: Repetitions.
        hard: Count the likeliest domain instead of averaging probabilities.
        engine: ``auto``, ``transformers``, ``openvino`` or ``dummy``.
        seed: Of the texts and of the judge's split.
        settings: Any other recipe keys, ``{"probe.domains.start": "user"}``.
        resume: See `regrow.runs.open_run`.

    Raises:
        RegrowError: Anything you can mend, with the place and what to do.
    """
    recipe = _recipe(
        settings, model__model_name_or_path=str(model), probe__domains__samples=samples,
        probe__domains__repeats=repeats, probe__domains__labels="hard" if hard else None,
        probe__domains__engine=engine, seed=seed,
    )  # fmt: skip
    return domains_with(recipe, labels, Path(output), resume=resume)


def domains_with(recipe: Recipe, labels: str | Path, output: Path, *, resume: Resume = "auto") -> ProbeResult:
    """`probe_domains` with the settings of a recipe."""
    from regrow.models.embed import load_encoder
    from regrow.models.load import load_tokenizer
    from regrow.probe.domains import probe_domains as stage
    from regrow.probe.domains import read_labelled

    labelled = read_labelled(labels)
    model = _model(recipe)
    cfg = recipe.probe.domains
    inputs = {"labels": _fingerprint(list(labelled)), "settings": cfg.model_dump()}

    def work(folder: Path) -> dict[str, Any]:
        encoder = load_encoder(cfg.encoder)
        engine = _engine(recipe, model, cfg.engine)
        try:
            return stage(
                labelled, cfg, folder, engine=engine, tokenizer=load_tokenizer(model.path), encoder=encoder,
                confidence=recipe.probe.confidence, seed=recipe.seed,
            ).to_dict()  # fmt: skip
        finally:
            engine.close()

    return _stage(recipe, model, output, "domains", inputs, work, resume)


def probe_skills(
    model: str, data: str | Path, output: str | Path = "runs/probe", *, steps: int | None = None, seed: int = 0,
    settings: Settings | None = None, resume: Resume = "auto",
) -> ProbeResult:  # fmt: skip
    """What does training on one skill help the others? Skill-It's graph (arXiv 2307.14430), learned in one short
    training a skill.

    Args:
        model: As in `regrow.api.tune`.
        data: Rows with a ``domain`` column, which names the skill.
        output: The run folder; ``output/skills/graph.yaml`` is a recipe that trains with the graph.
        steps: Optimizer steps on each skill.
        seed: Which rows are held out, and the order of the others.
        settings: Any other recipe keys, ``{"train.method": "lora"}``.
        resume: See `regrow.runs.open_run`.

    Raises:
        RegrowError: Anything you can mend, with the place and what to do.
    """
    recipe = _recipe(
        settings, model__model_name_or_path=str(model), data__path=str(data), probe__skills__steps=steps, seed=seed
    )
    return skills_with(recipe, Path(output), resume=resume)


def skills_with(recipe: Recipe, output: Path, *, resume: Resume = "auto") -> ProbeResult:
    """`probe_skills` with the settings of a recipe."""
    from regrow.data import read_data
    from regrow.loops.skills import learn_graph

    rows = read_data(recipe).rows
    model = _model(recipe)
    cfg = recipe.probe.skills
    inputs = {
        "data": _fingerprint([(row.id, row.messages, row.domain) for row in rows]),
        "settings": cfg.model_dump(),
        "mix": recipe.mix.model_dump(mode="json"),
        "train": recipe.train.model_dump(mode="json"),
    }

    def work(folder: Path) -> dict[str, Any]:
        return learn_graph(rows, model.path, cfg, recipe.mix, recipe.train, folder, seed=recipe.seed).to_dict()

    return _stage(recipe, model, output, "skills", inputs, work, resume)


def _recipe(settings: Settings | None, **direct: Any) -> Recipe:
    given = {key.replace("__", "."): value for key, value in direct.items() if value is not None}
    merged = {**given, **(settings or {})}
    return parse_recipe("", file="settings", overrides=[f"{k}={json.dumps(v)}" for k, v in merged.items()])


def _model(recipe: Recipe) -> ResolvedModel:
    from regrow.models.load import resolve_config

    return resolve_config(recipe.model)


def _engine(recipe: Recipe, model: ResolvedModel, name: EngineName) -> Engine:
    from regrow.engines.choose import make_engine

    return make_engine(name, model, seed=recipe.seed, server=recipe.grow.server, serve=recipe.grow.serve)


def _fingerprint(rows: Sequence[Any]) -> str:
    text = json.dumps(rows, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def _stage(
    recipe: Recipe, model: ResolvedModel, output: Path, name: str, inputs: dict[str, Any],
    work: Callable[[Path], dict[str, Any]], resume: Resume,
) -> ProbeResult:  # fmt: skip
    from regrow.report.probes import build_page

    about = {"model": model.revision, "seed": recipe.seed, "confidence": recipe.probe.confidence}
    with open_run(output, resume=resume) as run:
        if (output / "recipe.yaml").exists():
            raise RunError("the folder holds a training run", where=str(output), hint="choose another with -o")
        known = run.manifest.get("model")
        if known is not None and known["revision"] != model.revision:
            raise RunError(
                f"the folder holds probes of another model ({known['name']}, revision {known['revision']})",
                where=str(output), hint="choose another with -o",
            )  # fmt: skip
        run.manifest["model"] = {"name": model.name, "revision": model.revision, "origin": model.origin}
        done = run.stage(name, {**about, **inputs}, work)
        page = build_page(output, output / PAGE, confidence=recipe.probe.confidence)
    return ProbeResult(name, done.path, done.facts, page)
