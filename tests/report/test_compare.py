"""Lists of runs, one run's suites, two side by side, several seeds."""

from __future__ import annotations

import json
import os
import shutil
import socket
from io import StringIO
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from regrow.errors import RunError
from regrow.report.compare import diff_runs, diff_tables, find_runs, runs_table, suites_table
from regrow.report.load import load_run
from tests.cli.test_cli import regrow
from tests.report.fixture_run import make_run


def text(*tables) -> str:
    console = Console(file=StringIO(), width=220)
    for table in tables:
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def change(path: Path, **values) -> None:
    found = json.loads(path.read_text())
    found.update(values)
    path.write_text(json.dumps(found))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run, one without an evaluation, one two levels down, one with a damaged manifest, and no run."""
    out = tmp_path / "runs"
    make_run(out / "good", n_items=60)
    make_run(out / "early", n_items=60, evaluated=False)
    make_run(out / "sweep/third", n_items=60, compare=False)
    change(out / "good/manifest.json", created="2026-11-21 09:00:00")
    (out / "broken").mkdir()
    (out / "broken/manifest.json").write_text("{")
    (out / "notes").mkdir()
    return out


def test_all_runs_of_a_folder_are_listed_and_a_damaged_one_hides_no_other(folder: Path) -> None:
    found = {line.name: line for line in find_runs(folder)}
    assert set(found) == {"good", "early", "sweep/third", "broken"}
    assert next(iter(found)) == "good", "newest first"
    good = found["good"]
    assert (good.state, good.model, good.data) == ("done", "smollm2", "demo")
    assert good.result.endswith("Partly kept") and "nats/token" in good.gain and "points" in good.change
    assert found["early"].state.startswith("stopped: ") and found["early"].gain == ""
    assert found["broken"].state == "damaged"
    assert "sweep/third" in text(runs_table(list(found.values())))
    with pytest.raises(RunError, match="no such folder"):
        find_runs(folder / "none")


def test_a_run_is_running_while_its_process_lives(folder: Path) -> None:
    run = folder / "early"
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"]["eval"] = {"status": "running", "inputs": {}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    owner = run / ".owner.json"

    def state() -> str:
        return next(line.state for line in find_runs(folder) if line.name == "early")

    def tell(host: str) -> None:
        owner.write_text(json.dumps({"pid": os.getpid(), "host": host, "since": "2026-11-21 07:00:00"}))

    assert state() == "stopped: eval"
    with FileLock(run / ".lock"):
        tell(socket.gethostname())
        assert state() == "running: eval"
    assert state() == "stopped: eval", "there is such a process, but the lock died with the one that is meant"
    tell("another machine")
    assert state() == "running: eval", "its lock cannot be seen from here"


def test_every_suite_of_a_run(folder: Path) -> None:
    shown = text(suites_table(load_run(folder / "good")))
    assert shown.index("heldout") < shown.index("own-dialogues") < shown.index("facts"), "gain first, selected last"
    assert "Plain SFT" in shown and "worse" in shown and "better" in shown


def test_two_runs_side_by_side(folder: Path) -> None:
    other = folder / "other"
    shutil.copytree(folder / "good", other)
    recipe = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(recipe.replace("replay_ratio: 0.2", "replay_ratio: 0.4") + "compare: false\n")
    results = json.loads((other / "eval/results.json").read_text())
    results["models"]["base"]["revision"] = "another"
    (other / "eval/results.json").write_text(json.dumps(results))
    found = diff_runs(load_run(folder / "good"), load_run(other))
    assert found.recipe == {"mix.replay_ratio": (0.2, 0.4), "compare": (None, False)}
    assert found.versions == {}
    assert any("base models differ" in n for n in found.notes)
    same = {(suite, arm): a == b for suite, arm, a, b in found.numbers}
    assert set(same) == {(s, a) for s in ("heldout", "facts", "own-dialogues") for a in ("sft", "regrow")}
    assert all(same.values())
    assert "mix.replay_ratio" in text(*diff_tables(found, ("a", "b")))
    alone = diff_runs(load_run(folder / "good"), load_run(folder / "sweep/third"))
    assert {b for _, arm, _, b in alone.numbers if arm == "sft"} == {"–"}, "that run has no plain arm"
    early = diff_runs(load_run(folder / "good"), load_run(folder / "early"))
    assert any("has not been evaluated" in n for n in early.notes)
    assert not any("differ" in n.split(",")[0] for n in early.notes), "what is not known is not said to differ"


def test_the_commands(folder: Path) -> None:
    listed = regrow("runs", str(folder))
    assert listed.returncode == 0 and "sweep/third" in listed.stdout and "\x1b" not in listed.stdout
    assert {r["state"] for r in json.loads(regrow("runs", str(folder), "--json").stdout)} >= {"done", "damaged"}
    assert regrow("runs", str(folder / "notes")).stdout.startswith("no runs in")
    shown = regrow("show", str(folder / "good"))
    assert shown.returncode == 0 and "against the base" in shown.stdout and "own-dialogues" in shown.stdout
    assert regrow("show", str(folder / "early")).returncode == 0
    both = regrow("diff", str(folder / "good"), str(folder / "sweep/third"))
    assert both.returncode == 0 and "the recipes are the same" in both.stdout, both.stderr
    assert "recipe" in json.loads(regrow("diff", str(folder / "good"), str(folder / "early"), "--json").stdout)
    assert regrow("diff", str(folder / "good"), str(folder / "none")).returncode == 1


def test_several_seeds_are_shown_together(tmp_path: Path) -> None:
    from tests.evaluate.saved import ones, records, write_evaluation

    runs = []
    for k in (1, 5):
        found = records("facts-pool", "acc", {"base": ones(90, 0), "regrow": ones(90, k)})
        runs.append(write_evaluation(tmp_path / f"s{k}", found, ("base", "regrow"), seed=k))
    shown = regrow("show", *map(str, runs))
    assert shown.returncode == 0, shown.stderr
    assert "seeds 1, 5" in shown.stdout and "over seeds and items" in shown.stdout and "−1.1 −5.6" in shown.stdout


def test_topics_of_what_was_lost_in_the_terminal(tmp_path: Path) -> None:
    from regrow.report.lost_view import lost_table
    from tests.report.test_page import topics_of

    run = make_run(tmp_path / "run", n_items=120)
    assert lost_table(load_run(run)) is None
    topics_of(run, "[bold]capital")
    table = lost_table(load_run(run))
    assert table is not None
    shown = text(table)
    assert "[bold]capital, land" in shown, "text is never markup"
    assert "6 of 8 covered" in shown and "covered by no grown branch" in shown and "(scattered)" in shown
    listed = regrow("show", str(run))
    assert listed.returncode == 0 and "what was lost, in words" in listed.stdout
