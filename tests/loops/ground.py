"""A corpus of three topics from the dummy engine, curated and mixed, for loops on the tiny model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrow.curate.config import CurateConfig
from regrow.curate.stage import curate
from regrow.engines.dummy import DummyEngine
from regrow.grow.config import GrowConfig
from regrow.grow.stage import grow
from regrow.loops.config import RegrowthConfig
from regrow.loops.regrowth import Grounds, train_with_regrowth
from regrow.mix.config import MixConfig
from regrow.mix.parts import write_watched
from regrow.mix.stage import mix
from regrow.models.load import load_tokenizer, resolve_model
from regrow.rows.row import Row
from regrow.train.config import TrainConfig

SEED = 5
TOPICS = ["bees", "iron", "law"]
GROW = GrowConfig(
    engine="dummy", encoder="none", topics=TOPICS, shape=[6, 1, 1, 1], dialogues=36,
    question={"max_new_tokens": 60}, answer={"max_new_tokens": [80]},
)  # fmt: skip
CURATE = CurateConfig(dedup_method="none", embedding_threshold=None, holdout_dialogues=2, watch_dialogues=2)
MIX = MixConfig(replay_ratio=0.8, max_length=256)
REGROWTH = RegrowthConfig(tokens=6000, every_steps=4, min_tokens=100)


def train_config(**more: Any) -> TrainConfig:
    mixture = {"controller": "forgetting", "update_steps": 2, "tilt": 1.0}
    settings: dict[str, Any] = {
        "num_train_epochs": 1, "per_device_train_batch_size": 2, "learning_rate": 3e-3, "save_steps": 3,
        "logging_steps": 2, "mixture": mixture, "max_length": 256,
    }  # fmt: skip
    return TrainConfig(**settings | more)


def script_the_measurements() -> None:
    """Bees are forgotten from the first step on, law as much until step 10, iron never."""
    from regrow.train import monitor

    def measure(self: Any, step: int) -> tuple[dict[str, float], dict[str, float]]:
        forgotten = {"bees": 0.1 * (step > 0), "law": 0.1 * (0 < step < 10)}
        kl = {domain: forgotten.get(domain, 0.0) for domain in self.documents}
        return dict.fromkeys(kl, 1.0), kl

    monitor.HeldOut.measure = measure  # type: ignore[method-assign]


def rows(n: int = 16) -> list[Row]:
    return [
        Row(
            id=f"mine{i}",
            messages=[
                {"role": "user", "content": f"What is the code of the box number {i}?"},
                {
                    "role": "assistant",
                    "content": f"Its code is {7 * i} and {11 * i}, its colour that of item {i}.",
                },
            ],
            domain="boxes",
        )
        for i in range(n)
    ]


@dataclass
class Ground:
    """Folders of a model, a grown and a curated corpus and a mix."""

    model: Path
    folder: Path

    @property
    def mix(self) -> Path:
        return self.folder / "mix"

    def grounds(self) -> Grounds:
        return Grounds(
            self.folder / "grown", self.folder / "corpus", GROW, CURATE,
            items=[], domain_rows=[], encoder=lambda: None,
            engine=DummyEngine(load_tokenizer(self.model), seed=SEED),
        )  # fmt: skip

    def go(self, out: Path, regrowth: RegrowthConfig = REGROWTH, **more: Any) -> Any:
        return train_with_regrowth(
            regrowth,
            resolve_model(str(self.model)),
            self.mix,
            MIX,
            train_config(**more),
            self.grounds(),
            out,
            seed=SEED,
        )


def lay_out(model: Path, folder: Path) -> Ground:
    """Grow, curate and mix."""
    ground = Ground(model, folder)
    engine = DummyEngine(load_tokenizer(model), seed=SEED)
    grow(GROW, resolve_model(str(model)), folder / "grown", seed=SEED, engine=engine)
    curate(folder / "grown", CURATE, folder / "corpus", items=[], domain_rows=[], encoder=None, seed=SEED)
    mix(rows(), folder / "corpus", model, MIX, ground.mix, seed=SEED)
    write_watched(folder / "corpus", rows(18)[16:], model, MIX, ground.mix)
    return ground
