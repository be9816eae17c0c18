"""What a run shows and writes while it trains: Regrow's progress, and one line of numbers for every interval."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from regrow.progress import Task, task


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``log.jsonl``; a last line cut off by a kill is left out. No file, no lines."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # Every complete line ends with a newline, so the last element is empty or a torn line.
    return [json.loads(line) for line in lines[:-1] if line]


def fit_trackers(trainer: Any, folder: Path) -> None:
    """Make trackers keep what they are given.

    TensorBoard writes into ``folder``: its own choice is the trainer's folder, which goes with the checkpoints
    (``TENSORBOARD_LOGGING_DIR`` still wins). MLflow gets ``loss`` as ``loss/all`` and names of plain characters: its
    file store makes a folder of each name, so it cannot hold ``loss`` beside ``loss/domain``, and loses one silently.
    """
    from transformers.integrations import MLflowCallback, TensorBoardCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder)
        elif isinstance(callback, MLflowCallback):
            callback.on_log = _for_mlflow(callback.on_log)


def _for_mlflow(on_log: Callable[..., Any]) -> Callable[..., Any]:
    def renamed(args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        plain = {"loss/all" if k == "loss" else re.sub(r"[^\w.\- :/]", "_", k): v for k, v in (logs or {}).items()}
        return on_log(args, state, control, logs=plain, **kwargs)

    return renamed


class LogFile(TrainerCallback):  # type: ignore[misc]
    """Appends each log entry to ``log.jsonl``; on resume, lines after the checkpoint's step are dropped first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        lines = [line for line in read_log(self.path) if line["step"] <= state.global_step]
        tmp = self.path.with_name(f".{self.path.name}.tmp")
        tmp.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        tmp.replace(self.path)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last, shorter interval

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        entry = {"step": state.global_step, "lr": logs.get("learning_rate")} | {
            k: v for k, v in logs.items() if k not in ("learning_rate", "step")
        }
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")


class Progress(TrainerCallback):  # type: ignore[misc]
    """Drives `regrow.progress`; the bar closes with ``stack``, also when training dies."""

    def __init__(self, label: str, stack: ExitStack) -> None:
        self.label, self._stack = label, stack
        self._task: Task | None = None
        self._stats: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._task = self._stack.enter_context(task(f"training {self.label}", state.max_steps, "steps"))
            if state.global_step:
                self._task.skip(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._task is not None:
            self._task.advance(1, **self._stats)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        shown = ("loss", "loss/domain", "loss/replay", "kl/replay", "tok_s")
        self._stats = {k: logs[k] for k in shown if logs and k in logs} or self._stats
