"""A bank of facts whose levels of mastery change with the model in a planted way, for gradual fine-tuning.

The trainings are real ones of the tiny model; what a model "knows" is said by its place in the run folder.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from regrow.loops.facts import split_facts
from regrow.recipe import Recipe, parse_recipe
from tests.fixtures.fact_bank import FactBank, FactBankEngine, Planted
from tests.fixtures.tiny import tiny_tokenizer

HIGHLY, MAYBE, WEAKLY, UNKNOWN = "HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"
EPOCHS, EPOCHS2 = 3, 2
SEED = 4
DEV, TEST = 6, 6
BEST_DEV = {"stage1": 2, "stage2": 1, "one-stage": 3}
BEST_TEST = {"stage1": 3, "stage2": 2, "one-stage": 1}
"""The epochs at which all dev facts, or all test facts, are known. No arm has the same for both."""
EPOCH = re.compile(r"(stage1|stage2|one-stage)/(?:train/epochs/(\d+)|asked)$")
SETTINGS = {
    "probe.mastery.prompts": 2, "probe.mastery.samples": 4, "probe.mastery.max_new_tokens": 64,
    "probe.mastery.batch_items": 5, "gradual.epochs": EPOCHS, "gradual.stage2.epochs": EPOCHS2, "gradual.dev": DEV,
    "gradual.test": TEST, "train.learning_rate": 1e-3, "train.per_device_train_batch_size": 2, "train.save_steps": 2,
    "seed": SEED,
}  # fmt: skip


def recipe(model: Path, **more: Any) -> Recipe:
    """Settings for a run of seconds; ``more`` with ``__`` for dots."""
    given = SETTINGS | {k.replace("__", "."): v for k, v in more.items()}
    return parse_recipe("", options={"model.model_name_or_path": str(model), **given})


@dataclasses.dataclass(frozen=True)
class Asked:
    """An answer that was asked for: of which model, about which fact, in what prompt."""

    model: str
    fact: str
    greedy: bool
    prompt: str


class World:
    """Which facts stand in which part, how well each model knows each, and what was asked.

    After stage 1: MaybeKnown facts are HighlyKnown, WeaklyKnown ones MaybeKnown, Unknown ones with an even number
    MaybeKnown, HighlyKnown ones with number 0 are forgotten (WeaklyKnown). Stage 2 changes nothing more but brings the
    forgotten ones back. The one-stage model knows everything but what it has forgotten: all that was HighlyKnown.
    """

    def __init__(self, dev: set[str] | None = None, test: set[str] | None = None) -> None:
        self.bank = FactBank(per_level=5)
        self.dev, self.test = dev or set(), test or set()
        self.asked: list[Asked] = []
        self.engines: list[str] = []

    def name(self, model: Path) -> str:
        """``base``, ``stage1``, ``stage1/2`` (an epoch), ..."""
        if epoch := EPOCH.search(str(model)):
            return f"{epoch[1]}/{int(epoch[2] or 0)}"
        return model.parent.name if model.name == "model" else "base"

    def level(self, name: str, fact: Planted) -> str:
        """How well a model knows a fact."""
        arm, _, epoch = name.partition("/")
        if epoch:
            part = BEST_DEV if fact.id in self.dev else BEST_TEST if fact.id in self.test else None
            return fact.level if part is None else HIGHLY if part[arm] == int(epoch) else UNKNOWN
        number = int(fact.id.rsplit("/", 1)[1])
        if arm == "stage1":
            forgotten = WEAKLY if number == 0 else HIGHLY
            return {HIGHLY: forgotten, MAYBE: HIGHLY, WEAKLY: MAYBE, UNKNOWN: (MAYBE, UNKNOWN)[number % 2]}[fact.level]
        if arm == "stage2":
            return HIGHLY if fact.level == HIGHLY else self.level("stage1", fact)
        if arm == "one-stage":
            return MAYBE if fact.level == HIGHLY else HIGHLY
        return fact.level

    def make_engine(self, name: str, model: Any, **options: Any) -> FactBankEngine:
        """Takes the place of `regrow.engines.choose.make_engine`."""
        known = self.name(model.path)
        bank = copy.copy(self.bank)
        bank.facts = [dataclasses.replace(f, level=self.level(known, f)) for f in self.bank.facts]
        world = self

        class Watched(FactBankEngine):
            def _say(self, request: Any, index: int) -> Any:
                fact, prompt = request.key.rsplit("/", 1)[0], self.tokenizer.decode(list(request.prompt_ids))
                world.asked.append(Asked(known, fact, request.params.temperature == 0, prompt))
                return super()._say(request, index)

        self.engines.append(known)
        return Watched(bank, tiny_tokenizer())


ARMS = ("stage1", "stage2", "one-stage")
LABELS = ("base", "control", *ARMS)


def world_of(file: Path) -> World:
    """The world of a file as it is split."""
    facts = split_facts(file, DEV, TEST, seed=SEED)
    return World({q.id for q in facts.dev}, {q.id for q in facts.test})


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def labels(run: Path, name: str) -> dict[str, str]:
    return {x["id"]: x["mastery"] for x in lines(run / "labels" / name / "labels.jsonl")}


def parts(run: Path) -> dict[str, set[str]]:
    return {name: {x["id"] for x in lines(run / f"facts/{name}.jsonl")} for name in ("train", "dev", "test")}
