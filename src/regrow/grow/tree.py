"""Tree Generation: the model plays user and assistant, branch by branch (arXiv 2406.11354, section 3).

In large batches of one layer over all trees at once; which layer is next, `regrow.grow.frontier` says. A parent's
prompt is the token ids of its path with the markers between them; its candidates are sampled, screened, and thinned by
MMR to the children that the plan wants; the children and the mark that their parent is done are one transaction. All
randomness of a parent comes from the run's seed and its own path, so neither the order of work, nor that in which an
engine finishes, nor a restart changes what is grown.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from regrow.engines.base import Completion, Engine, Finish, Keep, KeepsPrefixes, Request
from regrow.grow.config import GrowConfig
from regrow.grow.frontier import Frontier, Open
from regrow.grow.mmr import mmr
from regrow.grow.plan import Want, node_seed, redistribute, split
from regrow.grow.records import Expansion, StoredNode, TreeRow
from regrow.grow.screen import DUPLICATE, SURPLUS, TOO_SIMILAR, Screen, ends_a_sentence, normal_form
from regrow.grow.script import Script, prompt_ids, topic_sentence
from regrow.grow.store import Store
from regrow.grow.topics import TextEncoder
from regrow.progress import Task

MMR_CHARS = 600
"""How much of a turn is compared with its siblings: about the 128 word pieces that MiniLM was trained on. Encoding
whole answers would cost half as much as sampling them."""


FIRST_BATCH = 32
"""Candidates of the first batch for each worker; each one after it may hold twice as many. A full batch on a CPU takes
half a minute, and a person who has just started wants to see what comes before."""


@dataclass(slots=True)
class Candidate:
    """One sampled turn. ``number`` counts the candidates of its parent over all attempts."""

    number: int
    token_ids: list[int]
    text: str
    finish: Finish
    logprobs: npt.NDArray[np.float32] | None
    seed: int
    reason: str | None = None


@dataclass(slots=True)
class Parent:
    """A parent being expanded.

    Attributes:
        unit: Name of the expansion in the store.
        id: The parent's own id; its children's ids begin with it.
        layer: Of the parent; 0 for a root.
        shares: What is wanted below each child.
        prompt: Token ids to sample from.
        anchor: What candidates should be relevant to: the topic sentence, or what the parent said.
        slot: For independent dialogues, the number of the one child.
    """

    unit: str
    id: str
    tree: TreeRow
    layer: int
    shares: list[Want]
    prompt: tuple[int, ...]
    anchor: str
    slot: int | None = None
    attempts: int = 0
    missing: int = 0
    candidates: list[Candidate] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    @property
    def key(self) -> str:
        """Where it stands in the tree, for engines that sort by prefix and for seeds."""
        return self.id if self.slot is None else f"{self.id}/{self.slot}"


class Grower:
    """Expands what is planted in a store.

    Args:
        config: Settings.
        store: Where everything goes.
        script: Roles, markers, sampling parameters by layer.
        engine: What samples.
        screen: What makes a candidate unfit.
        encoder: For MMR; None keeps candidates in the order in which they were sampled.
        seed: The run's.
        tokenizer: Of the model.
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
        self._prefixes = engine if isinstance(engine, KeepsPrefixes) else None
        self._blank: dict[int, bool] = {}
        self._sampled = self._kept = self._dropped = 0
        self._sampled_before = 0
        self._limit = FIRST_BATCH

    def run(self, bar: Task) -> None:
        """Expand every planted tree to its leaves; what is expanded already is left alone.

        Raises:
            EngineError: The engine failed; everything committed stays.
            RunError: The disk is full; likewise.
        """
        trees = {t.tree: t for t in self.store.trees()}
        self._sampled_before = self._sampled
        frontier = Frontier(self._roots(trees.values()), max(t.shape.depth for t in trees.values()))
        for layer in range(1, frontier.depth):
            for id_, number, want in self._unfinished(layer):
                frontier.push(layer, Open(id_, number, want, self._size(trees[number], layer, want)))
        try:
            while batch := self._batch(frontier, trees):
                self._expand(batch, frontier, bar)
        finally:
            if self._prefixes:
                self._prefixes.forget()

    # -- what is to be expanded ---------------------------------------------------------------------------------

    def _split(self, tree: TreeRow, unit: str, layer: int, want: Want) -> list[Want]:
        rng = np.random.default_rng(node_seed(self.seed, unit, "split"))
        return split(tree.shape, layer, want, rng, self.script.layers_per_turn)

    def _roots(self, trees: Iterable[TreeRow]) -> Iterator[Parent]:
        for tree in trees:
            unit = f"root/{tree.id}"
            prompt = self.script.opening(tree.root)
            anchor = topic_sentence(self.config, tree.name)
            if not tree.shape.independent:
                if not self.store.is_expanded(unit):
                    yield Parent(unit, tree.id, tree, 0, self._split(tree, unit, 0, tree.want), prompt, anchor)
                continue
            # Independent dialogues: each first question is a draw of its own, with no siblings to be chosen among.
            done = self.store.expanded_units(unit)
            ((turns, wanted),) = tree.want.items()
            for slot in range(wanted):
                if f"{unit}/{slot}" not in done:
                    yield Parent(f"{unit}/{slot}", tree.id, tree, 0, [{turns: 1}], prompt, anchor, slot)

    def _unfinished(self, layer: int) -> Iterator[tuple[str, int, Want]]:
        """What an interrupted run left open."""
        after = ""
        while page := self.store.open_nodes(layer, after, self.config.batch_nodes):
            after = page[-1][0]
            yield from page

    def _parents(self, trees: dict[int, TreeRow], layer: int, nodes: Sequence[Open]) -> list[Parent]:
        known = self.store.contents([step for node in nodes for step in path_ids(node.id)])
        parents = []
        for node in nodes:
            path = [known[step] for step in path_ids(node.id)]
            tree = trees[node.tree]
            prompt = prompt_ids(self.script, tree.root, [ids for ids, _ in path])
            shares = self._split(tree, node.id, layer, node.want)
            parents.append(Parent(node.id, node.id, tree, layer, shares, prompt, path[-1][1]))
        return parents

    # -- expanding ----------------------------------------------------------------------------------------------

    def _expand(self, batch: Sequence[Parent], frontier: Frontier, bar: Task) -> None:
        """Sample, screen, choose, commit. Parents that are short of children wait for a later batch of their layer."""
        requests = [self._request(parent) for parent in batch]
        again: list[Parent] = []
        for index, completions in self.engine.sample(requests):
            parent = batch[index]
            self._sift(parent, requests[index].seed, completions)
            chosen, similar = self._choose(parent)
            if len(chosen) < len(parent.shares) and parent.attempts <= self.config.retries:
                parent.missing = len(parent.shares) - len(chosen)
                again.append(parent)
                continue
            children = self._commit(parent, chosen, similar, bar)
            for child in children:
                if child.want is not None:
                    size = self._size(parent.tree, child.layer, child.want)
                    frontier.push(child.layer, Open(child.id, child.tree, child.want, size))
            if self._prefixes:
                going = [(*parent.prompt, *c.token_ids) for c in children if c.want is not None]
                self._prefixes.retain(parent.key, parent.prompt, going)
        for parent in sorted(again, key=lambda p: p.key):
            frontier.push_again(parent.layer, parent, self._ask(parent))

    def _batch(self, frontier: Frontier, trees: dict[int, TreeRow]) -> list[Parent]:
        """The next parents to expand together: of one layer, about `batch_nodes` candidates for each worker, fewer in
        the first batches."""
        limit = self.config.batch_nodes * self.engine.info.workers
        layer = frontier.next_layer(limit, bool(self._prefixes and self._prefixes.crowded()))
        if layer is None:
            return []
        limit = min(limit, self._limit * self.engine.info.workers)
        self._limit = min(2 * self._limit, self.config.batch_nodes)
        batch: list[Parent] = []
        size = 0
        while size < limit and (parent := frontier.pop_again(layer)):
            batch.append(parent)
            size += self._ask(parent)
        if layer:
            nodes: list[Open] = []
            while size < limit and (node := frontier.pop(layer)):
                nodes.append(node)
                size += node.size
            return batch + self._parents(trees, layer, nodes)
        while size < limit and (parent := frontier.pop_root()):
            batch.append(parent)
            size += self._ask(parent)
        return batch

    def _size(self, tree: TreeRow, layer: int, want: Want) -> int:
        """Candidates that a node of ``layer`` will ask for at first; at most, for its share is not yet split."""
        children = min(sum(want.values()), tree.shape.children[layer])
        return 1 if tree.shape.independent or children == 1 else math.ceil(self.config.oversample * children)

    def _ask(self, parent: Parent) -> int:
        """Candidates to sample at once.

        Where one child is wanted, it has no siblings to differ from: the first fit draw is taken, as a uniformly drawn
        path of the full tree would have it, and more are sampled only when that one fails.
        """
        if parent.tree.shape.independent or (len(parent.shares) == 1 and not parent.attempts):
            return 1
        return math.ceil(self.config.oversample * (parent.missing or len(parent.shares)))

    def _request(self, parent: Parent) -> Request:
        seed = node_seed(self.seed, parent.key if parent.slot is None else parent.unit, "sample", parent.attempts)
        params = self.script.params(parent.layer + 1)
        goes_on = parent.layer + 1 < parent.tree.shape.depth
        keep: Keep = "completions" if goes_on else "prompt"  # a retry asks the prompt again
        return Request(parent.key, parent.prompt, self._ask(parent), seed, params, keep)

    def _sift(self, parent: Parent, seed: int, completions: Sequence[Completion]) -> None:
        """Note the candidates of one attempt, each with the reason that makes it unfit."""
        parent.attempts += 1
        layer = parent.layer + 1
        role = self.script.role(layer)
        for completion in completions:
            self._sampled += len(completion.token_ids)
            candidate = Candidate(
                len(parent.candidates),
                list(completion.token_ids),
                completion.text,
                completion.finish,
                completion.logprobs,
                seed,
            )
            # A stretch of plain text is meant to be cut at its cap; it goes on in the next layer.
            whole = role == "text" and layer < parent.tree.shape.depth
            if candidate.finish == "length" and role != "user" and not whole and self.config.truncated == "trim":
                whole = self._trim(candidate)
            if role != "text":
                self._strip(candidate)
            candidate.reason = self.screen.reason(
                candidate.text.strip(), candidate.token_ids, candidate.finish, role, trimmed=whole
            )
            form = normal_form(candidate.text)
            if candidate.reason is None and form in parent.seen:
                candidate.reason = DUPLICATE
            if candidate.reason is None:
                parent.seen.add(form)
            parent.candidates.append(candidate)

    def _strip(self, candidate: Candidate) -> None:
        """Take blank tokens off both ends: they are not part of what was said, and templates strip them too."""
        ids = candidate.token_ids
        start, end = 0, len(ids)
        while end > start and self._is_blank(ids[end - 1]):
            end -= 1
        while start < end and self._is_blank(ids[start]):
            start += 1
        if (start, end) != (0, len(ids)):
            self._cut(candidate, start, end)
        candidate.text = candidate.text.strip()

    def _is_blank(self, token_id: int) -> bool:
        if token_id not in self._blank:
            self._blank[token_id] = not self._decode([token_id]).strip()
        return self._blank[token_id]

    def _trim(self, candidate: Candidate) -> bool:
        """Cut a candidate that met its cap back to its last whole sentence; False when it has none."""
        for end in range(len(candidate.token_ids), 0, -1):
            if ends_a_sentence(self._decode(candidate.token_ids[:end])):
                self._cut(candidate, 0, end)
                return True
        return False

    def _cut(self, candidate: Candidate, start: int, end: int) -> None:
        candidate.token_ids = candidate.token_ids[start:end]
        candidate.text = self._decode(candidate.token_ids)
        if candidate.logprobs is not None:
            candidate.logprobs = candidate.logprobs[start:end]

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _choose(self, parent: Parent) -> tuple[list[Candidate], set[int]]:
        """The children among the fit candidates, in MMR's order, and the numbers of those that are too similar."""
        fit = [c for c in parent.candidates if c.reason is None]
        needed = len(parent.shares)
        if self.encoder is None or needed == 1 or len(fit) < 2:
            return fit[:needed], set()
        vectors = self.encoder.encode([text[:MMR_CHARS] for text in (parent.anchor, *(c.text for c in fit))])
        picked, similar = mmr(
            vectors[1:], vectors[0], needed, lam=self.config.mmr_lambda, max_similarity=self.config.max_similarity
        )
        return [fit[i] for i in picked], {fit[i].number for i in similar}

    def _commit(self, parent: Parent, chosen: list[Candidate], similar: set[int], bar: Task) -> list[StoredNode]:
        """Make the expansion durable; returns the children."""
        lost = parent.shares[len(chosen) :]
        shares = parent.shares[: len(chosen)]
        if lost and parent.slot is None:
            rng = np.random.default_rng(node_seed(self.seed, parent.unit, "redistribute"))
            shares = redistribute(parent.tree.shape, parent.layer, shares, lost, rng, self.script.layers_per_turn)
        nodes = [
            self._kept_node(parent, child, f"{parent.id}/{i if parent.slot is None else parent.slot}", share)
            for i, (child, share) in enumerate(zip(chosen, shares, strict=True))
        ]
        children = list(nodes)
        taken = {c.number for c in chosen}
        at = "x" if parent.slot is None else f"x{parent.slot}."
        for c in parent.candidates:
            if c.number not in taken:
                reason = c.reason or (TOO_SIMILAR if c.number in similar else SURPLUS)
                nodes.append(self._node(parent, c, f"{parent.id}/{at}{c.number}", reason))
        dropped = Counter(n.reason for n in nodes if n.reason)
        sampled = sum(len(c.token_ids) for c in parent.candidates)
        self.store.commit(
            Expansion(
                parent.unit,
                nodes,
                len(parent.shares),
                parent.attempts,
                sampled,
                {str(r): n for r, n in dropped.items()},
            )
        )
        self._kept += len(chosen)
        self._dropped += len(nodes) - len(chosen)
        # The bar is this round's, the counts are the whole growth's: the speed must leave earlier rounds out.
        speed = (self._sampled - self._sampled_before) / max(1e-9, time.monotonic() - bar.started)
        bar.advance(len(parent.shares), tokens=self._sampled, tok_s=speed, kept=self._kept, dropped=self._dropped)
        return children

    def _kept_node(self, parent: Parent, candidate: Candidate, id_: str, share: Want) -> StoredNode:
        node = self._node(parent, candidate, id_, None)
        # A text that ended by itself cannot go on, whatever was planned below it.
        ended = node.role == "text" and candidate.finish == "stop"
        node.leaf = ended or all(turns * self.script.layers_per_turn == node.layer for turns in share)
        node.want = None if node.leaf else share
        return node

    def _node(self, parent: Parent, candidate: Candidate, id_: str, reason: str | None) -> StoredNode:
        return StoredNode(
            id=id_,
            parent=parent.id,
            tree=parent.tree.tree,
            layer=parent.layer + 1,
            role=self.script.role(parent.layer + 1),
            token_ids=candidate.token_ids,
            text=candidate.text,
            finish=candidate.finish,
            kept=reason is None,
            reason=reason,
            seed=candidate.seed,
            token_logprobs=candidate.logprobs,
        )


def path_ids(node_id: str) -> list[str]:
    """Ids of the nodes from layer 1 down to this one: ``t00/4/1`` -> ``t00/4``, ``t00/4/1``."""
    parts = node_id.split("/")
    return ["/".join(parts[: i + 1]) for i in range(1, len(parts))]
