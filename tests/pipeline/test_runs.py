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
from regrow.runs import finished_models, flatten, open_run, read_manifest


def write(text: str):
    def work(folder: Path) -> dict:
        (folder / "out.txt").write_text(text)
        return {"length": len(text)}

    return work


def refuse(folder: Path) -> dict:
    raise AssertionError("the stage must not run")


def test_a_finished_stage_is_not_run_again(tmp_path):
    with open_run(tmp_path / "r") as run:
        first = run.stage("grow", {"a": 1}, write("hello"))
    with open_run(tmp_path / "r") as run:
        again = run.stage("grow", {"a": 1}, refuse)
    assert first.ran and not again.ran
    assert again.facts == {"length": 5} and again.output_hash == first.output_hash


def test_changed_inputs_redo_the_stage_and_name_the_key(tmp_path, capsys):
    with open_run(tmp_path / "r") as run:
        run.stage("grow", {"mix": {"replay_ratio": 0.2}}, write("old"))
        (tmp_path / "r/grow/left.txt").write_text("from the old settings")
    with open_run(tmp_path / "r") as run:
        run.stage("grow", {"mix": {"replay_ratio": 0.3}}, write("new"))
    assert "mix.replay_ratio: 0.2 -> 0.3" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "r/grow").iterdir()] == ["out.txt"]


def test_hashes_are_not_shown_and_a_kept_file_outlives_changed_inputs(tmp_path, capsys):
    def work(folder: Path) -> dict:
        with (folder / "scores.jsonl").open("a") as f:
            f.write("x")
        (folder / "other").write_text("y")
        return {}

    for digest in ("a" * 64, "b" * 64):
        with open_run(tmp_path / "r") as run:
            run.stage("eval", {"file": {"d.jsonl": digest}}, work, keep=["scores.jsonl"])
    said = capsys.readouterr().err
    assert "file.d.jsonl changed" in said and "aaaa" not in said
    assert (tmp_path / "r/eval/scores.jsonl").read_text() == "xx"


def test_a_run_moved_elsewhere_still_finds_its_models(tmp_path):
    with open_run(tmp_path / "r") as run:
        with pytest.raises(RunError, match="no finished model yet"):
            finished_models(run.path)
        run.manifest["models"] = {"base": "/somewhere/base", "regrow": "train/regrow/model"}
        run.save()
    (tmp_path / "r").rename(tmp_path / "moved")
    found = finished_models(tmp_path / "moved")
    assert found == {"base": Path("/somewhere/base"), "regrow": tmp_path / "moved/train/regrow/model"}


def test_an_error_before_anything_is_done_leaves_nothing(tmp_path):
    def bad(_: Path) -> dict:
        raise DataError("broken", where="d.jsonl:3")

    for folder in (tmp_path / "new", tmp_path / "there"):
        if folder.name == "there":
            folder.mkdir()
        with pytest.raises(DataError), open_run(folder) as run:
            run.stage("data", {}, bad)
    assert not (tmp_path / "new").exists() and list((tmp_path / "there").iterdir()) == []
    with open_run(tmp_path / "new") as run:
        run.stage("data", {}, lambda folder: {})
        with pytest.raises(DataError):
            run.stage("more", {}, bad)
    with pytest.raises(DataError), open_run(tmp_path / "new") as run:
        run.stage("more", {}, bad)
    assert read_manifest(tmp_path / "new")["stages"]["data"]["status"] == "done"


def test_resume_always_refuses_changed_inputs(tmp_path):
    with open_run(tmp_path / "r") as run:
        run.stage("grow", {"a": 1}, write("x"))
    with open_run(tmp_path / "r", resume="always") as run, pytest.raises(RunError, match="a: 1 -> 2"):
        run.stage("grow", {"a": 2}, refuse)


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_damaged_outputs_are_noticed(tmp_path, damage):
    with open_run(tmp_path / "r") as run:
        run.stage("grow", {}, write("hello"))
    file = tmp_path / "r/grow/out.txt"
    if damage == "missing":
        file.unlink()
    else:
        file.write_text("hel" if damage == "cut" else "HELLO")
    with open_run(tmp_path / "r", resume="always") as run, pytest.raises(RunError, match=r"out\.txt"):
        run.stage("grow", {}, refuse)
    with open_run(tmp_path / "r") as run:
        assert run.stage("grow", {}, write("hello")).ran


