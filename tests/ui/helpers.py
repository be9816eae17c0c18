"""A client that knows the token, and a server in a process of its own."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from regrow.ui.server import create_app

TOKEN = "t0ken-of-the-tests"
HOST = "http://127.0.0.1:8321"


def client(root: Path, **more: Any) -> TestClient:
    return TestClient(create_app(root, TOKEN, **more), base_url=f"{HOST}/{TOKEN}/")


@contextlib.contextmanager
def server(root: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`regrow ui` on a free port: its address, and its process."""
    command = [sys.executable, "-c", "from regrow.cli import main; main()", "ui", str(root), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        assert found, said + process.stderr.read()
        yield found.group(), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


def events(url: str, timeout: float = 60) -> Iterator[tuple[str, Any]]:
    """Server-sent events as ``(kind, data)``."""
    with urllib.request.urlopen(url, timeout=timeout) as reply:
        kind = ""
        for line in reply:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield kind, json.loads(value)
