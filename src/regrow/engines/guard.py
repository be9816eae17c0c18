"""Runs a command and ends it, with all its children, when the standard input closes: ``python guard.py COMMAND ...``.

The parent holds the other end of the pipe, so the command never outlives it, not even after ``kill -9``. The command's
own standard input is empty. Run as a script, so that nothing but the standard library is loaded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 15.0
"""Between the request to stop and the end by force."""


def main(command: list[str]) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def watch() -> None:
        while os.read(0, 1024):
            pass
        _end(child)

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=_end, args=(child,), daemon=True).start())
    code = child.wait()
    _signal(child.pid, signal.SIGKILL)  # what it left behind
    return code if code >= 0 else 128 - code


def _end(child: subprocess.Popen[bytes]) -> None:
    _signal(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            return
        time.sleep(0.05)
    _signal(child.pid, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
