"""Fast, exact scoring: rows that share a prefix are packed into one tree and every token is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regrow.evaluate.render import TokenRow
from regrow.progress import note

if TYPE_CHECKING:
    import torch

SELF_CHECK_TOLERANCE = 1e-2
"""Nats. Rounding moves a log-probability by 1e-5 in float32; a model that ignores the tree mask moves it by tenths."""


@dataclass(slots=True)
class RowScore:
    """Scores of one `TokenRow`; m = number of scored tokens; natural logs.

    Attributes:
        logprobs: ``(m,)`` log-probability of each scored token.
        margins: ``(m,)`` that minus the log-probability of the likeliest other token; positive means arg-max.
        greedy_ids: ``(m,)`` the arg-max at each scored position.
        kl: ``(m,)`` KL(reference || model) over the whole vocabulary, or None without a reference.
    """

    logprobs: npt.NDArray[np.float32]
    margins: npt.NDArray[np.float32]
    greedy_ids: npt.NDArray[np.int64]
    kl: npt.NDArray[np.float32] | None = None

    @property
    def nll(self) -> float:
        """Nats per token."""
        return float(-self.logprobs.mean(dtype=np.float64))

    @property
    def greedy(self) -> bool:
        """Whether every scored token is the arg-max."""
        return bool((self.margins > 0).all())


class TokenTree:
    """Rows merged into a prefix tree, laid out parents before children.

    A row's tokens see exactly their ancestors and keep their own positions, so a forward pass over the tree equals
    forward passes over the rows one by one.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def cost(self, ids: Sequence[int]) -> int:
        """How many nodes `insert` would add."""
        at = -1
        for depth, token in enumerate(ids):
            nxt = self._children.get((at, token))
            if nxt is None:
                return len(ids) - depth
            at = nxt
        return 0

    def insert(self, ids: Sequence[int]) -> list[int]:
        """Add a row; returns the node of each of its tokens."""
        path, at = [], -1
        for depth, token in enumerate(ids):
            nxt = self._children.get((at, token))
            if nxt is None:
                nxt = len(self.tokens)
                self._children[at, token] = nxt
                self.tokens.append(token)
                self.parents.append(at)
                self.depths.append(depth)
            path.append(nxt)
            at = nxt
        return path

    def visible(self) -> npt.NDArray[np.bool_]:
        """``(n, n)``: ``[i, j]`` is True when j is i or an ancestor of i."""
        n = len(self)
        out = np.zeros((n, n), dtype=bool)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                out[i] = out[parent]
            out[i, i] = True
        return out


def plan(groups: Sequence[Sequence[TokenRow]], batch_tokens: int) -> list[list[int]]:
    """Cut groups of rows (one group an item) into batches of at most ``batch_tokens`` tree nodes.

    Groups are sorted by their tokens, so that those with a common beginning meet; a group is never split, and one that
    is larger than the budget is a batch of its own. Depends on nothing but its arguments.
    """
    order = sorted(range(len(groups)), key=lambda i: (groups[i][0].ids, i))
    batches: list[list[int]] = []
    tree = TokenTree()
    for i in order:
        if batches and len(tree):
            probe = _group_cost(tree, groups[i])
            if len(tree) + probe > batch_tokens:
                tree = TokenTree()
        if not len(tree):
            batches.append([])
        for row in groups[i]:
            tree.insert(row.ids)
        batches[-1].append(i)
    return batches


def _group_cost(tree: TokenTree, rows: Sequence[TokenRow]) -> int:
    alone = TokenTree()
    for row in rows:
        alone.insert(row.ids)
    return len(alone) - (len(rows[0].ids) - tree.cost(rows[0].ids))


