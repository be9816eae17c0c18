"""Training past one process: ``accelerate launch`` started, watched and stopped from here."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from regrow.errors import ModelError, RecipeError, RegrowError, RunError, TrainError
from regrow.progress import Task, note, task
from regrow.train.config import LaunchSection, TrainConfig

TYPES = {"ddp": "MULTI_GPU", "fsdp": "FSDP", "deepspeed": "DEEPSPEED"}
"""Our names and accelerate's."""
FSDP2 = {
    "fsdp_version": 2,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_state_dict_type": "FULL_STATE_DICT",
    "fsdp_reshard_after_forward": True,
    "fsdp_cpu_ram_efficient_loading": False,
}
FIXED = {
    "fsdp_state_dict_type": "sharded checkpoints are read back with pickle",
    "fsdp_cpu_ram_efficient_loading": "every process looks at the model's weights before it trains",
}
"""Settings of ``fsdp_config`` that Regrow needs as they are in `FSDP2`, and why."""

WORKER = "regrow.train.worker"
"""The module that each process runs."""
JOB, EVENTS, ERROR, LOG, CONFIG = "job.json", "events.jsonl", "error.json", "log.txt", "accelerate.yaml"
_STOP_S = 20.0
_TAIL_LINES = 15


def launched(cfg: TrainConfig) -> bool:
    """Whether training is to be started in processes of its own. Not in one that a launcher started already."""
    wanted = (cfg.launch.num_processes or 1) > 1 or cfg.launch.config_file is not None
    return wanted and "LOCAL_RANK" not in os.environ


def accelerate_config(launch: LaunchSection, *, bf16: bool = False) -> dict[str, Any]:
    """What stands in accelerate's config file: the user's own, the recipe's keys over it, our defaults below.

    Raises:
        RecipeError: The file cannot be read, or holds what Regrow cannot train with.
    """
    config: dict[str, Any] = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "machine_rank": 0}
    if launch.config_file is not None:
        config |= _read(Path(launch.config_file))
    else:
        config |= {"distributed_type": TYPES[launch.strategy or "ddp"], "num_processes": 1}
        config |= {"main_process_port": 0, "use_cpu": False}  # 0: a free one
    for key, value in launch.accelerate.items():
        old = config.get(key)
        config[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    if launch.strategy is not None:
        config["distributed_type"] = TYPES[launch.strategy]
    if launch.num_processes is not None:
        config["num_processes"] = launch.num_processes
    config["mixed_precision"] = "bf16" if bf16 else "no"
    if config.get("distributed_type") not in TYPES.values():
        raise RecipeError(
            f"Regrow cannot train with distributed_type {config.get('distributed_type')}",
            where="train.launch",
            hint=f"one of {', '.join(TYPES.values())}",
        )
    if config["distributed_type"] == TYPES["fsdp"]:
        config["fsdp_config"] = {**FSDP2, **config.get("fsdp_config", {})}
        for key, why in FIXED.items():
            if config["fsdp_config"][key] != FSDP2[key]:
                raise RecipeError(
                    f"{key} must be {FSDP2[key]}: {why}", where="train.launch (fsdp_config)", hint="leave it out"
                )
    return config


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            error.strerror or str(error),
            where=f"train.launch.config_file: {path}",
            hint="`accelerate config` writes one",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"not valid YAML: {error}", where=f"train.launch.config_file: {path}") from error
    if not isinstance(found, dict):
        raise RecipeError("not a config of accelerate", where=f"train.launch.config_file: {path}")
    return found


def identity(cfg: TrainConfig) -> list[Any]:
    """What of the launch decides the trained weights: how many processes, and how they share the model."""
    config = accelerate_config(cfg.launch)
    return [config["num_processes"], config["distributed_type"]]


def check_alone(cfg: TrainConfig) -> None:
    """Refuse several processes where the shares of the mix change while training.

    Raises:
        RecipeError: That is asked for.
    """
    if launched(cfg) and cfg.mixture.controller != "none":
        raise RecipeError(
            "shares that change while training need a single process", where="train.mixture.controller",
            hint="leave train.launch out",
        )  # fmt: skip


