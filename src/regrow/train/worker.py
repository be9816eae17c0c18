"""One of the processes that ``accelerate launch`` starts: ``python -m regrow.train.worker JOB``."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from regrow.errors import RegrowError
from regrow.progress import event_sink
from regrow.train.config import TrainConfig
from regrow.train.launch import ERROR, EVENTS

_WATCH_S = 1.0
_TRACE_LINES = 6


def main(job_file: Path) -> int:
    """Train as the job says; the first process reports, whichever fails first notes why."""
    from regrow.train.stage import train_here

    job = json.loads(job_file.read_text(encoding="utf-8"))
    folder, rank = job_file.parent, int(os.environ.get("RANK", "0"))
    _end_with(**job["parent"])
    with ExitStack() as stack:
        if rank == 0:
            events = stack.enter_context((folder / EVENTS).open("a", encoding="utf-8", buffering=1))
            stack.enter_context(event_sink(lambda kind, data: print(json.dumps({"kind": kind} | data), file=events)))
        try:
            train_here(
                Path(job["model_dir"]),
                Path(job["mix_dir"]),
                TrainConfig(**job["settings"]),
                Path(job["out"]),
                seed=job["seed"],
                label=job["label"],
                resume=job["resume"],
            )
        except Exception as error:
            traceback.print_exc()
            _note_down(folder, rank, error)
            return 1
    return 0


def _note_down(folder: Path, rank: int, error: Exception) -> None:
    """Leave the reason for the process that waits, unless another one was first."""
    known = isinstance(error, RegrowError)
    found: dict[str, Any] = {
        "rank": rank,
        "type": type(error).__name__,
        "message": error.message if isinstance(error, RegrowError) else str(error),
        "where": error.where if isinstance(error, RegrowError) else None,
        "hint": error.hint if isinstance(error, RegrowError) else None,
        "traceback": "" if known else "\n".join(traceback.format_exc().splitlines()[-_TRACE_LINES:]),
    }
    try:
        with (folder / ERROR).open("x", encoding="utf-8") as file:
            json.dump(found, file)
    except FileExistsError:
        pass


def _end_with(pid: int, create_time: float) -> None:
    """End this process soon after the one that asked for the job, or the launcher above it, is gone.

    A launcher puts each process into a session of its own, so a kill of the process above never reaches it.
    """
    import psutil

    launcher = os.getppid()

    def there() -> bool:
        try:
            found = psutil.Process(pid)
            return bool(found.create_time() == create_time and found.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def watch() -> None:
        while there() and os.getppid() == launcher:
            time.sleep(_WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
