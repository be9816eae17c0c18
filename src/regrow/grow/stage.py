"""The grow stage: a model in, a corpus out; continues after being killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regrow.errors import EngineError, RunError
from regrow.grow.config import GrowConfig
from regrow.grow.corpus import Counts, Dialogue, Node, write_corpus
from regrow.grow.pretrain import TextScript
from regrow.grow.screen import BARREN, Screen
from regrow.grow.script import ChatScript, Script, root_prompt
from regrow.grow.shapes import expected_nodes, mixed_histogram, shape_for, warnings_for
from regrow.grow.store import Store, TreeRow
from regrow.grow.topics import ASK_PROMPT, TextEncoder, apportion, ask_topics, configured_topics, quotas
from regrow.grow.tree import Grower, path_ids
from regrow.progress import note, task

if TYPE_CHECKING:
    from regrow.engines.base import Engine
    from regrow.models.load import ResolvedModel

DEFAULT_DIALOGUES = 1_000
TOKENS_A_QUESTION, TOKENS_AN_ANSWER = 24, 110
"""First guess of a kept turn's length, for a budget in tokens; after the first round the corpus's own mean is used."""
FIRST_ROUND = 0.6
"""Share of a token budget planned on that guess, so that a wrong guess does not overshoot."""
NOT_IDENTITY = {"batch_nodes", "top_logprobs", "top_logprobs_context", "encoder", "refill_rounds"}
"""Settings that may change between a crash and its resume without changing what was grown so far."""


@dataclass
class GrowSummary:
    """What was grown; ``dropped`` counts candidates by reason, ``dialogues`` and ``tokens`` what is kept."""

    dialogues: int
    tokens: int
    nodes: int
    candidates: int
    dropped: dict[str, int]
    topics: dict[str, int]
    engine: str
    seconds: float
    tok_s: float
    top_logprobs: int = 0
    rounds: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON shape."""
        return asdict(self)


@dataclass(frozen=True)
class GrowCost:
    """What a configuration will cost: ``dialogues`` wanted, distinct ``kept_tokens``, ``sampled_tokens`` (with the
    candidates that are dropped) and ``generations`` (candidates)."""

    dialogues: int
    kept_tokens: int
    sampled_tokens: int
    generations: int


def estimate_cost(cfg: GrowConfig, topics: int | None = None) -> GrowCost:
    """The cost of a configuration before anything is sampled (core of the paper's cost model: one generation a node,
    times the over-generation). Lengths are guesses; the counts of nodes are exact in expectation."""
    names = topics or (cfg.ask_topics or len(configured_topics(cfg)))
    per_turn = TOKENS_A_QUESTION + min(TOKENS_AN_ANSWER, cfg.answer.max_new_tokens[0])
    wanted = _dialogues(cfg)
    if wanted is None:
        assert cfg.tokens is not None
        wanted = max(1, round(cfg.tokens / (per_turn * cfg.turns)))
    nodes = 0.0
    for share in apportion(wanted, [1.0] * min(names, wanted)):
        shape = shape_for(cfg.shape, cfg.turns, max(1, share))
        nodes += expected_nodes(shape.children, share)
    over = 1.0 if cfg.shape == "wide" else cfg.oversample
    kept = cfg.tokens or round(nodes * per_turn / 2)
    return GrowCost(wanted, kept, round(kept * over), round(nodes * over))


def _dialogues(cfg: GrowConfig) -> int | None:
    if cfg.dialogues == "all":
        shape = shape_for(cfg.shape, cfg.turns, 1)
        return shape.capacity(0) * max(1, cfg.ask_topics or len(configured_topics(cfg)))
    if isinstance(cfg.dialogues, int):
        return cfg.dialogues
    return DEFAULT_DIALOGUES if cfg.tokens is None else None


