"""The stage ``grow``: a model in, a corpus of its own words out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.engines.base import Engine, KeepsPrefixes
from regrow.errors import RunError
from regrow.grow.config import GrowConfig
from regrow.grow.logprobs import add_top_logprobs
from regrow.grow.pretrain import TextScript
from regrow.grow.rounds import GrowCost, budget, deficits, layers_of, next_target, trees_for
from regrow.grow.rounds import estimate_cost as _estimate_cost
from regrow.grow.screen import Screen
from regrow.grow.script import ChatScript, Script, prompt_ids
from regrow.grow.shapes import warnings_for
from regrow.grow.store import Store
from regrow.grow.topics import ASK_PROMPT, TextEncoder, ask_topics, configured_topics, read_topics
from regrow.grow.tree import Grower
from regrow.grow.written import write_grown
from regrow.progress import note, task

if TYPE_CHECKING:
    from regrow.models.load import ResolvedModel

_MAY_CHANGE = (
    "batch_nodes",
    "top_logprobs",
    "top_logprobs_context",
    "keep_system",
    "refill_rounds",
    "engine",
    "server",
    "serve",
    "ray",
    "topics_file",
)
"""Settings that a resumed run may change: they do not decide what a node says (the engine's own name is compared
apart, and of a topics file its content)."""


@dataclass(slots=True)
class GrowSummary:
    """What was grown.

    Attributes:
        out: The corpus folder.
        dialogues: Complete ones; ``wanted`` were asked for (0: the budget is in tokens).
        candidates: Turns sampled; ``kept`` lie on a complete dialogue; ``dropped`` counts the others by reason.
        sampled_tokens, kept_tokens: Tokens of both.
        trees, rounds: Planted trees, and rounds they were planted in (more than one: branches that died were made up
            for).
        seconds: Of this call; a resumed run grew the rest before.
        resumed_nodes: Candidates an earlier run had committed.
        top_logprobs: k of the stored distributions, 0 for none.
        prefill: Of engines that keep prefixes (`EngineStats`): prompt tokens that were ``run``, that were there
            already (``reused``), and whose caches were ``evicted`` for lack of memory, in this call.
    """

    out: str
    engine: str
    dialogues: int
    wanted: int
    kept: int
    candidates: int
    sampled_tokens: int
    kept_tokens: int
    trees: int
    rounds: int
    seconds: float
    resumed_nodes: int
    top_logprobs: int
    dropped: dict[str, int] = field(default_factory=dict)
    prefill: dict[str, int] = field(default_factory=dict)

    @property
    def short(self) -> int:
        """Dialogues that could not be had."""
        return max(0, self.wanted - self.dialogues)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def estimate_cost(config: GrowConfig) -> GrowCost:
    """Generations and tokens that ``config`` will take; see `regrow.grow.rounds.estimate_cost`.

    Raises:
        RecipeError: The topics cannot be read, or the quota does not fit them.
    """
    topics = configured_topics(config) or [f"topic {i + 1}" for i in range(config.ask_topics)]
    return _estimate_cost(config, topics)


def grow(
    cfg: GrowConfig,
    model: ResolvedModel,
    out: Path,
    *,
    seed: int,
    engine: Engine | None = None,
    encoder: TextEncoder | None = None,
) -> GrowSummary:
    """Grow a corpus out of ``model`` by Tree Generation, or continue one that was interrupted.

    Args:
        cfg: Settings.
        model: What grows.
        out: The corpus folder: ``nodes.sqlite`` while it grows; ``nodes.parquet``, ``dialogues.parquet``,
            ``trees.json``,
            ``corpus.json`` and the card ``README.md`` in the end.
        seed: All randomness comes from it.
        engine: What samples; made from ``cfg.engine`` by default. Not closed here when given.
        encoder: For MMR; loaded by ``cfg.encoder`` by default.

    Raises:
        RunError: ``out`` is being written by another process, was begun under another configuration, is damaged, or
            the
            disk is full.
        EngineError: The engine cannot be had or failed; what was grown so far stays, and the same call goes on from
            there.
        ModelError: The model has no chat template (use ``mode: pretrain``), or one that cannot be split.
        RecipeError: Topics and quota do not fit.
    """
    started = time.monotonic()
    topics = configured_topics(cfg)
    with opened(cfg, model, out, seed, engine, encoder) as ground:
        store, engine = ground.store, ground.engine
        before = store.totals().candidates
        if before:
            note(f"grow: going on from {before:,} candidates that are committed in {out}")
        topics = _topics(cfg, ground, topics, seed)
        prefill = _prefill(engine)
        wanted = _grow_rounds(cfg, store, ground.script, ground.grower, topics)
        prefill = {name: n - prefill[name] for name, n in _prefill(engine).items()}
        if cfg.top_logprobs:
            score(cfg, ground, model, seed)
        totals = store.totals()
        trees = store.trees()
        counts = write_grown(out, store, cfg, ground.script, ground.tokenizer, model, engine, seed)
        summary = GrowSummary(
            out=str(out),
            engine=engine.info.name,
            dialogues=counts.dialogues,
            wanted=wanted,
            kept=counts.kept,
            candidates=totals.candidates,
            sampled_tokens=totals.tokens,
            kept_tokens=counts.kept_tokens,
            trees=len(trees),
            rounds=max(t.round for t in trees) + 1,
            seconds=round(time.monotonic() - started, 2),
            resumed_nodes=before,
            top_logprobs=cfg.top_logprobs,
            dropped=dict(sorted(counts.dropped.items(), key=lambda x: (-x[1], x[0]))),
            prefill=prefill,
        )
    if not summary.dialogues:
        raise RunError(
            f"not one dialogue survived: {_top(summary.dropped)}",
            where=str(out),
            hint="Look at nodes.parquet for the dropped texts; loosen grow.screen, raise grow.answer.max_new_tokens, "
            "or set grow.truncated: trim.",
        )
    if summary.short:
        note(
            f"grow: {summary.dialogues:,} of {wanted:,} dialogues; the rest died in the screens "
            f"({_top(summary.dropped)}). More retries or refill_rounds, or looser screens, would find more."
        )
    return summary


@dataclass(slots=True)
class Ground:
    """An open store and all that grows in it."""

    store: Store
    script: Script
    engine: Engine
    encoder: TextEncoder | None
    tokenizer: Any
    grower: Grower


@contextmanager
def opened(
    cfg: GrowConfig,
    model: ResolvedModel,
    out: Path,
    seed: int,
    engine: Engine | None,
    encoder: TextEncoder | None,
) -> Iterator[Ground]:
    """The store of ``out``, alone, with an engine and an encoder; see `grow` for the arguments and errors."""
    from regrow.engines.choose import make_engine
    from regrow.models.embed import load_encoder
    from regrow.models.load import load_tokenizer

    tokenizer = load_tokenizer(model.path)
    script: Script = TextScript(cfg, tokenizer) if cfg.mode == "pretrain" else ChatScript(cfg, tokenizer)
    with ExitStack() as stack:
        if engine is None:
            engine = make_engine(cfg.engine, model, seed=seed, server=cfg.server, serve=cfg.serve, ray=cfg.ray)
            stack.callback(engine.close)
        store = stack.enter_context(Store.create_or_resume(out, identity(cfg, model, engine, seed)))
        if encoder is None and cfg.encoder != "none":
            encoder = load_encoder(cfg.encoder)
        screen = Screen(cfg.screen, script.markers(), frozenset(tokenizer.all_special_ids))
        grower = Grower(cfg, store, script, engine, screen, encoder, seed, tokenizer)
        yield Ground(store, script, engine, encoder, tokenizer, grower)


def _prefill(engine: Engine) -> dict[str, int]:
    """Its counts so far; empty for an engine that keeps no prefixes."""
    if not isinstance(engine, KeepsPrefixes):
        return {}
    done = engine.stats
    return {"run": done.prefill_tokens, "reused": done.reused_tokens, "evicted": done.evicted_tokens}


def _top(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in list(dropped.items())[:3]) or "nothing was sampled"


def identity(cfg: GrowConfig, model: ResolvedModel, engine: Engine, seed: int) -> dict[str, Any]:
    """What decides a corpus: stored with it, compared on resume."""
    settings = {k: v for k, v in cfg.model_dump(mode="json").items() if k not in _MAY_CHANGE}
    if cfg.topics_file:
        settings["topics"] = read_topics(cfg.topics_file)
    return {
        "grow": settings,
        "model": model.revision,
        # One engine in this process or many of it on a cluster draw the same: a corpus may move from one to the other.
        "engine": {"name": engine.info.sampler, "dtype": engine.info.dtype},
        "seed": seed,
    }


def _topics(cfg: GrowConfig, ground: Ground, configured: list[str], seed: int) -> list[str]:
    """The topics of this corpus; asked from the model once, then kept in the store."""
    store, script, tokenizer = ground.store, ground.script, ground.tokenizer
    known: list[str] | None = store.get("topics")
    if known is None:
        known = configured
        if cfg.ask_topics:
            question = tokenizer(ASK_PROMPT.format(n=cfg.ask_topics), add_special_tokens=False)["input_ids"]
            stops = script.params(2).stop_token_ids
            if cfg.mode == "pretrain":
                question = tokenizer("A list of different fields of knowledge:\n1.", add_special_tokens=False)[
                    "input_ids"
                ]
            prompt = prompt_ids(script, None, [question])
            known = ask_topics(ground.engine, prompt, stops, cfg.ask_topics, seed=seed, encoder=ground.encoder)
        store.put("topics", known)
    return known


def _grow_rounds(cfg: GrowConfig, store: Store, script: Script, grower: Grower, topics: list[str]) -> int:
    """Plant and grow, round after round, until the budget is met or the rounds are used up. Returns dialogues
    wanted."""
    fixed = budget(cfg, topics)
    rounds = cfg.refill_rounds + 1
    if fixed is None:
        rounds += 2  # a token budget is approached: the first rounds learn how long this model's dialogues are
    elif cfg.dialogues == "all":
        rounds = 1
    planted = store.trees()
    if not planted:
        _warn(cfg, topics, fixed)
    round_ = max((t.round for t in planted), default=-1)
    while True:
        if round_ >= 0:
            trees = store.trees()
            with task("growing", round(sum(sum(layers_of(t, script.layers_per_turn)) for t in trees)), "nodes") as bar:
                bar.skip(store.wanted_so_far())
                grower.run(bar)
        round_ += 1
        if round_ >= rounds:
            break
        finished = store.finished()
        target = fixed
        if fixed is None:
            assert cfg.tokens is not None
            tokens = store.tokens_on_paths()
            if tokens >= cfg.tokens:
                break
            target = next_target(cfg, topics, tokens, sum(finished.values()), script.layers_per_turn)
        assert target is not None
        if round_ and not finished:
            break
        wants = deficits(cfg, topics, target, finished, script.layers_per_turn)
        if not wants:
            break
        store.plant(trees_for(cfg, topics, wants, len(store.trees()), round_))
    return fixed or 0


def _warn(cfg: GrowConfig, topics: list[str], dialogues: int | None) -> None:
    if isinstance(cfg.shape, list) and cfg.mode == "chat":
        for text in warnings_for(cfg.shape, cfg.question.max_new_tokens, cfg.answer.max_new_tokens):
            note(f"grow: unlike the paper's shapes, {text}")
    if dialogues is not None and dialogues < len(topics):
        note(f"grow: {dialogues} dialogues for {len(topics)} topics; {len(topics) - dialogues} topics get none")


def score(cfg: GrowConfig, ground: Ground, model: ResolvedModel, seed: int) -> None:
    """Store the base's top-k of every kept turn that has none yet."""
    from regrow.engines.choose import make_engine

    engine = ground.engine
    scorer = engine if engine.info.can_score else make_engine("transformers", model, seed=seed)
    try:
        leaves = sum(ground.store.finished().values())
        with task("scoring", leaves, "dialogues") as bar:
            add_top_logprobs(
                ground.store, ground.script, scorer, cfg.top_logprobs, bar, context=cfg.top_logprobs_context
            )
    finally:
        if scorer is not engine:
            scorer.close()
