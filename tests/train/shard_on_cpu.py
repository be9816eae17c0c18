"""A training process in which accelerate shards on the CPU.

Torch can (FSDP2 over gloo); accelerate turns sharding on for GPUs only. With this, all of Regrow's side of it (the
loss over shards, checkpoints, resuming, gathering the model) runs in tests on a machine without a GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule

from regrow.train.worker import main

_open, _prepare = AcceleratorState.__init__, Accelerator.prepare


def _with_shards(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    _open(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def _and_say_so(self: Accelerator, *args: Any, **kwargs: Any) -> Any:
    prepared = _prepare(self, *args, **kwargs)
    for part in prepared if isinstance(prepared, tuple) else (prepared,):
        assert not isinstance(part, nn.Module) or any(isinstance(m, FSDPModule) for m in part.modules())
    return prepared


AcceleratorState.__init__ = _with_shards
Accelerator.prepare = _and_say_so

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
