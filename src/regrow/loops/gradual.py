"""Gradual fine-tuning by mastery: train on what is half known, see what that raised, train on that too.

Li et al., "Gradual Learning: Optimizing Fine-Tuning with Partially Mastered Knowledge in Large Language Models"
(arXiv 2410.05802). Classify every fact (SliCK), train on those that are MaybeKnown, classify again, and train on these
and on the ones that have become MaybeKnown, with HighlyKnown ones as replay. The paper's text was not at hand; the
page of this system says what is known of it from whom. Other than there, epochs are chosen on a dev part and never on
the test part.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.arms import BASE
from regrow.arms import ONE_STAGE as ALL
from regrow.arms import STAGE_ONE as ONE
from regrow.arms import STAGE_TWO as TWO
from regrow.errors import DataError, RecipeError, RunError
from regrow.loops.epochs import Arm, Exam, read_arm, train_and_choose
from regrow.loops.facts import Facts, read_facts, split_facts
from regrow.mix.mastery import StageTwo, stage_one, stage_two
from regrow.progress import note
from regrow.recipe import Recipe, dump_recipe
from regrow.runs import Resume, Run, open_run

if TYPE_CHECKING:
    from regrow.engines.base import Engine
    from regrow.models.load import ResolvedModel
    from regrow.probe.texts import Question

MADE_BY = "regrow gradual"
TESTED = "test.json"
CONTROL = "control"
DRAWS = {BASE: 0, CONTROL: 1, ONE: 1, TWO: 2, ALL: 2}
"""Which draw of prompts a model is classified with. Never that of the labels it is compared with, so that the control,
the same model under another draw, moves by the same chance as a stage's labels do."""


@dataclass(frozen=True)
class GradualResult:
    """A finished gradual fine-tuning.

    Attributes:
        path: The run folder.
        facts: What stands in ``gradual.json``.
        page: The page.
        models: ``base``, ``stage1``, ``stage2`` and, with it, ``one-stage`` -> model folder.
    """

    path: Path
    facts: dict[str, Any]
    page: Path
    models: dict[str, Path]

    def text(self) -> str:
        """The tables for the terminal, and where everything is."""
        from regrow.report.gradual import text_tables

        where = [f"model   {self.models[TWO]}", f"files   {self.path}", f"page    {self.page}"]
        return "\n".join([text_tables(self.facts), "", *where])

    def _repr_html_(self) -> str:
        from regrow.views import text_html

        return text_html(self.text())


def run_gradual(recipe: Recipe, data: str | Path, output: str | Path, *, resume: Resume = "auto") -> GradualResult:
    """Run it, or continue it; see `regrow.api.gradual`."""
    from regrow.loops.gradual_cost import estimate
    from regrow.models.card import write_model_card
    from regrow.models.load import resolve_config
    from regrow.report.gradual import PAGE, RESULTS, build_page, card_facts
    from regrow.rows.writers import atomic_write_text

    out = Path(output)
    with open_run(out, resume=resume) as run:
        if run.manifest["stages"] and run.manifest.get("made_by") != MADE_BY:
            raise RunError("the folder holds another kind of run", where=str(out), hint="choose another with -o")
        run.manifest["made_by"] = MADE_BY
        model = resolve_config(recipe.model)
        check(recipe, model)
        run.manifest["model"] = {"name": model.name, "revision": model.revision, "origin": model.origin}
        run.manifest["seed"] = recipe.seed
        loop = _Gradual(recipe, run, model)
        facts = loop.split(data)
        note(estimate(recipe, model.path, facts).text())
        if resume != "always":  # which allows no other settings than those that stand there
            atomic_write_text(out / "recipe.yaml", dump_recipe(recipe))
        told = json.dumps(loop.go(facts), indent=1, ensure_ascii=False, allow_nan=False)
        atomic_write_text(out / RESULTS, told + "\n")
        found = json.loads(told)  # what is returned is what stands there
        page = build_page(found, run.manifest, out / PAGE, confidence=recipe.probe.confidence)
        for arm in found["arms"]:
            write_model_card(loop.models[arm], card_facts(found, run.manifest, arm, dump_recipe(recipe)))
        return GradualResult(out, found, page, loop.models)


