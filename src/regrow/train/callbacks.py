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


def fit_trackers(trainer: Any, folder: Path, *, anew: bool) -> None:
    """Make trackers keep what they are given, each training for itself.

    TensorBoard writes into ``folder``: its own choice is the trainer's folder, which goes with the checkpoints
    (``TENSORBOARD_LOGGING_DIR`` still wins). MLflow gets ``loss`` as ``loss/all`` and names of plain characters: its
    file store makes a folder of each name, so it cannot hold ``loss`` beside ``loss/domain``, and loses one silently.
    wandb's run ends with its training: its callback leaves it open, and the next arm would go into it. trackio's is a
    new one unless a training goes on: its callback goes on with any run of the same name, another day's too.

    Args:
        trainer: Its callbacks are changed.
        folder: For TensorBoard's files.
        anew: Whether the training begins, rather than goes on from a checkpoint.
    """
    from transformers.integrations import MLflowCallback, TensorBoardCallback, TrackioCallback, WandbCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder)
        elif isinstance(callback, MLflowCallback):
            callback.on_log = _for_mlflow(callback.on_log)
        elif isinstance(callback, WandbCallback):
            callback.on_train_end = _ending_run(callback)
        elif isinstance(callback, TrackioCallback) and anew:
            callback._trackio = _NewRuns(callback._trackio)


def _for_mlflow(on_log: Callable[..., Any]) -> Callable[..., Any]:
    def renamed(args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        plain = {"loss/all" if k == "loss" else re.sub(r"[^\w.\- :/]", "_", k): v for k, v in (logs or {}).items()}
        return on_log(args, state, control, logs=plain, **kwargs)

    return renamed


def _ending_run(callback: Any) -> Callable[..., Any]:
    on_train_end = callback.on_train_end

    def ending(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_train_end(args, state, control, **kwargs)
        run = callback._wandb.run
        # A run of another name is the caller's; a training that only pauses goes on in it.
        if run is not None and run.name == args.run_name and state.global_step >= state.max_steps:
            callback._wandb.finish()

    return ending


class _NewRuns:
    """trackio, whose ``init`` begins a run although there is one of that name."""

    def __init__(self, trackio: Any) -> None:
        self._trackio = trackio

    def init(self, **keys: Any) -> Any:
        return self._trackio.init(**(keys | {"resume": "never"}))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trackio, name)


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


class SaveEpochs(TrainerCallback):  # type: ignore[misc]
    """Writes the model at the end of each pass over the data.

    At the pass's last step and not behind it: the checkpoint of that step comes after, so a training that is killed
    there and goes on from it has the model already.

    Args:
        save: Writes it; gets the number of the pass, from 1.
    """

    def __init__(self, save: Callable[[int], object]) -> None:
        self._save = save

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = round(state.epoch)
        if abs(state.epoch - epoch) < 1e-6 and state.is_world_process_zero:
            self._save(epoch)
