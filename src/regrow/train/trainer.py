"""The trainer: TRL's ``SFTTrainer`` with per-token weights, replay losses and per-source numbers."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch.utils.checkpoint import checkpoint
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTTrainer

from regrow.errors import ModelError, RecipeError
from regrow.train.batches import BlockSampler, Collator, Document, Layout, TokenRows, make_packs
from regrow.train.checkpoints import keep_newest, mark_complete, read_marker
from regrow.train.config import TrainConfig
from regrow.train.mixture import MixturePlan, MixtureSampler, plan_mixture, plan_slots
from regrow.train.monitor import MONITOR, REFERENCE, HeldOut, Monitor
from regrow.train.objectives.replay import hard_loss, soft_loss
from regrow.train.schedules.infinite import infinite_schedule
from regrow.train.slots import SlotPacks, SlotSampler
from regrow.train.tree_attention import TreeAttention, why_not

if TYPE_CHECKING:
    from torch import Tensor, nn

LOSS_CHUNK = 2048
"""Positions whose softmax is held in memory at once; the rest is recomputed in the backward pass."""


COUNTS = (
    "tokens", "train_tokens", "loss/domain", "weight/domain", "loss/replay", "weight/replay", "kl/replay", "kl/weight",
    "soft_tokens", "hard_fallback_tokens", "computed_tokens",
)  # fmt: skip
"""Sums of an interval. Always all of them, so that processes with different batches can add them up."""


class RegrowTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains on token rows: ``sum(w * loss) / sum(w)`` over the whole global batch of an optimizer step.

    The global batch is everything between two optimizer steps: all accumulation steps, all devices. How it is cut
    into micro-batches, packs and tensor rows therefore changes nothing but rounding.

    Args:
        rows: The mix.
        cfg: The recipe's section.
        fingerprint: What a checkpoint must have been made with to be resumed.
        watched: Rows beside the mix that are measured and never trained on, or None.
        joins: Optimizer steps after which each part of ``rows`` joins the stream.
        kwargs: For ``SFTTrainer``.
    """

    lr_scheduler: Any

    def __init__(
        self,
        rows: TokenRows,
        cfg: TrainConfig,
        *,
        seed: int,
        fingerprint: str,
        watched: TokenRows | None = None,
        joins: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        self.cfg, self.fingerprint = cfg, fingerprint
        tokenizer, model = kwargs["processing_class"], kwargs["model"]
        if model.config._attn_implementation == "flex_attention" and kwargs["args"].device.type == "cpu":
            raise RecipeError(
                "FlexAttention has no backward pass on a CPU", where="train.attn_implementation", hint="set it to sdpa"
            )
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        collator = Collator(rows, pad_token_id=pad)
        # What a batch element is depends on what the model can do, and the model is asked once it is on its device.
        super().__init__(train_dataset=Dataset.from_dict({"documents": [[0]]}), data_collator=collator, **kwargs)
        collator.layout = choose_layout(self.model, model.config, packing=cfg.packing)
        self.no_trees = self._why_no_trees(rows, model.config)
        collator.trees = self.no_trees is None
        units = rows.units if collator.trees else [[i] for i in range(len(rows))]
        lengths = rows.unit_lengths if collator.trees else rows.lengths
        self._sampler: BlockSampler | MixtureSampler | SlotSampler
        plan: MixturePlan | None = None
        if cfg.mixture.controller == "forgetting" and rows.n_replay:
            plan = plan_slots(rows, units, lengths, cfg, seed)
        elif cfg.mixture.controller not in ("none", "forgetting"):
            plan = plan_mixture(rows.labels(cfg.mixture.by), units, lengths, cfg, seed)
        if plan is None:
            packs = make_packs(lengths, packing=cfg.packing, max_length=cfg.max_length, seed=seed)
            arguments = kwargs["args"]
            together = arguments.train_batch_size * arguments.world_size if arguments.world_size > 1 else 1
            self._sampler = BlockSampler(len(packs), seed, together)
            if self._sampler.padding:
                packs = [*packs, []]
        else:
            packs, self._sampler = plan.packs, plan.sampler
        self.monitor = self._monitored(plan, rows, units, watched, joins)
        if self.monitor is not None:
            self.add_callback(self.monitor)
        documents = [[i for u in pack for i in units[u]] for pack in packs]
        slots = isinstance(self._sampler, SlotSampler)
        self.train_dataset = SlotPacks(documents) if slots else Dataset.from_dict({"documents": documents})
        self._head_takes_mask = head_takes_mask(self.model)
        # The loss below is already the mean over the global batch: the Trainer must not divide it again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.remove_callback(PrinterCallback)
        self.add_callback(_EpochOrder(self._sampler))
        self._sums = self._zeros()
        self.tokens_seen = 0
        self.computed_tokens = 0
        self.train_tokens_seen = 0.0
        self._interval_started = time.monotonic()

    def _monitored(
        self,
        plan: MixturePlan | None,
        rows: TokenRows,
        units: Sequence[Sequence[int]],
        watched: TokenRows | None,
        joins: Sequence[int],
    ) -> Monitor | None:
        """What measures while this trains: the rows that a plan holds out, else those beside the mix; None for
        neither."""
        checkpoints, section = Path(self.args.output_dir), self.cfg.mixture
        file = checkpoints.parent / MONITOR
        if plan is not None and plan.heldout:
            held = {d: [rows.alone(i) for u in us for i in units[u]] for d, us in plan.heldout.items()}
            heldout = HeldOut(held, self.model, self._heldout, None)
            return Monitor(heldout, section.update_steps, file, mixture=plan.mixture, sampler=plan.sampler)
        if watched is None:
            if plan is not None:
                raise RecipeError(
                    "controller: forgetting needs dialogues to watch, and the mix has none",
                    where="train.mixture.controller",
                    hint="set curate.watch_dialogues",
                )
            return None
        beside: dict[str, list[Document]] = {}
        sources = watched.labels("source")
        topics = {label for label, source in zip(watched.labels("domain"), sources, strict=True) if source == "replay"}
        for i, (label, source) in enumerate(zip(watched.labels("domain"), sources, strict=True)):
            name = f"{label} (yours)" if source != "replay" and label in topics else label
            beside.setdefault(name, []).append(watched.alone(i))
        heldout = HeldOut(beside, self.model, self._heldout, checkpoints / REFERENCE)
        if plan is None:
            return Monitor(heldout, section.update_steps, file)
        return Monitor(
            heldout, section.update_steps, file,
            mixture=plan.mixture, sampler=plan.sampler, signal=section.signal, parts=joins,
        )  # fmt: skip

    def _why_no_trees(self, rows: TokenRows, config: Any) -> str | None:
        """Why trees are trained path by path; None when they are packed, or there are none."""
        longest = max((rows.lengths[i] for unit in rows.units if len(unit) > 1 for i in unit), default=0)
        self._attention = TreeAttention(config, longest, next(self.model.parameters()).dtype)
        if not longest:
            return None
        if self.aux_loss_enabled:
            return "the experts' balancing loss counts a token as often as it is computed"
        return why_not(self.model, self._attention)

    def _zeros(self) -> dict[str, Tensor]:
        return {name: torch.zeros((), device=self.args.device) for name in COUNTS}

    def _get_train_sampler(self, train_dataset: Any = None) -> BlockSampler | MixtureSampler | SlotSampler:
        return self._sampler

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The infinite schedule when asked for, else one of transformers'."""
        if self.cfg.lr_scheduler_type != "infinite":
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            self.lr_scheduler = infinite_schedule(
                self.optimizer if optimizer is None else optimizer,
                self.cfg.infinite,
                self.cfg.warmup_ratio,
                num_training_steps,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes a card into the checkpoint folder at every save; the finished model gets Regrow's own."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        # Float64: the sum must not depend on how the batch is cut.
        total = sum((batch["weights"].double().sum() for batch in samples), torch.zeros((), dtype=torch.float64))
        total = total.to(device=device, dtype=torch.float32)
        if self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return samples, total

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The micro-batch's share of the global batch's mean loss; see the class. Inputs as from `Collator`."""
        outputs, logits = self._forward(model, inputs)
        weights, denominator = inputs["weights"], num_items_in_batch
        if denominator is None:
            denominator = weights.sum()
        if len(weights):
            loss = (self._token_losses(logits, inputs) * weights).sum() / denominator
        else:  # this process has no document left: zero, with zero gradients for what the others average
            loss = logits.float().sum()
        # DDP averages gradients over processes, while the denominator already counts the tokens of all of them.
        loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled and len(weights):
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / self.current_gradient_accumulation_steps
        self._count("tokens", inputs["n_tokens"])
        self._count("computed_tokens", inputs["n_computed"])
        return (loss, outputs) if return_outputs else loss

    def _forward(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
        """The model's output, and the logits at the positions that predict something, ``(p, V)``."""
        asked: dict[str, Any] = {"logits_to_keep": inputs["predict"]} if self._head_takes_mask else {}
        if self.aux_loss_enabled:
            asked["output_router_logits"] = True
        if "ends" in inputs:
            asked["attention_mask"] = self._attention.mask(inputs["ends"], inputs["position_ids"])
        outputs = model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False, **asked)
        # A head that takes a mask returns (n, V) at the wanted positions, others (B, L, V).
        return outputs, outputs.logits if self._head_takes_mask else outputs.logits[inputs["predict"]]

    def _heldout(self, documents: Sequence[Document]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, targets and weights of the trained tokens of documents that are only measured."""
        inputs = self._prepare_inputs(self.data_collator.collate(documents))
        with self.compute_loss_context_manager():
            _, logits = self._forward(self.model, inputs)
        return logits[inputs["sources"]].float(), inputs["targets"], inputs["weights"]

    def _token_losses(self, logits: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Loss of each term, ``(n,)``, from logits at the predicting positions; adds to the per-source numbers."""
        targets, weights, replay = inputs["targets"], inputs["weights"], inputs["replay"]
        sources, counts = inputs["sources"], inputs["counts"]
        if self.cfg.replay_loss == "soft" and "top_ids" in inputs:
            soft = replay & (inputs["top_ids"] >= 0).any(-1)
        else:
            soft = torch.zeros_like(replay)
        losses, ce = logits.new_zeros(targets.shape, dtype=torch.float32), torch.zeros_like(weights)
        hard_at, soft_at = (~soft).nonzero().squeeze(-1), soft.nonzero().squeeze(-1)
        for at in _chunks(hard_at):
            value = _recomputed(hard_loss, logits[sources[at]], targets[at])
            losses = losses.index_put((at,), value)
            ce[at] = value.detach()
        for at in _chunks(soft_at):
            s = self.cfg.soft
            value, ce_at, kl_at = _recomputed(
                soft_loss,
                logits[sources[at]],
                targets[at],
                inputs["top_ids"][at],
                inputs["top_logprobs"][at],
                weight=s.weight,
                temperature=s.temperature,
                tail=s.tail,
            )
            losses = losses.index_put((at,), value)
            ce[at] = ce_at.detach()
            self._count("kl/replay", (kl_at.detach() * weights[at]).sum())
            self._count("kl/weight", weights[at].sum())
        for source, mask in (("domain", ~replay), ("replay", replay)):
            self._count(f"loss/{source}", (ce * weights * mask).sum())
            self._count(f"weight/{source}", (weights * mask).sum())
        self._count("train_tokens", counts.sum())
        self._count("soft_tokens", (counts * soft).sum())
        if self.cfg.replay_loss == "soft":
            self._count("hard_fallback_tokens", (counts * (replay & ~soft)).sum())
        return losses

    def _count(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value.detach().to(self.args.device, torch.float32)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds per-source losses, tokens and speed of the interval to a training log entry.

        ``loss/domain`` and ``loss/replay`` are weighted means of the cross-entropy in nats per token; ``kl/replay`` of
        the KL where the soft loss was used; ``hard_fallback_tokens`` counts replay tokens without a stored top-k that
        had cross-entropy although ``replay_loss`` is ``soft``.
        """
        if "loss" in logs:
            logs.update(self._interval_numbers())
        super().log(logs, start_time)

    def _interval_numbers(self) -> dict[str, float]:
        added = self.accelerator.reduce(torch.stack([self._sums[name] for name in COUNTS]), reduction="sum")
        sums = dict(zip(COUNTS, added.tolist(), strict=True))
        self._sums = self._zeros()
        seconds, self._interval_started = time.monotonic() - self._interval_started, time.monotonic()
        self.tokens_seen += int(sums["tokens"])
        self.computed_tokens += int(sums["computed_tokens"])
        self.train_tokens_seen += sums["train_tokens"]
        out: dict[str, float] = {}
        for source in ("domain", "replay"):
            if sums[f"weight/{source}"]:
                out[f"loss/{source}"] = sums[f"loss/{source}"] / sums[f"weight/{source}"]
        if sums["kl/weight"]:
            out["kl/replay"] = sums["kl/replay"] / sums["kl/weight"]
        if self.cfg.replay_loss == "soft":
            out |= {name: int(sums[name]) for name in ("soft_tokens", "hard_fallback_tokens")}
        if self.monitor is not None:
            out |= self.monitor.take_numbers()
        return out | {
            "tokens": self.tokens_seen,
            "computed_tokens": self.computed_tokens,
            "train_tokens": int(self.train_tokens_seen),
            "tok_s": sums["tokens"] / max(seconds, 1e-9),
        }

    def replay_drawn(self) -> dict[str, int]:
        """Tokens of replay trained on by topic; empty without replay slots."""
        if not isinstance(self._sampler, SlotSampler):
            return {}
        return self._sampler.realised(0, self.draws(self.state.global_step))

    def draws(self, steps: int) -> int:
        """Packs in the first so many optimizer steps of one process. The last step of a pass may be short."""
        a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        n = len(self._sampler)
        passes, rest = divmod(steps, math.ceil(n / a_step))
        return passes * n + min(rest * a_step, n)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        added = self.accelerator.reduce(torch.stack([self._sums[name] for name in COUNTS]), reduction="sum")
        self.accelerator.wait_for_everyone()  # each process has written its random state
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            pending = dict(zip(COUNTS, added.tolist(), strict=True))
            counted = {
                "tokens": self.tokens_seen,
                "computed_tokens": self.computed_tokens,
                "train_tokens": self.train_tokens_seen,
                "pending": pending,
                "last": self.state.global_step >= self.state.max_steps,
                "monitor": None if self.monitor is None else self.monitor.state_dict(),
            }
            mark_complete(folder, step=self.state.global_step, fingerprint=self.fingerprint, extra=counted)
            keep_newest(Path(self.args.output_dir), self.cfg.save_total_limit)

    def resume(self, folder: Path, *, unless: Callable[[RegrowTrainer], bool] | None = None) -> None:
        """Train on from a complete checkpoint of this run, with its counts and unlogged sums.

        Args:
            folder: The checkpoint.
            unless: Asked when the checkpoint's state is back: whether to leave it there.
        """
        extra = read_marker(folder)["extra"]
        self.tokens_seen, self.train_tokens_seen = int(extra["tokens"]), float(extra["train_tokens"])
        self.computed_tokens = int(extra.get("computed_tokens", self.tokens_seen))
        if self.monitor is not None:
            self.monitor.load_state_dict(extra["monitor"], int(read_marker(folder)["step"]))
        if self.accelerator.is_main_process:
            for name, value in extra["pending"].items():
                self._count(name, torch.tensor(value))
        self.state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
        if extra["last"]:
            # Nothing is left to train; Trainer.train would take one step more before it looks at max_steps.
            self._load_weights(folder)
        elif unless is None or not unless(self):
            self.train(resume_from_checkpoint=str(folder))

    def _load_weights(self, folder: Path) -> None:
        """The weights of a checkpoint, into a model that is not wrapped or sharded yet."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            self._load_from_checkpoint(str(folder))
            return
        from peft import PeftModel, set_peft_model_state_dict
        from safetensors.torch import load_file

        weights: dict[str, Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
        if isinstance(self.model, PeftModel):
            set_peft_model_state_dict(self.model, weights)
        else:
            load_whole(self.model, weights, folder)


def load_whole(model: nn.Module, weights: dict[str, Tensor], where: Path) -> None:
    """Load a full state dict; only a name whose tensor is tied to one that is there may be missing.

    Raises:
        ModelError: The names do not fit.
    """
    result = model.load_state_dict(weights, strict=False)
    own = model.state_dict()
    loaded = {own[name].data_ptr() for name in weights if name in own}
    missing = [name for name in result.missing_keys if own[name].data_ptr() not in loaded]
    if missing or result.unexpected_keys:
        names = ", ".join([*missing, *result.unexpected_keys][:4])
        raise ModelError(f"the trained weights do not fit the model: {names}", where=str(where))


class _EpochOrder(TrainerCallback):  # type: ignore[misc]
    """Tells the sampler the epoch, also on resume, where accelerate's wrappers do not reach it."""

    def __init__(self, sampler: BlockSampler | MixtureSampler | SlotSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(int((state.epoch or 0.0) + 1e-6))


def _chunks(indices: Tensor) -> tuple[Tensor, ...]:
    """``indices`` in pieces of `LOSS_CHUNK`; none for none (``split`` would give one empty piece)."""
    return torch.split(indices, LOSS_CHUNK) if len(indices) else ()


def _recomputed(function: Any, *args: Any, **kwargs: Any) -> Any:
    """``function(*args)`` whose intermediates are recomputed in the backward pass instead of kept."""
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def head_takes_mask(model: nn.Module) -> bool:
    """Whether the model computes logits at the ``True`` positions of a boolean ``logits_to_keep`` mask only.

    Asked of the model itself, on eight tokens: an older transformers would read the mask as positions.
    """
    forward = getattr(model, "get_base_model", lambda: model)().forward
    if "logits_to_keep" not in inspect.signature(forward).parameters:
        return False
    ids, positions = _probe(model)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, 1] = mask[0, 3] = mask[1, 2] = True
    with _evaluating(model), torch.no_grad():
        full = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        try:
            kept = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=mask).logits
        except (IndexError, TypeError, ValueError, RuntimeError):
            return False
    return kept.shape == (3, full.shape[-1]) and torch.allclose(kept.float(), full[mask].float(), atol=1e-2, rtol=1e-2)


def choose_layout(model: nn.Module, config: Any, *, packing: bool) -> Layout:
    """The layout that keeps documents apart on this model; checked by running it.

    Variable-length attention kernels want one tensor row, mask-based attention several short ones. Models that carry
    state along a row (state-space layers, convolutions) mix documents whatever the mask says: they get one document a
    row.

    Raises:
        RecipeError: Packing is asked of a model that cannot keep documents apart.
        ModelError: The model mixes tokens even of different tensor rows.
    """
    wanted: Layout = "single" if "flash" in (config._attn_implementation or "") else "rows"
    if _keeps_apart(model):
        return wanted
    if packing:
        raise RecipeError(
            f"{type(model).__name__} lets packed documents see each other",
            where="train.packing",
            hint="set it to false",
        )
    if not _keeps_apart(model, separate=True):
        raise ModelError(f"{type(model).__name__} is not causal: a token's output depends on padding after it")
    return "separate"


def _keeps_apart(model: nn.Module, *, separate: bool = False) -> bool:
    """Whether a document's logits stay the same when its neighbours in the row change."""
    ids, positions = _probe(model)
    other = ids.clone()
    if separate:  # a document, then padding: the padding must not matter
        other[:, 2:] = (other[:, 2:] + 5) % int(ids.max() + 1)
        look = slice(0, 2)
    else:  # two documents in a row: the first must not matter to the second
        ids, positions = ids.reshape(1, -1), positions.reshape(1, -1)
        other = ids.clone()
        other[:, :4] = (other[:, :4] + 5) % int(ids.max() + 1)
        look = slice(4, 8)
    with _evaluating(model), torch.no_grad():
        a = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, look].float()
        b = model(input_ids=other, position_ids=positions, use_cache=False).logits[:, look].float()
    return torch.allclose(a, b, atol=1e-3 * float(a.abs().max()) + 1e-6, rtol=0)


def _probe(model: nn.Module) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]], device=device)
    return ids, torch.arange(4, device=device).expand(2, 4)


class _evaluating:
    """Evaluation mode (no dropout) inside the block."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.was_training = self.model.training
        self.model.eval()

    def __exit__(self, *exc: object) -> None:
        self.model.train(self.was_training)
