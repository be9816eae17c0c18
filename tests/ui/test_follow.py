"""Following the files of a run."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from regrow.errors import RunError
from regrow.grow.records import Expansion
from regrow.grow.store import Store
from regrow.rows.writers import atomic_write_text
from regrow.runs import open_run, owner, read_manifest
from regrow.ui.follow import Follower, Tail, stream
from regrow.ui.views import state
from tests.grow.test_store import ME, node, tree
from tests.report.fixture_run import make_run
from tests.ui.helpers import events, server


def line(**data: object) -> str:
    return json.dumps(data) + "\n"


def test_a_tail_gives_whole_new_lines(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    tail = Tail(file)
    assert tail.read() == (False, [])
    file.write_text(line(step=1) + '{"step"')
    assert tail.read() == (True, [{"step": 1}])
    assert tail.read() == (False, [])
    with file.open("a") as f:
        f.write(": 2}\n[3]\nnot json\n" + line(step=4))
    assert tail.read() == (False, [{"step": 2}, {"step": 4}])


def test_a_file_begun_anew_is_read_from_its_start(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(line(step=1) + line(step=2))
    tail = Tail(file)
    tail.read()
    other = tmp_path / "other"
    other.write_text(line(step=1) + line(step=7) + line(step=8))
    other.replace(file)
    assert tail.read() == (True, [{"step": 1}, {"step": 7}, {"step": 8}])
    file.write_text(line(step=9))
    assert tail.read() == (True, [{"step": 9}])


def test_a_file_written_whole_with_more_in_it_goes_on(tmp_path: Path) -> None:
    """As a monitor writes its own, and a resumed training its log."""
    file, other = tmp_path / "monitor.jsonl", tmp_path / "other"
    file.write_text("".join(line(step=n) for n in range(9)))
    tails = Tail(file), Tail(file, last=30)
    for tail in tails:
        tail.read()
    for n in (9, 10):
        other.write_text(file.read_text() + line(step=n))
        other.replace(file)
        assert [tail.read() for tail in tails] == [(False, [{"step": n}])] * 2


def test_a_tail_can_begin_near_the_end(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text("".join(line(n=i) for i in range(1000)))
    anew, rows = Tail(file, last=50).read()
    assert anew and rows[-1] == {"n": 999} and 1 < len(rows) < 6


def test_a_follower_tells_what_is_new(runs: Path) -> None:
    path = runs / "good"
    (path / "events.jsonl").write_text(
        line(kind="progress", task="old", done=1, total=2, unit="x", time=1.0)
        + line(kind="stage", stage="eval", status="running")
        + line(kind="progress", task="scoring", done=1, total=9, unit="items", time=2.0)
        + line(kind="progress", task="scoring", done=4, total=9, unit="items", loss=float("nan"), time=3.0)
        + line(kind="note", text="hello", time=3.0)
    )
    follower = Follower(path)
    first = follower.poll()
    assert [k for k, _ in first] == [
        "state",
        "progress",
        "notes",
        "log",
        "log",
        "monitor",
        "monitor",
        "corpus",
        "changed",
    ]
    told = dict(first)
    assert told["state"]["state"] == "done" and told["state"]["plan"][:2] == ["data", "suites"]
    assert told["progress"]["done"] == 4, "the newest of the stage that runs"
    assert told["notes"] == [{"time": 3.0, "text": "hello"}]
    assert told["monitor"]["arm"] == "sft" and [r["step"] for r in told["monitor"]["rows"]] == list(range(0, 121, 10))
    assert told["log"]["arm"] == "sft" and told["log"]["anew"] and len(told["log"]["rows"]) == 120
    assert told["corpus"]["source"] == "corpus" and told["corpus"]["kept"] > 0
    assert follower.poll() == []
    with (path / "train/regrow/log.jsonl").open("a") as f:
        f.write(line(step=121, loss=0.5))
    assert follower.poll() == [("log", {"arm": "regrow", "anew": False, "rows": [{"step": 121, "loss": 0.5}]})]
    monitor = path / "train/sft/monitor.jsonl"
    atomic_write_text(monitor, monitor.read_text() + line(step=130, **{"heldout/rivers": 2.5}))
    rows = [{"step": 130, "heldout/rivers": 2.5}]
    assert follower.poll() == [("monitor", {"arm": "sft", "anew": False, "rows": rows})]
    os.utime(path / "eval/results.json", (5, 5))
    assert follower.poll() == [("changed", {})]


def test_a_follower_tells_where_a_corpus_grows(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", corpus=False, evaluated=False)
    follower = Follower(path)
    assert "corpus" not in dict(follower.poll())
    with Store.create_or_resume(path / "grow", ME) as store:
        store.plant([tree()])
        store.commit(Expansion("root/t00", [node("t00/0"), node("t00/x1", kept=False)], 1, 1, 5))
        told = dict(follower.poll())["corpus"]
        assert told == {"source": "grow", "nodes": 2, "kept": 1, "parents": None}, "to a new reader"
        store.commit(Expansion("t00/0", [node(f"t00/0/{i}", leaf=True) for i in range(2)], 2, 1, 5))
        told = dict(follower.poll())["corpus"]
        assert told == {"source": "grow", "nodes": 4, "kept": 3, "parents": ["t00/0"]}
        assert follower.poll() == []
    shutil.rmtree(path / "grow")
    assert dict(follower.poll())["corpus"] is None, "a stage that is done anew has emptied its folder"


def test_a_corpus_that_cannot_be_read_costs_no_curve_a_line(runs: Path) -> None:
    path = runs / "good"
    follower = Follower(path)
    follower.poll()
    (path / "corpus/nodes.parquet").write_bytes(b"PAR1 this is none PAR1")
    with (path / "train/regrow/log.jsonl").open("a") as f:
        f.write(line(step=121, loss=0.5))
    found = follower.poll()
    assert [kind for kind, _ in found] == ["log", "problem"] and "nodes.parquet" in found[1][1]["message"]
    assert follower.poll() == [], "said once"


def test_a_killed_run_shows_as_interrupted(tmp_path: Path, holding: Callable[[Path], subprocess.Popen[bytes]]) -> None:
    path = tmp_path / "run"
    child = holding(path)
    follower = Follower(path)
    told = dict(follower.poll())
    assert told["state"]["state"] == "running" and told["state"]["owner"]["pid"] == child.pid
    assert told["state"]["stages"][0]["status"] == "running"
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie nobody has asked about yet
    told = dict(follower.poll())
    assert told["state"]["state"] == "interrupted" and told["state"]["owner"] is None
    assert told["state"]["stages"][0]["status"] == "interrupted"


def test_a_run_that_ended_with_an_error_shows_it(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, object]:
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError), open_run(tmp_path / "run") as run:
        run.stage("grow", {}, fail)
    told = state(tmp_path / "run")
    assert told["state"] == "stopped" and "the disk is full" in told["stages"][0]["error"]


def test_the_number_of_a_dead_process_says_nothing(tmp_path: Path) -> None:
    """The killed process's number may be another's by now; the lock is the kernel's."""
    with open_run(tmp_path / "run"):
        assert owner(tmp_path / "run") is not None
        left = (tmp_path / "run/.owner.json").read_text()
    (tmp_path / "run/.owner.json").write_text(left)  # this very process, but it holds no lock any more
    assert owner(tmp_path / "run") is None


