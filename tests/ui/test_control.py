"""Runs started, continued and stopped from the page."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from regrow.errors import RunError
from regrow.recipe import dump_recipe, load_recipe, parse_recipe
from regrow.runs import owner
from regrow.ui import control
from regrow.ui.control import STARTED, Control
from regrow.ui.folder import RunsFolder
from tests.ui.conftest import HOLD, wait_for
from tests.ui.helpers import client

DEMO = parse_recipe("data: {path: demo}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs begin without loading the libraries, and hold."""
    monkeypatch.setattr(control, "_RUN", HOLD)


@pytest.fixture
def office(root: Path, at_once: None) -> Iterator[Control]:
    found = Control(RunsFolder(root))
    yield found
    for process in found._processes.values():
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_start_stop_and_continue(office: Control, root: Path) -> None:
    pid = office.start("mine", DEMO)
    assert office.starting() in ({"mine": "starting"}, {})
    wait_for(lambda: owner(root / "mine"))
    found = owner(root / "mine")
    assert found is not None and found.pid == pid and os.getsid(pid) == pid, "a session of its own"
    assert load_recipe(root / STARTED / "mine.yaml") == DEMO
    with pytest.raises(RunError, match="already"):
        office.start("mine", DEMO)
    (root / "mine/recipe.yaml").write_text(dump_recipe(DEMO))
    with pytest.raises(RunError, match="already"):
        office.proceed("mine")
    wait_for(lambda: "holding" in (root / "mine/events.jsonl").read_text())
    assert office.stop("mine") == pid
    wait_for(lambda: owner(root / "mine") is None)
    wait_for(lambda: "KeyboardInterrupt" in office.printed("mine").read_text())
    wait_for(lambda: not office._alive("mine"))
    with pytest.raises(RunError, match="no process"):
        office.stop("mine")
    assert office.proceed("mine") != pid
    wait_for(lambda: owner(root / "mine"))


def test_a_run_whose_process_is_still_ending_is_continued(
    office: Control, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page offers to continue once the run is free; a process with large libraries needs seconds more to end."""
    monkeypatch.setattr(control, "_RUN", f"import atexit, time\natexit.register(time.sleep, 3)\n{HOLD}")
    pid = office.start("mine", DEMO)
    wait_for(lambda: owner(root / "mine") and (root / "mine/manifest.json").is_file())
    (root / "mine/recipe.yaml").write_text(dump_recipe(DEMO))
    office.stop("mine")
    wait_for(lambda: owner(root / "mine") is None)
    assert office._alive("mine"), "it lingers"
    assert office.proceed("mine") != pid
    wait_for(lambda: owner(root / "mine"))


def test_a_run_started_elsewhere_can_be_stopped(
    office: Control, root: Path, holding: Callable[[Path], subprocess.Popen[bytes]]
) -> None:
    child = holding(root / "group/theirs")
    assert office.stop("group/theirs") == child.pid
    assert child.wait(timeout=60) != 0 and owner(root / "group/theirs") is None


@pytest.mark.parametrize("ignored", [False, True])
def test_a_run_in_the_background_of_a_script_stops_too(office: Control, root: Path, ignored: bool) -> None:
    """There the shell has switched Ctrl-C off, and a child of a child inherits that."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        pid = office.start("mine", DEMO)
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(lambda: owner(root / "mine"))
    assert control._ignores_ctrl_c(pid) is ignored
    office.stop("mine")
    wait_for(lambda: owner(root / "mine") is None)
    wait_for(lambda: "KeyboardInterrupt" in office.printed("mine").read_text())


def test_only_the_holder_of_the_lock_is_stopped(office: Control, root: Path) -> None:
    """A name that a killed process left behind must not bring Ctrl-C to whoever has its number now."""
    (root / "dead").mkdir()
    (root / "dead/manifest.json").write_text('{"format": "regrow-run/1", "stages": {}}')
    tell = (root / "dead/.owner.json").write_text
    tell(f'{{"pid": {os.getpid()}, "host": "{socket.gethostname()}", "since": "x"}}')
    with pytest.raises(RunError, match="no process"):
        office.stop("dead")
    tell(f'{{"pid": {os.getpid()}, "host": "elsewhere", "since": "x"}}')
    with pytest.raises(RunError, match="on elsewhere works"):
        office.stop("dead")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/tmp/x", ".hidden", "-o", "a b", "a\nb", "x" * 81, "é", "\x00"],
)
def test_a_name_is_one_plain_folder(office: Control, root: Path, name: str) -> None:
    with pytest.raises(RunError) as caught:
        office.start(name, DEMO)
    assert caught.value.where == "name" and not office._processes and sorted(root.iterdir()) == []


def test_a_taken_or_linked_name_is_refused(office: Control, root: Path) -> None:
    (root / "mine").mkdir()
    (root / "mine/thesis.doc").write_text("")
    with pytest.raises(RunError, match="already"):
        office.start("mine", DEMO)
    (root / "out").symlink_to(root.parent)
    with pytest.raises(RunError, match="outside"):
        office.start("out", DEMO)
    (root / STARTED).symlink_to(root.parent)
    with pytest.raises(RunError, match="outside"):
        office.start("fresh", DEMO)
    assert not office._processes


def test_one_name_is_started_once(office: Control) -> None:
    outcomes: list[object] = []

    def start() -> None:
        try:
            outcomes.append(office.start("same", DEMO))
        except RunError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sum(isinstance(o, int) for o in outcomes) == 1


def test_a_planted_recipe_is_not_continued(office: Control, root: Path) -> None:
    (root / "planted").mkdir()
    (root / "planted/manifest.json").write_text('{"format": "regrow-run/1", "stages": {}}')
    (root / "planted/recipe.yaml").write_text("model: {trust_remote_code: true}\ndata: {path: demo}\n")
    with pytest.raises(RunError, match="command line") as caught:
        office.proceed("planted")
    assert caught.value.where == "model.trust_remote_code" and not office._processes
    (root / "planted/recipe.yaml").write_text("nonsense: 1\n")
    reply = client(root).post("api/continue", json={"run": "planted"})
    assert reply.status_code == 400 and "nonsense" in reply.json()["message"]


def test_a_run_that_ends_before_it_begins_says_why(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_RUN", "import sys; sys.exit('no such model')")
    asks = client(root)
    reply = asks.post("api/start", json={"name": "mine", "values": {"data.path": "demo"}})
    assert reply.status_code == 200 and reply.json()["run"] == "mine"
    wait_for(lambda: asks.get("api/runs").json()[0]["state"] == "failed")
    told = asks.get("api/run", params={"run": "mine"}).json()
    assert told["starting"] == "failed" and "no such model" in told["printed"]


def test_what_is_wrong_with_the_form_comes_back_by_field(root: Path, at_once: None) -> None:
    asks = client(root)

    def start(name: str, **values: str) -> dict[str, str]:
        return asks.post("api/start", json={"name": name, "values": values}).json()["problems"]

    assert set(start("mine", seed="-1")) == {"seed", "data.path"}
    assert set(start("../mine", **{"data.path": "demo"})) == {"name"}
    assert set(start("mine", **{"data.path": "demo", "model.trust_remote_code": "true"})) == {
        "model.trust_remote_code"
    }
    assert asks.post("api/start", json={"name": "x", "values": {}, "output": "/tmp"}).status_code == 422
    assert not (root / STARTED).exists()
