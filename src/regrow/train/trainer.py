"""The trainer: TRL's ``SFTTrainer`` with per-token weights, replay losses and per-source numbers."""

from __future__ import annotations

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
from regrow.train.batches import Collator, Document, TokenRows
from regrow.train.checkpoints import keep_newest, mark_complete, read_marker
from regrow.train.config import TrainConfig
from regrow.train.layout import choose_layout, head_takes_mask
from regrow.train.mixture import MixturePlan, MixtureSampler, plan_mixture, plan_slots
from regrow.train.monitor import make_monitor, watched_documents
from regrow.train.objectives.replay import hard_loss, soft_loss
from regrow.train.packs import BlockSampler, make_packs
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
        collator = Collator(
            rows, pad_token_id=pad, replay_weight=float(cfg.replay_weight)
        )  # a number: `even` was decided when the rows were opened
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
        beside = None if watched is None else watched_documents(watched)
        self.monitor = make_monitor(
            cfg.mixture, plan, lambda u: [rows.alone(i) for i in units[u]], beside, joins,
            model=self.model, forward=self._heldout, checkpoints=Path(self.args.output_dir),
        )  # fmt: skip
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
        return int(passes * n + min(rest * a_step, n))

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
        if self.monitor is not None:
            self.monitor.settle(self.state.max_steps)
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
