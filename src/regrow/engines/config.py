"""Recipe sections of engines that need settings of their own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regrow.section import Section


class RayConfig(Section):
    """Growing on a Ray cluster; read only with ``engine: ray``."""

    address: str = "local"
    """``local`` starts Ray on this machine for this run; ``auto`` joins the cluster this machine belongs to (``ray
    start``); or the head's ``HOST:PORT``."""
    engine: Literal["auto", "transformers", "openvino", "dummy"] = "auto"
    """The engine inside each worker; all workers must come to the same one."""
    workers: int | None = Field(default=None, ge=1)
    """Processes that each hold the model. null: as many as the cluster has room for."""
    cpus_per_worker: float | None = Field(default=None, gt=0)
    """Cores that Ray sets aside for a worker. null: all cores of the smallest node, 1 when a worker has a GPU."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """GPUs of a worker; below 1 they share one. null: 1 where the cluster has GPUs, else 0."""
