"""`regrow ui` at the command line."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tests.ui.helpers import server


def ui(*args: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys\n{before}\nfrom regrow.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", code, "ui", *args], capture_output=True, text=True, timeout=300)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    done = ui(str(tmp_path / "none"))
    assert done.returncode == 1 and "there is no such folder" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = ui(str(tmp_path), "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1 and "cannot listen there" in done.stderr and "--port" in done.stderr


def test_without_the_extra(tmp_path: Path) -> None:
    done = ui(str(tmp_path), before="sys.modules['fastapi'] = None")
    assert done.returncode == 1 and "pip install 'regrow[ui]'" in done.stderr and "Traceback" not in done.stderr


def test_other_machines_are_let_in_only_when_asked_for(tmp_path: Path) -> None:
    with server(tmp_path, "--host", "0.0.0.0") as (url, process):
        assert url.startswith(f"http://{socket.gethostname()}:")
        assert process.stdout is not None and "unencrypted" in process.stdout.readline()
    assert process.returncode == 0
