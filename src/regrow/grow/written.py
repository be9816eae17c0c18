"""From the store to the corpus: nodes, dialogues, trees and the card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.engines.base import Engine
from regrow.grow.config import GrowConfig
from regrow.grow.corpus import Counts, Dialogue, Node, write_corpus
from regrow.grow.logprobs import unpack
from regrow.grow.records import StoredNode
from regrow.grow.screen import BARREN
from regrow.grow.script import Script, root_prompt
from regrow.grow.store import Store
from regrow.grow.tree import path_ids

if TYPE_CHECKING:
    from regrow.models.load import ResolvedModel

TREES = "trees.json"


def write_grown(
    out: Path,
    store: Store,
    cfg: GrowConfig,
    script: Script,
    tokenizer: Any,
    model: ResolvedModel,
    engine: Engine,
    seed: int,
) -> Counts:
    """Write what a store holds as a corpus to ``out``; returns its counts."""
    facts = _facts(cfg, model, engine, seed, store)
    _write_trees(out, store)
    return write_corpus(out, _nodes(store, cfg), _dialogues(store, cfg, script, tokenizer), facts)


def _facts(cfg: GrowConfig, model: ResolvedModel, engine: Engine, seed: int, store: Store) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model": model.name,
        "revision": model.revision,
        "engine": f"{engine.info.name} {engine.info.version} ({engine.info.dtype})",
        "seed": seed,
        "shape": cfg.shape if isinstance(cfg.shape, str) else ",".join(map(str, cfg.shape)),
        "questions": _sampling(
            cfg.question.temperature, cfg.question.top_p, cfg.question.top_k, cfg.question.max_new_tokens
        ),
        "answers": _sampling(cfg.answer.temperature, cfg.answer.top_p, cfg.answer.top_k, cfg.answer.max_new_tokens),
        "token log-probabilities": "yes"
        if engine.info.gives_logprobs
        else f"no: the engine {engine.info.name} gives none",
        "topics": len(store.get("topics")),
        "trees": len(store.trees()),
    }
    if cfg.top_logprobs:
        facts["top log-probabilities"] = f"k = {cfg.top_logprobs}, under the {cfg.top_logprobs_context} prompt"
    return {**facts, "config": cfg.model_dump(mode="json")}


def _sampling(temperature: float, top_p: float, top_k: int, cap: int | list[int]) -> str:
    return f"temperature {temperature:g}, top-p {top_p:g}, top-k {top_k or 'off'}, at most {cap} tokens"


def _write_trees(out: Path, store: Store) -> None:
    import json

    from regrow.rows.writers import atomic_write_text

    trees = [
        {
            "tree": t.id, "topic": t.name, "root": t.root, "round": t.round, "shape": list(t.shape.children),
            "independent": t.shape.independent, "wanted": {str(k): v for k, v in t.want.items()},
        }
        for t in store.trees()
    ]  # fmt: skip
    atomic_write_text(out / TREES, json.dumps(trees, indent=1, ensure_ascii=False) + "\n")


def _nodes(store: Store, cfg: GrowConfig) -> Iterator[Node]:
    """All nodes in order of id, bush by bush, so that paths can be counted without holding more than one bush."""
    names = {t.tree: t.name for t in store.trees()}
    bush: list[tuple[StoredNode, tuple[int, bytes, bytes] | None]] = []
    at = ""
    for node, top in store.nodes():
        root = path_ids(node.id)[0]
        if root != at and bush:
            yield from _finish(bush, names, cfg)
            bush = []
        at = root
        bush.append((node, top))
    yield from _finish(bush, names, cfg)


def _finish(
    bush: list[tuple[StoredNode, tuple[int, bytes, bytes] | None]], names: Mapping[int, str], cfg: GrowConfig
) -> Iterator[Node]:
    through: dict[str, int] = {}
    for node, _ in reversed(bush):
        if node.leaf:
            through[node.id] = 1
        if node.id in through:
            through[node.parent] = through.get(node.parent, 0) + through[node.id]
    for node, top in bush:
        n_paths = through.get(node.id, 0) if node.kept else 0
        logprobs = node.token_logprobs
        top_ids, top_logprobs = (None, None) if top is None or not cfg.top_logprobs else unpack(*top)
        yield Node(
            id=node.id,
            parent=node.parent,
            tree=node.tree,
            topic=names[node.tree],
            layer=node.layer,
            role=node.role,
            token_ids=list(node.token_ids),
            text=node.text,
            logprob=None if logprobs is None else float(logprobs.sum(dtype="float64")),
            token_logprobs=None if logprobs is None else [float(x) for x in logprobs],
            finish=node.finish,
            kept=n_paths > 0,
            reason=node.reason or (None if n_paths else BARREN),
            seed=node.seed,
            n_paths=n_paths,
            top_ids=top_ids,
            top_logprobs=top_logprobs,
        )


def _dialogues(store: Store, cfg: GrowConfig, script: Script, tokenizer: Any) -> Iterator[Dialogue]:
    trees = {t.id: t for t in store.trees()}
    for leaf in store.leaf_ids():
        steps = path_ids(leaf)
        tree = trees[leaf.split("/")[0]]
        found = store.contents(steps)
        contents = [found[step] for step in steps]
        if cfg.mode == "pretrain":
            ids = [i for content, _ in contents for i in content]
            text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            messages = [{"role": "assistant", "content": (tree.root if cfg.keep_system else "") + text}]
        else:
            messages = [{"role": "system", "content": root_prompt(cfg, tree.name)}] if cfg.keep_system else []
            messages += [{"role": script.role(i), "content": text} for i, (_, text) in enumerate(contents, 1)]
        yield Dialogue(leaf, messages, steps, tree.name, tree.tree, sum(len(ids) for ids, _ in contents))