def gradual_cost(recipe: Recipe, data: str | Path) -> str:
    """What `run_gradual` would ask and train at most, without starting anything."""
    from regrow.loops.gradual_cost import estimate
    from regrow.models.load import resolve_config

    model, cfg = resolve_config(recipe.model), recipe.gradual
    check(recipe, model)
    facts = split_facts(data, cfg.dev, cfg.test, seed=recipe.seed, system=recipe.mix.system_prompt)
    return estimate(recipe, model.path, facts).text()


def check(recipe: Recipe, model: ResolvedModel) -> None:
    """Refuse what could not end well before anything is spent.

    Raises:
        RecipeError: A setting that does not fit.
        ModelError: The model cannot be trained, or has no turns to ask and train in.
    """
    import tempfile

    from regrow.models.load import load_tokenizer
    from regrow.models.turns import derive_turns
    from regrow.preflight import check_trainable
    from regrow.train.arguments import check_trackers, make_arguments

    if recipe.train.max_steps > 0:
        raise RecipeError("steps would cut the epochs that are chosen from", where="train.max_steps",
                          hint="set gradual.epochs and gradual.stage2.epochs")  # fmt: skip
    if recipe.train.mixture.controller != "none":
        raise RecipeError("facts have no domains to be weighted", where="train.mixture.controller", hint="none")
    if recipe.probe.mastery.form == "plain":
        raise RecipeError("facts are trained in turns, so they must be asked in turns", where="probe.mastery.form",
                          hint="a model without a chat template takes model.turns")  # fmt: skip
    if recipe.probe.mastery.engine == "openai":
        raise RecipeError("a server has one model, here several are asked", where="probe.mastery.engine",
                          hint="transformers, or vllm, which is started for each")  # fmt: skip
    check_trainable(model)
    derive_turns(load_tokenizer(model.path))
    check_trackers(recipe.train)
    with tempfile.TemporaryDirectory() as nowhere:
        make_arguments(recipe.train, Path(nowhere) / "checkpoints", recipe.seed)


