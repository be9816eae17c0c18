"""What a model loses and learns while it trains: loss and KL on held-out rows, domain by domain, every so often.

The reference of the KL is the model before the first step. Its likeliest tokens at every held-out position are kept
in a file beside the checkpoints, so that a resumed training compares with the same model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from regrow.errors import RecipeError, RunError
from regrow.mix.controller import Mixture
from regrow.mix.skill_it import SkillIt
from regrow.progress import note
from regrow.train.objectives.replay import hard_loss, topk_kl

if TYPE_CHECKING:
    from torch import Tensor

    from regrow.mix.mixtures import MixtureSection
    from regrow.train.batches import Document, TokenRows
    from regrow.train.mixture import MixturePlan, MixtureSampler
    from regrow.train.slots import SlotSampler

LOOKS, MOST_STEPS = 10, 50
"""Measurements of a training whose recipe does not say how many, and the most steps between two of them."""
MEASURED_DOCUMENTS = 8
"""Held-out documents in one forward pass."""
REFERENCE_K = 64
"""Likeliest tokens of the reference that are kept; the rest of its mass is one more outcome, so the KL is a lower
bound."""
REFERENCE = "reference.safetensors"
MONITOR = "monitor.jsonl"

Forward = Callable[[Sequence["Document"]], tuple["Tensor", "Tensor", "Tensor"]]
"""Documents -> logits ``(n, V)``, targets ``(n,)`` and weights ``(n,)`` of their trained tokens."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The stability gap of a curve of losses (arXiv 2406.14833).

    Attributes:
        dip: How far the loss rose above its first value at most, nats a token; 0 when it never did.
        at_step: The step of that.
        recovered_step: The first measured step after it at which the loss was back at its first value or below; None
            when it was not back by the end (what did not come back is forgotten, not a gap). 0 without a dip.
        end: Last value less the first.
    """

    dip: float
    at_step: int
    recovered_step: int | None
    end: float


def stability_gap(steps: Sequence[int], losses: Sequence[float]) -> Gap:
    """Depth of the dip and the step of recovery of one curve, at the measured steps, nothing interpolated.

    Known of the source: evaluate often; dip = start - minimum of a score, recovery = first return to the start. With
    losses the signs turn round. A curve may leave and return more than once; the return counted is the first one
    after the deepest point.
    """
    first = losses[0]
    worst = max(range(len(losses)), key=lambda i: (losses[i], -i))
    dip = losses[worst] - first
    if dip <= 0:
        return Gap(0.0, steps[0], steps[0], losses[-1] - first)
    back = next((s for s, x in zip(steps[worst:], losses[worst:], strict=True) if x <= first), None)
    return Gap(dip, steps[worst], back, losses[-1] - first)


class HeldOut:
    """Held-out documents by domain, and what the reference thinks of them.

    Args:
        documents: Domain -> documents.
        model: Put into evaluation mode while it is measured.
        forward: Runs it.
        reference: File of the reference; None measures losses alone.
    """

    def __init__(
        self,
        documents: Mapping[str, Sequence[Document]],
        model: torch.nn.Module,
        forward: Forward,
        reference: Path | None,
    ) -> None:
        self.documents, self._model, self._forward, self._file = documents, model, forward, reference
        self._reference: list[tuple[Tensor, Tensor]] = []

    def measure(self, step: int) -> tuple[dict[str, float], dict[str, float]]:
        """Domain -> mean loss and domain -> mean KL(reference || model), nats a token, weighted as in training.

        Args:
            step: Optimizer steps so far; at 0 the model is the reference.

        Raises:
            RunError: There is no reference.
        """
        first = step == 0
        if first:
            self._reference = []
        elif self._file is not None and not self._reference:
            self._reference = _load(self._file)
        was_training = self._model.training
        self._model.eval()
        losses, kls = {}, {}
        try:
            at = 0
            for domain, rows in self.documents.items():
                total = torch.zeros(3, dtype=torch.float64)
                for batch in _batches(rows):
                    with torch.no_grad():
                        total += self._sums(batch, at, first=first)
                    at += 1
                losses[domain] = float(total[0] / total[2])
                kls[domain] = float(total[1] / total[2])
        finally:
            self._model.train(was_training)
        if self._file is None:
            return losses, {}
        if first:
            _save(self._file, self._reference)
        return losses, kls

    def _sums(self, batch: Sequence[Document], at: int, *, first: bool) -> Tensor:
        """Weighted cross-entropy, weighted KL and weight of a batch."""
        logits, targets, weights = self._forward(batch)
        ce = (hard_loss(logits, targets) * weights).sum()
        kl = torch.zeros_like(ce)
        if self._file is not None and first:
            top = torch.log_softmax(logits.float(), -1).topk(min(REFERENCE_K, logits.shape[-1]), dim=-1)
            self._reference.append((top.indices.to("cpu", torch.int32), top.values.cpu()))
        elif self._file is not None:
            ids, logprobs = self._reference[at]
            kl = (topk_kl(logits, ids.to(logits.device), logprobs.to(logits.device)) * weights).sum()
        return torch.stack([ce, kl, weights.sum()]).double().cpu()


def _batches(rows: Sequence[Document]) -> Iterator[Sequence[Document]]:
    return (rows[i : i + MEASURED_DOCUMENTS] for i in range(0, len(rows), MEASURED_DOCUMENTS))


def _save(path: Path, reference: Sequence[tuple[Tensor, Tensor]]) -> None:
    from safetensors.torch import save_file

    from regrow.rows.writers import atomic_path

    tensors = {
        f"{i}.{name}": t for i, pair in enumerate(reference) for name, t in zip(("ids", "logprobs"), pair, strict=True)
    }
    with atomic_path(path) as tmp:
        save_file({name: t.contiguous() for name, t in tensors.items()}, tmp)


def _load(path: Path) -> list[tuple[Tensor, Tensor]]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise RunError(
            "what the model said before its first step is missing", where=str(path), hint="start the training anew"
        )
    tensors = load_file(path)
    return [(tensors[f"{i}.ids"], tensors[f"{i}.logprobs"]) for i in range(len(tensors) // 2)]


class Monitor(TrainerCallback):  # type: ignore[misc]
    """Measures before the first step, every ``every`` steps and after the last, tells the controller, and passes its
    shares on to the sampler.

    Args:
        heldout: What is measured.
        every: Optimizer steps between measurements; None follows the length of the training (`LOOKS`).
        file: ``monitor.jsonl``: a line for each measurement.
        mixture: The controller; None only looks.
        sampler: Whose shares it sets.
        signal: Whether the controller is told losses or KL.
        parts: Optimizer steps after which each part beyond the mix joins the stream.
    """

    def __init__(
        self,
        heldout: HeldOut,
        every: int | None,
        file: Path,
        *,
        mixture: Mixture | None = None,
        sampler: MixtureSampler | SlotSampler | None = None,
        signal: str = "loss",
        parts: Sequence[int] = (),
    ) -> None:
        self.heldout, self._every, self.file = heldout, every, file
        self.mixture, self.sampler, self.signal, self.parts = mixture, sampler, signal, list(parts)
        self.history: list[dict[str, Any]] = []
        self._from = 0
        self._numbers: dict[str, float] = {}

    @property
    def every(self) -> int:
        """Optimizer steps between measurements, once they are settled."""
        assert self._every is not None, "how long the training is has not been said"
        return self._every

    def settle(self, max_steps: int) -> None:
        """Say how long the training is, which decides how often it is measured when nothing else does."""
        if self._every is None:
            self._every = min(MOST_STEPS, math.ceil(max_steps / LOOKS))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.settle(state.max_steps)
        if state.global_step == 0:
            self._tell_if_still(state.max_steps)
            self._join(0)
            self._look(0)

    def _tell_if_still(self, max_steps: int) -> None:
        looks = self.mixture.looks if isinstance(self.mixture, SkillIt) else 1
        if looks > 1 and looks * self.every >= max_steps:
            note(
                f"mixture: the shares never change, as train.mixture.looks={looks} measurements, {self.every} steps "
                f"apart, are all of the {max_steps} steps; lower train.mixture.update_steps"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        last = state.global_step >= state.max_steps
        if last or state.global_step % self.every == 0:
            self._look(state.global_step, last=last)
        self._join(state.global_step)

    def _join(self, step: int) -> None:
        for part, after in enumerate(self.parts, 1):
            if after == step:
                self._slots().join(part)

    def _slots(self) -> SlotSampler:
        from regrow.train.slots import SlotSampler

        assert isinstance(self.sampler, SlotSampler), "only replay slots take parts"
        return self.sampler

    def _look(self, step: int, *, last: bool = False) -> None:
        losses, kls = self.heldout.measure(step)
        numbers = {f"heldout/{d}": loss for d, loss in losses.items()} | {
            f"heldout_kl/{d}": kl for d, kl in kls.items()
        }
        if self.mixture is not None and self.sampler is not None:
            asked, realised = self.mixture.weights(), self.sampler.realised(self._from, self.sampler.drawn)
            if total := sum(realised.values()):
                numbers |= {f"asked/{d}": share for d, share in asked.items()}
                numbers |= {f"mix/{d}": tokens / total for d, tokens in realised.items()}
            self._from = self.sampler.drawn
            if not last:
                self.mixture.update(kls if self.signal == "kl" else losses)
                self.sampler.set_shares(self.mixture.weights())
        self._numbers = numbers
        self.history.append({"step": step} | numbers)
        self._write()

    def _write(self) -> None:
        from regrow.rows.writers import atomic_write_text

        atomic_write_text(self.file, "".join(json.dumps(line) + "\n" for line in self.history))

    def take_numbers(self) -> dict[str, float]:
        """The numbers of the last measurement, once, for the log: ``heldout/<domain>`` and (against the reference)
        ``heldout_kl/<domain>`` in nats a token, and ``asked/<domain>`` and ``mix/<domain>``, shares of the tokens
        drawn since the measurement before it."""
        numbers, self._numbers = self._numbers, {}
        return numbers

    def gaps(self) -> dict[str, dict[str, Any]]:
        """Domain -> its stability gap (`Gap`), from the curve of its loss."""
        steps = [int(line["step"]) for line in self.history]
        return {
            domain: asdict(stability_gap(steps, [float(line[f"heldout/{domain}"]) for line in self.history]))
            for domain in (self.heldout.documents if steps else ())
        }

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the controller, the changes of shares and joins so far, and what is not logged yet."""
        state: dict[str, Any] = {"from": self._from, "numbers": self._numbers, "history": self.history}
        if self.mixture is not None and self.sampler is not None:
            state |= {
                "mixture": self.mixture.state_dict(),
                "changes": self.sampler.changes,
                "drawn": self.sampler.drawn,
            }
            state["joins"] = getattr(self.sampler, "joins", {})
        return state

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Put back what `state_dict` gave at ``step``; a part that was not there yet and joins after it joins now."""
        self._from, self._numbers = int(state["from"]), dict(state["numbers"])
        self.history = [dict(line) for line in state["history"]]
        self._write()
        if self.mixture is None or self.sampler is None:
            return
        self.mixture.load_state_dict(state["mixture"])
        self.sampler.changes = [(int(at), dict(shares)) for at, shares in state["changes"]]
        self.sampler.drawn = int(state["drawn"])
        if state["joins"]:
            self._slots().joins = {int(part): int(at) for part, at in state["joins"].items()}
            self._join(step)
            for part, after in enumerate(self.parts, 1):
                if after < step and part not in self._slots().joins:
                    raise RunError(
                        f"a part was to join after step {after}, but the checkpoint of step {step} is without it"
                    )


def watched_documents(watched: TokenRows) -> dict[str, list[Document]]:
    """The documents of rows beside a mix, by topic; yours by domain, renamed where a topic has that name."""
    labels, sources = watched.labels("domain"), watched.labels("source")
    topics = {label for label, source in zip(labels, sources, strict=True) if source == "replay"}
    out: dict[str, list[Document]] = {}
    for i, (label, source) in enumerate(zip(labels, sources, strict=True)):
        name = f"{label} (yours)" if source != "replay" and label in topics else label
        out.setdefault(name, []).append(watched.alone(i))
    return out


def make_monitor(
    section: MixtureSection,
    plan: MixturePlan | None,
    documents: Callable[[int], list[Document]],
    beside: Mapping[str, Sequence[Document]] | None,
    joins: Sequence[int],
    *,
    model: torch.nn.Module,
    forward: Forward,
    checkpoints: Path,
) -> Monitor | None:
    """What measures in a training: the rows that its plan holds out, else those beside the mix; None for neither.

    Args:
        section: Of the recipe.
        plan: Who draws the rows, None when their order is the mix's.
        documents: Of a unit.
        beside: What lies beside the mix, by domain.
        joins: Steps after which parts join the stream.
        model, forward: See `HeldOut`.
        checkpoints: The reference goes there, the lines of the monitor beside it.

    Raises:
        RecipeError: The controller needs something to watch, and there is nothing.
    """
    file = checkpoints.parent / MONITOR
    if plan is not None and plan.heldout:
        held = {domain: [d for u in units for d in documents(u)] for domain, units in plan.heldout.items()}
        heldout = HeldOut(held, model, forward, None)
        return Monitor(heldout, section.update_steps, file, mixture=plan.mixture, sampler=plan.sampler)
    if beside is None:
        if plan is not None:
            raise RecipeError(
                "controller: forgetting needs dialogues to watch, and the mix has none",
                where="train.mixture.controller",
                hint="set curate.watch_dialogues",
            )
        return None
    heldout = HeldOut(beside, model, forward, checkpoints / REFERENCE)
    if plan is None:
        return Monitor(heldout, section.update_steps, file)
    return Monitor(
        heldout, section.update_steps, file,
        mixture=plan.mixture, sampler=plan.sampler, signal=section.signal, parts=joins,
    )  # fmt: skip
