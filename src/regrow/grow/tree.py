"""Tree Generation: the model plays user and assistant, branch by branch (arXiv 2406.11354, section 3).

Layer by layer over all trees at once. A parent's prompt is the token ids of its path with the markers between them; its
candidates are sampled, screened, and thinned by MMR to the children that the plan wants; parent and children are one
transaction. All randomness of a parent comes from the run's seed and its own path, so neither the order in which an
engine finishes nor a restart changes what is grown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regrow.engines.base import Completion, Engine, Request
from regrow.grow.config import GrowConfig
from regrow.grow.mmr import mmr
from regrow.grow.plan import Want, node_seed, redistribute, split
from regrow.grow.screen import DUPLICATE, SURPLUS, TOO_SIMILAR, Screen, ends_a_sentence, normal_form
from regrow.grow.script import Script, prompt_ids, topic_sentence
from regrow.grow.store import Expansion, Store, StoredNode, TreeRow
from regrow.grow.topics import TextEncoder
from regrow.progress import Task

LONGEST_TREE_PATH = 512


@dataclass(slots=True)
class _Parent:
    """A parent being expanded. ``unit`` names the expansion, ``base`` begins its children's ids."""

    unit: str
    base: str
    tree: TreeRow
    layer: int
    want: Want
    contents: list[list[int]]
    text: str
    first_child: int = 0
    shares: list[Want] = field(default_factory=list)
    survivors: list[_Candidate] = field(default_factory=list)
    dropped: list[StoredNode] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    attempts: int = 0

    @property
    def needed(self) -> int:
        return len(self.shares)


@dataclass(slots=True)
class _Candidate:
    completion: Completion
    text: str
    seed: int


