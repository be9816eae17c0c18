"""What a run will cost, before anything is spent."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.arms import is_grown, is_regrown
from regrow.data import best_rows, read_data, split_data
from regrow.loops.pilot import pilot_recipe, pilot_rows
from regrow.plan import grow_budget
from regrow.recipe import Recipe

if TYPE_CHECKING:
    from regrow.models.load import ResolvedModel

EVAL_TOKENS_PER_ITEM = 40
"""Tokens that one evaluation item takes, its prompt shared with others; only the estimate uses it."""
PROBE_TOKENS = 256
TOKEN_BYTES, TOP_BYTES = 40, 3 * 6
"""On the disk, a grown token: itself, and each likely token stored beside it (an id and a half-precision number), in
the grown store, the corpus and a mix; a sweep has more mixes, most of them smaller."""


@dataclass
class Cost:
    """An estimate. Times are None when they were not measured.

    Attributes:
        train_tokens: Arm -> tokens that pass through training, all epochs.
        seconds: Stage -> estimated seconds on this machine.
        load: Share of the cores (0..1) that other work kept busy just before the speeds were measured.
        pilot_rows, pilot_trainings: Size of the pilot, 0 without one; its tokens are in the other numbers.
        disk_bytes: What the run folder will hold.
    """

    rows: int
    heldout: int
    dropped: dict[str, int]
    domain_tokens: int
    replay_tokens: int
    grown_tokens: int
    sampled_tokens: int
    train_tokens: dict[str, int]
    disk_bytes: int
    disk_free: int
    engine: str = ""
    speeds: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    load: float = 0.0
    pilot_rows: int = 0
    pilot_trainings: int = 0

    def text(self) -> str:
        """Amounts, for the terminal."""
        lines = [
            "recipe and data are fine",
            f"  your rows           {self.rows:,} to train on ({self.domain_tokens:,} tokens an epoch), "
            f"{self.heldout:,} held out",
        ]
        if self.dropped:
            lines.append("  left out            " + ", ".join(f"{n:,} {why}" for why, n in self.dropped.items()))
        lines.append(f"  to grow             {self.grown_tokens:,} tokens kept, about {self.sampled_tokens:,} sampled")
        for arm, tokens in self.train_tokens.items():
            lines.append(f"  to train ({arm + ')':<9} {tokens:,} tokens")
        if self.pilot_rows:
            lines.append(
                f"  of it the pilot     {self.pilot_rows:,} rows, {self.train_tokens['pilot']:,} tokens to train in "
                f"{self.pilot_trainings} trainings; it may choose another replay ratio than is counted here"
            )
        lines.append(
            f"  disk                {self.disk_bytes / 2**30:.1f} GiB of {self.disk_free / 2**30:.0f} GiB free"
        )
        if self.disk_bytes > self.disk_free:
            lines.append("  WARNING: there is not enough disk space for this run")
        return "\n".join(lines)

    def times(self) -> str:
        """Measured speeds and what follows from them, for the terminal; after `measure`."""
        lines = [f"  time to {stage:<12}about {_minutes(seconds)}" for stage, seconds in self.seconds.items()]
        lines.append(f"  in all              about {_minutes(sum(self.seconds.values()))} on this machine")
        measured = ", ".join(f"{k} {v:,.0f} tok/s" for k, v in self.speeds.items())
        engine = f" (engine {self.engine})" if self.engine else ""
        lines.append(f"  measured just now   {measured}{engine}")
        if self.load > 0.5:
            lines.append(f"  WARNING: other work keeps {self.load:.0%} of the cores busy; alone the run is faster")
        return "\n".join(lines)


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def estimate(recipe: Recipe) -> Cost:
    """Check the data and the model and count tokens.

    Raises:
        RegrowError: What `regrow run` would stop at, as far as it can be seen without running it.
    """
    import shutil

    from regrow.grow.stage import estimate_cost
    from regrow.mix.stage import count_tokens, replay_tokens_wanted
    from regrow.models.load import resolve_config
    from regrow.preflight import check_recipe

    model = resolve_config(recipe.model)
    check_recipe(recipe, model)
    read = read_data(recipe)
    train, heldout = split_data(recipe, read.rows)
    if recipe.data.quality.reference is not None:
        train = best_rows(train, recipe.data.quality)
    epochs = recipe.train.num_train_epochs
    domain = count_tokens(train, model.path, recipe.mix)
    arms = recipe.arm_ratios()
    largest = max(arms.values(), default=0.0)
    mix = recipe.mix.model_copy(update={"replay_ratio": largest})
    replay = grown = sampled = stored = 0
    if largest:
        replay = replay_tokens_wanted(train, model.path, mix, epochs=epochs)
    if any(map(is_grown, arms)):
        cfg = grow_budget(recipe, model.path, train)
        stored = TOKEN_BYTES + TOP_BYTES * cfg.top_logprobs
        expected = estimate_cost(cfg)
        trainings = sum(map(is_regrown, arms)) or 1
        budget = recipe.regrowth.tokens * trainings  # if it is all spent
        more = 1 + budget / max(1, expected.kept_tokens)
        grown, sampled = round(expected.kept_tokens * more), round(expected.sampled_tokens * more)
    tokens = {arm: _trained(recipe, domain, len(train), arm, ratio) for arm, ratio in arms.items()}
    pilot = pilot_rows(train, recipe.auto, recipe.seed) if recipe.auto.pilot_rows else []
    if pilot:
        inner = pilot_recipe(recipe, len(pilot) / len(train))
        own = count_tokens(pilot, model.path, recipe.mix) * (1 - float(inner.data.test_size))
        kept = round(len(pilot) * (1 - float(inner.data.test_size)))
        tokens["pilot"] = sum(_trained(inner, own, kept, arm, ratio) for arm, ratio in inner.arm_ratios().items())
        expected = estimate_cost(grow_budget(inner, model.path, pilot))
        grown, sampled = grown + round(expected.kept_tokens), sampled + round(expected.sampled_tokens)
    weights = sum(p.stat().st_size for p in model.path.glob("*.safetensors"))
    models = len(arms) + (len(recipe.auto.replay_ratios) if pilot else 0)  # a pilot's are thrown away at its end
    saved = weights * (models if recipe.train.method == "full" else 0.1 * models)
    checkpoint = 3 * weights if recipe.train.method == "full" else 0.1 * weights
    return Cost(
        rows=len(train),
        heldout=len(heldout),
        dropped=read.dropped,
        domain_tokens=domain,
        replay_tokens=replay,
        grown_tokens=grown,
        sampled_tokens=sampled,
        train_tokens=tokens,
        disk_bytes=int(saved + checkpoint + grown * stored),
        disk_free=shutil.disk_usage(Path.cwd()).free,
        pilot_rows=len(pilot),
        pilot_trainings=len(recipe.auto.replay_ratios) if pilot else 0,
    )


def _trained(recipe: Recipe, domain: float, rows: int, arm: str, ratio: float) -> int:
    """Tokens that an arm trains on; with ``train.max_steps`` as many as these steps take, if replay dialogues are as
    long as your rows.

    Args:
        domain: Tokens of your rows.
        rows: Your rows.
        ratio: The arm's replay.
    """
    train = recipe.train
    tokens = domain * recipe.epochs_of(arm) / (1 - ratio)
    if train.max_steps < 1:
        return int(tokens)
    batch = train.per_device_train_batch_size * train.gradient_accumulation_steps * (train.launch.num_processes or 1)
    return int(train.max_steps * batch * (train.max_length if train.packing else domain / max(1, rows)))


def measure(recipe: Recipe, cost: Cost) -> None:
    """Measure this machine for a few seconds and fill in ``cost.speeds``, ``seconds``, ``engine`` and ``load``."""
    import psutil

    from regrow.models.load import load_model, resolve_config

    model = resolve_config(recipe.model)
    cost.load = psutil.cpu_percent(interval=0.3) / 100
    loaded = load_model(model.path)
    cost.speeds["train"] = _train_speed(loaded)
    cost.speeds["score"] = _score_speed(loaded)
    del loaded
    items = recipe.evaluate.n_facts * 4 + recipe.evaluate.pool_sample + recipe.evaluate.max_heldout
    scored = items * EVAL_TOKENS_PER_ITEM * (len(cost.train_tokens) + 2)
    if cost.sampled_tokens:
        cost.speeds["grow"], cost.engine = _grow_speed(recipe, model)
        cost.seconds["grow"] = cost.sampled_tokens / cost.speeds["grow"]
        if recipe.grow.top_logprobs or recipe.train.replay_loss != "hard":  # one pass over what was kept
            cost.seconds["grow"] += cost.grown_tokens / cost.speeds["score"]
    cost.seconds["train"] = sum(cost.train_tokens.values()) / cost.speeds["train"]
    cost.seconds["evaluate"] = scored / cost.speeds["score"]


def _probe(model: Any) -> Any:
    import torch

    vocab = int(model.config.get_text_config().vocab_size)
    ids = torch.randint(0, vocab, (1, PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    return ids.to(model.device)


def _train_speed(model: Any) -> float:
    import torch

    ids = _probe(model)
    model.train()
    seconds = []
    for _ in range(2):  # the first pass warms up
        started = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        seconds.append(time.perf_counter() - started)
    for p in model.parameters():
        p.grad = None
    model.eval()
    with torch.no_grad():
        return PROBE_TOKENS / seconds[-1]


def _score_speed(model: Any) -> float:
    import torch

    ids = _probe(model)
    with torch.inference_mode():
        model(input_ids=ids, use_cache=False)
        started = time.perf_counter()
        model(input_ids=ids, use_cache=False)
        return PROBE_TOKENS / (time.perf_counter() - started)


def _grow_speed(recipe: Recipe, model: ResolvedModel) -> tuple[float, str]:
    from regrow.engines.base import Request, SampleParams
    from regrow.engines.choose import make_engine
    from regrow.models.load import load_tokenizer

    grow = recipe.grow
    server = grow.server.model_copy(update={"cache": False})  # a remembered answer says nothing about speed
    engine = make_engine(grow.engine, model, seed=recipe.seed, server=server, serve=grow.serve, ray=grow.ray)
    try:
        prompt = tuple(load_tokenizer(model.path).encode("The topic is"))
        params = SampleParams(max_new_tokens=24, temperature=1.0)
        requests = [Request(str(i), prompt, 4, i, params) for i in range(16)]
        started = time.perf_counter()
        made = sum(len(c.token_ids) for _, found in engine.sample(requests) for c in found)
        return made / (time.perf_counter() - started), engine.info.name
    finally:
        engine.close()