def grow(
    cfg: GrowConfig,
    model: ResolvedModel,
    out: Path,
    *,
    seed: int,
    engine: Engine | None = None,
    encoder: TextEncoder | None = None,
) -> GrowSummary:
    """Grow a corpus into ``out`` (`regrow.grow.corpus` tells its layout), or continue one.

    Args:
        cfg: Settings.
        model: Whose knowledge is grown.
        out: Corpus folder.
        seed: All randomness comes from it and the nodes' tree paths.
        engine: What samples; made from ``cfg.engine`` when None (and closed at the end).
        encoder: For MMR; loaded from ``cfg.encoder`` when None.

    Raises:
        EngineError: Nothing usable was sampled, or the engine failed.
        RunError: The folder holds a corpus of other settings, is being written by another process, or the disk is full.
        ModelError: The chat template cannot be split into turns.
    """
    from regrow.engines.choose import make_engine
    from regrow.models.load import load_tokenizer

    started = time.monotonic()
    tokenizer = load_tokenizer(model.path)
    script: Script = TextScript(cfg, tokenizer) if cfg.mode == "pretrain" else ChatScript(cfg, tokenizer)
    if encoder is None and cfg.encoder != "none":
        from regrow.models.embed import load_encoder

        encoder = load_encoder(cfg.encoder)
    own = engine is None
    engine = engine or make_engine(cfg.engine, model, seed=seed)
    identity = {
        "grow": cfg.model_dump(mode="json", exclude=NOT_IDENTITY | {"engine"}),
        "model": model.revision,
        "engine": engine.info.name,
        "seed": seed,
    }
    try:
        with Store.create_or_resume(out, identity) as store:
            run = _Run(cfg, store, script, engine, encoder, seed, tokenizer)
            rounds = run.grow()
            if cfg.top_logprobs:
                _fill(cfg, store, script, engine, model, seed)
            counts = _write(cfg, store, out, model, engine, seed, run.topics)
            totals = store.totals()
    finally:
        if own:
            engine.close()
    seconds = time.monotonic() - started
    return GrowSummary(
        dialogues=counts.dialogues,
        tokens=counts.kept_tokens,
        nodes=counts.kept,
        candidates=totals.candidates,
        dropped=counts.dropped,
        topics=counts.topics,
        engine=engine.info.name,
        seconds=round(seconds, 3),
        tok_s=round(totals.tokens / max(1e-9, seconds), 1),
        top_logprobs=cfg.top_logprobs,
        rounds=rounds,
    )


