"""Runs that are killed with SIGKILL, really: they end with the weights and the log of an uninterrupted run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from regrow.errors import RunError
from regrow.train.checkpoints import MARKER
from regrow.train.config import TrainConfig
from regrow.train.stage import train
from tests.train.helpers import largest_difference, log_lines, random_rows, write_mix

FULL = {
    "max_steps": 20, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3,
    "save_steps": 3, "logging_steps": 2,
}  # fmt: skip
"""24 rows are 6 steps an epoch: step 13 lies in the third epoch, which has an order of its own."""
MOVING = {"controller": "fostering", "rule": "code", "update_steps": 4, "holdout_rows": 2}
LORA = FULL | {"method": "lora", "lora": {"r": 4, "lora_dropout": 0.2}}

CHILD = """
import json, os, signal, sys
from pathlib import Path
where, model, mix, out, settings = sys.argv[1], *map(Path, sys.argv[2:5]), json.loads(sys.argv[5])
import regrow.train.stage as stage
import regrow.train.trainer as trainer
from regrow.train.config import TrainConfig

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

mark = trainer.mark_complete
if where == "writing checkpoint 12":
    trainer.mark_complete = lambda folder, **kw: die() if kw["step"] == 12 else mark(folder, **kw)
elif where == "after checkpoint 12":
    trainer.mark_complete = lambda folder, **kw: (mark(folder, **kw), kw["step"] == 12 and die())
elif where == "before checkpoint 15":
    save = trainer.SFTTrainer._save_checkpoint
    trainer.SFTTrainer._save_checkpoint = lambda self, *a: die() if self.state.global_step == 15 else save(self, *a)
elif where == "before the summary":
    stage._write_summary = die
