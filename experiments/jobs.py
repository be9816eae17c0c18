"""Jobs of an experiment as processes of their own, some at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path


def in_parallel(commands: list[list[str]], workers: int, threads: int, logs: Path) -> None:
    """Run commands, ``workers`` at a time, each with ``threads`` threads; stop all when one fails."""
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running = deque(commands), {}
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    started, total = time.monotonic(), len(commands)
    while waiting or running:
        while waiting and len(running) < workers:
            command = waiting.popleft()
            log = logs / f"{'-'.join(command[-4:])}.log".replace("/", "_").replace("--", "")
            process = subprocess.Popen(command, env=env, stdout=log.open("a"), stderr=subprocess.STDOUT)
            running[process] = (command, log)
        time.sleep(0.5)
        for process in [p for p in running if p.poll() is not None]:
            command, log = running.pop(process)
            if process.returncode:
                for other in running:
                    other.terminate()
                sys.exit(f"failed: {' '.join(command)}\nsee {log}\n{log.read_text()[-2000:]}")
            done = total - len(waiting) - len(running)
            print(f"{done}/{total} {' '.join(command[-4:])} ({time.monotonic() - started:.0f} s)", flush=True)