def launch(
    model_dir: Path, mix_dir: Path, cfg: TrainConfig, out: Path, *, seed: int, label: str, resume: bool
) -> None:
    """Train with `regrow.train.stage.train_here` in processes started by ``accelerate launch``; show their progress.

    Ctrl-C stops them all. They also end by themselves when this process is gone, however it went. Their output is in
    ``out/launch/log.txt`` until training has succeeded.

    Raises:
        RecipeError: The launch does not fit this machine, or accelerate does not know a key.
        RegrowError: What a process raised, as it raised it.
        TrainError: A process failed in any other way; with the end of its traceback, or of the log.
    """
    import psutil

    from regrow.rows.writers import atomic_write_text
    from regrow.train.arguments import use_bf16

    check_alone(cfg)
    config = accelerate_config(cfg.launch, bf16=use_bf16(cfg))
    if cfg.lr_scheduler_type == "infinite" and config["distributed_type"] != TYPES["ddp"]:
        raise RecipeError(
            "the infinite schedule saves a model while it trains, which sharded training does not",
            where="train.launch.strategy",
            hint="ddp",
        )
    environment = os.environ | _check_machine(config)
    rank = int(config["machine_rank"])
    folder = out / ("launch" if rank == 0 else f"launch-{rank}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _write_config(folder / CONFIG, config)
    me = psutil.Process()
    job = {
        "model_dir": str(model_dir),
        "mix_dir": str(mix_dir),
        "out": str(out),
        "settings": cfg.model_dump(mode="json"),
        "seed": seed,
        "label": label,
        "resume": resume,
        "parent": {"pid": me.pid, "create_time": me.create_time()},
    }
    atomic_write_text(folder / JOB, json.dumps(job, indent=1) + "\n")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / CONFIG)]
    command += ["--module", WORKER, str(folder / JOB)]
    note(f"training {label}: {config['num_processes']} processes ({config['distributed_type']}), by accelerate launch")
    with (folder / LOG).open("wb") as log, ExitStack() as stack:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            relay = _Relay(folder / EVENTS, stack)
            while process.poll() is None:
                relay.pump()
                time.sleep(0.2)
            relay.pump()
        except BaseException:
            _stop(process)
            raise
        if process.returncode:
            raise _failure(folder, process.returncode)
    shutil.rmtree(folder)


def _check_machine(config: dict[str, Any]) -> dict[str, str]:
    """Whether this machine can start these processes; returns what their environment needs.

    Raises:
        RecipeError: It cannot.
    """
    import torch

    where = "train.launch"
    kind, here = config["distributed_type"], int(config["num_processes"]) // int(config["num_machines"])
    if kind == TYPES["deepspeed"] and find_spec("deepspeed") is None:
        raise RecipeError("DeepSpeed is not installed", where=where, hint="pip install deepspeed, or strategy: fsdp")
    if torch.cuda.is_available():
        if here > torch.cuda.device_count():
            raise RecipeError(
                f"{here} processes are wanted here and {torch.cuda.device_count()} GPUs can be seen",
                where=where,
                hint="one process a GPU",
            )
        return {}
    if torch.accelerator.is_available():
        kind = str(torch.accelerator.current_accelerator())
        raise RecipeError(f"several processes are not supported on {kind}", where=where, hint="num_processes: 1")
    if kind != TYPES["ddp"]:
        raise RecipeError(f"{kind} needs GPUs: accelerate does not shard on CPUs", where=where, hint="strategy: ddp")
    return {"ACCELERATE_USE_CPU": "true"}


def _write_config(path: Path, config: dict[str, Any]) -> None:
    """Write accelerate's file and let accelerate read it once: it knows its own keys best."""
    import yaml
    from accelerate.commands.config.config_args import load_config_from_file

    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    try:
        load_config_from_file(str(path))
    except (ValueError, TypeError, KeyError) as error:
        raise RecipeError(f"accelerate refuses the launch: {error}", where="train.launch") from error


class _Relay:
    """Shows here what the first process reports."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path, self._stack = path, stack
        self._read = 0
        self._bar: Task | None = None

    def pump(self) -> None:
        """Show what is new."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # a line that is half written waits for its rest
        self._read += len(whole)
        for line in whole.splitlines():
            event = json.loads(line)
            if event.pop("kind") == "note":
                note(event["text"])
            else:
                self._progress(event)

    def _progress(self, event: dict[str, Any]) -> None:
        label, done = event.pop("task"), event.pop("done")
        total, unit, skipped = event.pop("total"), event.pop("unit"), event.pop("skipped")
        event.pop("eta")  # the bar here has its own
        if self._bar is None or self._bar.label != label:
            self._stack.close()
            self._bar = self._stack.enter_context(task(label, total, unit))
            if skipped:
                self._bar.skip(skipped)
        self._bar.advance(done - self._bar.done, **event)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the launcher and every process below it."""
    import psutil

    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=1)
    for left in alive:
        left.kill()


def _failure(folder: Path, code: int) -> RegrowError:
    """Why the processes ended: what one of them noted down, that one was killed, or else the end of the log."""
    try:
        found = json.loads((folder / ERROR).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    kinds: dict[str, type[RegrowError]] = {k.__name__: k for k in (ModelError, RecipeError, RunError)}
    if found is not None and found["type"] in kinds:
        return kinds[found["type"]](found["message"], where=found["where"], hint=found["hint"])
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    hint = (
        "a process that was killed is most often out of memory: a smaller per_device_train_batch_size; the same "
        "command continues from the last complete checkpoint"
    )
    # When one process is killed, the others fail too, over the lost connection; torchrun saw which was first.
    killed = re.search(r"Root Cause \(first observed failure\).*?exitcode *: -(\d+)", text, re.DOTALL)
    if killed is not None:
        name = signal.Signals(int(killed[1])).name
        return TrainError(f"a training process was killed by {name}", where=str(folder / LOG), hint=hint)
    if found is None:
        tail = "\n".join(text.splitlines()[-_TAIL_LINES:])
        return TrainError(
            f"the training processes ended with exit code {code}; the end of their log:\n{tail}",
            where=str(folder / LOG),
            hint=hint,
        )
    return TrainError(
        f"training process {found['rank']} failed: {found['type']}: {found['message']}\n{found['traceback']}",
        where=str(folder / LOG),
        hint=found["hint"],
    )
