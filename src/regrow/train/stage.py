"""The training stage: a model folder and a mix in, a trained model folder out; continues after being killed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.errors import RunError, TrainError
from regrow.progress import note
from regrow.train import network
from regrow.train.checkpoints import check_room, disk_errors, fingerprint, newest_complete, read_marker
from regrow.train.config import TrainConfig
from regrow.train.opening import open_rows, tell_about_trees
from regrow.train.save import save_midway, save_trained
from regrow.train.summary import SUMMARY, TrainSummary, finished, versions

if TYPE_CHECKING:
    from regrow.train.pause import Part, Paused, Stop
    from regrow.train.trainer import RegrowTrainer

EVENTS = "tensorboard"
EPOCHS = "epochs"


def epoch_folder(out: Path, epoch: int) -> Path:
    """Where ``save_epochs`` puts the model after a pass over the mix; passes are numbered from 1."""
    return out / EPOCHS / f"{epoch:02d}"


def train(
    model_dir: Path,
    mix_dir: Path,
    cfg: TrainConfig,
    out: Path,
    *,
    seed: int,
    label: str = "regrow",
    resume: bool = True,
) -> TrainSummary:
    """Train on a mix, in this process or, with ``cfg.launch``, in several that are started for it.

    Writes ``out/model`` (full model in HF format; for LoRA only with ``merge_adapter``), ``out/adapter`` (LoRA),
    ``out/flat`` (the same at the end of the infinite schedule's flat phase), ``out/epochs`` (with ``save_epochs``),
    ``out/log.jsonl``, ``out/train.json``,
    and while it runs ``out/checkpoints``. A killed run that is started again with the same arguments continues from
    its last complete checkpoint and ends with the same weights; a finished one returns its summary.

    Args:
        model_dir: The base model, in HF format with safetensors.
        mix_dir: Folder with ``train.parquet``.
        cfg: Settings.
        out: Result folder.
        seed: Drives data order, adapter initialisation and dropout.
        label: Shown in the progress.
        resume: False starts from nothing and removes what an earlier run left.

    Raises:
        RecipeError: A setting that does not fit the model or is unknown to TRL.
        RunError: The mix is unusable, the disk is full, or a checkpoint is damaged.
        ModelError: The model cannot be loaded or trained.
        TrainError: One of several processes died.
    """
    from regrow.train.arguments import check_trackers
    from regrow.train.launch import launch, launched

    model_dir, mix_dir, out = Path(model_dir), Path(mix_dir), Path(out)
    if not (mix_dir / "train.parquet").is_file():
        raise RunError("there is no mix here", where=str(mix_dir / "train.parquet"), hint="run the mix stage first")
    out.mkdir(parents=True, exist_ok=True)
    mark = fingerprint(cfg, model_dir, mix_dir / "train.parquet", seed)
    if resume and (done := finished(out, mark, cfg)) is not None:
        return done
    check_trackers(cfg)
    if launched(cfg):
        launch(model_dir, mix_dir, cfg, out, seed=seed, label=label, resume=resume)
        if (done := finished(out, mark, cfg)) is None:
            raise TrainError("the processes ended without a model", where=str(out))
        return done
    trained: TrainSummary = train_here(model_dir, mix_dir, cfg, out, seed=seed, label=label, resume=resume)
    return trained


def train_until(
    model_dir: Path,
    mix_dir: Path,
    cfg: TrainConfig,
    out: Path,
    *,
    seed: int,
    label: str = "regrow",
    parts: Sequence[Part] = (),
    stop: Stop | None = None,
) -> TrainSummary | Paused:
    """`train` with a stop: the same call with a later one, or with none, goes on where it stopped.

    With any stops the weights are those of a training without (given the same parts).

    Args:
        model_dir, mix_dir, cfg, out, seed, label: As in `train`; ``train.mixture.controller`` is ``forgetting``.
        parts: Replay rows that join the stream later, in an order that must not change; they are in no fingerprint, as
            the training has to begin before they are there.
        stop: When to stop; None trains to the end.

    Returns:
        What is left to do when it stopped, the summary when it finished.

    Raises:
        RecipeError: ``train.launch`` asks for several processes; else as `train`.
    """
    from regrow.train.arguments import check_trackers
    from regrow.train.launch import check_alone

    check_alone(cfg)
    model_dir, mix_dir, out = Path(model_dir), Path(mix_dir), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    mark = fingerprint(cfg, model_dir, mix_dir / "train.parquet", seed)
    if (done := finished(out, mark, cfg)) is not None:
        return done
    check_trackers(cfg)
    trained: TrainSummary | Paused = train_here(
        model_dir, mix_dir, cfg, out, seed=seed, label=label, resume=True, parts=parts, stop=stop
    )
    return trained


def train_here(
    model_dir: Path,
    mix_dir: Path,
    cfg: TrainConfig,
    out: Path,
    *,
    seed: int,
    label: str,
    resume: bool,
    parts: Sequence[Part] = (),
    stop: Stop | None = None,
) -> Any:
    """`train` or `train_until` in this process, one of those that accelerate or torchrun started or the only one."""
    from accelerate import PartialState

    mix_file, checkpoints = mix_dir / "train.parquet", out / "checkpoints"
    mark = fingerprint(cfg, model_dir, mix_file, seed)
    started = time.monotonic()
    processes = PartialState()  # under torchrun every process comes here; one of them tidies, writes and speaks
    with disk_errors(out), _quiet_libraries():
        if processes.is_main_process:
            (out / SUMMARY).unlink(missing_ok=True)
            if not resume or not checkpoints.is_dir() or newest_complete(checkpoints, mark) is None:
                shutil.rmtree(checkpoints, ignore_errors=True)
                (out / "log.jsonl").unlink(missing_ok=True)
                shutil.rmtree(out / EVENTS, ignore_errors=True)
                shutil.rmtree(out / EPOCHS, ignore_errors=True)
            checkpoints.mkdir(exist_ok=True)
        processes.wait_for_everyone()
        start = newest_complete(checkpoints, mark, quiet=True)
        summary = _train(model_dir, mix_file, cfg, out, seed, label, start, mark, started, parts, stop)
        if isinstance(summary, TrainSummary) and processes.is_main_process:
            _write_summary(out, summary)
            if not cfg.keep_checkpoints:
                shutil.rmtree(checkpoints)
        processes.wait_for_everyone()
    return summary


def _train(
    model_dir: Path,
    mix_file: Path,
    cfg: TrainConfig,
    out: Path,
    seed: int,
    label: str,
    start: Path | None,
    mark: str,
    started: float,
    parts: Sequence[Part],
    stop: Stop | None,
) -> TrainSummary | Paused:
    from accelerate import PartialState
    from transformers import set_seed

    from regrow.models.load import load_tokenizer
    from regrow.train.arguments import make_arguments, use_bf16
    from regrow.train.callbacks import LogFile, Progress, SaveEpochs, fit_trackers, read_log
    from regrow.train.pause import StopHere, where_it_stands

    arguments = make_arguments(cfg, out / "checkpoints", seed, run_name=label)
    processes = PartialState()
    rows, watched, cfg = open_rows(mix_file, cfg, out, label, parts, quiet=start is not None)
    set_seed(seed)  # adapters are drawn from it
    model = network.load_model(model_dir, cfg, bf16=use_bf16(cfg))
    longest = max((n for some in (rows, watched) if some is not None for n in some.lengths), default=0)
    network.check_fits(model, rows.max_id, longest, mix_file)
    check_room(out, network.disk_bytes(model, cfg, model_dir))

    from regrow.train.trainer import RegrowTrainer

    trainer = RegrowTrainer(
        rows,
        cfg,
        seed=seed,
        fingerprint=mark,
        watched=watched,
        joins=[part.after_step for part in parts],
        model=model,
        args=arguments,
        processing_class=load_tokenizer(model_dir),
        peft_config=network.adapters(cfg),
    )
    trees = [len(unit) for unit in rows.units if len(unit) > 1]
    if processes.is_main_process and trees:
        tell_about_trees(rows, trees, trainer.no_trees)
    fit_trackers(trainer, out / EVENTS, anew=start is None)
    with ExitStack() as stack:
        trainer.add_callback(LogFile(out / "log.jsonl"))
        trainer.add_callback(Progress(label, stack))
        if cfg.lr_scheduler_type == "infinite":
            from regrow.train.schedules.infinite import SaveFlat

            trainer.add_callback(SaveFlat(cfg.infinite, lambda: _midway(trainer, cfg, model_dir, out / "flat")))
        if cfg.save_epochs:
            trainer.add_callback(SaveEpochs(lambda n: _midway(trainer, cfg, model_dir, epoch_folder(out, n))))
        if start is not None and processes.is_main_process:
            note(f"training {label}: continuing from step {_step(start)}")
        loop_started, tokens_before = time.monotonic(), _tokens_before(start)
        if stop is not None:
            trainer.add_callback(StopHere(trainer, stop))
        _run(trainer, start, stop)
        if stop is not None and trainer.state.global_step < trainer.state.max_steps:
            return where_it_stands(trainer)
        loop_seconds = time.monotonic() - loop_started
    whole = network.whole_model(trainer, cfg, model_dir)
    if whole is not None:
        save_trained(whole, cfg, model_dir, out)
    adapter_path = out / "adapter" if cfg.method == "lora" else None
    model_path = adapter_path if adapter_path and not cfg.merge_adapter else out / "model"
    last = (read_log(out / "log.jsonl") or [{}])[-1]
    return TrainSummary(
        steps=trainer.state.global_step,
        tokens=trainer.tokens_seen,
        train_tokens=int(trainer.train_tokens_seen),
        seconds=time.monotonic() - started,
        tok_s=(trainer.tokens_seen - tokens_before) / max(loop_seconds, 1e-9),
        final_losses={k: v for k, v in last.items() if k == "loss" or k.startswith(("loss/", "kl/"))},
        model_path=model_path,
        adapter_path=adapter_path,
        resumed_from=None if start is None else _step(start),
        documents=len(rows),
        cut_documents=rows.n_cut,
        untrained_documents=rows.n_untrained,
        versions=versions(),
        fingerprint=mark,
        computed_tokens=trainer.computed_tokens,
        trees=len(trees) if trainer.no_trees is None else 0,
        tree_documents=sum(trees) if trainer.no_trees is None else 0,
        unpacked={} if trainer.no_trees is None else {trainer.no_trees: sum(trees)},
        processes=processes.num_processes,
        gaps={} if trainer.monitor is None else trainer.monitor.gaps(),
        realised=trainer.replay_drawn(),
        replay_loss=cfg.replay_loss if rows.n_replay else None,
        replay_weight=float(cfg.replay_weight) if rows.n_replay else None,
    )


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Switch the bars of datasets and transformers off inside the block (progress is Regrow's own), and the warnings
    that TRL and PEFT draw from transformers by using its old names."""
    import warnings

    import datasets
    from transformers.utils import logging

    datasets_on, transformers_on = not datasets.are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*will be removed in v6", category=FutureWarning)
            yield
    finally:
        if datasets_on:
            datasets.enable_progress_bars()
        if transformers_on:
            logging.enable_progress_bar()


def _tokens_before(start: Path | None) -> int:
    """Tokens trained on before the checkpoint, those of its unlogged interval included."""
    if start is None:
        return 0
    extra = read_marker(start)["extra"]
    return int(extra["tokens"] + extra["pending"].get("tokens", 0))


def _run(trainer: RegrowTrainer, start: Path | None, stop: Stop | None) -> None:
    import pickle

    try:
        if start is None:
            trainer.train()
        else:
            trainer.resume(start, unless=stop.reached if stop is not None else None)
    except pickle.UnpicklingError as err:
        # torch.load(weights_only=True) met something that is no tensor.
        raise RunError(
            "the checkpoint holds objects that are not loaded for safety",
            where=str(start),
            hint="delete it; training then starts from an older checkpoint or anew",
        ) from err


def _midway(trainer: RegrowTrainer, cfg: TrainConfig, model_dir: Path, out: Path) -> None:
    save_midway(trainer.accelerator.unwrap_model(trainer.model), cfg, model_dir, out)


def _write_summary(out: Path, summary: TrainSummary) -> None:
    from regrow.rows.writers import atomic_write_text

    atomic_write_text(out / SUMMARY, json.dumps(summary.to_dict(), indent=2) + "\n")
