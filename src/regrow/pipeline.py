"""Chains the stages of a recipe; knows their order and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.arms import BASE, INTERPOLATE, PLAIN, REPLAY, is_general, is_grown, is_regrown
from regrow.data import best_rows, read_back, read_data, read_general, source_hash, split_data
from regrow.evaluate.config import AFTER_SUITES
from regrow.evaluate.items import read_items
from regrow.plan import SOFT_TOP_K, for_given, general_amount, grow_budget, pairs, planned
from regrow.progress import note
from regrow.recipe import Recipe, dump_recipe, parse_recipe
from regrow.result import RunResult
from regrow.runs import Resume, Run, StageResult, open_run

if TYPE_CHECKING:
    from regrow.evaluate.sources import Pair
    from regrow.grow.config import GrowConfig
    from regrow.loops.regrowth import Grounds
    from regrow.models.embed import Encoder
    from regrow.models.load import ResolvedModel
    from regrow.rows.row import Row

HALF_WAY = 0.5
"""Where the arm `interpolate` stands between base (0) and plain SFT (1)."""


def run(recipe: Recipe, out: str | Path, *, resume: Resume = "auto") -> RunResult:
    """Run a recipe from data to report, or continue it.

    Args:
        recipe: See `regrow.recipe.Recipe`.
        out: The run folder; created if needed.
        resume: See `regrow.runs.open_run`.

    Raises:
        RegrowError: Anything the user can mend, with the place and what to do.
    """
    from regrow.models.load import resolve_config
    from regrow.preflight import check_recipe
    from regrow.rows.writers import atomic_write_text

    with open_run(out, resume=resume) as open_:
        model = resolve_config(recipe.model)
        open_.manifest["model"] = {"name": model.name, "revision": model.revision, "origin": model.origin}
        open_.manifest["seed"] = recipe.seed
        check_recipe(recipe, model)
        if resume != "always":  # which allows no other settings than those that stand there
            atomic_write_text(open_.path / "recipe.yaml", dump_recipe(recipe))
        return _Chain(recipe, open_, model).go()


class _Chain:
    def __init__(self, recipe: Recipe, run: Run, model: ResolvedModel) -> None:
        self.recipe, self.run, self.model = recipe, run, model
        self.seed = recipe.seed

    def inputs(self, name: str, section: Any, **more: Any) -> dict[str, Any]:
        return {name: section.model_dump(mode="json"), "model": self.model.revision, "seed": self.seed, **more}

    def go(self) -> RunResult:
        from regrow.evaluate.sources import Pair, Replayed

        run = self.run
        run.plan = planned(self.recipe)
        data = self.data()
        train_rows = read_back(data.path / "train.jsonl")
        heldout = read_back(data.path / "heldout.jsonl")
        if self.recipe.auto.pilot_rows:
            self.recipe = self.pilot(data, train_rows)
            run.plan = ["data", "pilot", *planned(self.recipe)[1:]]
        recipe = self.recipe
        suites = self.suites(data, heldout)
        corpus = regrowth = None
        ratios = recipe.arm_ratios()
        if any(map(is_grown, ratios)):
            grow_cfg = grow_budget(recipe, self.model.path, train_rows)
            if recipe.grow.dialogues is None and recipe.grow.tokens is None:
                note(f"grow: {grow_cfg.tokens:,} tokens, for a replay_ratio of {max(ratios.values())}")
            grown = self.grow(grow_cfg)
            corpus = self.curate(grown, suites, data, heldout)
            if recipe.train.mixture.controller == "forgetting" or recipe.sweep.regrown:
                regrowth = self.grounds(grow_cfg, grown, corpus, suites, heldout)
        general = None
        if any(map(is_general, ratios)):
            general = self.general(suites, data, train_rows, heldout, corpus)
        models = {BASE: self.model.path}
        trained: dict[str, StageResult] = {}
        replayed: dict[str, Replayed] = {}
        for arm, ratio in ratios.items():
            source = None if arm == PLAIN else general if is_general(arm) else corpus
            mixed = self.mix(arm, ratio, data, train_rows, heldout, source, corpus)
            trained[arm] = self.train(arm, mixed, regrowth if arm == REPLAY or is_regrown(arm) else None)
            facts = trained[arm].facts
            tokens = mixed.facts["replay"]["tokens"]
            replayed[arm] = Replayed(tokens, facts.get("replay_loss"), facts.get("regrown_tokens", 0))
            models[arm] = trained[arm].path / trained[arm].facts["model"]
        if INTERPOLATE in (recipe.arms or []):
            trained[INTERPOLATE] = self.interpolate(models[PLAIN], trained[PLAIN])
            models[INTERPOLATE] = trained[INTERPOLATE].path / "model"
        for name in [n for n, s in run.manifest["stages"].items() if s["status"] != "done" and n not in run.plan]:
            del run.manifest["stages"][name]  # begun for a recipe that this run no longer has
        home = run.path.resolve()  # so that a run that is moved still finds its models
        run.manifest["models"] = {
            arm: str(path.relative_to(home)) if path.is_relative_to(home) else str(path)
            for arm, path in models.items()
        }
        run.save()
        sources = [Pair(a, b, replayed[a], replayed[b]) for a, b in pairs(ratios)]
        evaluated = self.evaluate(models, trained, suites, corpus, sources)
        return self.finish(models, evaluated, corpus)

    def data(self) -> StageResult:
        recipe = self.recipe

        def work(folder: Path) -> dict[str, Any]:
            from regrow.mix.stage import count_tokens
            from regrow.rows.writers import write_jsonl

            read = read_data(recipe, folder)
            train, heldout = split_data(recipe, read.rows)
            count_tokens(read.rows, self.model.path, recipe.mix)  # refuses now what the mix would refuse after growing
            whole = len(train)
            if recipe.data.quality.reference is not None:
                train = best_rows(train, recipe.data.quality)
            write_jsonl(train, folder / "train.jsonl")
            write_jsonl(heldout, folder / "heldout.jsonl")
            return {
                "rows": len(read.rows),
                "train": len(train),
                "heldout": len(heldout),
                "dropped": read.dropped,
                "format": read.format,
                **({"less_like_the_reference": whole - len(train)} if whole > len(train) else {}),
            }

        data = recipe.data.model_dump(mode="json", exclude={"general", "general_loss"})
        inputs = {"data": data, "seed": self.seed, "file": source_hash(recipe.data.path)}
        if recipe.data.quality.reference is not None:
            inputs["reference"] = source_hash(recipe.data.quality.reference)
        return self.run.stage("data", inputs, work)

    def pilot(self, data: StageResult, rows: list[Row]) -> Recipe:
        """The recipe with what a pilot on some of the rows chose."""
        from regrow.loops.pilot import PILOT, apply_choice, choose, pilot_recipe, pilot_rows
        from regrow.rows.writers import write_jsonl

        drawn = pilot_rows(rows, self.recipe.auto, self.seed)
        inner = pilot_recipe(self.recipe, len(drawn) / len(rows))

        def work(folder: Path) -> dict[str, Any]:
            write_jsonl(drawn, folder / "rows.jsonl")
            done = run(parse_recipe(dump_recipe(inner), options={"data.path": str(folder / "rows.jsonl")}),
                       folder / PILOT)  # fmt: skip
            return choose(self.recipe, done.path, done.results, rows=len(drawn), of=len(rows)).to_dict()

        chosen = self.run.stage("pilot", self.inputs("recipe", inner, data=data.output_hash), work)
        for line in chosen.facts["why"]:
            note(f"pilot: {line}")
        return apply_choice(self.recipe, chosen.facts)

    def suites(self, data: StageResult, heldout: list[Row]) -> StageResult:
        from regrow.evaluate.stage import CACHE, build_suites

        def work(folder: Path) -> dict[str, Any]:
            path = build_suites(self.recipe.evaluate, self.model, heldout, folder, seed=self.seed)
            return {"items": sum(1 for _ in path.open(encoding="utf-8"))}

        inputs = self.inputs("evaluate", self.recipe.evaluate, data=data.output_hash)
        for key in AFTER_SUITES:
            del inputs["evaluate"][key]
        return self.run.stage("suites", inputs, work, keep=[CACHE])

    def grow(self, cfg: GrowConfig) -> StageResult:
        def work(folder: Path) -> dict[str, Any]:
            from regrow.grow.stage import grow

            return grow(cfg, self.model, folder, seed=self.seed).to_dict()

        inputs = self.inputs("grow", cfg)
        inputs["grow"]["ray"] = cfg.ray.engine  # where its workers are does not decide what is grown
        return self.run.stage("grow", inputs, work)

    def curate(self, grown: StageResult, suites: StageResult, data: StageResult, heldout: list[Row]) -> StageResult:
        def work(folder: Path) -> dict[str, Any]:
            from regrow.curate.stage import curate

            return curate(
                grown.path,
                self.recipe.curate,
                folder,
                items=read_items(suites.path / "items.jsonl"),
                domain_rows=heldout,
                encoder=sentence_encoder(self.recipe),
                seed=self.seed,
            ).to_dict()

        upstream = {"grow": grown.output_hash, "suites": suites.output_hash, "data": data.output_hash}
        return self.run.stage("corpus", self.inputs("curate", self.recipe.curate, **upstream), work)

    def general(
        self, suites: StageResult, data: StageResult, rows: list[Row], heldout: list[Row], corpus: StageResult | None
    ) -> StageResult:
        """The user's general data as a corpus to replay."""
        recipe = self.recipe

        def work(folder: Path) -> dict[str, Any]:
            from regrow.loops.general import draw_general

            items = read_items(suites.path / "items.jsonl")
            if corpus is not None:
                items += read_items(corpus.path / "own_dialogues.jsonl")
            return draw_general(
                read_general(recipe),
                self.model.path,
                recipe.mix,
                for_given(recipe.curate),
                folder,
                amount=general_amount(recipe, self.model.path, rows),
                items=items,
                domain_rows=heldout,
                encoder=sentence_encoder(recipe),
                seed=self.seed,
            )

        inputs = self.inputs(
            "curate", for_given(recipe.curate), general=recipe.data.general, on_bad=recipe.data.on_bad,
            file=source_hash(recipe.data.general), mix=recipe.mix.model_dump(mode="json"),
            replay_ratio=max(recipe.arm_ratios().values()), epochs=recipe.train.num_train_epochs,
            data=data.output_hash, suites=suites.output_hash, corpus=corpus.output_hash if corpus else None,
            encoder=recipe.grow.encoder,
        )  # fmt: skip
        return self.run.stage("general", inputs, work)

    def grounds(
        self,
        cfg: GrowConfig,
        grown: StageResult,
        corpus: StageResult,
        suites: StageResult,
        heldout: list[Row],
    ) -> Grounds:
        """What more of the corpus would be made with."""
        from regrow.loops.regrowth import Grounds

        return Grounds(
            grown.path,
            corpus.path,
            cfg,
            self.recipe.curate,
            items=read_items(suites.path / "items.jsonl"),
            domain_rows=heldout,
            encoder=lambda: sentence_encoder(self.recipe),
            made_of=(grown.output_hash, corpus.output_hash, suites.output_hash),
        )

    def mix(
        self,
        arm: str,
        ratio: float,
        data: StageResult,
        rows: list[Row],
        heldout: list[Row],
        replay: StageResult | None,
        corpus: StageResult | None,
    ) -> StageResult:
        nested = replay is not None and bool(self.recipe.sweep.replay_ratios)
        cfg = self.recipe.mix.model_copy(update={"replay_ratio": ratio}) if nested else self.recipe.mix
        epochs = self.recipe.epochs_of(arm)
        watched = corpus if self.recipe.curate.watch_dialogues else None  # grown ones, whatever is replayed
        soft = is_general(arm) and self.recipe.train_of(arm).replay_loss != "hard"
        scored = (self.recipe.grow.top_logprobs or SOFT_TOP_K) if soft else 0

        def work(folder: Path) -> dict[str, Any]:
            from regrow.loops.general import CORPUS, score_general
            from regrow.mix.parts import write_watched
            from regrow.mix.stage import mix

            done = mix(
                rows,
                (replay.path / CORPUS if is_general(arm) else replay.path) if replay else None,
                self.model.path,
                cfg,
                folder,
                seed=self.seed,
                epochs=epochs,
                nested=nested,
            ).to_dict()
            if watched is not None:
                yours = heldout[: self.recipe.curate.watch_dialogues]
                tokens = write_watched(watched.path, yours, self.model.path, self.recipe.mix, folder)
                done["watched_tokens"] = dict(tokens)
            if scored and done["replay"]["rows"]:
                done["topk"] = score_general(folder, self.model, scored, self.recipe.train.max_length)
            return done

        upstream = {
            "data": data.output_hash,
            "corpus": replay.output_hash if replay else None,
            "watched": watched.output_hash if watched else None,
        }
        if scored:
            upstream["scored"] = f"{scored} of {self.recipe.train.max_length}"
        inputs = self.inputs("mix", cfg, epochs=epochs, **upstream)
        if nested:
            inputs["nested"] = True
        return self.run.stage(f"mix/{arm}", inputs, work)

    def train(self, arm: str, mixed: StageResult, regrowth: Grounds | None) -> StageResult:
        def work(folder: Path) -> dict[str, Any]:
            from regrow.loops.regrowth import regrown_tokens, train_with_regrowth
            from regrow.train.stage import train

            cfg = self.recipe.train_of(arm)
            if regrowth is None:
                done = train(self.model.path, mixed.path, cfg, folder, seed=self.seed, label=arm)
            else:
                done = train_with_regrowth(
                    self.recipe.regrowth, self.model, mixed.path, self.recipe.mix, cfg, regrowth, folder,
                    seed=self.seed, label=arm,
                )  # fmt: skip
            facts = {**done.to_dict(), "model": str(Path(done.model_path).relative_to(folder))}
            return facts if regrowth is None else {**facts, "regrown_tokens": regrown_tokens(folder)}

        inputs = self.inputs("train", self.recipe.train, mixed=mixed.output_hash)
        if is_general(arm):
            inputs["replay_loss"] = self.recipe.train_of(arm).replay_loss
        if regrowth is not None:
            inputs["regrowth"] = self.recipe.regrowth.model_dump(mode="json")
            inputs["grounds"] = list(regrowth.made_of)
        return self.run.stage(f"train/{arm}", inputs, work)

    def interpolate(self, tuned: Path, upstream: StageResult) -> StageResult:
        def work(folder: Path) -> dict[str, Any]:
            from regrow.train.interpolate import interpolate

            interpolate(self.model.path, tuned, HALF_WAY, folder / "model")
            return {"weight": HALF_WAY}

        inputs = {"model": self.model.revision, "sft": upstream.output_hash, "weight": HALF_WAY}
        return self.run.stage("merge/interpolate", inputs, work)

    def evaluate(
        self,
        models: dict[str, Path],
        trained: dict[str, StageResult],
        suites: StageResult,
        corpus: StageResult | None,
        sources: Sequence[Pair],
    ) -> StageResult:
        from regrow.evaluate.ratios import Sweep
        from regrow.evaluate.stage import CACHE, evaluate

        asked = self.recipe.sweep
        sweep = Sweep(self.recipe.arm_ratios(), asked.margin, asked.margin_nats) if asked.replay_ratios else None

        def work(folder: Path) -> dict[str, Any]:
            items = read_items(suites.path / "items.jsonl")
            if corpus is not None:
                items += read_items(corpus.path / "own_dialogues.jsonl")
            answered = suites.path / CACHE  # what the base answered when its facts were chosen
            done = evaluate(
                models,
                items,
                self.recipe.evaluate,
                folder,
                seed=self.seed,
                reuse=[answered] if answered.is_file() else [],
                encoder=lambda: sentence_encoder(self.recipe),
                corpus=corpus.path if corpus else None,
                sweep=sweep,
                sources=sources,
            )
            return {"verdict": done.results["verdict"]["sentence"]}

        upstream = {
            "suites": suites.output_hash,
            "corpus": corpus.output_hash if corpus else None,
            "encoder": self.recipe.grow.encoder,
            **{f"train/{arm}": stage.output_hash for arm, stage in trained.items()},
        }
        inputs = self.inputs("evaluate", self.recipe.evaluate, **upstream)
        if sweep is not None:
            inputs["sweep"] = {"margin": sweep.margin, "margin_nats": sweep.margin_nats}
        return self.run.stage("eval", inputs, work, keep=[CACHE])

    def finish(self, models: dict[str, Path], evaluated: StageResult, corpus: StageResult | None) -> RunResult:
        from regrow.models.save import write_model_card
        from regrow.report.build import build_report
        from regrow.report.card import model_facts

        results = json.loads((evaluated.path / "results.json").read_text(encoding="utf-8"))
        for arm, path in models.items():
            if arm != BASE:
                write_model_card(path, model_facts(self.run.path, arm))
        report = build_report(self.run.path, self.run.path / "report.html")
        return RunResult(self.run.path, report, models, results)


def sentence_encoder(recipe: Recipe) -> Encoder | None:
    """The encoder named in the recipe; None for ``none``."""
    from regrow.models.embed import load_encoder

    return None if recipe.grow.encoder == "none" else load_encoder(recipe.grow.encoder)
