"""`regrow eval` and `eval-sequence`: kinds of models, continuing after a kill (a real process), scoring once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regrow.errors import DataError, RunError
from tests.evaluate.models import assert_alike, perturbed
from tests.fixtures.tiny import save_tiny_adapter, tiny_vocabulary_gguf

FEW = ["--set", "evaluate.bootstrap=200", "--set", "evaluate.generate_samples=1", "--set", "evaluate.max_new_tokens=4"]
FEW += ["--set", "grow.encoder=none"]


def cli(*args: str) -> None:
    """A command in this process: what a process of its own would add is seconds for imports."""
    from regrow.cli import build_app

    build_app()(list(args), standalone_mode=False)


def write_items(path: Path, n: int, start: int = 0) -> str:
    rows = [{"question": f"Which colour has {k}?", "choices": ["red", "green", "blue"], "answer": k % 3}
            for k in range(start, start + n)]  # fmt: skip
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return f"file:{path}"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def results(folder: Path) -> dict:
    return json.loads((folder / "eval/results.json").read_text())


def test_a_folder_an_adapter_and_a_gguf_file(tiny_model_dir: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    from regrow.models.save import export_gguf

    monkeypatch.setenv("REGROW_CACHE", str(tmp_path / "cache"))
    adapter = save_tiny_adapter(tiny_model_dir, tmp_path / "adapter")
    vocabulary = tiny_vocabulary_gguf(tiny_model_dir, tmp_path / "vocabulary.gguf")
    gguf = export_gguf(tiny_model_dir, tmp_path / "tiny.gguf", "f16", source=vocabulary)
    suite = write_items(tmp_path / "news.jsonl", 30)
    out = tmp_path / "out"
    cli("eval", str(tiny_model_dir), str(adapter), str(gguf), "-o", str(out), "--suite", suite, *FEW)
    assert "news: 30 items can see a difference of " in capsys.readouterr().err
    records = lines(out / "eval/records.jsonl")
    assert [r["arm"] for r in records] == ["base", "after", "after-2"] * 30
    loss = {arm: [r["metrics"]["nll"] for r in records if r["arm"] == arm] for arm in ("base", "after", "after-2")}
    assert loss["after-2"] == pytest.approx(loss["base"], abs=2e-2), "the same weights at half precision"
    assert loss["after"] != pytest.approx(loss["base"], abs=0.1), "the adapter changes something"
    assert len({m["revision"] for m in results(out)["models"].values()}) == 3


def test_more_models_and_suites_in_a_folder_score_only_what_is_new(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Every entry of the cache is written once, so a second scoring of an item would be seen as a new line."""
    second, third = (str(perturbed(tiny_model_dir, tmp_path / f"m{k}", seed=k)) for k in (1, 2))
    news, sport = write_items(tmp_path / "news.jsonl", 12), write_items(tmp_path / "sport.jsonl", 8, start=100)
    out, base = tmp_path / "out", str(tiny_model_dir)
    scores = out / "eval/scores.jsonl"

    def evaluate(*args: str) -> list[dict]:
        cli("eval", *args, "-o", str(out), *FEW)
        return lines(scores)

    first = evaluate(base, second, "--suite", news)
    assert evaluate(base, second, "--suite", news) == first
    more = evaluate(base, second, third, "--suite", news)
    assert more[: len(first)] == first and len(more) == len(first) + 12, "the third model, without a noise floor"
    assert {e["pass"] for e in more[len(first) :]}.isdisjoint(e["pass"] for e in first)
    wider = evaluate(base, second, third, "--suite", news, "--suite", sport)
    assert wider[: len(more)] == more and len(wider) == len(more) + 8 * 4, "three models and the noise floor"
    cli("eval", base, third, "-o", str(tmp_path / "other"), "--suite", news, "--reuse", str(out), *FEW)
    assert lines(tmp_path / "other/eval/scores.jsonl") == []
    with pytest.raises(RunError, match="nothing was scored"):
        cli("eval", base, third, "-o", str(tmp_path / "x"), "--suite", news, "--reuse", str(tmp_path / "none"))


def test_killed_it_continues_with_the_same_command(tiny_model_dir: Path, tmp_path: Path) -> None:
    after = str(perturbed(tiny_model_dir, tmp_path / "after"))
    suite = write_items(tmp_path / "news.jsonl", 400)
    small = [*FEW, "--set", "evaluate.batch_tokens=64"]

    def command(out: Path) -> list[str]:
        return ["eval", str(tiny_model_dir), after, "-o", str(out), "--suite", suite, *small]

    cli(*command(tmp_path / "whole"))
    child = subprocess.Popen([sys.executable, "-c", "from regrow.cli import main; main()", *command(tmp_path / "cut")],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    cut = tmp_path / "cut/eval/scores.jsonl"
    while child.poll() is None and not (cut.exists() and cut.read_bytes().count(b"\n") >= 40):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert not (tmp_path / "cut/eval/results.json").exists()
    done = cut.read_bytes()[: cut.read_bytes().rfind(b"\n") + 1]
    cli(*command(tmp_path / "cut"))
    assert cut.read_bytes().startswith(done)
    entries, whole = lines(cut), lines(tmp_path / "whole/eval/scores.jsonl")
    assert sorted((e["pass"], e["item"]) for e in entries) == sorted((e["pass"], e["item"]) for e in whole)
    assert_alike(*(lines(tmp_path / run / "eval/records.jsonl") for run in ("cut", "whole")))
    assert_alike(*(results(tmp_path / run) for run in ("cut", "whole")))


def test_a_sequence_of_trainings(tiny_model_dir: Path, tmp_path: Path, capsys) -> None:
    first = perturbed(tiny_model_dir, tmp_path / "first", seed=1)
    second = perturbed(first, tmp_path / "second", seed=2)
    tasks = [write_items(tmp_path / f"task-{k}.jsonl", 24, start=100 * k) for k in (1, 2)]
    extra = write_items(tmp_path / "general.jsonl", 10, start=900)
    models = [str(m) for m in (tiny_model_dir, first, second)]
    out = tmp_path / "out"
    args = ["eval-sequence", *models, "-o", str(out), "--task", tasks[0], "--task", tasks[1], "--suite", extra]
    cli(*args, *FEW)
    shown = capsys.readouterr().out
    told = json.loads((out / "continual.json").read_text())
    assert told["models"] == ["base", "step-1", "step-2"] and told["tasks"] == ["task-1", "task-2"]
    assert not told["matrix"]["general"]["task"] and "general" in shown and "forgetting" in shown
    assert results(out)["suites"]["task-1"]["kind"] == "gain"
    assert results(out)["suites"]["general"]["kind"] == "retention"
    r = {name: column["values"] for name, column in told["matrix"].items()}
    assert told["metrics"]["backward_transfer"]["value"] == pytest.approx(r["task-1"][2] - r["task-1"][1])
    assert told["metrics"]["forward_transfer"]["value"] == pytest.approx(r["task-2"][1] - r["task-2"][0])
    assert told["metrics"]["average_accuracy"]["value"] == pytest.approx((r["task-1"][2] + r["task-2"][2]) / 2)
    before = (out / "eval/scores.jsonl").read_bytes()
    cli(*args, *FEW)
    assert (out / "eval/scores.jsonl").read_bytes() == before
    with pytest.raises(DataError, match=r"2 trained model\(s\) and 1 task\(s\)"):
        cli("eval-sequence", *models, "-o", str(out), "--task", tasks[0])