class Scorer:
    """Scores token rows under a causal language model.

    Args:
        model: A transformers causal LM in evaluation mode; differences mean something within one dtype and device.
        reference: A second model with the same vocabulary; when given, `score` with ``kl=True`` also returns
            KL(reference || model) over the whole vocabulary. Both models are in memory together: that costs twice the
            weights, and spares an approximation by stored top-k.
    """

    def __init__(self, model: Any, reference: Any | None = None) -> None:
        import inspect

        self.model, self.reference = model, reference
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        # A tree mask replaces the masks of sliding-window layers, so rows longer than the window are scored alone.
        self.window = min(_window(m) for m in (model, reference) if m is not None)
        self.tree = self._tree_works()
        if not self.tree:
            note("this model does not support tree attention; scoring every row on its own (slower, same numbers)")

    def _tree_works(self) -> bool:
        """Compare a small tree with its rows one by one. Recurrent or ALiBi models, for instance, fail this."""
        vocab = int(self.model.config.get_text_config().vocab_size)
        rng = np.random.default_rng(0)
        stem = rng.integers(0, vocab, 6).tolist()
        rows = [TokenRow(stem + rng.integers(0, vocab, 3).tolist(), [(4, 9)]) for _ in range(3)]
        try:
            packed = self._score_tree(rows, kl=False)
        except (TypeError, ValueError, RuntimeError, NotImplementedError):
            return False
        alone = [self._score_tree([row], kl=False, causal=True)[0] for row in rows]
        worst = max(float(np.abs(a.logprobs - b.logprobs).max()) for a, b in zip(packed, alone, strict=True))
        return worst < SELF_CHECK_TOLERANCE

    def score(self, rows: Sequence[TokenRow], *, kl: bool = False) -> list[RowScore]:
        """Score rows in one forward pass over their common tree. Deterministic for the same rows in the same order."""
        merged = [k for k, row in enumerate(rows) if self.tree and len(row.ids) <= self.window]
        scores = dict(zip(merged, self._score_tree([rows[k] for k in merged], kl=kl), strict=True)) if merged else {}
        for k, row in enumerate(rows):
            if k not in scores:
                scores[k] = self._score_tree([row], kl=kl, causal=True)[0]
        return [scores[k] for k in range(len(rows))]

    def _score_tree(self, rows: Sequence[TokenRow], *, kl: bool, causal: bool = False) -> list[RowScore]:
        import torch

        tree = TokenTree()
        paths = [tree.insert(row.ids) for row in rows]
        # Only the nodes that predict a scored token go through the output head.
        sources = sorted({path[t - 1] for row, path in zip(rows, paths, strict=True) for t in row.targets})
        slot = {node: k for k, node in enumerate(sources)}
        with torch.inference_mode():
            logits = self._logits(self.model, tree, sources, causal)
            top = logits.topk(2, dim=-1)
            lse = logits.logsumexp(-1)
            divergence = None
            if kl:
                if self.reference is None:
                    raise ValueError("kl needs a reference model")
                divergence = _kl(self._logits(self.reference, tree, sources, causal), logits).cpu().numpy()
            where = [[slot[path[t - 1]] for t in row.targets] for row, path in zip(rows, paths, strict=True)]
            flat = torch.tensor([k for w in where for k in w], device=logits.device)
            wanted = torch.tensor([row.ids[t] for row in rows for t in row.targets], device=logits.device)
            raw = logits[flat, wanted]
            best = top.values[flat]
            other = torch.where(top.indices[flat, 0] == wanted, best[:, 1], best[:, 0])
            logprob = (raw - lse[flat]).cpu().numpy()
            margin = (raw - other).cpu().numpy()
            greedy = top.indices[flat, 0].cpu().numpy()
        out, start = [], 0
        for w in where:
            cut = slice(start, start + len(w))
            out.append(
                RowScore(
                    logprob[cut], margin[cut], greedy[cut], None if divergence is None else divergence[np.array(w)]
                )
            )
            start = cut.stop
        return out

    def _logits(self, model: Any, tree: TokenTree, sources: list[int], causal: bool) -> torch.Tensor:
        """``(len(sources), vocabulary)`` float32 logits at the given nodes."""
        import torch

        device = model.device
        inputs: dict[str, Any] = {"input_ids": torch.tensor([tree.tokens], device=device)}
        if not causal:
            hidden = torch.from_numpy(~tree.visible()).to(device)
            floor = torch.finfo(model.dtype).min
            mask = torch.zeros(hidden.shape, dtype=model.dtype, device=device).masked_fill_(hidden, floor)
            inputs["attention_mask"] = mask[None, None]
            inputs["position_ids"] = torch.tensor([tree.depths], device=device)
        index = torch.tensor(sources, device=device)
        if self._keeps:
            logits = model(**inputs, use_cache=False, logits_to_keep=index).logits[0]
        else:
            logits = model(**inputs, use_cache=False).logits[0, index]
        return logits.float()  # type: ignore[no-any-return]


def _window(model: Any) -> float:
    """Tokens that every layer sees at least: the sliding window or chunk of its narrowest layers, or infinity."""
    config = model.config.get_text_config()
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((float(size) for size in sizes if size), default=float("inf"))


def _kl(p_logits: torch.Tensor, q_logits: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of each row in nats, in slices so that no third logits-sized tensor is held."""
    import torch

    out = torch.empty(len(p_logits), dtype=torch.float32, device=p_logits.device)
    for i in range(0, len(p_logits), 64):
        log_p = p_logits[i : i + 64].log_softmax(-1)
        log_q = q_logits[i : i + 64].log_softmax(-1)  # the same operation, so that equal models have exactly 0
        out[i : i + 64] = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)
    return out


def score_groups(
    scorer: Scorer,
    groups: Sequence[Sequence[TokenRow]],
    batch_tokens: int,
    *,
    kl: bool = False,
    skip: frozenset[int] | set[int] = frozenset(),
) -> Iterator[tuple[list[int], list[list[RowScore]]]]:
    """Yield ``(indices into groups, scores of each group's rows)`` batch by batch.

    Batches are planned over all groups and those wholly in ``skip`` left out, so an interrupted evaluation that goes
    on computes the very batches it would have computed.
    """
    for batch in plan(groups, batch_tokens):
        if all(i in skip for i in batch):
            continue
        scores = scorer.score([row for i in batch for row in groups[i]], kl=kl)
        it = iter(scores)
        yield batch, [[next(it) for _ in groups[i]] for i in batch]
