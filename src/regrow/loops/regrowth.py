"""Regrowth on demand: a training that stops now and then to have more grown of what it is forgetting. Ours.

Round after round, until the budget is spent or the training is over:

1. **Train** until enough is missing (see 2). Meanwhile the monitor measures the watched dialogues of each topic, and
   the controller ``forgetting`` gives topics their share of the replay slots (`regrow.mix.forgetting`).
2. **Ask** what the rest of the training will draw of each topic whose share has risen, beyond what no step has seen
yet
   (`regrow.mix.forgetting.missing`). Without more branches this much would be repeated.
3. **Grow** it, as far as the budget goes, out of the original model: new trees in the corpus's own store.
4. **Curate** the whole corpus by the same rules. What was held out stays held out; a new turn that repeats an old
one, a
   held-out one, an evaluation item or a row of yours goes.
5. **Join**: the dialogues that are left are a part of the stream from this step on. Nothing that was laid out moves.

Each step of a round leaves a file when it is done and is itself resumed when it was cut off, so a killed loop goes
on with nothing lost or doubled and ends with the same weights.
"""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.curate.config import CurateConfig
from regrow.grow.config import GrowConfig
from regrow.loops.config import RegrowthConfig
from regrow.mix.config import MixConfig
from regrow.mix.mixtures import WATCHED
from regrow.progress import note
from regrow.train.config import TrainConfig

if TYPE_CHECKING:
    from regrow.curate.decontaminate import Encodes
    from regrow.engines.base import Engine
    from regrow.evaluate.items import Item
    from regrow.models.load import ResolvedModel
    from regrow.recipe import Recipe
    from regrow.rows.row import Row
    from regrow.train.pause import Part, Paused
    from regrow.train.summary import TrainSummary

SUMMARY = "regrowth.json"
WATCH_DEFAULT = 8
"""Dialogues of each topic that are watched when nothing says how many; about a thousand tokens."""
MIX = "train.parquet"
ROWS, PLAN, ROUND = "rows.parquet", "plan.json", "round.json"


@dataclass(frozen=True)
class Grounds:
    """What a corpus was made with, and must be made with again.

    Attributes:
        grown, corpus: The folders of the grown and of the curated corpus.
        grow, curate: Their settings.
        items, domain_rows, encoder: What curation compares with.
        engine: What samples; made from ``grow.engine`` by default.
        made_of: Hashes of the corpus and of the items, by which a finished training is known to be of them.
    """

    grown: Path
    corpus: Path
    grow: GrowConfig
    curate: CurateConfig
    items: Sequence[Item]
    domain_rows: Sequence[Row]
    encoder: Callable[[], Encodes | None]
    engine: Engine | None = None
    made_of: tuple[str, ...] = ()


