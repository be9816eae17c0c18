"""The recipe's ``train`` section, in the names people know from TRL, transformers and PEFT."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from regrow.mix.mixtures import MixtureSection
from regrow.section import Section

DEFAULT_LEARNING_RATE = {"full": 2e-5, "lora": 2e-4}
"""Full: what the Tree Generation paper (through LLaVA) and TRL use. LoRA: ten times that, the rule for adapters."""


class LoraSection(Section):
    """Low-rank adapters; the fields of ``peft.LoraConfig`` under their own names."""

    r: int = Field(default=16, ge=1)
    """Rank of the update."""
    lora_alpha: int = Field(default=32, ge=1)
    """The update is scaled by ``lora_alpha / r`` (by ``lora_alpha / sqrt(r)`` with ``use_rslora``)."""
    lora_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the input of each adapter. 0, so that a run is a plain function of its data."""
    target_modules: str | list[str] = "all-linear"
    """Module names that get an adapter, or ``all-linear``: every linear layer but the output head."""
    use_dora: bool = False
    """Weight-decomposed adapters (DoRA)."""
    use_rslora: bool = False
    """Rank-stabilised scaling (rsLoRA)."""


class SoftReplaySection(Section):
    """How replay tokens are pulled to the base model's own distribution by the soft ``replay_loss``."""

    weight: float = Field(default=1.0, gt=0.0, le=1.0)
    """Replay token loss = ``(1 - weight) * cross-entropy + weight * KL(base || student)``. 1 is pure KL."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Both distributions are softened by it and the KL multiplied by its square (Hinton et al. 2015).
    Other values than 1 need ``tail: renormalise``."""
    tail: Literal["bucket", "renormalise"] = "bucket"
    """What happens to the mass outside the stored top-k. ``bucket``: one more outcome, "anything else", so that
    mass may not leak into the tail. ``renormalise``: the top-k alone, rescaled to 1 on both sides."""

    @model_validator(mode="after")
    def _temperature_needs_renormalise(self) -> SoftReplaySection:
        if self.temperature != 1.0 and self.tail == "bucket":
            raise ValueError(
                "temperature other than 1 needs tail: renormalise (the stored top-k does not say how much mass "
                "the tail has at another temperature)"
            )
        return self


class LaunchSection(Section):
    """Training in several processes, started with ``accelerate launch``."""

    num_processes: int | None = Field(default=None, ge=1)
    """Processes in all, one a GPU (on a machine without any: CPU processes). The global batch is ``num_processes *
    per_device_train_batch_size * gradient_accumulation_steps``. null: what ``config_file`` says, or 1, which trains in
    Regrow's own process."""
    strategy: Literal["ddp", "fsdp", "deepspeed"] | None = None
    """``ddp``: a whole model on each GPU. ``fsdp``: weights, gradients and optimizer sharded (FSDP2). ``deepspeed``:
    sharded by DeepSpeed (ZeRO). null: what ``config_file`` says, or ``ddp``."""
    config_file: str | None = None
    """A file made by ``accelerate config``, for what has no key here (several machines, say)."""
    accelerate: dict[str, Any] = Field(default_factory=dict)
    """Any key of such a file, set over it: ``{fsdp_config: {fsdp_offload_params: true}}``."""

    @field_validator("accelerate")
    @classmethod
    def _own_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        own = {"num_processes": "train.launch.num_processes", "distributed_type": "train.launch.strategy"}
        for name, key in (own | {"mixed_precision": "train.bf16"}).items():
            if name in value:
                raise ValueError(f"'{name}' has a key of its own: {key}")
        return value


class InfiniteSection(Section):
    """``lr_scheduler_type: infinite``: warm up, cool down, stay flat, anneal (arXiv 2503.02844).

    ``out/flat`` holds the model at the end of the flat phase; the next data set is trained from it with ``continues``.
    The defaults are the flags of the authors' small-scale code; its tuned values were 0.5, 0.5, 0.8 and 0.1.
    """

    cooldown_end: float = Field(default=0.3, ge=0, le=1)
    """Share of the steps at which the cool-down is over. It begins where ``warmup_ratio`` ends."""
    flat_ratio: float = Field(default=0.25, gt=0, le=1)
    """Learning rate of the flat phase as a share of the peak."""
    flat_end: float = Field(default=0.8, gt=0, le=1)
    """Share of the steps at which the flat phase is over and annealing begins; 1 never anneals."""
    min_ratio: float = Field(default=0.01, gt=0, le=1)
    """Learning rate of the last step as a share of the peak."""
    continues: bool = False
    """The model is the flat one of an earlier training: no warm-up and no cool-down, the flat rate from the first step
    on. Keep ``learning_rate`` (the peak) as it was."""

    @model_validator(mode="after")
    def _phases_in_order(self) -> InfiniteSection:
        if not self.continues and self.cooldown_end > self.flat_end:
            raise ValueError(f"the cool-down ends at {self.cooldown_end}, after the flat phase ({self.flat_end})")
        if self.min_ratio > self.flat_ratio:
            raise ValueError(f"annealing would rise: min_ratio {self.min_ratio} > flat_ratio {self.flat_ratio}")
        return self


