"""A pilot before the run: what replay ratio, and how much about which topic, from a small sweep on some of the rows.

Ours, no paper's. The ratio comes from the sweep's rule (`regrow.evaluate.ratios`). The shares of topics in the corpus
come from what the pilot's plain arm forgot of each, by the formula of `regrow.mix.forgetting`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regrow.arms import INTERPOLATE, PLAIN
from regrow.errors import DataError
from regrow.evaluate.verdict import MOVED, bounds_text
from regrow.loops.config import AutoConfig
from regrow.mix.forgetting import Forgetting
from regrow.recipe import DataConfig, Recipe, dump_recipe, parse_recipe
from regrow.rows.row import Row

PILOT = "run"
"""Where in the stage's folder the sweep is: a run like any other, with a page of its own."""
LEAST_ROWS = 40
"""With fewer, ten of them held out, a training has too few steps to show anything. Our choice."""
PILOT_ROWS = 200
"""Rows that ``--auto`` takes unless the recipe says. Our choice: some tens of steps at the usual batch sizes."""
NAMED_TOPICS = 3
NEVER = 10**9
"""Steps between measurements: only what a pilot moved from its first step to its last is read."""


@dataclass(frozen=True)
class Choice:
    """What a pilot chose.

    Attributes:
        rows: Rows of the pilot, held-out ones among them.
        ratio: For ``mix.replay_ratio``; 0 says that no replay is needed.
        decided: Whether the sweep's rule recommended it; else it is the recipe's.
        quota: Topic -> share of the corpus, for ``grow.quota``; empty when it was not measured.
        forgotten: Topic -> KL from the base to the pilot's plain model, nats a token.
        why: The reasons, a sentence each.
    """

    rows: int
    ratio: float
    decided: bool
    quota: dict[str, float]
    forgotten: dict[str, float]
    why: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON shape."""
        return asdict(self)


def with_pilot(recipe: Recipe) -> Recipe:
    """The recipe with a pilot, of `PILOT_ROWS` rows when it names no number itself.

    Raises:
        RecipeError: It is a sweep, which tries ratios itself.
    """
    if recipe.auto.pilot_rows:
        return recipe
    return parse_recipe(dump_recipe(recipe), file="auto", options={"auto.pilot_rows": PILOT_ROWS})


def pilot_rows(rows: Sequence[Row], cfg: AutoConfig, seed: int) -> list[Row]:
    """The rows of a pilot: whole groups (`regrow.rows.split`), in their order, at most half of all.

    Raises:
        DataError: There are too few rows.
    """
    from regrow.rows.split import split_rows

    wanted = min(cfg.pilot_rows, len(rows) // 2)
    drawn = split_rows(rows, wanted, seed)[1] if wanted >= LEAST_ROWS else []
    if len(drawn) < LEAST_ROWS:
        raise DataError(
            f"a pilot needs {LEAST_ROWS} rows and as many beside them; {len(rows)} are there to train on, "
            f"and {cfg.pilot_rows} are asked for",
            where="auto.pilot_rows",
            hint="`regrow sweep` tries replay ratios on all of your data",
        )
    return drawn


def pilot_recipe(recipe: Recipe, share: float) -> Recipe:
    """The sweep that a pilot is: your settings of growth and training, no suite but what your rows and the model's own
    dialogues give, and no budget of the user's, which is meant for all rows. ``data.path`` is left to the caller.

    Args:
        recipe: Of the run.
        share: Of the rows that the pilot has; a number of steps is cut by it.
    """
    auto, steps = recipe.auto, recipe.train.max_steps
    return parse_recipe(
        dump_recipe(recipe),
        file="auto",
        options={
            "auto.pilot_rows": 0,
            "arms": None,
            "compare": True,
            "data": _rows_of_the_pilot(recipe).model_dump(),
            "grow.tokens": None,
            "grow.dialogues": None,
            "sweep.replay_ratios": auto.replay_ratios,
            "curate.watch_dialogues": auto.watch_dialogues,
            "train.mixture.controller": "none",
            "train.mixture.update_steps": NEVER,
            "train.max_steps": max(1, round(steps * share)) if steps > 0 else steps,
            "regrowth.tokens": 0,
            "evaluate.suites": ["own-dialogues", "heldout"],
            "evaluate.gain_suites": ["heldout"],
            "evaluate.generate_samples": 0,
            "evaluate.noise_floor": False,
        },
    )


def _rows_of_the_pilot(recipe: Recipe) -> DataConfig:
    """They are written in our own format and were chosen already, so nothing else that is said of the data holds."""
    return DataConfig(domain=recipe.data.domain, test_size=min(0.25, _share(recipe.data.test_size)))


def _share(size: float | int) -> float:
    return size if isinstance(size, float) and 0 < size < 1 else 0.1


def choose(recipe: Recipe, pilot: Path, results: Mapping[str, Any], *, rows: int, of: int) -> Choice:
    """Read a finished pilot, and throw its models away.

    Args:
        recipe: Of the run that the pilot is for.
        pilot: The folder of its sweep.
        results: What stands in its ``eval/results.json``.
        rows: Rows of the pilot.
        of: Rows that the run trains on.
    """
    found = results["sweep"]
    decided = found["ratio"] is not None
    ratio = float(found["ratio"]) if decided else recipe.mix.replay_ratio
    why = [f"{len(found['arms'])} short trainings on {rows:,} of your {of:,} rows, with ratios {_list(found)}."]
    why.append(str(found["sentence"]))
    why += [str(n) for n in found["notes"]]
    if not decided:
        why.append(f"So the ratio stays at the recipe's, {ratio:g}.")
    shares, forgotten = topic_shares(recipe, pilot) if ratio else ({}, {})
    if forgotten:
        why.append(_about_topics(shares, forgotten))
    if lost := results["forgetting"].get(PLAIN):
        low, high = lost["ci"]
        amount = bounds_text(low, high, results["suites"][lost["suite"]]["unit"])
        why.append(
            f"Without replay the pilot forgot {amount} on {lost['suite']}; the whole run has more steps and may "
            "forget more."
        )
    for model in pilot.glob("train/*/model"):
        shutil.rmtree(model)
    return Choice(rows, ratio, decided, shares, forgotten, why)


def _list(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{arm['ratio']:g}" for arm in found["arms"].values())


def topic_shares(recipe: Recipe, pilot: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Topic -> share of the corpus, and topic -> what the pilot's plain arm forgot of it (nats a token), of those that
    could be watched. No shares where none moved by more than `regrow.evaluate.verdict.MOVED`, and nothing at all
    where none was watched."""
    from regrow.grow.corpus import corpus_facts
    from regrow.grow.topics import configured_topics
    from regrow.train.monitor import MONITOR

    log = pilot / "train" / PLAIN / MONITOR
    if not log.is_file():
        return {}, {}
    last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    measured = {k.removeprefix("heldout_kl/"): float(v) for k, v in last.items() if k.startswith("heldout_kl/")}
    # Topics that were asked of the model stand in the corpus; the monitor measures rows of the user's domain, too.
    topics = configured_topics(recipe.grow) or list(corpus_facts(pilot / "grow")["counts"]["topics"])
    forgotten = {t: measured[t] for t in topics if t in measured}
    if not forgotten:
        return {}, {}
    quota = recipe.grow.quota
    if max(forgotten.values()) <= MOVED:
        return {}, forgotten
    rule = Forgetting({t: quota.get(t, 1.0) for t in topics}, tilt=recipe.train.mixture.tilt)
    rule.update(dict.fromkeys(forgotten, 0.0))
    rule.update(forgotten)
    return {t: round(share, 4) for t, share in rule.weights().items()}, forgotten