def train_with_regrowth(
    cfg: RegrowthConfig,
    model: ResolvedModel,
    mix_dir: Path,
    mix_cfg: MixConfig,
    train_cfg: TrainConfig,
    grounds: Grounds,
    out: Path,
    *,
    seed: int,
    label: str = "regrow",
) -> TrainSummary:
    """Train on a mix, with its replay slots dealt by what is being forgotten and filled up by regrowth.

    Writes what `regrow.train.stage.train` writes, and ``out/regrowth``: the store and the corpus grown on, a folder
    for each round (``plan.json``: what was asked for and why, ``rows.parquet``: what joined, ``round.json``), and
    ``regrowth.json``. Dialogues of the corpus that the mix did not choose are there from the first step, so that
    nothing is grown that lies unused. A mix without replay of a watched topic, as a small ratio of little data gives,
    is trained as by `regrow.train.stage.train`.

    Args:
        cfg: Budget and rounds.
        model: The original model, of which more is grown; training starts from it too.
        mix_dir: A mix with ``watched.parquet``.
        mix_cfg, train_cfg: As the mix was made, and how to train on it.
        grounds: The corpus.
        out: Result folder.
        seed: As in the stages.
        label: Shown in the progress.
    """
    from regrow.mix.parts import write_part
    from regrow.train.pause import Paused, Stop
    from regrow.train.stage import train, train_until

    if not _can_follow(mix_dir):
        note(f"training {label}: its mix has no replay of a watched topic, so it is trained as without regrowth")
        still = train_cfg.mixture.model_copy(update={"controller": "none"})
        alone = train_cfg.model_copy(update={"mixture": still})
        return train(model.path, mix_dir, alone, out, seed=seed, label=label)
    folder = out / "regrowth"
    state = _Rounds(cfg, model, mix_cfg, train_cfg, grounds, folder, mix_dir, seed)
    parts: list[Part] = []
    first = folder / "00"
    if not (first / ROUND).is_file():
        _tell_what_is_out(grounds.corpus, mix_dir, label)
        used = {row.rpartition("#")[0] or row for row in _column(mix_dir / MIX, "id")}
        rest = _dialogues(grounds.corpus) - used
        tokens = write_part(grounds.corpus, model.path, mix_cfg, first / ROWS, only=rest) if rest else Counter()
        _write(first / ROUND, {"joined": dict(tokens), "grown": {}, "after_step": 0})
    parts += _part(first, 0)
    number = step = 0
    done: TrainSummary | Paused | None = None
    while state.left() > 0:
        number += 1
        here = folder / f"{number:02d}"
        if not (here / ROUND).is_file():
            if not (here / PLAN).is_file():
                stop = Stop(cfg.every_steps, step, cfg.min_tokens)
                done = train_until(model.path, mix_dir, train_cfg, out, seed=seed, label=label, parts=parts, stop=stop)
                if not isinstance(done, Paused):
                    break
                _write(here / PLAN, state.plan(done, parts))
                gc.collect()  # the trainer refers to itself, and the next model needs the room
            state.grow(here, number)
        state.finished.append(_read(here / ROUND))
        step = int(state.finished[-1]["after_step"])
        parts += _part(here, step)
    if done is None or isinstance(done, Paused):
        done = train_until(model.path, mix_dir, train_cfg, out, seed=seed, label=label, parts=parts)
    assert not isinstance(done, Paused)
    _write(out / SUMMARY, state.summary(done.realised, _read(first / ROUND)["joined"]))
    return done


class _Rounds:
    """The rounds of one training."""

    def __init__(
        self,
        cfg: RegrowthConfig,
        model: ResolvedModel,
        mix_cfg: MixConfig,
        train_cfg: TrainConfig,
        grounds: Grounds,
        folder: Path,
        mix_dir: Path,
        seed: int,
    ) -> None:
        self.cfg, self.model, self.mix_cfg, self.train_cfg = cfg, model, mix_cfg, train_cfg
        self.grounds, self.folder, self.mix_dir, self.seed = grounds, folder, mix_dir, seed
        self.finished: list[dict[str, Any]] = []

    def left(self) -> int:
        """Tokens of the budget that no round has spent."""
        return self.cfg.tokens - sum(sum(r["grown"].values()) for r in self.finished)

    def plan(self, paused: Paused, parts: Sequence[Part]) -> dict[str, Any]:
        """What a round asks for: missing tokens as dialogues of the topic's mean length in the stream."""
        rows, tokens = Counter[str](), Counter[str]()
        for path in [self.mix_dir / MIX, *(part.path for part in parts)]:
            columns = (_column(path, name) for name in ("source", "domain", "n_tokens"))
            for source, topic, n in zip(*columns, strict=True):
                if source == "replay":
                    rows[topic] += 1
                    tokens[topic] += n
        wanted = {t: math.ceil(n * rows[t] / tokens[t]) for t, n in paused.missing.items() if n > 0}
        return {"paused": paused.to_dict(), "dialogues": wanted, "tokens": self.left()}

    def grow(self, here: Path, number: int) -> None:
        """Grow, curate and lay out what a round's plan asks for."""
        from regrow.curate.stage import curate
        from regrow.grow.more import grow_more
        from regrow.grow.store import STORE_NAME, copy_store
        from regrow.mix.parts import write_part

        plan, ground = _read(here / PLAN), self.grounds
        step = plan["paused"]["step"]
        told = ", ".join(f"{n} of {topic}" for topic, n in plan["dialogues"].items())
        note(f"regrowth after step {step}: {told} (at most {plan['tokens']:,} tokens)")
        grown, encoder = self.folder / "grown", ground.encoder()
        if not (grown / STORE_NAME).is_file():
            copy_store(ground.grown, grown)
        added = grow_more(
            ground.grow,
            self.model,
            grown,
            order=f"{number:02d}",
            dialogues=plan["dialogues"],
            tokens=plan["tokens"],
            seed=self.seed,
            engine=ground.engine,
            encoder=encoder if ground.grow.encoder != "none" else None,
        )
        corpus = self.folder / "corpus"
        curate(
            grown,
            ground.curate,
            corpus,
            items=ground.items,
            domain_rows=ground.domain_rows,
            encoder=encoder,
            seed=self.seed,
            earlier=ground.corpus,
        )
        new = _dialogues(corpus, first_tree=added.first_tree)
        joined = write_part(corpus, self.model.path, self.mix_cfg, here / ROWS, only=new) if new else Counter[str]()
        _write(here / ROUND, {"joined": dict(joined), "grown": added.tokens, "after_step": step})

    def summary(self, drawn: Mapping[str, int], unused: Mapping[str, int]) -> dict[str, Any]:
        """What ``regrowth.json`` says: budget, tokens by topic grown, joined (as rows of the stream) and drawn,
        rounds."""
        grown, joined = Counter[str](), Counter[str](unused)
        for finished in self.finished:
            grown.update(finished["grown"])
            joined.update(finished["joined"])
        return {
            "budget": self.cfg.tokens,
            "spent": sum(grown.values()),
            "grown": dict(sorted(grown.items())),
            "joined": dict(sorted(joined.items())),
            "unused_before": dict(sorted(unused.items())),
            "drawn": dict(drawn),
            "rounds": self.finished,
            "config": self.cfg.model_dump(mode="json"),
        }