class _Run:
    """Rounds of planting and growing until the budget is met."""

    def __init__(
        self,
        cfg: GrowConfig,
        store: Store,
        script: Script,
        engine: Engine,
        encoder: TextEncoder | None,
        seed: int,
        tokenizer: Any,
    ) -> None:
        self.cfg, self.store, self.script, self.seed = cfg, store, script, seed
        screen = Screen(cfg.screen, script.markers(), frozenset(tokenizer.all_special_ids))
        self.grower = Grower(cfg, store, script, engine, screen, encoder, seed, tokenizer)
        self.topics = self._topics(engine, encoder)
        for text in warnings_for(
            shape_for(cfg.shape, cfg.turns, 64).children, cfg.question.max_new_tokens, cfg.answer.max_new_tokens
        ) if isinstance(cfg.shape, list) else []:
            note(f"grow: {text}")

    def _topics(self, engine: Engine, encoder: TextEncoder | None) -> list[str]:
        """The topics, asked once and kept: a resumed run must not ask again."""
        known = self.store.get("topics")
        if known:
            return list(known)
        topics = configured_topics(self.cfg)
        if not topics:
            question = ASK_PROMPT.replace("{n}", str(self.cfg.ask_topics))
            turns = self.script
            ids = [*turns.opening(None), *self.grower.tokenizer(question, add_special_tokens=False)["input_ids"]]
            ids += turns.joint(2)
            stops = turns.params(2).stop_token_ids
            topics = ask_topics(engine, ids, stops, self.cfg.ask_topics, seed=self.seed, encoder=encoder)
            note(f"grow: the model named {len(topics)} topics: {', '.join(topics[:8])}{' ...' if len(topics) > 8 else ''}")
        self.store.set("topics", topics)
        return topics

    def grow(self) -> int:
        """Plant and grow round after round; returns the number of rounds."""
        round_ = 0
        while True:
            trees = self.store.trees()
            mine = [t for t in trees if t.round == round_]
            if not mine:
                mine = self._plan(round_, trees)
                if not mine:
                    break
                self.store.plant(mine)
            expected = sum(_expected(t, self.script.layers_per_turn) for t in mine)
            label = "growing" if round_ == 0 else f"growing, round {round_ + 1}"
            with task(label, round(expected), "nodes") as bar:
                self.grower.run(mine, bar)
            round_ += 1
        if not sum(self.store.finished().values()):
            dropped = self.store.totals().dropped
            raise EngineError(
                f"no dialogue survived: dropped {dropped}",
                where="grow",
                hint="look at the reasons; raise grow.answer.max_new_tokens if they are 'truncated', or loosen grow.screen",
            )
        return round_

    def _plan(self, round_: int, trees: list[TreeRow]) -> list[TreeRow]:
        """The trees of the next round, or none when the budget is met or the rounds are used up."""
        wanted = self._missing(round_)
        out: list[TreeRow] = []
        for topic, by_depth in wanted.items():
            total = sum(by_depth.values())
            if not total:
                continue
            shape = shape_for(self.cfg.shape, self.cfg.turns, total)
            if self.cfg.shape == "mixed-turns":
                want = {k: n for k, n in by_depth.items() if n}
            else:
                depth = shape.depth // self.script.layers_per_turn
                want = {depth: total if shape.independent else min(total, shape.capacity(0))}
            name = self.topics[topic]
            number = len(trees) + len(out)
            out.append(TreeRow(number, topic, name, root_prompt(self.cfg, name), round_, shape, want))
        return out

    def _missing(self, round_: int) -> dict[int, dict[int, int]]:
        """Topic -> turns -> dialogues still wanted."""
        if round_ > self.cfg.refill_rounds:
            return {}
        finished = self.store.finished()
        have = {i: sum(n for (t, _), n in finished.items() if t == i) for i in range(len(self.topics))}
        total = _dialogues(self.cfg)
        if total is None:
            total = self._for_tokens(round_, sum(have.values()))
        quota = quotas(self.cfg, self.topics, total)
        out: dict[int, dict[int, int]] = {}
        for i, share in enumerate(quota):
            if self.cfg.shape == "mixed-turns":
                goal = mixed_histogram(share)
                done = {k: finished.get((i, k * self.script.layers_per_turn), 0) for k in goal}
                out[i] = {k: max(0, n - done[k]) for k, n in goal.items()}
            else:
                out[i] = {0: max(0, share - have[i])}
        return out

    def _for_tokens(self, round_: int, have: int) -> int:
        """Dialogues in all that the token budget is worth."""
        budget = self.cfg.tokens or 0
        grown = self.store.totals().tokens
        if round_ == 0 or not have:
            turns = 2.5 if self.cfg.shape == "mixed-turns" else self.cfg.turns
            if isinstance(self.cfg.shape, list):
                turns = len(self.cfg.shape) / self.script.layers_per_turn
            answer = min(TOKENS_AN_ANSWER, self.cfg.answer.max_new_tokens[0])
            return max(1, round(FIRST_ROUND * budget / (turns * (TOKENS_A_QUESTION + answer))))
        if grown >= 0.98 * budget:
            return have
        return have + max(1, round((budget - grown) / (grown / have)))


def _expected(tree: TreeRow, layers_per_turn: int) -> float:
    if len(tree.want) > 1:
        return float(sum(k * layers_per_turn * n for k, n in tree.want.items()))
    ((_, wanted),) = tree.want.items()
    if tree.shape.independent:
        return float(wanted * tree.shape.depth)
    return expected_nodes(tree.shape.children, wanted)


