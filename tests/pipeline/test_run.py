"""The whole chain on a tiny model: real files, real processes, real kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from regrow.errors import RegrowError, RunError
from regrow.pipeline import run
from regrow.recipe import parse_recipe
from regrow.runs import read_manifest

RECIPE = """
seed: 3
model: {{ model_name_or_path: "{model}" }}
data: {{ path: "{data}", test_size: 8 }}
grow: {{ engine: dummy, encoder: none, dialogues: 24, turns: 1, top_logprobs: 4, topics: [rivers, birds] }}
curate: {{ dedup_method: minhash, embedding_threshold: null, holdout_dialogues: 4 }}
mix: {{ replay_ratio: 0.3 }}
train: {{ num_train_epochs: 1, learning_rate: 1.0e-3, replay_loss: soft, save_steps: 3 }}
evaluate: {{ suites: [own-dialogues, heldout], generate_samples: 2, bootstrap: 200, max_new_tokens: 4 }}
"""
STAGES = ["data", "suites", "grow", "corpus", "mix/sft", "train/sft", "mix/regrow", "train/regrow", "eval"]


@pytest.fixture
def recipe_text(tiny_model_dir: Path, tmp_path: Path) -> str:
    data = tmp_path / "mine.jsonl"
    rows = [
        {
            "prompt": f"What does the function number {i} of the module calendar return?",
            "completion": f"A list of {i} weeks.",
        }
        for i in range(48)
    ]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return RECIPE.format(model=tiny_model_dir, data=data)


@pytest.fixture(scope="module")
def finished(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("finished")
    data = folder / "mine.jsonl"
    rows = [
        {
            "prompt": f"What does the function number {i} of the module calendar return?",
            "completion": f"A list of {i} weeks.",
        }
        for i in range(48)
    ]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    recipe = parse_recipe(RECIPE.format(model=tiny_model_dir, data=data))
    here = Path.cwd()
    try:
        os.chdir(folder)  # as most people do, with a relative folder
        return recipe, replace(run(recipe, "run"), path=folder / "run", report=folder / "run/report.html")
    finally:
        os.chdir(here)


def test_the_run_leaves_models_results_and_a_page(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, result = finished
    manifest = read_manifest(result.path)
    assert [s for s in STAGES if manifest["stages"][s]["status"] != "done"] == []
    assert set(result.models) == {"base", "sft", "regrow"}
    assert manifest["models"]["regrow"] == "train/regrow/model"
    model = AutoModelForCausalLM.from_pretrained(result.models["regrow"])
    tokenizer = AutoTokenizer.from_pretrained(result.models["regrow"])
    assert tokenizer.chat_template and model.config.model_type == "llama"
    assert not list(result.path.rglob("*.bin")) and not list(result.path.rglob("checkpoint-*"))
    assert set(result.results["suites"]) == {"own-dialogues", "heldout"}
    page = result.report.read_text(encoding="utf-8")
    assert result.results["verdict"]["sentence"].split(".")[0][:40] in page.replace("&#39;", "'")
    mixed = json.loads((result.path / "mix/regrow/mix.json").read_text())
    assert mixed["asked"]["replay_ratio"] == 0.3
    card = (result.models["regrow"] / "README.md").read_text()
    assert "random words of the dummy engine, which protect nothing" in card
    assert "new data only" in (result.models["sft"] / "README.md").read_text()
    assert "report.html" in result.text()


def test_running_it_again_does_nothing(finished, capsys):
    recipe, result = finished
    before = read_manifest(result.path)["stages"]
    again = run(recipe, result.path)
    assert read_manifest(result.path)["stages"] == before
    assert again.results == result.results
    assert capsys.readouterr().err.count("unchanged, not run again") == len(STAGES)


def test_a_changed_key_redoes_only_what_depends_on_it(finished, tmp_path, capsys):
    recipe, result = finished
    copy = tmp_path / "run"
    shutil.copytree(result.path, copy)
    changed = recipe.model_copy(deep=True)
    changed.mix.replay_ratio = 0.1
    run(changed, copy)
    said = capsys.readouterr().err
    assert "mix.replay_ratio: 0.3 -> 0.1" in said
    for n, stage in enumerate(("data", "suites", "grow", "corpus"), 1):
        assert f"[{n}/9] {stage}: unchanged" in said
    for stage in ("mix/sft", "mix/regrow", "train/regrow", "eval"):
        assert f"{stage}: done anew" in said
    with pytest.raises(RunError, match="replay_ratio"):
        run(recipe, copy, resume="always")


def test_lost_items_are_laid_beside_the_corpus_that_was_replayed(finished, tmp_path, monkeypatch):
    from regrow.evaluate import stage
    from regrow.evaluate.lost import read_branches

    recipe, result = finished
    copy = tmp_path / "run"
    shutil.copytree(result.path, copy)
    changed = recipe.model_copy(deep=True)
    changed.evaluate.confidence = 0.9
    given = {}

    class Stop(Exception):
        pass

    def evaluate(*args, **kwargs):
        given.update(kwargs)
        raise Stop

    monkeypatch.setattr(stage, "evaluate", evaluate)
    with pytest.raises(Stop):
        run(changed, copy)
    assert given["corpus"] == copy / "corpus" and read_branches(given["corpus"])
    assert given["encoder"]() is None, "grow.encoder: none"
    encoder = object()
    monkeypatch.setattr("regrow.models.embed.load_encoder", lambda name: encoder if name == "minilm" else None)
    changed.grow.encoder = "minilm"
    assert given["encoder"]() is encoder


def test_what_is_done_with_items_later_neither_chooses_nor_scores_them_again(finished, tmp_path, capsys, monkeypatch):
    from regrow.evaluate.score import Scorer

    recipe, result = finished
    copy = tmp_path / "run"
    shutil.copytree(result.path, copy)
    changed = recipe.model_copy(deep=True)
    changed.evaluate.bootstrap += 100

    def no_scoring(*_, **__):
        raise AssertionError("an item was scored a second time")

    monkeypatch.setattr(Scorer, "score", no_scoring)
    run(changed, copy)
    said = capsys.readouterr().err
    assert "eval: done anew, because evaluate.bootstrap: " in said
    assert said.count("unchanged, not run again") == len(STAGES) - 1


def test_the_half_way_model_is_an_arm_that_trains_nothing(finished, tmp_path):
    from safetensors.torch import load_file

    recipe, result = finished
    copy = tmp_path / "run"
    shutil.copytree(result.path, copy)
    free = parse_recipe(
        "arms: [sft, interpolate]",
        overrides=[f"{k}={json.dumps(v)}" for k, v in _flat(recipe.model_dump(mode="json"))],
    )
    done = run(free, copy)
    assert set(done.models) == {"base", "sft", "interpolate"} == set(done.results["arms"])
    base, sft, half = (load_file(done.models[a] / "model.safetensors") for a in ("base", "sft", "interpolate"))
    assert all(((base[n] + sft[n]) / 2 - half[n]).abs().max() < 1e-6 for n in half)
    assert "Half-way to base" in done.report.read_text(encoding="utf-8")
    assert "averaged, 0.5 of the latter" in (done.models["interpolate"] / "README.md").read_text()


def _flat(values: dict, at: str = "") -> list[tuple[str, object]]:
    return [
        x
        for k, v in values.items()
        for x in (_flat(v, f"{at}{k}.") if isinstance(v, dict) and v else [(f"{at}{k}", v)])
        if x[0] != "arms"
    ]


def test_where_a_cluster_is_does_not_redo_the_growing(finished, tmp_path, capsys):
    recipe, result = finished
    copy = tmp_path / "run"
    shutil.copytree(result.path, copy)
    moved = recipe.model_copy(deep=True)
    moved.grow.ray.address, moved.grow.ray.workers = "10.0.0.1:6379", 8
    run(moved, copy)
    assert capsys.readouterr().err.count("unchanged, not run again") == len(STAGES)


def test_arms_share_their_domain_rows(finished):
    import pyarrow.parquet as pq

    _, result = finished
    rows = {}
    for arm in ("sft", "regrow"):
        table = pq.read_table(result.path / f"mix/{arm}/train.parquet", columns=["id", "source"]).to_pylist()
        rows[arm] = [r["id"] for r in table if r["source"] == "domain"]
    assert rows["sft"] == rows["regrow"] and len(rows["sft"]) == 40


def test_no_compare_trains_one_arm(recipe_text, tmp_path):
    recipe = parse_recipe(recipe_text, overrides=["compare=false"])
    result = run(recipe, tmp_path / "run")
    assert set(result.models) == {"base", "regrow"}
    assert "sft" not in read_manifest(tmp_path / "run")["models"]


def test_bad_data_leaves_nothing_half_written(recipe_text, tmp_path):
    data = tmp_path / "mine.jsonl"
    with data.open("a") as f:
        f.write('{"prompt": "x", "completion": \n')
    with pytest.raises(RegrowError) as caught:
        run(parse_recipe(recipe_text), tmp_path / "run")
    assert "mine.jsonl:49" in str(caught.value)
    assert not (tmp_path / "run/data/train.jsonl").exists()


def command(recipe: Path, out: Path) -> list[str]:
    return [sys.executable, "-c", "from regrow.cli import main; main()", "run", str(recipe), "-o", str(out)]


def comparable(folder: Path) -> dict:
    """What must not depend on interruptions: outputs of every stage by file, and the numbers."""
    manifest = read_manifest(folder)
    outputs = {
        f"{name}/{k}": v["sha256"]
        for name in STAGES
        for k, v in manifest["stages"][name]["outputs"].items()
        if not k.endswith(("log.jsonl", ".json", ".sqlite")) and not k.startswith("lm-eval/")  # dated
    }
    # In the order in which they were scored, which depends on what was left to do.
    outputs["eval/scores.jsonl"] = sorted((folder / "eval/scores.jsonl").read_text().splitlines())
    results = json.loads((folder / "eval/results.json").read_text())
    return outputs | {"suites": results["suites"], "verdict": results["verdict"]}


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(finished, tmp_path):
    """Killed again and again, the run ends with the same corpus, the same weights and the same numbers."""
    recipe, result = finished
    from regrow.recipe import dump_recipe

    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    out = tmp_path / "run"
    rng = random.Random(5)
    killed: list[str] = []
    while len(killed) < 12:
        child = subprocess.Popen(
            command(file, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ}
        )
        deadline = time.monotonic() + rng.uniform(4, 22)
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
        child.wait()
        stages = read_manifest(out)["stages"] if (out / "manifest.json").is_file() else {}
        killed.append(", ".join(name for name, stage in stages.items() if stage["status"] != "done"))
        if child.returncode == 0:
            break
    done = subprocess.run(command(file, out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    got, wanted = comparable(out), comparable(result.path)
    assert got.keys() == wanted.keys()
    assert [what for what in wanted if got[what] != wanted[what]] == [], f"after kills at {killed}"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_how_to_go_on(recipe_text, tmp_path, how):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_text)
    out = tmp_path / "run"
    child = subprocess.Popen(command(file, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / "data/train.jsonl").exists() and child.poll() is None:
        time.sleep(0.05)
    os.kill(child.pid, how)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 130 and "the same command continues" in said and "Traceback" not in said