def with_regrown(recipe: Recipe, tokens: int) -> Recipe:
    """The recipe of a sweep with a regrown model beside each ratio, and dialogues to watch when it has none.

    Args:
        recipe: A sweep.
        tokens: Budget of each of them.

    Raises:
        RecipeError: It is no sweep, or decides its mixture otherwise.
    """
    from regrow.recipe import dump_recipe, parse_recipe

    watch = recipe.curate.watch_dialogues or WATCH_DEFAULT
    options = {"sweep.regrown": True, "regrowth.tokens": tokens, "curate.watch_dialogues": watch}
    return parse_recipe(dump_recipe(recipe), file="regrown", options=options)


def regrown_tokens(train_dir: Path) -> int:
    """Tokens that `train_with_regrowth` had grown while it trained into this folder; 0 where it could not follow."""
    return int(_read(train_dir / SUMMARY)["spent"]) if (train_dir / SUMMARY).is_file() else 0


def _can_follow(mix_dir: Path) -> bool:
    """Whether a mix has replay of a topic that is watched."""
    mixed = zip(_column(mix_dir / MIX, "source"), _column(mix_dir / MIX, "domain"), strict=True)
    return bool({topic for source, topic in mixed if source == "replay"} & set(_column(mix_dir / WATCHED, "domain")))


def _tell_what_is_out(corpus: Path, mix_dir: Path, label: str) -> None:
    """Say which topics of the corpus a small mix is without: they have no share that could rise."""
    from regrow.grow.corpus import read_dialogues

    every = {d.topic for d in read_dialogues(corpus)}
    if gone := sorted(every - set(_column(mix_dir / MIX, "domain"))):
        shown = ", ".join(gone[:4]) + (", ..." if len(gone) > 4 else "")
        note(f"training {label}: its mix has none of {len(gone)} of {len(every)} topics ({shown}), so their "
             "forgetting is neither followed nor made good")  # fmt: skip


def _part(folder: Path, step: int) -> list[Part]:
    from regrow.train.pause import Part

    return [Part(folder / ROWS, step)] if (folder / ROWS).is_file() else []


def _dialogues(corpus: Path, *, first_tree: int = 0) -> set[str]:
    from regrow.grow.corpus import read_dialogues

    return {d.id for d in read_dialogues(corpus) if d.tree >= first_tree}


def _column(path: Path, name: str) -> list[Any]:
    import pyarrow.parquet as pq

    found: list[Any] = pq.read_table(path, columns=[name])[name].to_pylist()
    return found


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _write(path: Path, value: Mapping[str, Any]) -> None:
    from regrow.rows.writers import atomic_write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