class TrainConfig(Section):
    """How the mixed stream is trained on. Any other TRL/transformers argument goes into ``trainer_args``."""

    method: Literal["full", "lora"] = "full"
    """Train all weights, or low-rank adapters beside frozen weights."""
    learning_rate: float | None = Field(default=None, gt=0.0)
    """Peak learning rate; null takes 2e-5 for ``full`` and 2e-4 for ``lora``."""
    num_train_epochs: float = Field(default=3.0, gt=0.0)
    """Passes over the mix. 3 as in the Tree Generation paper."""
    max_steps: int = Field(default=-1, ge=-1)
    """Optimizer steps; when positive it overrides ``num_train_epochs``."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Examples (with ``packing``: packs of up to ``max_length`` tokens) in one forward pass on one device."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Forward passes behind one optimizer step. The loss is normalised over all of them together."""
    warmup_ratio: float = Field(default=0.03, ge=0.0, lt=1.0)
    """Share of the steps in which the learning rate rises from 0."""
    lr_scheduler_type: str = "cosine"
    """Any scheduler transformers knows: ``linear``, ``cosine``, ``constant_with_warmup``, ...; or ``infinite``."""
    infinite: InfiniteSection = InfiniteSection()
    """Settings of the infinite schedule; read only when ``lr_scheduler_type: infinite``."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, ge=0.0)
    """Gradients are clipped to this norm; 0 switches clipping off."""
    bf16: bool | Literal["auto"] = "auto"
    """bfloat16 autocast. ``auto``: on for CUDA devices that have it, off on CPUs, where it is slower."""
    packing: bool = False
    """Fill packs of ``max_length`` tokens with whole examples and count packs, not examples, as the batch. Documents
    never attend to each other either way; off by default because on small data packs leave few optimizer steps."""
    max_length: int = Field(default=1024, ge=8)
    """Longest example, and the size of a pack, in tokens. Longer examples lose their end (counted in the log)."""
    lora: LoraSection = LoraSection()
    """Adapter settings; read only when ``method: lora``."""
    merge_adapter: bool = False
    """After LoRA training also write the merged model. The adapter is kept in any case."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a fifth slower."""
    save_steps: int = Field(default=200, ge=1)
    """Optimizer steps between checkpoints."""
    save_total_limit: int = Field(default=1, ge=1)
    """Complete checkpoints kept while training. One checkpoint of full training is three times the fp32 weights."""
    save_epochs: bool = False
    """Also write the model (LoRA: the adapter) as it is after each pass over the mix, to `epochs/01`, `epochs/02`, ...
    `regrow tune` and `run` lay all passes out as one, so there it is refused."""
    keep_checkpoints: bool = False
    """Leave the checkpoints after a finished run (they are removed once the model is saved)."""
    logging_steps: int = Field(default=10, ge=1)
    """Optimizer steps between log lines; losses in a line are means over its interval."""
    report_to: str | list[str] = "none"
    """Trackers for the same numbers: ``tensorboard``, ``mlflow``, ``trackio``, ``wandb``, ... TensorBoard's files are
    in ``tensorboard`` beside the model."""
    attn_implementation: str | None = None
    """``sdpa``, ``eager``, ``flash_attention_2``, ...; null leaves the choice to transformers."""
    replay_loss: Literal["auto", "hard", "soft"] = "auto"
    """Loss on replay tokens. ``hard``: cross-entropy on the sampled token (the paper). ``soft``: KL from the base
    model's stored top-k to the student. ``auto``: soft where the replay carries that top-k, else hard; a whole run
    grows it with 32. Domain tokens always have cross-entropy."""
    replay_weight: Annotated[float, Field(gt=0)] | Literal["even"] = 1.0
    """What a trained replay token counts in the loss, where one of yours counts 1. Where your answers are far shorter
    than the replay's, nearly all trained tokens are replay and your data are learned more slowly. ``even``: the weight
    with which replay is as much of the loss as it is of the tokens; the run says what it is. Our own setting."""

    @field_validator("replay_weight", mode="before")
    @classmethod
    def _a_weight(cls, value: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value != "even" and not (number and 0 < value < float("inf")):
            raise ValueError("a number above 0, or even")
        return value

    soft: SoftReplaySection = SoftReplaySection()
    """Settings of the soft loss; not read with ``replay_loss: hard``."""
    mixture: MixtureSection = MixtureSection()
    """Shares of the training tokens by domain, decided while training."""
    launch: LaunchSection = LaunchSection()
    """How many processes train, and how they share the work."""
    trainer_args: dict[str, Any] = Field(default_factory=dict)
    """Any other field of ``trl.SFTConfig`` / ``transformers.TrainingArguments`` under its own name."""

    @property
    def peak_learning_rate(self) -> float:
        """``learning_rate``, or the default of the method."""
        return DEFAULT_LEARNING_RATE[self.method] if self.learning_rate is None else self.learning_rate

    @model_validator(mode="after")
    def _infinite_phases(self) -> TrainConfig:
        if self.lr_scheduler_type == "infinite" and self.launch.strategy in ("fsdp", "deepspeed"):
            raise ValueError("the infinite schedule cannot write its flat model out of sharded weights; use ddp")
        late = self.lr_scheduler_type == "infinite" and not self.infinite.continues
        if late and self.warmup_ratio > self.infinite.cooldown_end:
            raise ValueError(
                f"warm-up (warmup_ratio {self.warmup_ratio}) ends after the cool-down ({self.infinite.cooldown_end})"
            )
        return self

    @model_validator(mode="after")
    def _whole_epochs(self) -> TrainConfig:
        if self.save_epochs and self.launch.strategy in ("fsdp", "deepspeed"):
            raise ValueError("save_epochs cannot write a model out of sharded weights; use ddp")
        return self

    @field_validator("max_steps")
    @classmethod
    def _zero_steps_is_a_mistake(cls, value: int) -> int:
        if value == 0:
            raise ValueError("0 would train nothing; leave it out to train num_train_epochs")
        return value