class Grower:
    """Expands what is planted in a store.

    Args:
        config: Settings.
        store: Where everything goes.
        script: Roles and markers.
        engine: What samples.
        screen: What makes a candidate unfit.
        encoder: For MMR; None takes candidates in the order they were sampled.
        seed: The run's.
    """

    def __init__(
        self,
        config: GrowConfig,
        store: Store,
        script: Script,
        engine: Engine,
        screen: Screen,
        encoder: TextEncoder | None,
        seed: int,
        tokenizer: Any,
    ) -> None:
        self.config, self.store, self.script, self.engine = config, store, script, engine
        self.screen, self.encoder, self.seed, self.tokenizer = screen, encoder, seed, tokenizer

    def run(self, trees: Sequence[TreeRow], bar: Task) -> None:
        """Expand these trees to their leaves; what is expanded already is left alone."""
        by_number = {t.tree: t for t in trees}
        for batch in self._batches(self._roots(trees)):
            self._expand(batch, bar)
        for layer in range(1, max(t.shape.depth for t in trees)):
            for batch in self._batches(self._open(by_number, layer)):
                self._expand(batch, bar)

    # -- what is to be expanded -----------------------------------------------------------------------------------

    def _roots(self, trees: Sequence[TreeRow]) -> Iterator[_Parent]:
        for tree in trees:
            unit = f"root/{tree.id}"
            if not tree.shape.independent:
                if not self.store.is_expanded(unit):
                    yield _Parent(unit, tree.id, tree, 0, tree.want, [], "")
                continue
            # Independent dialogues: each first question is a draw of its own, with no siblings to be chosen among.
            done = self.store.expanded_units(unit)
            ((turns, wanted),) = tree.want.items()
            for i in range(wanted):
                if f"{unit}/{i}" not in done:
                    yield _Parent(f"{unit}/{i}", tree.id, tree, 0, {turns: 1}, [], "", first_child=i)

    def _open(self, trees: dict[int, TreeRow], layer: int) -> Iterator[_Parent]:
        after = ""
        while nodes := self.store.open_nodes(layer, after, self.config.batch_nodes):
            after = nodes[-1][0]
            mine = [(id_, trees[tree], want) for id_, tree, want in nodes if tree in trees]
            known = self.store.contents([p for id_, _, _ in mine for p in path_ids(id_)])
            for id_, tree, want in mine:
                path = [known[p] for p in path_ids(id_)]
                yield _Parent(id_, id_, tree, layer, want, [ids for ids, _ in path], path[-1][1])

    def _batches(self, parents: Iterator[_Parent]) -> Iterator[list[_Parent]]:
        batch: list[_Parent] = []
        size = 0
        for parent in parents:
            rng = np.random.default_rng(node_seed(self.seed, parent.unit, "split"))
            parent.shares = (
                [parent.want]
                if parent.tree.shape.independent
                else split(parent.tree.shape, parent.layer, parent.want, rng, self.script.layers_per_turn)
            )
            batch.append(parent)
            size += self._ask(parent, parent.needed)
            if size >= self.config.batch_nodes:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    # -- expanding ------------------------------------------------------------------------------------------------

    def _ask(self, parent: _Parent, needed: int) -> int:
        """Candidates to sample for ``needed`` children."""
        if parent.tree.shape.independent:
            return 1
        return math.ceil(self.config.oversample * needed)

    def _expand(self, parents: list[_Parent], bar: Task) -> None:
        """Sample, screen and commit; a parent is committed as soon as it has its children or its tries are used up."""
        waiting = parents
        while waiting:
            requests = [self._request(p) for p in waiting]
            short: list[_Parent] = []
            for index, completions in self.engine.sample(requests):
                parent = waiting[index]
                self._sift(parent, requests[index].seed, completions)
                parent.attempts += 1
                if len(parent.survivors) < parent.needed and parent.attempts <= self.config.retries:
                    short.append(parent)
                else:
                    self._commit(parent, bar)
            waiting = sorted(short, key=lambda p: p.unit)

    def _request(self, parent: _Parent) -> Request:
        layer = parent.layer + 1
        missing = parent.needed - len(parent.survivors)
        return Request(
            key=parent.unit,
            prompt_ids=prompt_ids(self.script, parent.tree.root, parent.contents),
            n=self._ask(parent, missing),
            seed=node_seed(self.seed, parent.unit, "sample", parent.attempts),
            params=self.script.params(layer),
        )

    def _sift(self, parent: _Parent, seed: int, completions: Sequence[Completion]) -> None:
        role = self.script.role(parent.layer + 1)
        for completion in completions:
            trimmed = False
            if completion.finish == "length" and role != "user" and self.config.truncated == "trim":
                trimmed = self._trim(completion)
            text = completion.text.strip()
            reason = self.screen.reason(text, completion.token_ids, completion.finish, role, trimmed=trimmed)
            form = normal_form(text)
            if reason is None and form in parent.seen:
                reason = DUPLICATE
            candidate = _Candidate(completion, text, seed)
            if reason is None:
                parent.seen.add(form)
                parent.survivors.append(candidate)
            else:
                parent.dropped.append(self._node(parent, candidate, reason))

    def _trim(self, completion: Completion) -> bool:
        """Cut a completion back to its last whole sentence; False when it has none."""
        ids = completion.token_ids
        for end in range(len(ids), 0, -1):
            text = self.tokenizer.decode(ids[:end], skip_special_tokens=False)
            if ends_a_sentence(text):
                completion.token_ids, completion.text = ids[:end], text
                if completion.logprobs is not None:
                    completion.logprobs = completion.logprobs[:end]
                return True
        return False

    def _choose(self, parent: _Parent) -> list[_Candidate]:
        """The children among the survivors; the rest is recorded as dropped."""
        survivors = parent.survivors
        if self.encoder is None or parent.tree.shape.independent or len(survivors) < 2:
            picked, similar = list(range(min(parent.needed, len(survivors)))), set()
        else:
            anchor = topic_sentence(self.config, parent.tree.name) if parent.layer == 0 else parent.text
            vectors = self.encoder.encode([anchor, *(c.text for c in survivors)])
            picked, similar = mmr(
                vectors[1:],
                vectors[0],
                parent.needed,
                lam=self.config.mmr_lambda,
                max_similarity=self.config.max_similarity,
            )
        for i, candidate in enumerate(survivors):
            if i not in picked:
                parent.dropped.append(self._node(parent, candidate, TOO_SIMILAR if i in similar else SURPLUS))
        return [survivors[i] for i in picked]

    def _commit(self, parent: _Parent, bar: Task) -> None:
        children = self._choose(parent)
        rng = np.random.default_rng(node_seed(self.seed, parent.unit, "redistribute"))
        shares = parent.shares[: len(children)]
        if not parent.tree.shape.independent:
            lost = parent.shares[len(children) :]
            shares = redistribute(parent.tree.shape, parent.layer, shares, lost, rng, self.script.layers_per_turn)
        nodes = [
            self._node(parent, child, None, id_=f"{parent.base}/{parent.first_child + i}", want=share)
            for i, (child, share) in enumerate(zip(children, shares, strict=True))
        ]
        for i, node in enumerate(parent.dropped):
            node.id = f"{parent.base}/{f'{parent.first_child}.' if parent.tree.shape.independent else ''}x{i}"
        tokens = sum(len(n.token_ids) for n in nodes)
        dropped = Counter(n.reason for n in parent.dropped if n.reason)
        self.store.commit(
            Expansion(parent.unit, nodes + parent.dropped, parent.needed, parent.attempts, tokens, dict(dropped))
        )
        drops = int(bar.stats.get("dropped", 0)) + len(parent.dropped)
        total = int(bar.stats.get("tokens", 0)) + tokens
        import time

        spent = max(1e-9, time.monotonic() - bar.started)
        bar.advance(len(nodes), tokens=total, dropped=drops, tok_s=total / spent)

    def _node(
        self, parent: _Parent, candidate: _Candidate, reason: str | None, *, id_: str = "", want: Want | None = None
    ) -> StoredNode:
        layer = parent.layer + 1
        leaf = False
        if want is not None:
            leaf = set(want) == {layer / self.script.layers_per_turn}
        return StoredNode(
            id=id_,
            parent=parent.base,
            tree=parent.tree.tree,
            layer=layer,
            role=self.script.role(layer),
            token_ids=candidate.completion.token_ids,
            text=candidate.text,
            finish=candidate.completion.finish,
            kept=reason is None,
            reason=reason,
            seed=candidate.seed,
            leaf=leaf,
            want=None if leaf else want,
            token_logprobs=candidate.completion.logprobs,
        )


def path_ids(node_id: str) -> list[str]:
    """Ids of the nodes from layer 1 down to this one: ``t0/4/1`` -> ``t0/4``, ``t0/4/1``."""
    parts = node_id.split("/")
    return ["/".join(parts[: i + 1]) for i in range(1, len(parts))]
