"""Recipes with a monitor through the whole chain on a tiny model: regrowth, and the stability gap in three parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from regrow.cli import build_app
from regrow.errors import RecipeError
from regrow.pipeline import run
from regrow.recipe import load_recipe, parse_recipe
from tests.loops.ground import script_the_measurements

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "grow.engine=dummy", "grow.encoder=none", "grow.topics=[bees, law]", "curate.dedup_method=none",
    "curate.embedding_threshold=null", "evaluate.suites=[own-dialogues]", "evaluate.generate_samples=0",
    "evaluate.bootstrap=200", "evaluate.noise_floor=false", "train.learning_rate=3e-3",
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    rows = [
        {"prompt": f"What is item {i}?", "completion": ("It is a river." if i % 2 else f"xq {i} zj")}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_regrowth_through_the_chain(tiny_model_dir: Path, tmp_path: Path, data: Path, monkeypatch) -> None:
    from regrow.train import monitor

    monkeypatch.setattr(monitor.HeldOut, "measure", monitor.HeldOut.measure)
    script_the_measurements()
    sets = [
        f"model.model_name_or_path={tiny_model_dir}", f"data.path={data}", "compare=false", "grow.dialogues=30",
        "grow.shape=8,1", "mix.replay_ratio=0.7", "curate.watch_dialogues=2", "train.num_train_epochs=1",
        "train.mixture.controller=forgetting", "train.mixture.tilt=1.0", "train.mixture.update_steps=2",
        "train.per_device_train_batch_size=4", "regrowth.tokens=2000", "regrowth.every_steps=2",
        "regrowth.min_tokens=50",
    ]  # fmt: skip
    recipe = parse_recipe("", overrides=[*SMALL, *sets])
    done = run(recipe, tmp_path / "run")
    told = json.loads((done.path / "train/regrow/regrowth.json").read_text())
    assert told["spent"] > 0 and set(told["grown"]) <= {"bees", "law"}
    shown = CliRunner().invoke(build_app(), ["show", str(done.path)])
    assert shown.exit_code == 0 and "while training" in shown.output and "bees" in shown.output
    again = run(recipe, tmp_path / "run")
    manifest = json.loads((again.path / "manifest.json").read_text())
    assert manifest["stages"]["train/regrow"]["inputs"]["regrowth.tokens"] == 2000


def test_the_three_part_recipe(tiny_model_dir: Path, tmp_path: Path, data: Path) -> None:
    reference = tmp_path / "good.txt"
    reference.write_text("It is a river.\n\nIt is a lake.\n\nWhat is a river? It is water.")
    sets = [
        f"model.model_name_or_path={tiny_model_dir}", f"data.path={data}", f"data.quality.reference={reference}",
        "grow.tokens=4000",
    ]  # fmt: skip
    recipe = load_recipe(ROOT / "examples/stability_gap.yaml", [*SMALL, *sets])
    done = run(recipe, tmp_path / "run")
    trained = (done.path / "data/train.jsonl").read_text().splitlines()
    facts = json.loads((done.path / "manifest.json").read_text())["stages"]["data"]["facts"]
    assert len(trained) == 8 and facts["less_like_the_reference"] == 22 and facts["heldout"] == 10
    assert all("river" in line for line in trained), "the sub-corpus is the part that reads like the reference"
    mixed = json.loads((done.path / "mix/regrow/mix.json").read_text())
    assert mixed["domain"]["rows"] == 4 * len(trained), "a subset, several times over"
    assert mixed["realised"]["tokens"] == pytest.approx(0.18, abs=0.05)
    for arm in ("sft", "regrow"):
        gaps = json.loads((done.path / f"train/{arm}/train.json").read_text())["gaps"]
        assert {"bees", "law"} < set(gaps) and all(gap["dip"] >= 0 for gap in gaps.values())
    assert "Stability gap by model and domain" in done.report.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("regrowth: {tokens: 5}", "controller: forgetting"),
        ("train: {mixture: {controller: forgetting}}", "watch_dialogues"),
        ("curate: {watch_dialogues: 2}\ntrain: {mixture: {controller: forgetting, by: source}}", "by: source"),
    ],
)
def test_what_regrowth_needs_is_named(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_recipe(text)
