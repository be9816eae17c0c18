"""What a training did, as it stands in ``train.json``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regrow.train.config import TrainConfig

SUMMARY = "train.json"


@dataclass(frozen=True)
class TrainSummary:
    """What training did; also in ``train.json``.

    Attributes:
        steps: Optimizer steps, those before a resume included.
        tokens: Tokens trained on, over all epochs, padding not counted; dialogues of a tree one by one.
        train_tokens: Tokens that carried loss.
        seconds: Wall time of this process, saving included; of the last part only after a resume.
        tok_s: Tokens a second in the training loop of this process.
        final_losses: Losses of the last log interval (``loss``, ``loss/domain``, ``loss/replay``, ``kl/replay``).
        model_path: What to evaluate: the full model, or for LoRA without ``merge_adapter`` the adapter.
        adapter_path: The adapter, or None after full training.
        resumed_from: Step of the checkpoint this process began at, or None.
        documents, cut_documents, untrained_documents: Examples trained on; of them cut to ``max_length``; left out
            because nothing to train on was left of them.
        versions: Library versions.
        fingerprint: Digest of settings, seed, data and base model.
        computed_tokens: Tokens that went through the model: ``tokens``, with what tree-packed dialogues share once.
        trees, tree_documents: Sequences of several dialogues, and the dialogues in them.
        unpacked: Dialogues of trees that were trained one by one all the same, by reason.
        processes: How many trained.
        gaps: Domain -> stability gap (`regrow.train.monitor.Gap`) of its held-out loss, where there was a monitor.
        realised: Tokens of replay drawn by topic, over the whole training, with ``controller: forgetting``.
        replay_loss: ``hard`` or ``soft``, what the replay tokens had; None without replay.
        replay_weight: What each of them counted; None without replay.
    """

    steps: int
    tokens: int
    train_tokens: int
    seconds: float
    tok_s: float
    final_losses: dict[str, float]
    model_path: Path
    adapter_path: Path | None
    resumed_from: int | None
    documents: int
    cut_documents: int
    untrained_documents: int
    versions: dict[str, str]
    fingerprint: str
    computed_tokens: int = 0
    trees: int = 0
    tree_documents: int = 0
    unpacked: dict[str, int] = field(default_factory=dict)
    processes: int = 1
    gaps: dict[str, dict[str, Any]] = field(default_factory=dict)
    realised: dict[str, int] = field(default_factory=dict)
    replay_loss: str | None = None
    replay_weight: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON shape; paths as strings."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}


def finished(out: Path, mark: str, cfg: TrainConfig) -> TrainSummary | None:
    """The summary of an earlier finished run of exactly this, or None."""
    path = out / SUMMARY
    if not path.is_file():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["fingerprint"] != mark or (cfg.merge_adapter and not (out / "model").is_dir()):
        return None
    data["model_path"] = Path(data["model_path"])
    data["adapter_path"] = data["adapter_path"] and Path(data["adapter_path"])
    return TrainSummary(**data) if data["model_path"].is_dir() else None


def versions() -> dict[str, str]:
    """Versions of the libraries that decide the result."""
    from importlib.metadata import version

    names = ("torch", "transformers", "trl", "peft", "accelerate")
    return {name: version(name) for name in names} | {"cpus": str(os.cpu_count())}
