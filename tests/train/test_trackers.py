"""Trackers get the numbers of the log file: losses by source, and the retention curves and shares of a mixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regrow.errors import RecipeError
from regrow.train.config import TrainConfig
from regrow.train.stage import train
from tests.train.helpers import log_lines, token_row, write_mix

NO_CURVE = ("step", "lr", "learning_rate", "epoch")
MIXTURE = {"controller": "constant", "by": "source", "weights": {"domain": 3, "replay": 1}, "update_steps": 2}


def mix(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    sources = ["domain"] * 24 + ["replay"] * 16
    rows = [token_row(rng.integers(3, 200, 24).tolist(), [1.0] * 24, of, f"r{i}") for i, of in enumerate(sources)]
    return write_mix(folder, rows)


def config(**keys: Any) -> TrainConfig:
    return TrainConfig(
        max_steps=6, per_device_train_batch_size=2, logging_steps=2, save_steps=2, mixture=MIXTURE, **keys
    )


def curves(lines: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The log file as a tracker shows it: a curve for each number."""
    out: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for key, value in line.items():
            if key not in NO_CURVE:
                out.setdefault(key, []).append((line["step"], value))
    return out


def assert_same(found: dict[str, list[tuple[int, float]]], out: Path) -> None:
    expected = curves(log_lines(out))
    # The loss that the model has not seen: of the held-out replay rows it is the retention curve.
    assert {"heldout/replay", "heldout/domain", "asked/replay", "mix/replay", "loss/replay", "loss/domain"} <= set(
        expected
    )
    for key, points in expected.items():
        assert [s for s, _ in found[key]] == [s for s, _ in points], key
        assert [v for _, v in found[key]] == pytest.approx([v for _, v in points], rel=1e-5), key


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars in TensorBoard's event files: records of a length, its checksum, a protobuf and its checksum."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError:
        from tensorboardX.proto.event_pb2 import Event
    out: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += size + 16
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    out.setdefault(value.tag.removeprefix("train/"), []).append((event.step, value.simple_value))
    return out


def test_tensorboard_has_every_curve_and_outlives_the_checkpoints(tiny_model_dir: Path, tmp_path: Path) -> None:
    if not any(_there(name) for name in ("tensorboard", "tensorboardX")):
        pytest.skip("neither tensorboard nor tensorboardX is installed")
    train(tiny_model_dir, mix(tmp_path / "mix"), config(report_to="tensorboard"), tmp_path / "out", seed=0)
    assert not (tmp_path / "out/checkpoints").exists()
    assert_same(events(tmp_path / "out/tensorboard"), tmp_path / "out")
    train(
        tiny_model_dir, mix(tmp_path / "mix"), config(report_to="tensorboard"), tmp_path / "out", seed=1, resume=False
    )
    assert_same(events(tmp_path / "out/tensorboard"), tmp_path / "out"), "a new training starts new curves"


def test_mlflow_has_every_curve_and_the_arm_s_name(tiny_model_dir: Path, tmp_path: Path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow (or mlflow-skinny) is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tiny")
    train(
        tiny_model_dir, mix(tmp_path / "mix"), config(report_to=["mlflow"]), tmp_path / "out", seed=0, label="regrow"
    )
    while mlflow.active_run():
        mlflow.end_run()
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    [run] = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.run_name == "regrow"
    found = {
        key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics
    }
    found["loss"] = found.pop("loss/all")  # its file store holds no "loss" beside "loss/domain"
    assert_same(found, tmp_path / "out")


def wandb_runs(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Name of a run -> its curves, from the files that wandb writes offline: LevelDB's log of protobuf records."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, at, whole = file.read_bytes(), 7, b""  # behind the file's own header
        name, found = "", {}  # type: ignore[var-annotated]
        while at + 7 <= len(data):
            if 2**15 - at % 2**15 < 7:  # a record's head is never cut by the end of a block
                at += 2**15 - at % 2**15
                continue
            size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            whole += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind not in (1, 4):  # neither whole nor the last part of one
                continue
            record, whole = Record.FromString(whole), b""
            name = record.run.display_name or name
            line = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            for key, value in line.items():
                if isinstance(value, float | int):
                    found.setdefault(key.removeprefix("train/"), []).append((line["train/global_step"], value))
        assert name not in runs
        runs[name] = found
    return runs


def test_wandb_has_every_curve_of_each_arm_in_a_run_of_its_own(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for key, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    for arm in ("sft", "regrow"):
        train(tiny_model_dir, mix(tmp_path / "mix"), config(report_to=["wandb"]), tmp_path / arm, seed=0, label=arm)
        assert wandb.run is None
    found = wandb_runs(tmp_path)
    assert set(found) == {"sft", "regrow"}
    for arm, told in found.items():
        assert_same(told, tmp_path / arm)


def test_trackio_has_every_curve_and_begins_a_run_anew(tiny_model_dir: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import TRACKIO_DIR

    assert tmp_path / "trackio" == TRACKIO_DIR, "read when it is imported, so nothing may have done so before"
    cfg = config(report_to=["trackio"], trainer_args={"project": "tiny"})
    for out in ("one", "two"):
        train(tiny_model_dir, mix(tmp_path / "mix"), cfg, tmp_path / out, seed=0, label="regrow")
    runs = SQLiteStorage.get_run_records("tiny")
    assert [run["name"] for run in runs] == ["regrow", "regrow"], "the second went into the first one's curves"
    for run, out in zip(runs, ("one", "two"), strict=True):
        found: dict[str, list[tuple[int, float]]] = {}
        for line in SQLiteStorage.get_logs("tiny", run="regrow", run_id=run["id"]):
            for key, value in line.items():
                if isinstance(value, float | int):
                    found.setdefault(key.removeprefix("train/"), []).append((line["train/global_step"], value))
        assert_same(found, tmp_path / out)


@pytest.mark.parametrize(
    ("name", "message"),
    [("tensorbord", "'tensorbord' is no tracker"), ("comet_ml", "the package of 'comet_ml' is not installed")],
)
def test_a_tracker_that_is_not_there_is_named_before_anything_is_trained(
    tiny_model_dir: Path, tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        train(tiny_model_dir, mix(tmp_path / "mix"), config(report_to=name), tmp_path / "out", seed=0)
    assert error.value.where == "train.report_to" and not list((tmp_path / "out").iterdir())


def test_a_tracker_that_gets_every_number(tiny_model_dir: Path, tmp_path: Path, monkeypatch) -> None:
    """The way into any tracker is the trainer's own callback; one that only remembers is put among transformers'."""
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    seen: dict[str, list[tuple[int, float]]] = {}
    names = []

    class Remembers(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args, state, control, **kwargs):
            names.append(args.run_name)

        def on_log(self, args, state, control, logs=None, **kwargs):
            for key, value in logs.items():
                seen.setdefault(key, []).append((state.global_step, value))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Remembers)
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["wandb"])
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: True)
    train(tiny_model_dir, mix(tmp_path / "mix"), config(report_to="wandb"), tmp_path / "out", seed=0, label="sft")
    assert names == ["sft"]
    assert_same(seen, tmp_path / "out")


def _there(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
