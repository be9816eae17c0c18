"""A gradual fine-tuning that is killed with SIGKILL, really: it ends as an uninterrupted one, nothing done twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import regrow.engines.choose
from regrow.loops.gradual import run_gradual
from tests.loops.mastered import ARMS, LABELS, World, lines, parts, read, recipe, world_of
from tests.train.helpers import largest_difference


def doomed(model: Path, facts_file: Path, out: Path, where: str) -> None:
    """What the child does until it is killed."""
    import regrow.loops.epochs as epochs
    import regrow.train.trainer as trainer

    def die(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    world = world_of(facts_file)
    regrow.engines.choose.make_engine = world.make_engine
    if where == "while classifying again":
        make = world.make_engine

        def mortal(name: str, model: Any, **options: Any) -> Any:
            engine = make(name, model, **options)
            if world.name(model.path) == "stage1":
                engine.sample = _after(engine.sample, 2, die)
            return engine

        regrow.engines.choose.make_engine = mortal
    elif where == "between the model and its mark":
        epochs.atomic_write_text = die  # type: ignore[assignment]
    elif where == "in the training of stage 2":
        save = trainer.SFTTrainer._save_checkpoint
        trainer.SFTTrainer._save_checkpoint = lambda self, *a: (
            die() if "stage2" in self.args.output_dir and self.state.global_step > 2 else save(self, *a)
        )
    run_gradual(recipe(model), facts_file, out)


def _after(call: Any, n: int, die: Any) -> Any:
    left = [n]

    def counted(*args: Any) -> Any:
        left[0] -= 1
        return die() if left[0] < 0 else call(*args)

    return counted


@pytest.mark.parametrize(
    ("where", "trained"),
    [
        pytest.param("while classifying again", ["stage2", "one-stage"], marks=pytest.mark.slow),
        ("between the model and its mark", ["stage1", "stage2", "one-stage"]),
        pytest.param("in the training of stage 2", ["stage2", "one-stage"], marks=pytest.mark.slow),
    ],
)
def test_killed_and_continued_equals_uninterrupted(
    where: str, trained: list[str], whole_gradual: tuple[Path, World], facts_file: Path, tiny_model_dir: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import regrow.train.stage as stage

    out = tmp_path / "run"
    child = multiprocessing.get_context("spawn").Process(target=doomed, args=(tiny_model_dir, facts_file, out, where))
    child.start()
    child.join(300)
    assert child.exitcode == -signal.SIGKILL
    world, real, labelled = world_of(facts_file), stage.train, []
    monkeypatch.setattr(regrow.engines.choose, "make_engine", world.make_engine)
    monkeypatch.setattr(stage, "train", lambda *a, label, **k: (labelled.append(label), real(*a, label=label, **k))[1])
    ledger = out / "labels/stage1/ledger.jsonl"
    answered = {x["item"] for x in lines(ledger)} if ledger.is_file() else set()
    run_gradual(recipe(tiny_model_dir), facts_file, out)
    assert labelled == trained, "what was finished is not done again"
    assert _timeless(read(out / "gradual.json")) == _timeless(read(whole_gradual[0] / "gradual.json"))
    for name in LABELS:
        assert (out / f"labels/{name}/prompts.jsonl").read_bytes() == (
            whole_gradual[0] / f"labels/{name}/prompts.jsonl"
        ).read_bytes()
    for arm in ARMS:
        assert largest_difference(out / arm / "model", whole_gradual[0] / arm / "model") == 0
        assert (out / arm / "ledger.jsonl").read_bytes() == (whole_gradual[0] / arm / "ledger.jsonl").read_bytes()
    if where == "while classifying again":
        assert len(answered) == 10, "two batches"
        train = parts(out)["train"]
        again = {a.fact for a in world.asked if a.model == "stage1" and a.greedy and a.fact in train}
        assert again == train - answered, "what stood in the ledger is not asked again"
        assert not [a for a in world.asked if a.model == "base" and a.fact in train]


def _timeless(told: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in told.items() if k != "model"}
