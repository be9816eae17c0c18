"""Skill-It's graph of skills, learned by training on one skill at a time (Chen et al. 2023, arXiv 2307.14430).

The approximate procedure: for each skill the model is trained for a few steps on that skill alone, and the loss on
held-out rows of every skill is measured before and after. It takes one short training a skill; the exact one takes one
for every pair. Training on skill i helps skill j by

    graph[i][j] = max(0, (before_j - after_ij) / before_j).

The authors' code for learning graphs is not released; the formula is remembered [M].
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from regrow.arms import PLAIN
from regrow.errors import DataError
from regrow.mix.config import MixConfig
from regrow.mix.skill_it import diagnosis
from regrow.probe.config import SkillsConfig
from regrow.progress import note
from regrow.rows.row import Row
from regrow.rows.writers import atomic_write_text
from regrow.train.config import TrainConfig

Losses = dict[str, float]


@dataclass(frozen=True)
class Skills:
    """What was measured; also in ``skills.json``.

    Attributes:
        skills: In the order of their first row.
        rows: Skill -> rows trained on and ``heldout``.
        steps: Optimizer steps of each training.
        before: Skill -> loss on its held-out rows, nats a token.
        after: Skill trained on -> skill -> loss.
        graph: Skill trained on -> skill -> relative drop; edges below ``min_drop`` and negative ones are 0.
        diagnosis: Why this graph cannot help; None when it can.
    """

    skills: list[str]
    rows: dict[str, dict[str, int]]
    steps: int
    before: Losses
    after: dict[str, Losses]
    graph: dict[str, Losses]
    diagnosis: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON shape."""
        return asdict(self)


def graph_of(
    before: Mapping[str, float], after: Mapping[str, Mapping[str, float]], min_drop: float
) -> dict[str, Losses]:
    """Relative drops of the losses; see the module.

    Args:
        before: Skill -> loss, above 0.
        after: Skill trained on -> skill -> loss.
        min_drop: A smaller drop is no edge.
    """
    drops = {i: {j: (before[j] - found[j]) / before[j] for j in before} for i, found in after.items()}
    return {i: {j: d if d > 0 and d >= min_drop else 0.0 for j, d in row.items()} for i, row in drops.items()}


def learn_graph(
    rows: Sequence[Row],
    model_dir: Path,
    cfg: SkillsConfig,
    mix: MixConfig,
    train: TrainConfig,
    out: Path,
    *,
    seed: int,
) -> Skills:
    """Train on each skill alone and measure all of them.

    Writes ``out/skills.json`` and ``out/graph.yaml``, a recipe that trains with the graph. A call that was killed goes
    on with the training it was at; the models are thrown away when they were measured.

    Args:
        rows: Labelled: a row's domain is its skill.
        model_dir: The model that every training starts from.
        cfg: Steps, held-out rows, smallest edge.
        mix: ``max_length``, ``system_prompt``, ``assistant_only_loss``.
        train: Method, rate, batch; its number of steps and its mixture are not used.
        out: A folder.
        seed: Which rows are held out, and the order of the others.

    Raises:
        DataError: Fewer than two skills, or one with fewer than four rows.
    """
    skills = list(dict.fromkeys(row.domain for row in rows))
    counts = Counter(row.domain for row in rows)
    small = [s for s in skills if counts[s] < 4]
    if len(skills) < 2 or small:
        what = f"skill '{small[0]}' has {counts[small[0]]} rows, it needs four" if small else "there is only one skill"
        raise DataError(what, where="data", hint="the `domain` column of a row names its skill")
    from regrow.train.mixture import hold_out

    heldout = hold_out([row.domain for row in rows], cfg.holdout_rows, seed)
    apart = {i for chosen in heldout.values() for i in chosen}
    watched = [rows[i] for chosen in heldout.values() for i in chosen]
    before: Losses = {}
    after: dict[str, Losses] = {}
    for number, skill in enumerate(skills):
        mine = [row for i, row in enumerate(rows) if row.domain == skill and i not in apart]
        folder = out / f"{number:03d}"
        before, after[skill] = _train_on(skill, mine, watched, model_dir, cfg, mix, train, folder, seed=seed)
    graph = graph_of(before, after, cfg.min_drop)
    sizes = {s: {"rows": counts[s] - len(heldout[s]), "heldout": len(heldout[s])} for s in skills}
    done = Skills(skills, sizes, cfg.steps, before, after, graph, diagnosis(graph))
    atomic_write_text(out / "skills.json", json.dumps(done.to_dict(), indent=1) + "\n")
    # The topics of replay are no skills of this graph, so the recipe trains without it.
    recipe = {"arms": [PLAIN], "train": {"mixture": {"controller": "skill-it", "graph": graph}}}
    atomic_write_text(out / "graph.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    return done


def _train_on(
    skill: str,
    rows: Sequence[Row],
    watched: Sequence[Row],
    model_dir: Path,
    cfg: SkillsConfig,
    mix_cfg: MixConfig,
    train_cfg: TrainConfig,
    folder: Path,
    *,
    seed: int,
) -> tuple[Losses, Losses]:
    """Losses on the watched rows before and after a training on ``rows``; kept in ``folder/losses.json``."""
    from regrow.mix.mixtures import WATCHED, MixtureSection
    from regrow.mix.parts import write_rows
    from regrow.mix.stage import mix
    from regrow.train.monitor import MONITOR
    from regrow.train.stage import train

    kept = folder / "losses.json"
    if kept.is_file():
        found = json.loads(kept.read_text(encoding="utf-8"))
        return found["before"], found["after"]
    note(f"training {cfg.steps} steps on '{skill}'")
    if not (folder / "mix/mix.json").is_file():
        tokens = write_rows(watched, model_dir, mix_cfg, folder / "mix" / WATCHED)
        for gone in sorted({row.domain for row in watched} - set(tokens)):
            raise DataError(
                f"no held-out row of skill '{gone}' can be used", where="data", hint="raise mix.max_length"
            )
        mix(rows, None, model_dir, mix_cfg, folder / "mix", seed=seed)
    once = MixtureSection(update_steps=cfg.steps)  # measured before the first step and after the last
    short = train_cfg.model_copy(update={"max_steps": cfg.steps, "mixture": once})
    train(model_dir, folder / "mix", short, folder / "train", seed=seed, label=skill)
    lines = (folder / "train" / MONITOR).read_text(encoding="utf-8").splitlines()
    first, last = (
        {k.removeprefix("heldout/"): v for k, v in json.loads(line).items() if k.startswith("heldout/")}
        for line in (lines[0], lines[-1])
    )
    atomic_write_text(kept, json.dumps({"before": first, "after": last}) + "\n")
    for name in ("mix", "train"):
        shutil.rmtree(folder / name)
    return first, last
