"""`regrow sweep --regrown`: beside each ratio a model whose replay grows on where its training forgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from regrow import api
from regrow.arms import at_ratio, is_general, is_grown, is_regrown, main_arm, ratio_in, replay_text, source_of
from regrow.cli import build_app
from regrow.cost import estimate
from regrow.errors import RecipeError
from regrow.loops.regrowth import WATCH_DEFAULT, with_regrown
from regrow.pipeline import run
from regrow.plan import pairs, planned
from regrow.recipe import Recipe, load_recipe, parse_recipe
from regrow.report.load import load_run
from regrow.report.sweep import sweep
from regrow.runs import read_manifest
from tests.loops.ground import script_the_measurements
from tests.pipeline.test_loops import SMALL

ARMS = ["sft", "replay-0.01", "replay-0.5", "replay-0.7", "regrown-0.01", "regrown-0.5", "regrown-0.7"]
BUDGET = 1500


def invoke(*words: str) -> str:
    done = CliRunner().invoke(build_app(), list(words))
    assert done.exit_code == 0, done.exception
    return done.stdout


@pytest.fixture(scope="module")
def finished(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    from regrow.train import monitor

    made = tmp_path_factory.mktemp("regrown")
    rows = [
        {"prompt": f"What is item {i}?", "completion": "It is a river." if i % 2 else f"xq {i}"} for i in range(40)
    ]
    (made / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    sets = [
        *SMALL, "evaluate.suites=[own-dialogues, heldout]", "grow.dialogues=30", "grow.shape=[8,1]",
        "curate.watch_dialogues=2", "train.num_train_epochs=1", "train.mixture.tilt=1.0",
        "train.mixture.update_steps=2", "train.per_device_train_batch_size=4", "regrowth.every_steps=2",
        "regrowth.min_tokens=50",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor.HeldOut, "measure", monitor.HeldOut.measure)
        script_the_measurements()
        said = invoke(
            "sweep", str(tiny_model_dir), str(made / "mine.jsonl"), "-o", str(made / "run"),
            "--replay-ratios", "0,0.01,0.5,0.7", "--regrown", str(BUDGET), *(x for s in sets for x in ("--set", s)),
        )  # fmt: skip
    return made / "run", said


def facts(out: Path, arm: str) -> dict[str, Any]:
    found: dict[str, Any] = read_manifest(out)["stages"][f"train/{arm}"]["facts"]
    return found


def test_the_regrown_arm_has_the_mix_of_its_ratio_and_grows_on(finished: tuple[Path, str]) -> None:
    out, _ = finished
    recipe = load_recipe(out / "recipe.yaml")
    assert list(recipe.arm_ratios()) == ARMS and recipe.sweep.regrown and recipe.regrowth.tokens == BUDGET
    for ratio in ("0.5", "0.7"):
        fixed, moved = (pq.read_table(out / f"mix/{a}-{ratio}/train.parquet") for a in ("replay", "regrown"))
        assert fixed.equals(moved)
        told = json.loads((out / f"train/regrown-{ratio}/regrowth.json").read_text())
        assert told["spent"] <= BUDGET and facts(out, f"regrown-{ratio}")["regrown_tokens"] == told["spent"]
        mixed = json.loads((out / f"mix/replay-{ratio}/mix.json").read_text())
        assert sum(told["drawn"].values()) == pytest.approx(mixed["replay"]["tokens"], rel=0.05), "equal tokens"
        assert not (out / f"train/replay-{ratio}/regrowth.json").exists()
    assert facts(out, "regrown-0.7")["regrown_tokens"] > 0, "a smaller ratio has the dialogues that the largest needs"
    assert "regrown_tokens" not in facts(out, "replay-0.5")
    asked = [json.loads(x) for x in (out / "train/regrown-0.7/monitor.jsonl").read_text().splitlines()]
    still = [json.loads(x) for x in (out / "train/replay-0.7/monitor.jsonl").read_text().splitlines()]
    assert any("asked/bees" in line for line in asked) and not any("asked/bees" in line for line in still)


def test_a_ratio_too_small_for_a_dialogue_has_nothing_to_follow(finished: tuple[Path, str]) -> None:
    out, _ = finished
    assert json.loads((out / "mix/regrown-0.01/mix.json").read_text())["replay"]["rows"] == 0
    assert facts(out, "regrown-0.01")["regrown_tokens"] == 0
    weights = ((out / f"train/{arm}/model/model.safetensors").read_bytes() for arm in ("sft", "regrown-0.01"))
    assert next(weights) == next(weights)


def test_it_is_set_beside_its_ratio_and_not_recommended(finished: tuple[Path, str]) -> None:
    out, said = finished
    results = json.loads((out / "eval/results.json").read_text())
    found = results["sweep"]["arms"]
    assert list(found) == ARMS
    assert [x["source"] for x in found.values()] == ["grown"] * 4 + ["regrown"] * 3
    assert found["regrown-0.7"]["above"]["than"] == "replay-0.7"
    assert not any(x["above"]["than"].startswith("regrown") for x in found.values())
    three = [(f"replay-{r}", f"regrown-{r}", "regrown") for r in (0.01, 0.5, 0.7)]
    assert [(p["grown"], p["other"], p["source"]) for p in results["sources"]] == three
    for pair in results["sources"]:
        assert pair["regrown"] == facts(out, pair["other"])["regrown_tokens"]
        assert f"{pair['regrown']:,} tokens more grown for it" in pair["sentence"] and pair["sentence"] in said
    page = sweep(load_run(out))
    assert page is not None and page["rows"][-1]["ratio"] == "70\N{NO-BREAK SPACE}% regrown"
    assert "70\N{NO-BREAK SPACE}% replay, regrown" in (out / "report.html").read_text(encoding="utf-8")
    card = (out / "train/regrown-0.7/model/README.md").read_text()
    assert "tokens regrown while it trained" in card
    assert "tokens regrown while it trained" not in (out / "train/replay-0.7/model/README.md").read_text()


def test_its_budget_is_in_the_cost(finished: tuple[Path, str]) -> None:
    recipe = load_recipe(finished[0] / "recipe.yaml")
    without = parse_recipe((finished[0] / "recipe.yaml").read_text(), options={"sweep.regrown": False,
                                                                              "regrowth.tokens": 0})  # fmt: skip
    assert estimate(recipe).grown_tokens == pytest.approx(estimate(without).grown_tokens + 3 * BUDGET, abs=5)


def test_the_flag_and_the_function_make_one_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Recipe] = []
    monkeypatch.setattr(api, "_run", lambda recipe, *_, **__: seen.append(recipe))
    api.sweep("smollm2", "demo", tmp_path, replay_ratios=(0, 0.1), regrown=700)
    (recipe,) = seen
    assert recipe == with_regrown(parse_recipe("sweep: {replay_ratios: [0, 0.1]}", options={
        "model.model_name_or_path": "smollm2", "data.path": "demo"}), 700)  # fmt: skip
    assert recipe.curate.watch_dialogues == WATCH_DEFAULT
    controllers = [recipe.train_of(arm).mixture.controller for arm in ("replay-0.1", "regrown-0.1")]
    assert controllers == ["none", "forgetting"]
    kept = with_regrown(parse_recipe("{sweep: {replay_ratios: [0, 0.1]}, curate: {watch_dialogues: 3}}"), 700)
    assert kept.curate.watch_dialogues == 3
    assert planned(recipe)[-3:] == ["mix/regrown-0.1", "train/regrown-0.1", "eval"]
    assert pairs(recipe.arm_ratios()) == [("replay-0.1", "regrown-0.1")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{sweep: {regrown: true}, regrowth: {tokens: 9}, curate: {watch_dialogues: 2}}", "name sweep.replay_ratios"),
        ("{sweep: {regrown: true, replay_ratios: [0, 0.1]}}", "regrowth.tokens"),
        ("{sweep: {replay_ratios: [0, 0.1]}, regrowth: {tokens: 9}}", "in a sweep: sweep.regrown"),
        ("{sweep: {regrown: true, replay_ratios: [0, 0.1]}, regrowth: {tokens: 9}}", "curate.watch_dialogues"),
        ("{sweep: {regrown: true, replay_ratios: [0, 0.1]}, regrowth: {tokens: 9}, curate: {watch_dialogues: 2}, "
         "train: {mixture: {controller: uniform}}}", "fixed ratio"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(text: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        parse_recipe(text)


def test_names() -> None:
    assert at_ratio(0.2, "regrown") == "regrown-0.2" and at_ratio(0.0, "regrown") == "sft"
    assert is_regrown("regrown-0.2") and ratio_in("regrown-0.2") == 0.2
    assert not is_regrown("regrow") and not is_regrown("regrown-x")
    assert not is_grown("regrown-0.2") and not is_general("regrown-0.2")
    assert [source_of(a) for a in ("base", "regrow", "after", "general")] == [None, "grown", "grown", "general"]
    assert main_arm(["base", "sft", "replay-0.2", "regrown-0.2"]) == "replay-0.2"
    assert replay_text("regrown-0.2") == "replay, regrown" and replay_text("replay-0.2") == "replay"


def test_a_run_of_it_is_resumed_with_nothing_redone(finished: tuple[Path, str]) -> None:
    before = read_manifest(finished[0])["stages"]
    run(load_recipe(finished[0] / "recipe.yaml"), finished[0])
    assert read_manifest(finished[0])["stages"] == before


def test_other_items_train_a_regrown_arm_again(finished: tuple[Path, str]) -> None:
    """What it grew was compared with the items there were."""
    inputs = read_manifest(finished[0])["stages"]
    made_of = [inputs[name]["output_hash"] for name in ("grow", "corpus", "suites")]
    assert inputs["train/regrown-0.7"]["inputs"]["grounds"] == made_of
    assert "grounds" not in inputs["train/replay-0.7"]["inputs"]


def test_several_processes_are_refused_before_anything_is_spent(finished: tuple[Path, str], tmp_path: Path) -> None:
    recipe = parse_recipe((finished[0] / "recipe.yaml").read_text(), options={"train.launch.num_processes": 2})
    with pytest.raises(RecipeError, match="single process"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run/data").exists()
