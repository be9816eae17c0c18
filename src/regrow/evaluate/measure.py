"""Items under a model: metrics and what it said, from the cache or computed now."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrow.evaluate.cache import ScoreCache, item_hash, pass_key
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import Item, Record
from regrow.evaluate.render import encode_item
from regrow.evaluate.score import RowScore, Scorer, score_groups
from regrow.evaluate.served import Served, ServedModel, connect, needs_scores
from regrow.progress import task


@dataclass(slots=True)
class Loaded:
    """A model in memory.

    Attributes:
        arm: Its name in the comparison.
        revision: Content hash of its folder.
        model, tokenizer: As transformers gives them.
    """

    arm: str
    revision: str
    model: Any
    tokenizer: Any

    @property
    def place(self) -> dict[str, str]:
        """What decides its rounding, for the keys of the cache."""
        return {"dtype": str(self.model.dtype), "device": self.model.device.type}

    def close(self) -> None:
        """Nothing: memory is freed when it is forgotten."""

    def same_tokens(self, other: Loaded) -> bool:
        """Whether both read text as the same tokens, so that their distributions can be compared."""
        sizes = [int(x.model.config.get_text_config().vocab_size) for x in (self, other)]
        return sizes[0] == sizes[1] and self.tokenizer.get_vocab() == other.tokenizer.get_vocab()


Arm = Loaded | Served


def load_arm(arm: str, path: Path | ServedModel, cfg: EvalConfig) -> Arm:
    """Load a model folder, or connect to a server.

    Raises:
        ModelError: It cannot be used.
        EngineError: The server cannot be used.
    """
    if isinstance(path, ServedModel):
        return connect(arm, path)
    from regrow.models.load import folder_revision, load_model, load_tokenizer

    model = load_model(path, dtype=cfg.dtype, device=cfg.device)
    return Loaded(arm, folder_revision(path), model, load_tokenizer(path))


def measure(
    arm: Arm,
    items: Sequence[Item],
    cfg: EvalConfig,
    cache: ScoreCache,
    *,
    reference: Loaded | None = None,
    batch_tokens: int | None = None,
    label: str = "scoring",
) -> list[Record]:
    """Score items; one record an item, in the order of the items. Records of kind ``written`` stay empty: see
    `regrow.evaluate.generate`.

    Args:
        arm: The model. A server that cannot score answers leaves the records of those that are judged by what is
            written empty too.
        items: Of any kind and suite; equal ones are scored once.
        cfg: Lengths and batches.
        cache: Looked up before, filled after every batch.
        reference: The base; then dialogues also get ``kl``, which is 0 when the reference is ``arm`` itself.
        batch_tokens: In place of ``cfg.batch_tokens``.
        label: For the progress bar.

    Raises:
        DataError: An item cannot be put before the model.
    """
    budget = batch_tokens or cfg.batch_tokens
    found: dict[str, dict[str, Any]] = {}
    hashes = [item_hash(i) for i in items]
    able = isinstance(arm, Loaded) or arm.scores
    scored = {h: i for h, i in zip(hashes, items, strict=True) if i.kind != "written" and (able or needs_scores(i))}
    scorers: dict[bool, Scorer] = {}
    with task(label, len(scored), "items") as bar:
        for talk in (False, True):
            unique = {h: i for h, i in scored.items() if (i.kind == "dialogue") == talk}
            kl = talk and reference is not None and reference is not arm
            settings = {
                **arm.place,
                "batch_tokens": budget,
                "max_length": cfg.max_length if talk else None,
                "reference": reference.revision if kl and reference else None,
            }
            name = pass_key("score", arm.revision, settings)
            keys = list(unique)
            done = {k for k, h in enumerate(keys) if cache.get(name, h) is not None}
            bar.skip(len(done))
            if len(done) < len(keys):
                groups = [encode_item(arm.tokenizer, unique[h], cfg.max_length) for h in keys]
                if isinstance(arm, Served):
                    batches = arm.score_groups(groups, skip=done)
                else:
                    if kl not in scorers:
                        scorers[kl] = Scorer(arm.model, reference.model if kl and reference else None)
                    batches = score_groups(scorers[kl], groups, budget, kl=kl, skip=done)
                for batch, scores in batches:
                    values = [_value(arm, unique[keys[k]], s) for k, s in zip(batch, scores, strict=True)]
                    cache.add(name, [(keys[k], v) for k, v in zip(batch, values, strict=True)])
                    bar.advance(sum(k not in done for k in batch))
            for h in keys:
                value = cache.get(name, h)
                if value is None:
                    raise RuntimeError(f"item {unique[h].suite}:{unique[h].id} was not scored")
                found[h] = value
    nothing: dict[str, Any] = {"metrics": {}, "output": ""}
    records = [
        Record(i.id, i.suite, i.domain, arm.arm, dict(value["metrics"]), value["output"])
        for h, i in zip(hashes, items, strict=True)
        for value in [found.get(h, nothing)]
    ]
    if reference is arm:
        for r, i in zip(records, items, strict=True):
            if i.kind == "dialogue":
                r.metrics["kl"] = 0.0
    return records


def _value(arm: Arm, item: Item, rows: list[RowScore]) -> dict[str, Any]:
    """``metrics`` and ``output`` of an item; see ``docs/reference/results.md`` for what each metric means."""
    if item.kind == "dialogue":
        metrics = {"nll": rows[0].nll, "tokens": float(len(rows[0].logprobs))}
        if rows[0].kl is not None:
            metrics["kl"] = float(rows[0].kl.mean(dtype="float64"))
        return {"metrics": metrics, "output": ""}
    if item.kind == "choice":
        fits = [-r.nll for r in rows]
        right = rows[item.answer_index]
        margin = fits[item.answer_index] - max(f for k, f in enumerate(fits) if k != item.answer_index)
        output = item.choices[fits.index(max(fits))]
        acc = float(margin > 0)
    else:
        right = rows[0]
        best = max(rows, key=lambda r: float(r.margins.min()))
        margin = float(best.margins.min())
        acc = float(best.greedy)
        output = arm.tokenizer.decode(best.greedy_ids.tolist(), skip_special_tokens=True).strip()
    metrics = {"acc": acc, "nll": right.nll, "tokens": float(len(right.logprobs)), "margin": margin}
    if item.kind == "choice":
        metrics["confidence"] = 1 / sum(math.exp(f - max(fits)) for f in fits)
    return {"metrics": metrics, "output": output}
