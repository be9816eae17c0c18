"""Is this installation sound? What `regrow env` prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from regrow.models.cache import cache_dir
from regrow.models.embedded import MINILM, SMOLLM2, is_fetched

Status = Literal["ok", "warn", "fail"]
GIB = 1024**3
NEEDED_RAM_GIB, NEEDED_DISK_GIB = 8, 10
"""What `make demo` fits into: memory of two arms one after the other, and the disk of their models beside the
cache."""

CORE = ("torch", "transformers", "datasets", "accelerate", "peft", "trl", "tokenizers", "safetensors", "gguf")
OPTIONAL = {
    "lm-eval": "regrow[eval]",
    "openvino-genai": "regrow[demo]",
    "vllm": "a separate environment",
    "liger-kernel": "regrow[gpu]",
}
VLLM_FLOOR = "0.30"
"""Older releases are what pip falls back to when a newer one does not fit the installed torch or transformers."""
BROKEN_BY_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis; ``hint`` says what to do and is empty when all is well."""

    name: str
    status: Status
    text: str
    hint: str = ""


def installed(package: str) -> str | None:
    """Version of an installed distribution, or None; imports nothing of it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def floors() -> dict[str, str]:
    """Package -> version specifier, from Regrow's own metadata (its required dependencies, no extras)."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in requires("regrow") or []]
    except PackageNotFoundError:
        return {}
    return {r.name.lower(): str(r.specifier) for r in wanted if r.marker is None or "extra" not in str(r.marker)}


def diagnose(find: Callable[[str], str | None] = installed) -> list[Check]:
    """Look at versions, machine, cache, and the traps that break fine-tuning installations.

    Args:
        find: How the version of a package is found; replaced in tests.
    """
    checks = [_python()]
    wanted = floors()
    checks += [_package(name, find(name), wanted.get(name, "")) for name in CORE]
    checks += [
        Check(name, "ok", f"{found}")
        if (found := find(name))
        else Check(name, "ok", f"not installed (optional: {where})")
        for name, where in OPTIONAL.items()
    ]
    checks += _traps(find)
    checks += [_cpu(), _memory(), _gpu(find), *_cache()]
    return checks


def _python() -> Check:
    return Check("python", "ok", f"{sys.version.split()[0]} at {sys.executable}")


def _package(name: str, found: str | None, specifier: str) -> Check:
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    if found is None:
        return Check(name, "fail", "not installed", f"pip install '{name}{specifier}'")
    if specifier and not SpecifierSet(specifier).contains(Version(found).public, prereleases=True):
        return Check(
            name,
            "fail",
            f"{found}, but Regrow needs {specifier}",
            f"pip install '{name}{specifier}'; look with 'pip check' at which package holds it back.",
        )
    return Check(name, "ok", found)


def _traps(find: Callable[[str], str | None]) -> Iterable[Check]:
    from packaging.version import Version

    torch = find("torch") or ""
    for name in BROKEN_BY_CPU_TORCH:
        found = find(name)
        if found is None:
            continue
        error = _import_error(name)
        if error:
            why = (
                "it is a CUDA build next to a CPU torch"
                if torch.endswith("+cpu") and "+cpu" not in found
                else "it does not fit torch"
            )
            yield Check(
                name,
                "fail",
                f"{found} cannot be imported ({error}); {why}, and takes transformers down with it",
                f"pip uninstall -y {name}; Regrow does not need it.",
            )
        else:
            yield Check(name, "ok", f"{found}, imports next to torch {torch}")
    vllm = find("vllm")
    if vllm and Version(vllm) < Version(VLLM_FLOOR):
        yield Check(
            "vllm stepped back",
            "warn",
            f"{vllm} is older than {VLLM_FLOOR}: pip chose it to fit other packages",
            "Install vLLM in an environment of its own and use it through its server.",
        )
    if find("lm-eval") and (
        missing := [extra for extra in ("torch", "transformers", "accelerate", "peft") if find(extra) is None]
    ):
        yield Check(
            "lm-eval without hf",
            "warn",
            f"lm-eval is there without {', '.join(missing)}, so it cannot run a model",
            "pip install 'lm-eval[hf]'",
        )


def _import_error(module: str) -> str:
    """Import a module in a fresh interpreter, because a broken one can take this one down; its last line, or
    nothing."""
    if find_spec(module) is None:
        return "its files are missing"
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:200]


def _cpu() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check("cpu", "ok", f"{usable} cores for this process")


def _memory() -> Check:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return Check("memory", "warn", "cannot be told on this system")
    limit = _cgroup_limit()
    total = min(total, limit) if limit else total
    text = f"{total / GIB:.1f} GiB"
    if total < NEEDED_RAM_GIB * GIB * 0.95:
        return Check(
            "memory",
            "warn",
            text,
            f"Full fine-tuning of the embedded model needs about {NEEDED_RAM_GIB} GiB; use LoRA.",
        )
    return Check("memory", "ok", text)


def _cgroup_limit() -> int | None:
    """Memory limit of a container, in bytes."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        file = Path(name)
        if file.is_file():
            text = file.read_text(encoding="ascii").strip()
            return int(text) if text.isdigit() else None
    return None


def _gpu(find: Callable[[str], str | None]) -> Check:
    torch = find("torch") or ""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return Check("gpu", "ok", "none (the CPU is used)")
    done = subprocess.run(
        [smi, "--query-gpu=name,memory.total", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    cards = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode != 0 or not cards:
        return Check("gpu", "warn", "nvidia-smi is there but finds no GPU", "Is the driver loaded?")
    if torch.endswith("+cpu"):
        return Check(
            "gpu",
            "warn",
            f"{'; '.join(cards)}, but torch {torch} is a CPU build",
            "Install a CUDA build of torch: https://pytorch.org/get-started/locally/",
        )
    return Check("gpu", "ok", "; ".join(cards))


def _cache() -> Iterable[Check]:
    folder = cache_dir()
    near = next(p for p in (folder, *folder.parents) if p.is_dir())
    free = shutil.disk_usage(near).free
    hint = (
        ""
        if free >= NEEDED_DISK_GIB * GIB
        else f"The demo needs about {NEEDED_DISK_GIB} GiB; REGROW_CACHE moves the cache."
    )
    writable = os.access(near, os.W_OK)
    yield Check("disk", "warn" if hint else "ok", f"{free / GIB:.1f} GiB free under {near}", hint)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else 0
    yield Check(
        "cache",
        "ok" if writable else "fail",
        f"{folder}, {size / GIB:.2f} GiB" + ("" if writable else ", not writable"),
        "" if writable else "Set REGROW_CACHE to a folder you can write.",
    )
    for model in (SMOLLM2, MINILM):
        there = is_fetched(model)
        text = (
            "in the cache" if there else f"not fetched yet ({model.megabytes} MB from the package index, at first use)"
        )
        yield Check(f"embedded {model.name}", "ok", text)
