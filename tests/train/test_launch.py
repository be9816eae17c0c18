"""Training in several processes, really started with ``accelerate launch`` (gloo on the CPU)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from regrow import progress
from regrow.errors import RecipeError, RunError, TrainError
from regrow.train import launch as module
from regrow.train.config import LaunchSection, TrainConfig
from regrow.train.launch import FSDP2, accelerate_config, identity, launched
from regrow.train.stage import train
from tests.train.helpers import largest_difference, log_lines, random_rows, write_mix

STEPS: dict[str, Any] = {
    "learning_rate": 1e-3, "num_train_epochs": 3, "logging_steps": 1, "save_steps": 2, "warmup_ratio": 0.0,
}  # fmt: skip
ONE = STEPS | {"per_device_train_batch_size": 8}
TWO = STEPS | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "launch": {"num_processes": 2}}
"""The same global batch of eight, in one process and in two."""


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 rows: the last step of an epoch has six, four for one process and two for the other."""
    return write_mix(tmp_path_factory.mktemp("mix"), random_rows(22, k=5))


# -- what is handed to accelerate -------------------------------------------------------------------------------------


def test_the_defaults_and_every_key_arrive(tmp_path):
    plain = accelerate_config(LaunchSection(num_processes=4))
    assert (plain["num_processes"], plain["distributed_type"], plain["mixed_precision"]) == (4, "MULTI_GPU", "no")
    assert accelerate_config(LaunchSection(num_processes=4), bf16=True)["mixed_precision"] == "bf16"
    sharded = accelerate_config(LaunchSection(strategy="fsdp", accelerate={"fsdp_config": {"fsdp_offload_params": 1}}))
    assert sharded["distributed_type"] == "FSDP"
    assert sharded["fsdp_config"] == FSDP2 | {"fsdp_offload_params": 1}
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump(
        {"distributed_type": "DEEPSPEED", "num_processes": 16, "num_machines": 2, "main_process_ip": "10.0.0.1",
         "deepspeed_config": {"zero_stage": 3, "offload_optimizer_device": "none"}}
    ))  # fmt: skip
    over = LaunchSection(config_file=str(file), accelerate={"machine_rank": 1, "deepspeed_config": {"zero_stage": 2}})
    both = accelerate_config(over)
    assert (both["num_processes"], both["num_machines"], both["machine_rank"]) == (16, 2, 1)
    assert both["deepspeed_config"] == {"zero_stage": 2, "offload_optimizer_device": "none"}
    assert "main_process_port" not in both
    changed = accelerate_config(LaunchSection(config_file=str(file), num_processes=8, strategy="ddp"))
    assert (changed["num_processes"], changed["distributed_type"]) == (8, "MULTI_GPU")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accelerate": {"num_processes": 2}}, "has a key of its own: train.launch.num_processes"),
        ({"accelerate": {"mixed_precision": "fp16"}}, "has a key of its own: train.bf16"),
    ],
)
def test_a_key_stands_in_one_place_only(settings, message):
    with pytest.raises(ValueError, match=message):
        LaunchSection(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config_file": "nowhere.yaml"}, "No such file"),
        (
            {"strategy": "fsdp", "accelerate": {"fsdp_config": {"fsdp_state_dict_type": "SHARDED_STATE_DICT"}}},
            "pickle",
        ),
        (
            {"strategy": "fsdp", "accelerate": {"fsdp_config": {"fsdp_cpu_ram_efficient_loading": True}}},
            "every process",
        ),
    ],
)
def test_what_cannot_be_trained_with_is_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        accelerate_config(LaunchSection(**settings))


def test_a_file_of_another_kind_is_refused(tmp_path):
    file = tmp_path / "tpu.yaml"
    file.write_text("distributed_type: XLA\n")
    with pytest.raises(RecipeError, match="distributed_type XLA"):
        accelerate_config(LaunchSection(config_file=str(file)))
    file.write_text("just words")
    with pytest.raises(RecipeError, match="not a config of accelerate"):
        accelerate_config(LaunchSection(config_file=str(file)))