def _about_topics(shares: Mapping[str, float], forgotten: Mapping[str, float]) -> str:
    if not shares:
        return (
            f"None of {len(forgotten)} topics moved by more than {MOVED:g} nats a token in plain fine-tuning; they "
            "keep their shares of the corpus."
        )
    order = sorted(forgotten, key=lambda t: -forgotten[t])
    most, least = order[:NAMED_TOPICS], order[-1]
    told = ", ".join(f"{t} ({forgotten[t]:.2f})" for t in most)
    return (
        f"Of {len(forgotten)} topics, plain fine-tuning moved most (nats a token): {told}; least: {least} "
        f"({forgotten[least]:.2f}). Their shares of the corpus go from {100 * max(shares.values()):.1f} to "
        f"{100 * min(shares.values()):.1f} %."
    )


def apply_choice(recipe: Recipe, chosen: Mapping[str, Any]) -> Recipe:
    """The recipe with what a pilot chose (`Choice.to_dict`) and without the pilot."""
    options: dict[str, Any] = {"auto.pilot_rows": 0}
    if chosen["ratio"]:
        options["mix.replay_ratio"] = chosen["ratio"]
    else:
        options["arms"] = [PLAIN, *([INTERPOLATE] if INTERPOLATE in (recipe.arms or []) else [])]
        options["regrowth.tokens"] = 0
        options["data.general"] = ""  # nothing is replayed
        options["train.mixture.controller"] = "none"
    if chosen["quota"]:
        options |= {
            "grow.quota": chosen["quota"],
            "grow.topics": list(chosen["quota"]),
            "grow.topics_file": None,
            "grow.ask_topics": 0,
        }
    return parse_recipe(dump_recipe(recipe), file="auto", options=options)