def test_a_stage_that_stopped_keeps_its_folder(tmp_path):
    def stop(folder: Path) -> dict:
        (folder / "half.txt").write_text("committed")
        raise KeyboardInterrupt

    def go_on(folder: Path) -> dict:
        assert (folder / "half.txt").read_text() == "committed"
        return {}

    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "r") as run:
        run.stage("train", {"a": 1}, stop)
    assert read_manifest(tmp_path / "r")["stages"]["train"]["status"] == "running"
    with open_run(tmp_path / "r") as run:
        run.stage("train", {"a": 1}, go_on)
    assert read_manifest(tmp_path / "r")["stages"]["train"]["status"] == "done"


def test_never_always_and_foreign_folders(tmp_path):
    with open_run(tmp_path / "r"):
        pass
    with pytest.raises(RunError, match="holds a run already"), open_run(tmp_path / "r", resume="never"):
        pass
    with pytest.raises(RunError, match="no run to resume"), open_run(tmp_path / "new", resume="always"):
        pass
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.doc").write_text("mine")
    with pytest.raises(RunError, match="not empty and is not a run"), open_run(tmp_path / "foreign"):
        pass
    assert (tmp_path / "foreign/thesis.doc").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="a folder is needed"), open_run(tmp_path / "file"):
        pass


def test_a_stage_name_cannot_leave_the_run(tmp_path):
    with open_run(tmp_path / "r") as run, pytest.raises(RunError, match="outside the run"):
        run.stage("../elsewhere", {}, refuse)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": "other"}',
        '{"format": "regrow-run/1", "stages": {"x": {"status": "done", "inputs": {}}}}',
        "\x00\xff",
    ],
)
def test_a_damaged_manifest_is_one_clear_error(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError) as caught:
        read_manifest(tmp_path)
    assert "manifest.json" in str(caught.value)


HOLD = """
import sys, time
from pathlib import Path
from regrow.runs import open_run
def work(folder):
    (folder / "part.txt").write_text("kept")
    print("in", flush=True)
    time.sleep(60)
with open_run(sys.argv[1]) as run:
    run.stage("grow", {"a": 1}, work)
"""


def test_a_second_process_is_refused_and_kill_releases_the_lock(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "in\n"
    with (
        pytest.raises(RunError, match=f"another process works on this run .process {child.pid} "),
        open_run(tmp_path / "r"),
    ):
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with open_run(tmp_path / "r") as run:
        assert run.changed("grow", {"a": 1}) == []
        run.stage("grow", {"a": 1}, lambda folder: {"found": (folder / "part.txt").read_text()})
    assert read_manifest(tmp_path / "r")["stages"]["grow"]["facts"] == {"found": "kept"}


def test_events_are_written_while_the_run_is_open(tmp_path):
    from regrow.progress import task

    with open_run(tmp_path / "r") as run:
        run.stage("grow", {}, write("x"))
        with task("growing", 3, "nodes") as bar:
            bar.advance(3, kept=2)
    events = [json.loads(line) for line in (tmp_path / "r/events.jsonl").read_text().splitlines()]
    kinds = [e["kind"] for e in events]
    assert kinds[:2] == ["stage", "stage"] and kinds[-1] == "progress"
    assert events[-1]["task"] == "growing" and events[-1]["done"] == 3 and events[-1]["kept"] == 2
    assert abs(events[-1]["time"] - time.time()) < 60


def test_flatten():
    assert flatten({"a": {"b": 1, "c": [1, {"d": 2}]}, "e": None}) == {"a.b": 1, "a.c": [1, {"d": 2}], "e": None}
