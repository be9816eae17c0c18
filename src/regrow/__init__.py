"""Regrow: fine-tune a language model without it forgetting.

>>> import regrow
>>> result = regrow.tune("smollm2", "my_data.jsonl", "runs/mine")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PROBES = ("probe_domains", "probe_mastery", "probe_min_k", "probe_skills")
__all__ = [
    "__version__",
    "curate",
    "evaluate",
    "evaluate_sequence",
    "export",
    "gradual",
    "grow",
    "merge",
    "mix",
    "probe_domains",
    "probe_mastery",
    "probe_min_k",
    "probe_skills",
    "report",
    "run",
    "sweep",
    "train",
    "tune",
]

if TYPE_CHECKING:
    from regrow.api import (
        curate,
        evaluate,
        evaluate_sequence,
        export,
        gradual,
        grow,
        merge,
        mix,
        report,
        run,
        sweep,
        train,
        tune,
    )
    from regrow.probing import probe_domains, probe_mastery, probe_min_k, probe_skills


def __getattr__(name: str) -> Any:
    """The functions of `regrow.api` and `regrow.probing`, imported when first used."""
    if name in _PROBES:
        from regrow import probing

        return getattr(probing, name)
    if name in __all__:
        from regrow import api

        return getattr(api, name)
    raise AttributeError(f"module 'regrow' has no attribute '{name}'")