def test_a_key_that_accelerate_does_not_know_is_refused_before_anything_starts(tiny_model_dir, mix, tmp_path):
    cfg = TrainConfig(launch={"num_processes": 2, "accelerate": {"num_prozesse": 3}})
    with pytest.raises(RecipeError, match=r"accelerate refuses .*num_prozesse"):
        train(tiny_model_dir, mix, cfg, tmp_path, seed=0)


@pytest.mark.parametrize(
    ("cuda", "settings", "message"),
    [
        (0, {"num_processes": 2, "strategy": "fsdp"}, "FSDP needs GPUs"),
        (0, {"num_processes": 2, "strategy": "deepspeed"}, "DeepSpeed is not installed"),
        (2, {"num_processes": 4}, "4 processes are wanted here and 2 GPUs can be seen"),
    ],
)
def test_a_launch_this_machine_cannot_start_is_refused(
    cuda, settings, message, tiny_model_dir, mix, tmp_path, monkeypatch
):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    with pytest.raises(RecipeError, match=message):
        train(tiny_model_dir, mix, TrainConfig(launch=settings), tmp_path, seed=0)


def test_shares_that_change_while_training_need_one_process(tiny_model_dir, mix, tmp_path):
    cfg = TrainConfig(launch={"num_processes": 2}, mixture={"controller": "uniform"})
    with pytest.raises(RecipeError, match="need a single process"):
        train(tiny_model_dir, mix, cfg, tmp_path, seed=0)


def test_the_infinite_schedule_is_not_sharded_by_a_file_either(tiny_model_dir, mix, tmp_path):
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump({"distributed_type": "FSDP", "num_processes": 2}))
    cfg = TrainConfig(launch={"config_file": str(file)}, lr_scheduler_type="infinite")
    with pytest.raises(RecipeError, match="the infinite schedule saves a model while it trains"):
        train(tiny_model_dir, mix, cfg, tmp_path, seed=0)


def test_when_processes_are_started(monkeypatch, tmp_path):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert not launched(TrainConfig()) and not launched(TrainConfig(launch={"num_processes": 1}))
    assert launched(TrainConfig(launch={"num_processes": 2}))
    assert launched(TrainConfig(launch={"config_file": "some.yaml"}))
    monkeypatch.setenv("LOCAL_RANK", "0")  # torchrun or accelerate started this one
    assert not launched(TrainConfig(launch={"num_processes": 2}))


def test_processes_and_sharding_belong_to_a_checkpoint_and_ports_do_not():
    def of(**settings: Any) -> list[Any]:
        return identity(TrainConfig(launch=settings))

    assert of() == of(num_processes=1) != of(num_processes=2) != of(num_processes=2, strategy="fsdp")
    assert of(num_processes=2) == of(num_processes=2, accelerate={"main_process_port": 29511})


# -- two real processes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(mix, tiny_model_dir, tmp_path_factory):
    return train(tiny_model_dir, mix, TrainConfig(**ONE), tmp_path_factory.mktemp("one"), seed=3)


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(mix, alone, tiny_model_dir, tmp_path, capfd):
    events: list[tuple[str, dict[str, Any]]] = []
    with progress.event_sink(lambda kind, data: events.append((kind, data))):
        done = train(tiny_model_dir, mix, TrainConfig(**TWO), tmp_path, seed=3, label="regrow")
    assert (done.processes, done.steps, done.tokens) == (2, 9, alone.tokens)
    one, two = log_lines(alone.model_path.parent), log_lines(tmp_path)
    assert [line["step"] for line in two] == list(range(1, 10))
    for a, b in zip(one, two, strict=True):
        same = a.keys() - {"tok_s"}
        assert same == b.keys() - {"tok_s"}
        assert {k: b[k] for k in same} == pytest.approx({k: a[k] for k in same}, rel=1e-5)
    assert largest_difference(alone.model_path, done.model_path) < 1e-5
    assert not (tmp_path / "launch").exists() and not (tmp_path / "checkpoints").exists()
    steps = [d for kind, d in events if kind == "progress"]
    assert steps[-1]["task"] == "training regrow" and steps[-1]["done"] == steps[-1]["total"] == 9
    assert {"loss", "loss/domain", "loss/replay"} <= steps[-1].keys()
    assert "2 processes (MULTI_GPU)" in capfd.readouterr().err
    assert train(tiny_model_dir, mix, TrainConfig(**TWO), tmp_path, seed=3) == done  # not run again


