"""`regrow sweep` on a tiny model, from the command line to the page."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from regrow.chat import models_of
from regrow.cli import build_app
from regrow.cost import estimate
from regrow.errors import RecipeError, RunError
from regrow.pipeline import run
from regrow.recipe import load_recipe, parse_recipe
from regrow.runs import read_manifest

ARMS = {"sft": 0.0, "replay-0.1": 0.1, "replay-0.3": 0.3}


RECIPE = """
seed: 3
model: {{ model_name_or_path: "{model}" }}
data: {{ path: "{data}", test_size: 8 }}
grow: {{ engine: dummy, encoder: none, turns: 1, topics: [rivers, birds] }}
curate: {{ dedup_method: minhash, embedding_threshold: null, holdout_dialogues: 4 }}
train: {{ num_train_epochs: 1, learning_rate: 1.0e-3, replay_loss: hard }}
evaluate: {{ suites: [own-dialogues, heldout], generate_samples: 0, bootstrap: 200, noise_floor: false }}
"""


def command(folder: Path, out: Path, *more: str) -> list[str]:
    """The command as a user types it; the recipe holds what makes it small."""
    files = ["--recipe", str(folder / "small.yaml"), "-o", str(out)]
    model = load_recipe(folder / "small.yaml").model.model_name_or_path
    return ["sweep", model, str(folder / "mine.jsonl"), *files, *more]


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sweep")
    rows = [
        {"prompt": f"What does function {i} of calendar return?", "completion": f"A list of {i} weeks."}
        for i in range(48)
    ]
    (made / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (made / "small.yaml").write_text(RECIPE.format(model=tiny_model_dir, data=made / "mine.jsonl"))
    return made


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Path, str]:
    out = folder / "run"
    done = CliRunner().invoke(build_app(), command(folder, out, "--replay-ratios", "0.3,0,0.1"))
    assert done.exit_code == 0, done.exception
    return out, done.stdout


def rows_of(out: Path, arm: str) -> list[dict]:
    return pq.read_table(out / f"mix/{arm}/train.parquet", columns=["id", "source", "n_tokens"]).to_pylist()


def test_every_ratio_is_a_model_of_one_evaluation(finished):
    out, said = finished
    manifest = read_manifest(out)
    assert list(manifest["models"]) == ["base", *ARMS] == list(models_of(out))
    results = json.loads((out / "eval/results.json").read_text())
    assert results["arms"] == ["base", *ARMS]
    assert list(results["sweep"]["arms"]) == list(ARMS)
    assert results["sweep"]["sentence"] in said
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'id="sweep"' in page and "10\N{NO-BREAK SPACE}% replay" in page
    assert "10 % replay" in (out / "train/replay-0.1/model/README.md").read_text()


def test_tokens_counted_in_each_mix_are_the_ratio_asked(finished):
    out, _ = finished
    for arm, ratio in ARMS.items():
        rows = rows_of(out, arm)
        replay = [r["n_tokens"] for r in rows if r["source"] == "replay"]
        domain = sum(r["n_tokens"] for r in rows if r["source"] == "domain")
        longest = max(r["n_tokens"] for r in rows_of(out, "replay-0.3") if r["source"] == "replay")
        assert abs(sum(replay) - domain * ratio / (1 - ratio)) <= longest / 2
        assert bool(replay) == bool(ratio)


def test_the_corpus_is_enough_for_the_largest_ratio_and_mixes_are_nested(finished):
    out, _ = finished

    def ids(arm: str, source: str) -> list[str]:
        return [r["id"] for r in rows_of(out, arm) if r["source"] == source]

    small, large = (ids(arm, "replay") for arm in ("replay-0.1", "replay-0.3"))
    assert len(set(large)) == len(large) > len(small) > 0 and large[: len(small)] == small
    assert ids("sft", "domain") == ids("replay-0.1", "domain") == ids("replay-0.3", "domain")


def test_another_list_redoes_only_what_is_new(folder, finished, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy)
    before = (copy / "eval/scores.jsonl").read_text()
    recipe = load_recipe(copy / "recipe.yaml", ["sweep.replay_ratios=[0, 0.2, 0.3]"])
    result = run(recipe, copy)
    said = capsys.readouterr().err
    for stage in ("data", "suites", "grow", "corpus", "mix/sft", "train/sft", "mix/replay-0.3", "train/replay-0.3"):
        assert f"{stage}: unchanged" in said
    assert "eval: done anew" in said and "replay-0.2: unchanged" not in said
    assert result.results["arms"] == ["base", "sft", "replay-0.2", "replay-0.3"]
    after = (copy / "eval/scores.jsonl").read_text()
    assert after.startswith(before), "what was scored stays"
    added = {json.loads(line)["pass"] for line in after.removeprefix(before).splitlines()}
    assert added and added.isdisjoint(json.loads(line)["pass"] for line in before.splitlines()), "only the new model"


def test_a_margin_that_allows_more_recommends_less(finished, tmp_path):
    """On a model this small nothing is learned or kept; only that the setting reaches the rule is seen."""
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy)
    recipe = load_recipe(copy / "recipe.yaml", ["sweep.margin_nats=50"])
    sweep = run(recipe, copy).results["sweep"]
    assert sweep["on"]["forgetting"] == {"suite": "own-dialogues", "unit": "nats", "margin": 50} and all(
        x["keeps"] for x in sweep["arms"].values()
    )


def test_equal_tokens_repeats_rows_in_place_of_replay(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy)
    run(load_recipe(copy / "recipe.yaml", ["sweep.equal_tokens=true"]), copy)
    totals = {arm: sum(r["n_tokens"] for r in rows_of(copy, arm)) for arm in ARMS}
    longest = max(r["n_tokens"] for r in rows_of(copy, "replay-0.3"))
    assert max(totals.values()) - min(totals.values()) <= 2 * longest
    assert len(rows_of(copy, "sft")) == round(40 / 0.7)


def test_the_cost_counts_every_model(folder):
    cost = estimate(load_recipe(folder / "small.yaml", ["sweep.replay_ratios=[0, 0.1, 0.3]"]))
    assert cost.train_tokens == {arm: int(cost.domain_tokens / (1 - ratio)) for arm, ratio in ARMS.items()}
    assert cost.replay_tokens == pytest.approx(cost.domain_tokens * 0.3 / 0.7, abs=1)


def test_export_does_not_choose_among_ratios(finished, tmp_path):
    import regrow

    with pytest.raises(RunError, match="several models"):
        regrow.export(finished[0], tmp_path / "x", to="merged")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweep: {replay_ratios: [0.1, 0.2]}", "needs 0"),
        ("sweep: {replay_ratios: [0]}", "one ratio more"),
        ("sweep: {replay_ratios: [0, 0.2, 0.2]}", "stands twice"),
        ("sweep: {replay_ratios: [0, 1.0]}", "less than 1"),
        ("{sweep: {replay_ratios: [0, 0.2]}, arms: [sft]}", "leave arms"),
        ("{sweep: {replay_ratios: [0, 0.2]}, compare: false}", "leave arms"),
        (
            "{sweep: {replay_ratios: [0, 0.2]}, curate: {watch_dialogues: 8}, "
            "train: {mixture: {controller: forgetting}}}",
            "fixed ratios",
        ),
        ("{sweep: {replay_ratios: [0, 0.2], equal_tokens: true}, mix: {replay_unit: rows}}", "counts tokens"),
    ],
)
def test_what_makes_no_sweep_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(text)


def test_passes_over_your_data_at_equal_tokens():
    recipe = parse_recipe("{sweep: {replay_ratios: [0, 0.2, 0.5], equal_tokens: true}, train: {num_train_epochs: 2}}")
    assert {a: recipe.epochs_of(a) for a in recipe.arm_ratios()} == {"sft": 4.0, "replay-0.2": 3.2, "replay-0.5": 2.0}


@pytest.mark.slow
def test_killed_in_the_middle_and_continued_equals_uninterrupted(folder, finished, tmp_path):
    out = tmp_path / "run"
    code = "from regrow.cli import main; main()"
    asked = [sys.executable, "-c", code, *command(folder, out, "--replay-ratios", "0,0.1,0.3")]
    for moment in ("mix/replay-0.1/mix.json", "train/replay-0.3", "eval/scores.jsonl"):
        child = subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (out / moment).exists() and child.poll() is None:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for arm in ARMS:
        weights = f"train/{arm}/model/model.safetensors"
        assert (out / weights).read_bytes() == (finished[0] / weights).read_bytes()
    results = [json.loads((f / "eval/results.json").read_text()) for f in (out, finished[0])]
    assert results[0]["sweep"] == results[1]["sweep"] and results[0]["suites"] == results[1]["suites"]
