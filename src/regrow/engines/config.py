"""Settings of the generation engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regrow.section import Section

EngineName = Literal["auto", "transformers", "openvino", "dummy"]


class EngineConfig(Section):
    """What generates and scores text."""

    name: EngineName = "auto"
    """`transformers`, `openvino`, `dummy` (no model, instant, for a look at a run's shape), or `auto`: OpenVINO GenAI
    on a CPU when it is installed and can read the model's GGUF, else transformers."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the weights in the transformers engine. `auto` is float32 on a CPU, where bfloat16 was measured
    to be no faster, and bfloat16 on CUDA."""

    batch_size: int | None = Field(default=None, ge=1)
    """Most sequences decoded at once. Default 128 on a CPU and 256 on CUDA, less where `memory_gib` is too little."""

    memory_gib: float | None = Field(default=None, gt=0)
    """GiB for key-value caches and logits, beside the weights. Default a quarter of the free memory (at most 4) on a
    CPU, half of the free memory on CUDA."""
