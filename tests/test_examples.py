"""The examples run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def example(*args: str) -> str:
    done = subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_grow_a_corpus_and_walk_it(tiny_model_dir: Path, tmp_path: Path):
    said = example("examples/corpus.py", str(tiny_model_dir), str(tmp_path / "corpus"), "dummy")
    assert "16 dialogues" in said and " assistant | " in said


def test_tune_from_python(tiny_model_dir: Path, tmp_path: Path):
    data = tmp_path / "mine.jsonl"
    rows = [{"question": f"What is item {i}?", "answer": f"It is the item number {i}."} for i in range(40)]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = example(
        "examples/tune.py",
        str(tiny_model_dir),
        str(data),
        str(tmp_path / "run"),
        "grow.engine=dummy",
        "grow.encoder=none",
        "grow.dialogues=20",
        "grow.turns=1",
        "curate.dedup_method=minhash",
        "curate.embedding_threshold=null",
        "train.num_train_epochs=1",
        "evaluate.suites=[own-dialogues, heldout]",
        "evaluate.bootstrap=200",
        "evaluate.generate_samples=0",
    )
    assert "report.html" in said and (tmp_path / "run/report.html").exists()


def test_the_example_recipe_is_valid():
    from regrow.recipe import load_recipe

    assert load_recipe(ROOT / "examples/recipe.yaml").train.method == "lora"
    assert load_recipe(ROOT / "examples/gradual.yaml").gradual.stage2.learning_rate == 1.5e-4
