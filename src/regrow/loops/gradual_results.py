"""What a gradual fine-tuning found, put together from its parts: pure functions of labels, epochs and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from regrow.evaluate.stats import Interval, mean_interval, paired_difference
from regrow.loops.epochs import Arm
from regrow.loops.facts import Facts
from regrow.mix.mastery import StageTwo
from regrow.probe.draws import seed_for
from regrow.probe.law import LawPoint, linear_law
from regrow.probe.mastery import CATEGORIES
from regrow.probe.transitions import shift, transitions
from regrow.recipe import Recipe

if TYPE_CHECKING:
    from regrow.models.load import ResolvedModel

COMPARED = (("control", "base", "control"), ("stage 1", "base", "stage1"), ("stage 2", "stage1", "stage2"),
            ("both stages", "base", "stage2"), ("one stage", "base", "one-stage"))  # fmt: skip
"""Name, the labels before, the labels after."""
PAIRS = (("stage1", "base"), ("stage2", "base"), ("stage2", "stage1"), ("one-stage", "base"), ("stage2", "one-stage"))
RESAMPLES = 10_000


@dataclass(frozen=True)
class Outcome:
    """What the parts left.

    Attributes:
        labels: Classification -> id -> category.
        arms: Arm -> its training.
        second: The set of stage 2.
        tested: ``categories`` of the test questions under the untrained model; ``right``, model -> 0 or 1 a question.
    """

    recipe: Recipe
    model: ResolvedModel
    facts: Facts
    labels: Mapping[str, Mapping[str, str]]
    arms: Mapping[str, Arm]
    second: StageTwo
    tested: Mapping[str, Any]


def results(found: Outcome) -> dict[str, Any]:
    """What stands in ``gradual.json``."""
    labels, second, cfg = found.labels, found.second, found.recipe.gradual
    before, after = labels["base"], labels["stage1"]
    straight = [f for f, c in before.items() if c in ("WeaklyKnown", "Unknown") and after[f] == "HighlyKnown"]
    matrices = {name: transitions(labels[one], labels[two]) for name, one, two in COMPARED if two in labels}
    return {
        "model": found.model.name,
        "seed": found.recipe.seed,
        "confidence": found.recipe.probe.confidence,
        "questions": found.facts.counts(),
        "settings": {
            "gradual": cfg.model_dump(mode="json"),
            "method": found.recipe.train.method,
            "learning_rate": found.recipe.train.peak_learning_rate,
        },
        "labels": {
            name: {c: sum(x == c for x in given.values()) for c in CATEGORIES} for name, given in labels.items()
        },
        "transitions": {
            name: {"matrix": matrix, **shift(matrix).to_dict()} for name, matrix in matrices.items()
        },
        "stage2_set": {
            "kept": len(second.kept), "upgraded": len(second.upgraded), "replay": len(second.replay),
            "replay_wanted": second.replay_wanted, "straight_to_highly_known": len(straight),
        },
        "arms": {name: arm.to_dict() for name, arm in found.arms.items()},
        "test": judged(found.tested, confidence=found.recipe.probe.confidence, seed=found.recipe.seed),
        "law": law(found.arms, found.facts.counts()["train"]) if cfg.law else None,
    }  # fmt: skip


def judged(tested: Mapping[str, Any], *, confidence: float, seed: int) -> dict[str, Any]:
    """Exact match of each model on the test part, by category under the untrained model, and paired differences.

    Args:
        tested: ``categories`` and ``right``, see `Outcome`.
        confidence: Level of the intervals, over resampled questions.
        seed: Of the resampling.
    """
    right = {name: np.asarray(hits, dtype=np.float64) for name, hits in tested["right"].items()}
    categories = np.asarray(tested["categories"])
    more: dict[str, Any] = {"confidence": confidence, "resamples": RESAMPLES, "seed": seed_for(seed, "test")}
    by_category = {}
    for c in CATEGORIES:
        mine = categories == c
        shares = {name: float(hits[mine].mean()) for name, hits in right.items()} if mine.any() else None
        by_category[c] = {"questions": int(mine.sum()), "accuracy": shares}
    return {
        "accuracy": {name: _interval(mean_interval(hits, **more)) for name, hits in right.items()},
        "categories": by_category,
        "differences": [
            {"after": one, "before": two, **_interval(paired_difference(right[one], right[two], **more))}
            for one, two in PAIRS
            if one in right and two in right
        ],
    }


def law(arms: Mapping[str, Arm], questions: int) -> dict[str, Any]:
    """The linear law over every epoch of every arm: dev accuracy against fitted facts as shares of all of them.

    Args:
        arms: Trainings whose facts were asked after each epoch.
        questions: |D|: of the train part, the same for all arms.
    """
    points = []
    for name, arm in arms.items():
        for epoch in arm.epochs:
            assert epoch.fitted is not None
            known = sum(n for c, n in epoch.fitted.items() if c != "Unknown")
            unknown = epoch.fitted.get("Unknown", 0)
            points.append((name, epoch.epoch, LawPoint(epoch.dev, known / questions, unknown / questions)))
    fit = linear_law([point for _, _, point in points])
    return {**fit.to_dict(), "models": [{"arm": a, "epoch": n, **asdict(point)} for a, n, point in points]}


def _interval(found: Interval) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}