def _fill(
    cfg: GrowConfig, store: Store, script: Script, engine: Engine, model: ResolvedModel, seed: int
) -> None:
    from regrow.engines.choose import make_engine
    from regrow.grow.logprobs import fill_topk

    mark = [cfg.top_logprobs, cfg.top_logprobs_context]
    if store.get("topk") != mark:
        store.clear_topk()
        store.set("topk", mark)
    growing = cfg.top_logprobs_context == "growing"
    roots = {t.tree: t.root if growing or cfg.keep_system else None for t in store.trees()}
    scorer = engine if engine.info.can_score else make_engine("transformers", model, seed=seed)
    try:
        fill_topk(store, script, scorer, cfg.top_logprobs, roots)
    finally:
        if scorer is not engine:
            scorer.close()


def _write(
    cfg: GrowConfig, store: Store, out: Path, model: ResolvedModel, engine: Engine, seed: int, topics: list[str]
) -> Counts:
    trees = {t.tree: t for t in store.trees()}
    leaves = list(store.leaf_ids())
    paths: dict[str, int] = {}
    for leaf in leaves:
        for node in path_ids(leaf):
            paths[node] = paths.get(node, 0) + 1

    def nodes() -> Iterator[Node]:
        for stored, topk in store.nodes():
            n_paths = paths.get(stored.id, 0)
            barren = stored.kept and not n_paths
            logprobs = stored.token_logprobs
            top_ids = top_logprobs = None
            if topk is not None:
                _, ids, values, close_ids, close_values = topk
                top_ids = np.frombuffer(ids + close_ids, dtype="<i4").tolist()
                top_logprobs = np.frombuffer(values + close_values, dtype="<f2").astype(np.float32).tolist()
            yield Node(
                id=stored.id,
                parent=stored.parent,
                tree=stored.tree,
                topic=trees[stored.tree].name,
                layer=stored.layer,
                role=stored.role,
                token_ids=list(stored.token_ids),
                text=stored.text,
                logprob=None if logprobs is None else float(np.sum(logprobs, dtype=np.float64)),
                token_logprobs=None if logprobs is None else logprobs.tolist(),
                finish=stored.finish,
                kept=stored.kept and not barren,
                reason=BARREN if barren else stored.reason,
                seed=stored.seed,
                n_paths=n_paths,
                top_ids=top_ids,
                top_logprobs=top_logprobs,
            )

    def dialogues() -> Iterator[Dialogue]:
        for leaf in leaves:
            ids = path_ids(leaf)
            known = store.contents(ids)
            tree = trees[int(leaf.split("/")[0][1:])]
            n_tokens = sum(len(known[i][0]) for i in ids)
            yield Dialogue(leaf, _messages(cfg, tree, [known[i][1] for i in ids]), ids, tree.name, tree.tree, n_tokens)

    facts = {
        "model": model.name,
        "revision": model.revision,
        "engine": f"{engine.info.name} {engine.info.version}, {engine.info.dtype}",
        "shape": cfg.shape,
        "seed": seed,
        "topics": len(topics),
        "top_logprobs": cfg.top_logprobs,
        "config": cfg.model_dump(mode="json"),
        "trees": [
            {"tree": t.tree, "topic": t.name, "root": t.root, "children": list(t.shape.children), "want": t.want}
            for t in trees.values()
        ],
    }
    try:
        return write_corpus(out, nodes(), dialogues(), facts)
    except OSError as error:
        if error.errno == 28:
            raise RunError(
                "the disk is full; every grown node is safe in nodes.sqlite",
                where=str(out),
                hint="Free some space and run the same command again.",
            ) from error
        raise


def _messages(cfg: GrowConfig, tree: TreeRow, texts: list[str]) -> list[dict[str, Any]]:
    if cfg.mode == "pretrain":
        lead = [tree.root.strip()] if cfg.keep_system else []
        return [{"role": "assistant", "content": "\n\n".join([*lead, *texts])}]
    out = [{"role": "system", "content": tree.root}] if cfg.keep_system else []
    return out + [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(texts)]
