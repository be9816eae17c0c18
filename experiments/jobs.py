"""Jobs of an experiment as processes of their own, some at a time."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path


def arguments(doc: str | None, *, seeds: list[int] | None = None) -> argparse.ArgumentParser:
    """The options that experiments on the benchmark slices share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, required=True, help="folder of the benchmark slices")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--to", type=Path, help="folder for the tables")
    parser.add_argument("--workers", type=int, default=1)
    if seeds is not None:
        parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    return parser


def again(script: str, args: argparse.Namespace) -> list[str]:
    """The command that runs one job of the script in a process of its own; the job follows."""
    return [sys.executable, str(Path(script).resolve()), "--kit", str(args.kit), "--out", str(args.out), "--job"]


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
