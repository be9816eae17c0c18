"""Checkpoints that can be trusted: which are complete, which belong to this run, and room for them on the disk.

The Trainer writes a checkpoint file by file. A kill in between leaves a folder that looks like one. So the last thing
written is a marker (``regrow.json``, put in place atomically) that lists every file with its size; a folder without a
marker, or with other sizes, is not a checkpoint. Nothing in a checkpoint is unpickled: transformers reads optimizer,
scheduler and random state with ``torch.load(weights_only=True)`` and weights from safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from regrow.errors import NO_ROOM, RunError
from regrow.mix.mixtures import WATCHED
from regrow.progress import note
from regrow.train.config import TrainConfig
from regrow.train.launch import identity
from regrow.train.summary import SUMMARY

MARKER = "regrow.json"
_NOT_IN_FINGERPRINT = {
    "save_steps",
    "save_total_limit",
    "keep_checkpoints",
    "logging_steps",
    "report_to",
    "merge_adapter",
}
_NO_ROOM_WORDS = ("no space left", "file write failed", "file too large", "quota exceeded", "os error 28")


def fingerprint(cfg: TrainConfig, model_dir: Path, mix_file: Path, seed: int) -> str:
    """A digest of all that decides the trained weights: settings, seed, the mix's bytes, the model's files.

    Weight files enter by name, size and first MiB (the safetensors header and some weights).
    """
    digest = hashlib.blake2b(digest_size=16)
    settings = cfg.model_dump(mode="json", exclude=_NOT_IN_FINGERPRINT)
    settings["launch"] = identity(cfg)
    digest.update(json.dumps([settings, seed], sort_keys=True).encode())
    watched = mix_file.with_name(WATCHED)  # what a controller measures decides what is trained on
    for path in [mix_file, *([watched] if watched.is_file() else [])]:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    for path in sorted(model_dir.glob("*")):
        if path.suffix in (".safetensors", ".json") and path.is_file():
            digest.update(f"{path.name} {path.stat().st_size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(1 << 20))
    return digest.hexdigest()


def _sizes(folder: Path) -> dict[str, int]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name not in (MARKER, f".{MARKER}.tmp"))
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(files)}


def mark_complete(folder: Path, *, step: int, fingerprint: str, extra: dict[str, Any]) -> None:
    """Declare everything now in ``folder`` to be a complete checkpoint of ``step``."""
    for path in folder.rglob("*"):
        if path.is_file():
            _fsync(path)
    marker = {"step": step, "fingerprint": fingerprint, "files": _sizes(folder), "extra": extra}
    tmp = folder / f".{MARKER}.tmp"
    tmp.write_text(json.dumps(marker), encoding="utf-8")
    _fsync(tmp)
    tmp.replace(folder / MARKER)


def read_marker(folder: Path) -> dict[str, Any]:
    """The marker of a complete checkpoint."""
    marker: dict[str, Any] = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    return marker


def why_incomplete(folder: Path) -> str | None:
    """None for a complete checkpoint, else what is wrong with it."""
    try:
        marker = read_marker(folder)
        wanted, step = marker["files"], marker["step"]
    except FileNotFoundError:
        return "writing it was interrupted"
    except (ValueError, KeyError, TypeError):
        return "its marker cannot be read"
    there = _sizes(folder)
    changed = sorted(name for name, size in wanted.items() if there.get(name) != size)
    if changed:
        return f"{changed[0]} is missing or has another size"
    return None if folder.name == f"checkpoint-{step}" else "it was renamed"


def _by_step(root: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    named = [(p.name.removeprefix("checkpoint-"), p) for p in root.glob("checkpoint-*") if p.is_dir()]
    return [p for _, p in sorted(((int(n), p) for n, p in named if n.isdigit()), reverse=True)]


def newest_complete(root: Path, fingerprint: str, *, quiet: bool = False) -> Path | None:
    """The newest checkpoint that is complete and made with the same settings; others are skipped with a note."""
    for folder in _by_step(root):
        problem = why_incomplete(folder)
        if problem is None and read_marker(folder)["fingerprint"] != fingerprint:
            problem = "it was made with other settings, data or base model"
        if problem is None:
            return folder
        if not quiet:
            note(f"{folder}: not resumed from, {problem}")
    return None


def other_settings(out: Path, cfg: TrainConfig, model_dir: Path, mix_dir: Path, seed: int) -> bool:
    """Whether ``out`` holds a training, finished or not, and all that is there was made with other settings."""
    mix_file = mix_dir / "train.parquet"
    if not mix_file.is_file():
        return False
    complete = (f for f in _by_step(out / "checkpoints") if why_incomplete(f) is None)
    found = [read_marker(f)["fingerprint"] for f in complete]
    with suppress(OSError, ValueError, KeyError, TypeError):
        found.append(json.loads((out / SUMMARY).read_text(encoding="utf-8"))["fingerprint"])
    return bool(found) and fingerprint(cfg, model_dir, mix_file, seed) not in found


def keep_newest(root: Path, limit: int) -> None:
    """Delete all checkpoints but the ``limit`` newest complete ones (incomplete older ones go too)."""
    kept = 0
    for folder in _by_step(root):
        if why_incomplete(folder) is None and kept < limit:
            kept += 1
        elif kept:
            shutil.rmtree(folder)


def check_room(folder: Path, needed: int) -> None:
    """Refuse to begin what cannot end.

    Args:
        folder: Where files will go.
        needed: Bytes.

    Raises:
        RunError: The disk has less left.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"training needs about {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free",
            where=str(folder),
            hint="free some, choose another output folder, or use train.method=lora",
        )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk into a `RunError`, in whichever library's words it comes; other errors pass."""
    try:
        yield
    except RunError:
        raise
    except Exception as err:
        text = str(err).lower()
        full = isinstance(err, OSError) and err.errno in NO_ROOM
        if not full and not any(words in text for words in _NO_ROOM_WORDS):
            raise
        raise RunError(
            f"a file could not be written, the disk is full ({err})",
            where=str(folder),
            hint="free some space and run again: training continues from the last complete checkpoint",
        ) from err


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