stage.train(model, mix, TrainConfig(**settings), out, seed=3)
"""


def kill(where: str, model: Path, mix: Path, out: Path, settings: dict) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, where, str(model), str(mix), str(out), json.dumps(settings)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mix(tmp_path_factory.mktemp("mix"), random_rows(24, seed=1))


@pytest.mark.parametrize(
    ("where", "settings", "step"),
    [
        pytest.param("before checkpoint 15", LORA, 12, id="lora-in-the-third-epoch"),
        pytest.param("writing checkpoint 12", FULL, 9, id="half-written-checkpoint"),
        pytest.param("before the summary", FULL, 20, id="after-the-last-step", marks=pytest.mark.slow),
        pytest.param("before checkpoint 15", FULL | {"packing": True, "max_length": 64}, 12, id="packed",
                     marks=pytest.mark.slow),
        pytest.param("before checkpoint 15", FULL | {"mixture": MOVING}, 12, id="moving-mixture"),
    ],
)  # fmt: skip
def test_killed_and_continued_equals_uninterrupted(where, settings, step, tiny_model_dir, mix, tmp_path, capfd):
    cfg = TrainConfig(**settings)
    whole = train(tiny_model_dir, mix, cfg, tmp_path / "whole", seed=3)
    kill(where, tiny_model_dir, mix, tmp_path / "killed", settings)
    assert not (tmp_path / "killed" / "train.json").exists()
    continued = train(tiny_model_dir, mix, cfg, tmp_path / "killed", seed=3)
    assert continued.resumed_from == step
    if where == "writing checkpoint 12":
        assert "checkpoint-12: not resumed from, writing it was interrupted" in capfd.readouterr().err
    assert largest_difference(whole.model_path, continued.model_path) == 0
    assert (continued.steps, continued.tokens, continued.train_tokens) == (20, whole.tokens, whole.train_tokens)
    timeless = [
        [{k: v for k, v in line.items() if k != "tok_s"} for line in log_lines(tmp_path / name)]
        for name in ("whole", "killed")
    ]
    assert [line["step"] for line in timeless[0]] == list(range(2, 21, 2))
    for one, two in zip(*timeless, strict=True):
        assert one.keys() == two.keys()
        # The interval in which the run died: the trainer forgets its running mean, our sums are in the checkpoint.
        skip = {"loss"} if one["step"] == step + 1 else set()
        assert {k: v for k, v in one.items() if k not in skip} == pytest.approx(
            {k: v for k, v in two.items() if k not in skip}, rel=1e-6
        )


@pytest.fixture
def interrupted(tiny_model_dir, mix, tmp_path) -> Path:
    """A run with checkpoints of steps 6 and 9 and no summary, as a kill leaves it."""
    cfg = TrainConfig(**FULL | {"max_steps": 9, "save_total_limit": 2, "keep_checkpoints": True})
    train(tiny_model_dir, mix, cfg, tmp_path / "run", seed=3)
    (tmp_path / "run" / "train.json").unlink()
    return tmp_path / "run"


def again(model: Path, mix: Path, out: Path, **more: object):
    settings = FULL | {"max_steps": 9, "save_total_limit": 2} | more
    return train(model, mix, TrainConfig(**settings), out, seed=3)


@pytest.mark.parametrize("damage", ["truncated", "missing", "marker"])
def test_a_damaged_checkpoint_is_skipped_with_a_note(damage, interrupted, tiny_model_dir, mix, capfd):
    newest = interrupted / "checkpoints" / "checkpoint-9"
    if damage == "truncated":
        with (newest / "optimizer.pt").open("rb+") as file:
            file.truncate(100)
    elif damage == "missing":
        (newest / "model.safetensors").unlink()
    else:
        (newest / MARKER).write_text("{")
    assert again(tiny_model_dir, mix, interrupted).resumed_from == 6
    assert "checkpoint-9: not resumed from" in capfd.readouterr().err


def test_other_settings_or_data_start_anew_with_a_note(interrupted, tiny_model_dir, mix, tmp_path, capfd):
    assert again(tiny_model_dir, mix, interrupted, learning_rate=2e-3).resumed_from is None
    assert "made with other settings" in capfd.readouterr().err
    assert [line["step"] for line in log_lines(interrupted)] == [2, 4, 6, 8, 9]


def test_logging_and_saving_more_often_does_not_forbid_resuming(interrupted, tiny_model_dir, mix):
    assert again(tiny_model_dir, mix, interrupted, logging_steps=1, save_steps=2).resumed_from == 9


def test_resume_false_starts_anew(interrupted, tiny_model_dir, mix):
    cfg = TrainConfig(**FULL | {"max_steps": 9})
    assert train(tiny_model_dir, mix, cfg, interrupted, seed=3, resume=False).resumed_from is None


def test_a_finished_run_is_not_run_again(tiny_model_dir, mix, tmp_path):
    first = again(tiny_model_dir, mix, tmp_path)
    stamp = (first.model_path / "model.safetensors").stat().st_mtime_ns
    assert again(tiny_model_dir, mix, tmp_path) == first
    assert (first.model_path / "model.safetensors").stat().st_mtime_ns == stamp
    assert again(tiny_model_dir, mix, tmp_path, learning_rate=2e-3).fingerprint != first.fingerprint


@pytest.mark.parametrize("file", ["rng_state.pth", "optimizer.pt", "scheduler.pt"])
def test_a_planted_pickle_is_refused_and_not_run(file, interrupted, tiny_model_dir, mix, tmp_path):
    import torch

    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    shutil.rmtree(interrupted / "checkpoints" / "checkpoint-9")  # of the last step: nothing but weights is read
    newest = interrupted / "checkpoints" / "checkpoint-6"
    torch.save(Payload(), newest / file)
    marker = json.loads((newest / MARKER).read_text())
    marker["files"][file] = (newest / file).stat().st_size
    (newest / MARKER).write_text(json.dumps(marker))
    with pytest.raises(RunError, match="not loaded for safety"):
        again(tiny_model_dir, mix, interrupted)
    assert not (tmp_path / "pwned").exists()