class _Gradual:
    """The parts, in order; each is a stage of the run folder."""

    def __init__(self, recipe: Recipe, run: Run, model: ResolvedModel) -> None:
        from regrow.models.load import load_tokenizer

        self.recipe, self.cfg, self.run, self.model = recipe, recipe.gradual, run, model
        self.tokenizer = load_tokenizer(model.path)
        self.models = {BASE: model.path}
        self.labels: dict[str, dict[str, str]] = {}
        self.hashes: dict[str, str] = {}
        several = [BASE, *([CONTROL] if self.cfg.control else []), ONE, TWO, *([ALL] if self.cfg.one_stage else [])]
        run.plan = ["facts"]
        for name in several:
            run.plan += [*([name] if name in (ONE, TWO, ALL) else []), f"labels/{name}"]
        run.plan.append("test")

    def split(self, data: str | Path) -> Facts:
        """The three parts, as they were split the first time."""
        cfg = self.cfg
        facts = split_facts(data, cfg.dev, cfg.test, seed=self.recipe.seed, system=self.recipe.mix.system_prompt)

        def work(folder: Path) -> dict[str, Any]:
            facts.write(folder)
            return facts.counts()

        parts = {name: _digest(getattr(facts, name)) for name in facts.counts()}
        done = self.run.stage("facts", {**parts, "seed": self.recipe.seed}, work)
        # By part: other test questions must not redo a training.
        self.hashes.update(parts)
        return read_facts(done.path)

    def go(self, facts: Facts) -> dict[str, Any]:
        """All parts, and what stands in ``gradual.json``."""
        from regrow.loops.gradual_results import Outcome, results

        cfg, seed = self.cfg, self.recipe.seed
        self.classify(BASE, self.model.path, facts, "")
        if cfg.control:
            self.classify(CONTROL, self.model.path, facts, "")
        before = self.labels[BASE]
        first = stage_one(before)
        if not first:
            counts = ", ".join(f"{n} {c}" for c, n in Counter(before.values()).items())
            raise DataError(
                f"no question is MaybeKnown ({counts}), so stage 1 has nothing to train on",
                where="data",
                hint="facts that are all known or all unknown to a model are trained with `regrow tune`",
            )
        arms = {ONE: self.train(ONE, first, facts, BASE)}
        self.classify(ONE, self.models[ONE], facts, self.hashes[ONE])
        second = stage_two(
            before, self.labels[ONE], augment=cfg.stage2.augment, seed=seed, replay_of=cfg.stage2.replay_of,
            replay_ratio=cfg.stage2.replay_ratio if cfg.stage2.replay == "highly-known" else 0.0,
        )  # fmt: skip
        self.tell(second)
        arms[TWO] = self.train(TWO, second.ids(), facts, ONE)
        self.classify(TWO, self.models[TWO], facts, self.hashes[TWO])
        if cfg.one_stage:
            arms[ALL] = self.train(ALL, list(before), facts, BASE)
            self.classify(ALL, self.models[ALL], facts, self.hashes[ALL])
        tested = self.test(facts)
        home = self.run.path.resolve()
        self.run.manifest["models"] = {
            arm: str(p.resolve().relative_to(home)) if p.resolve().is_relative_to(home) else str(p)
            for arm, p in self.models.items()
        }
        self.run.save()
        return results(Outcome(self.recipe, self.model, facts, self.labels, arms, second, tested))

    def tell(self, second: StageTwo) -> None:
        """Say what stage 2 will train on."""
        note(f"stage 2: {len(second.kept):,} MaybeKnown facts again, {len(second.upgraded):,} that stage 1 raised to "
             f"MaybeKnown, {len(second.replay):,} HighlyKnown ones as replay")  # fmt: skip
        if len(second.replay) < second.replay_wanted:
            note(f"stage 2: {second.replay_wanted:,} HighlyKnown facts were wanted, there are no more")

    def engine(self, folder: Path) -> Engine:
        """An engine for a model of this run: the same kind for all, as engines differ in their rounding."""
        from regrow.engines.choose import make_engine
        from regrow.models.load import resolve_model

        name, grow = self.recipe.probe.mastery.engine, self.recipe.grow
        model = self.model if folder == self.model.path else resolve_model(folder)
        return make_engine(
            "transformers" if name == "auto" else name, model, seed=self.recipe.seed, server=grow.server,
            serve=grow.serve,
        )  # fmt: skip

    def seed_of(self, draw: int) -> int:
        """The seed of a draw of prompts; the first is that of `regrow probe mastery`."""
        from regrow.probe.draws import seed_for

        return self.recipe.seed if draw == 0 else seed_for(self.recipe.seed, "draw", draw)

    def classify(self, name: str, model: Path, facts: Facts, upstream: str) -> None:
        """Label the train part under a model."""
        from regrow.probe.mastery import probe_mastery

        cfg, seed = self.recipe.probe.mastery, self.seed_of(DRAWS[name])

        def work(folder: Path) -> dict[str, Any]:
            engine = self.engine(model)
            try:
                return probe_mastery(
                    facts.train, cfg, folder, engine=engine, tokenizer=self.tokenizer, seed=seed
                ).to_dict()
            finally:
                engine.close()

        inputs = {"model": upstream or self.model.revision, "train": self.hashes["train"], "seed": seed,
                  "settings": cfg.model_dump()}  # fmt: skip
        done = self.run.stage(f"labels/{name}", inputs, work)
        with (done.path / "labels.jsonl").open(encoding="utf-8") as lines:
            found = [json.loads(line)[cfg.column] for line in lines]
        self.labels[name] = {q.id: category for q, category in zip(facts.train, found, strict=True)}

    def train(self, name: str, ids: Sequence[str], facts: Facts, start: str) -> Arm:
        """One arm: train on the facts ``ids`` from the model ``start`` and keep the epoch that is best on dev."""
        recipe, cfg = self.recipe, self.cfg
        chosen = set(ids)
        rows = [q for q in facts.train if q.id in chosen]
        train_cfg, corpus, mix_cfg = recipe.train.model_copy(update={"num_train_epochs": cfg.epochs}), None, recipe.mix
        if name == TWO:
            rate = cfg.stage2.learning_rate or recipe.train.peak_learning_rate / 2
            train_cfg = train_cfg.model_copy(update={
                "num_train_epochs": cfg.stage2.epochs, "learning_rate": rate, "weight_decay": cfg.stage2.weight_decay,
            })  # fmt: skip
            if cfg.stage2.replay == "corpus":
                corpus = Path(cfg.stage2.corpus)
                mix_cfg = mix_cfg.model_copy(update={"replay_ratio": cfg.stage2.replay_ratio})
        base, before, seed = self.models[start], self.labels[BASE], self.seed_of(0)
        exam = Exam(
            facts.dev, facts.train, cfg.shots, cfg.law, recipe.probe.mastery, self.tokenizer, self.engine, seed
        )  # fmt: skip

        def work(folder: Path) -> dict[str, Any]:
            arm = train_and_choose(
                rows, before, base, mix_cfg, train_cfg, exam, folder, seed=recipe.seed, label=name, corpus=corpus
            )
            return {"best": arm.best, "dev": arm.epochs[arm.best - 1].dev, "facts": sum(arm.facts.values())}

        inputs = {
            "model": self.hashes.get(start, self.model.revision),
            "train": self.hashes["train"], "dev": self.hashes["dev"],
            "ids": _digest([[q.id, before[q.id]] for q in rows]), "shots": cfg.shots, "law": cfg.law,
            "settings": recipe.probe.mastery.model_dump(), "seed": recipe.seed, "mix": mix_cfg.model_dump(mode="json"),
            "arm": train_cfg.model_dump(mode="json"), "corpus": None if corpus is None else _corpus_hash(corpus),
        }  # fmt: skip
        done = self.run.stage(name, inputs, work)
        self.models[name], self.hashes[name] = done.path / "model", done.output_hash
        return read_arm(done.path)

    def test(self, facts: Facts) -> dict[str, Any]:
        """Ask the finished models the test questions, which nothing before this has seen.

        Returns:
            ``categories`` of the questions under the untrained model, and ``right``: model -> 0 or 1 a question.
        """
        from regrow.ledger import Ledger
        from regrow.probe.closed_book import ask_once, missing, right
        from regrow.probe.mastery import Prompter, probe_mastery
        from regrow.rows.writers import atomic_write_text

        cfg, seed = self.recipe.probe.mastery, self.seed_of(0)

        def work(folder: Path) -> dict[str, Any]:
            prompter = Prompter(
                facts.test, cfg.model_copy(update={"shots": self.cfg.shots}), self.tokenizer, seed, facts.train
            )
            answers: dict[str, list[int]] = {}
            with Ledger(folder / "ledger.jsonl") as ledger:
                for name, model in self.models.items():
                    labelled = name != BASE or (folder / "labels/mastery.json").is_file()
                    if not labelled or missing(facts.test, ledger, name):
                        engine = self.engine(model)
                        try:
                            if not labelled:
                                probe_mastery(
                                    facts.test, cfg, folder / "labels", engine=engine, tokenizer=self.tokenizer,
                                    seed=seed, shown=facts.train,
                                )  # fmt: skip
                            ask_once(facts.test, prompter, engine, ledger, name, label=f"test, {name}",
                                     batch_items=cfg.batch_items, seed=seed)  # fmt: skip
                        finally:
                            engine.close()
                    answers[name] = right(facts.test, ledger, name)
            with (folder / "labels/labels.jsonl").open(encoding="utf-8") as lines:
                categories = [json.loads(line)[cfg.column] for line in lines]
            told = {"categories": categories, "right": answers}
            atomic_write_text(folder / TESTED, json.dumps(told) + "\n")
            return {name: sum(hits) for name, hits in answers.items()}

        inputs = {
            "models": {name: self.hashes.get(name, self.model.revision) for name in self.models},
            "train": self.hashes["train"], "test": self.hashes["test"], "seed": seed, "shots": self.cfg.shots,
            "settings": cfg.model_dump(),
        }  # fmt: skip
        done = self.run.stage("test", inputs, work)
        found: dict[str, Any] = json.loads((done.path / TESTED).read_text(encoding="utf-8"))
        return found


def _digest(rows: Sequence[Question] | Sequence[Any]) -> str:
    plain = [asdict(r) if not isinstance(r, list) else r for r in rows]
    text = json.dumps(plain, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def _corpus_hash(corpus: Path) -> str:
    """Of the files of a corpus; the mix says what is wrong when it is none."""
    from regrow.runs import file_sha256

    files: Mapping[str, str] = {p.name: file_sha256(p) for p in sorted(corpus.glob("*.parquet"))}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