@pytest.mark.parametrize("pid", [0, -1])
def test_a_group_of_processes_owns_no_run(tmp_path: Path, pid: int) -> None:
    with open_run(tmp_path / "run"):
        told = json.loads((tmp_path / "run/.owner.json").read_text())
        (tmp_path / "run/.owner.json").write_text(json.dumps({**told, "pid": pid}))
        assert owner(tmp_path / "run") is None


def test_a_torn_line_does_not_swallow_the_next_event(tmp_path: Path) -> None:
    with open_run(tmp_path / "run"):
        pass
    (tmp_path / "run/events.jsonl").write_text('{"kind": "no')
    with open_run(tmp_path / "run") as run:
        run.event("note", {"text": "after the kill"})
    _, rows = Tail(tmp_path / "run/events.jsonl").read()
    assert [r["text"] for r in rows] == ["after the kill"]
    assert read_manifest(tmp_path / "run")["stages"] == {}


def test_a_stream_goes_on_after_a_problem() -> None:
    answers = iter([RunError("damaged"), RunError("damaged"), [("log", {"loss": float("nan"), "text": "\ud800"})]])

    def poll() -> list[tuple[str, object]]:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    async def read() -> list[str]:
        found = []
        async for text in stream(poll, lambda: False):  # type: ignore[arg-type]
            found.append(text)
            if "event: log" in text:
                return found
        return found

    found = asyncio.run(read())
    assert [t.split("\n")[0] for t in found] == ["retry: 1000", "event: problem", "event: log"], "said once"
    assert json.loads(found[-1].split("data: ")[1]) == {"loss": None, "text": "\ud800"}
    assert all(t.endswith("\n\n") for t in found)


def test_server_sent_events_follow_a_growing_file(runs: Path) -> None:
    """The command itself, a real socket, and a log that grows under it."""
    with server(runs) as (url, process):
        assert url.startswith("http://127.0.0.1:")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(url.replace(url.split("/")[3], "guess") + "api/events?run=good")
        seen = []
        for kind, data in events(url + "api/events?run=good"):
            if kind == "changed":
                with (runs / "good/train/regrow/log.jsonl").open("a") as f:
                    f.write(line(step=121, loss=0.25))
            seen.append((kind, data))
            if kind == "log" and not data["anew"]:
                break
        assert seen[-1] == ("log", {"arm": "regrow", "anew": False, "rows": [{"step": 121, "loss": 0.25}]})
        kind, listed = next(events(url + "api/events"))
        assert kind == "runs" and {r["id"] for r in listed} == {"good", "group/early"}
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        assert process.stderr is not None and "Traceback" not in process.stderr.read()
