"""The fault list: every test that it names is there, every reader takes some damage here (`scripts/faults.py` does
thousands), and the faults that no other test injects."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import pytest

from regrow.cli import build_app
from regrow.errors import DataError, ModelError, RegrowError
from regrow.runs import open_run, read_manifest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    spec = importlib.util.spec_from_file_location("faults", ROOT / "scripts/faults.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_every_test_that_the_list_names_is_there(faults: ModuleType) -> None:
    names = [name for fault in faults.FAULTS for name in fault.tests]
    assert len(names) == len(set(names)) > 40
    for name in names:
        file, _, function = name.partition("::")
        assert f"\ndef {function}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_damage_is_the_same_for_the_same_seed(faults: ModuleType) -> None:
    good = b'{"question": "What is 2 + 2?", "answer": "4"}\n' * 20
    found = [faults.damage(good, random.Random(k)) for k in range(200)]
    assert found == [faults.damage(good, random.Random(k)) for k in range(200)]
    assert sum(f != good for f in found) > 180 and len(set(found)) > 150


def test_the_count_tells_what_came_of_it(faults: ModuleType) -> None:
    """Of a reader that breaks, hangs or says nothing, each is a failure."""

    def make(folder: Path, k: int) -> Path:
        folder.mkdir()
        (folder / "f").write_text("good" * 50)
        return folder / "f"

    def read(path: Path) -> object:
        raw = path.read_bytes()
        if raw == b"good" * 50 or len(raw) < 60:
            return raw
        if b"\xff" in raw:
            raise DataError("no", where=str(path))
        raise ValueError("broke")

    found = faults.fuzz(faults.Target("made up", make, read), 120)
    assert found.inputs == 120 == found.read + found.refused + len(found.failed)
    assert found.refused and found.read and "made up, seed 0/" in found.failed[0] and "ValueError" in found.failed[0]
    with pytest.raises(TimeoutError), faults.limit(1):
        time.sleep(5)


def test_damaged_files_are_read_or_refused_in_words(faults: ModuleType) -> None:
    for target in faults.TARGETS:
        found = faults.fuzz(target, 25, seed=1)
        assert found.failed == []
        assert found.refused > 0, f"{target.name}: no damage was noticed"


def test_damage_that_was_found_and_mended(faults: ModuleType) -> None:
    """Deep nesting, a renamed column, an entry of the weights without its place: each was a traceback once."""
    deep, targets = b"[" * 3000, {t.name: t for t in faults.TARGETS}
    cases = {
        "ledger of scores": lambda raw: raw.replace(b'{"acc"', deep + b'{"acc"', 1),
        "items of a suite": lambda raw: deep + raw,
        "recipe of a suite": lambda raw: raw + b"\nx: " + deep,
        "manifest of a run": lambda raw: deep + raw,
        "config of a model": lambda raw: deep + raw,
        "corpus, nodes": lambda raw: raw.replace(b"parent", b"p`rent"),
        "corpus, dialogues": lambda raw: raw.replace(b"n_tokens", b"n_uokens"),
        "weights, .safetensors": lambda raw: raw.replace(b"data_offsets", b"data_offsetz", 1),
    }
    for name, damage in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            path = targets[name].make(Path(folder) / "x", 0)
            path.write_bytes(damage(path.read_bytes()))
            with pytest.raises(RegrowError):
                targets[name].read(path)


def test_the_clock_goes_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock is set back by an hour at every look; what takes time is measured otherwise."""
    now = [2_000_000_000.0]

    def back() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", back)

    def work(folder: Path) -> dict[str, int]:
        (folder / "out.txt").write_text("x")
        return {"rows": 1}

    def stop(folder: Path) -> dict[str, int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "run") as run:
        run.stage("grow", {"a": 1}, stop)
    with open_run(tmp_path / "run") as run:
        assert run.stage("grow", {"a": 1}, work).ran
    with open_run(tmp_path / "run") as run:
        assert not run.stage("grow", {"a": 1}, work).ran
    assert read_manifest(tmp_path / "run")["stages"]["grow"]["seconds"] >= 0


def test_scores_and_results_on_a_full_disk(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A command whose files may not grow past 3 kB: one error, and the same command goes on where it was."""
    rows = [{"question": f"Colour {k}?", "choices": ["red", "green"], "answer": k % 2} for k in range(10)]
    (tmp_path / "news.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    args = ["eval", str(tiny_model_dir), str(tiny_model_dir), "-o", str(tmp_path / "out")]
    args += ["--suite", f"file:{tmp_path / 'news.jsonl'}", "--set", "evaluate.bootstrap=200"]
    args += ["--set", "evaluate.generate_samples=0", "--set", "evaluate.batch_tokens=64"]
    code = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (3000, 3000)); from regrow.cli import main; main()"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    full = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=env)
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    assert "the disk is full" in full.stderr and "the same command continues" in full.stderr
    assert not (tmp_path / "out/eval/results.json").exists()
    kept = (tmp_path / "out/eval/scores.jsonl").read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert kept.count(b"\n") >= 5
    build_app()(args, standalone_mode=False)
    scores = (tmp_path / "out/eval/scores.jsonl").read_bytes()
    assert scores.startswith(kept), "what was scored is not scored again"
    assert json.loads((tmp_path / "out/eval/results.json").read_text())["suites"]["news"]["n"] == 10


def test_a_billion_laughs_in_the_recipe_of_a_suite(tmp_path: Path) -> None:
    from regrow.evaluate.suites.recipe import read_recipe

    lines = ['a0: &a0 ["lol", "lol"]']
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "laugh.yaml").write_text("\n".join([*lines, "scenario: *a11"]))
    with pytest.raises(DataError) as error:
        read_recipe(tmp_path / "laugh.yaml")
    assert len(str(error.value)) < 400


def test_a_pickle_named_safetensors_is_not_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    import pickle
    import shutil

    from regrow.models.load import load_model

    class Plant:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (tmp_path / "executed",))

    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Plant()))
    with pytest.raises(ModelError, match="not a readable safetensors"):
        load_model(folder)
    assert not (tmp_path / "executed").exists()
    pickle.loads((folder / "model.safetensors").read_bytes())
    assert (tmp_path / "executed").exists(), "the plant works when it is run"