def start(model: Path, mix: Path, out: Path, settings: dict[str, Any]) -> subprocess.Popen[str]:
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom regrow.train.config import TrainConfig\n"
        "from regrow.train.stage import train\n"
        "train(*map(Path, sys.argv[1:3]), TrainConfig(**json.loads(sys.argv[4])), Path(sys.argv[3]), seed=3)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(model), str(mix), str(out), json.dumps(settings)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def workers_of(out: Path) -> list[psutil.Process]:
    """The processes that train into ``out``."""
    found = []
    for p in psutil.process_iter(["cmdline"]):
        line = p.info["cmdline"] or []
        if "regrow.train.worker" in line and str(out / "launch" / "job.json") in line and "-u" in line:
            found.append(p)
    return found


def wait_for(what: Any, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill-9", "ctrl-c"])
def test_stopped_from_outside_leaves_no_process_and_continues(how, mix, tiny_model_dir, tmp_path):
    more = {"max_steps": 300, "save_steps": 3}  # long enough that a signal comes before its end
    whole = train(tiny_model_dir, mix, TrainConfig(**ONE | more), tmp_path / "one", seed=3)
    process = start(tiny_model_dir, mix, tmp_path, TWO | more)
    wait_for(lambda: list((tmp_path / "checkpoints").glob("checkpoint-*/regrow.json")))
    workers = workers_of(tmp_path)
    assert len(workers) == 2
    process.send_signal(how)
    process.communicate(timeout=200)
    assert process.returncode not in (0, None)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive and not (tmp_path / "train.json").exists()
    done = train(tiny_model_dir, mix, TrainConfig(**TWO | more), tmp_path, seed=3)
    assert done.resumed_from is not None and (done.steps, done.tokens) == (300, whole.tokens)
    assert largest_difference(whole.model_path, done.model_path) < 1e-4


@pytest.mark.slow
def test_a_run_whose_processes_die_continues_from_its_checkpoint(mix, alone, tiny_model_dir, tmp_path):
    """One of two processes is killed: the other is stopped, the error says so, the next call goes on to the end."""
    process = start(tiny_model_dir, mix, tmp_path, TWO)
    wait_for(lambda: (tmp_path / "checkpoints" / "checkpoint-4" / "regrow.json").exists())
    workers = workers_of(tmp_path)
    os.kill(workers[-1].pid, signal.SIGKILL)
    _, text = process.communicate(timeout=300)
    assert process.returncode == 1 and "a training process was killed by SIGKILL" in text
    assert str(tmp_path / "launch" / "log.txt") in text
    assert not [p for p in workers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    done = train(tiny_model_dir, mix, TrainConfig(**TWO), tmp_path, seed=3)
    assert done.resumed_from is not None and done.resumed_from >= 4
    assert (done.steps, done.tokens) == (9, alone.tokens)
    assert largest_difference(alone.model_path, done.model_path) < 1e-5


@pytest.mark.slow
def test_what_a_process_raises_arrives_as_it_was(mix, tiny_model_dir, tmp_path):
    with pytest.raises(RunError, match="no replay row carries") as caught:
        rows = write_mix(tmp_path / "mix", random_rows(6))
        train(tiny_model_dir, rows, TrainConfig(**TWO, replay_loss="soft"), tmp_path, seed=3)
    assert caught.value.hint and caught.value.where
    bad = TWO | {"trainer_args": {"optim": "rmsprop"}, "method": "lora", "lora": {"target_modules": ["no_such"]}}
    with pytest.raises(TrainError, match=r"training process \d failed: \w+: .*no_such"):
        train(tiny_model_dir, mix, TrainConfig(**bad), tmp_path / "bad", seed=3)


def test_a_process_that_says_nothing_is_told_from_its_log(tmp_path):
    (tmp_path / "log.txt").write_text("\n".join(f"line {i}" for i in range(40)))
    error = module._failure(tmp_path, -9)
    assert isinstance(error, TrainError) and "exit code -9" in str(error)
    assert "line 39" in str(error) and "line 3\n" not in str(error)
    (tmp_path / "log.txt").write_text(
        "Root Cause (first observed failure):\n[0]:\n  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 77)\n"
    )
    lost = {"type": "RuntimeError", "message": "Connection closed by peer", "traceback": "", "rank": 0, "hint": None}
    (tmp_path / "error.json").write_text(json.dumps(lost | {"where": None}))
    assert "killed by SIGKILL" in str(module._failure(tmp_path, 1))


# -- sharded, with accelerate told that it may shard on CPUs ----------------------------------------------------------


@pytest.fixture
def shards(monkeypatch):
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setattr(module, "WORKER", "tests.train.shard_on_cpu")
    monkeypatch.setattr(module, "_check_machine", lambda config: {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": path})


SHARDED = TWO | {"launch": {"num_processes": 2, "strategy": "fsdp"}}


@pytest.mark.slow
def test_sharded_weights_have_the_loss_curve_of_one_process_and_come_back(
    shards, mix, alone, tiny_model_dir, tmp_path
):
    """FSDP2 over gloo: the curve, the gathered model, a run cut off after its last step, and one cut off before."""
    kept = SHARDED | {"keep_checkpoints": True, "save_total_limit": 9}
    done = train(tiny_model_dir, mix, TrainConfig(**kept), tmp_path, seed=3)
    one, two = log_lines(alone.model_path.parent), log_lines(tmp_path)
    for a, b in zip(one, two, strict=True):
        same = a.keys() - {"tok_s"}
        assert {k: b[k] for k in same} == pytest.approx({k: a[k] for k in same}, rel=1e-5)
    assert done.processes == 2 and largest_difference(alone.model_path, done.model_path) < 1e-5
    assert not list(done.model_path.glob("*.bin"))
    for last in (9, 6):
        (tmp_path / "train.json").unlink()
        shutil.rmtree(tmp_path / "model")
        again = train(tiny_model_dir, mix, TrainConfig(**kept), tmp_path, seed=3)
        assert again.resumed_from == last and again.tokens == alone.tokens
        assert largest_difference(alone.model_path, again.model_path) < 1e-5
        for newer in (8, 9):
            shutil.rmtree(tmp_path / "checkpoints" / f"checkpoint-{newer}", ignore_errors=True)


@pytest.mark.slow
def test_sharded_adapters_are_those_of_one_process(shards, mix, tiny_model_dir, tmp_path):
    lora = {"method": "lora", "lora": {"r": 4}, "merge_adapter": True, "max_steps": 3}
    one = train(tiny_model_dir, mix, TrainConfig(**ONE | lora), tmp_path / "one", seed=3)
    two = train(tiny_model_dir, mix, TrainConfig(**SHARDED | lora), tmp_path / "two", seed=3)
    assert largest_difference(one.adapter_path, two.adapter_path) < 1e-5
    assert largest_difference(one.model_path, two.model_path) < 1e-5
    assert largest_difference(one.model_path, tiny_model_dir) > 1e-4
