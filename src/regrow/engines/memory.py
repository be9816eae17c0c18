"""How much memory an engine may take when nobody says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GIB = 1024**3


def default_budget(device: torch.device) -> int:
    """Bytes for key-value caches and logits.

    Half of the free memory of a CUDA device; elsewhere a quarter of the free main memory (of the control group where
    there is one) and at most 4 GiB.
    """
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free) // 2
    return min(free_main_memory() // 4, 4 * GIB)


def free_main_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be taken: of the machine, or of the control group (cgroup v2) when that has less."""
    import psutil  # type: ignore[import-untyped,unused-ignore]  # comes with accelerate

    free = int(psutil.virtual_memory().available)
    limit = group / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        used = int((group / "memory.current").read_text())
        free = min(free, max(int(text) - used, 0))
    return free
