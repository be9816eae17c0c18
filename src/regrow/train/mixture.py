"""A mixture that changes while training: the order of packs, and the measuring of each domain's held-out loss.

The controller's shares act on the order in which packs are drawn, not on a new dataset, so they work with packing,
several processes and resumed runs alike. A draw goes to the domain that is furthest behind its share in tokens; asked
and realised shares therefore differ by no more than one pack, at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback

from regrow.errors import RecipeError
from regrow.mix.controller import Mixture, Shares
from regrow.mix.mixtures import make_mixture
from regrow.train.batches import make_packs

if TYPE_CHECKING:
    from regrow.train.batches import Document
    from regrow.train.config import TrainConfig

MEASURED_DOCUMENTS = 8
"""Held-out documents in one forward pass."""


class MixtureSampler(Sampler[int]):
    """Draws packs by domain.

    Every domain hands out its packs in the order of the mix, then again in a new order drawn from the seed. As many
    packs are drawn in an epoch as the mix has. The whole order is a function of the seed and of the recorded changes
    of shares, so a resumed run draws what the killed one would have drawn.

    Args:
        domains: Domain of each pack.
        tokens: Tokens of each pack.
        shares: Initial shares; every domain of ``domains`` is in it.
        seed: For the order from the second pass over a domain on.
    """

    def __init__(self, domains: Sequence[str], tokens: Sequence[int], shares: Shares, seed: int) -> None:
        self._packs = {d: [i for i, of in enumerate(domains) if of == d] for d in shares}
        self._tokens, self._seed, self.epoch = list(tokens), seed, 0
        self.changes: list[tuple[int, Shares]] = [(0, dict(shares))]
        """From which draw on which shares hold."""
        self.drawn = 0
        """Packs drawn so far; a loader that reads ahead has drawn more than it has trained on."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._tokens)

    def set_shares(self, shares: Shares) -> None:
        """Shares of all draws from now on."""
        self.changes.append((self.drawn, dict(shares)))

    def realised(self, first: int, last: int) -> dict[str, int]:
        """Tokens by domain of the draws ``first <= i < last``."""
        tokens = dict.fromkeys(self._packs, 0)
        for i, (domain, pack) in enumerate(self._draws(last)):
            if i >= first:
                tokens[domain] += self._tokens[pack]
        return tokens

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * len(self)
        for i, (_, pack) in enumerate(self._draws(start + len(self))):
            if i >= start:
                self.drawn = i + 1
                yield pack

    def _draws(self, n: int) -> Iterator[tuple[str, int]]:
        """The first ``n`` draws from the beginning of training; what is drawn later sees changes made meanwhile."""
        credit = dict.fromkeys(self._packs, 0.0)
        queues = {d: self._queue(d) for d in self._packs}
        at = 0
        for i in range(n):
            while at + 1 < len(self.changes) and self.changes[at + 1][0] <= i:
                at += 1
            shares = self.changes[at][1]
            wanted = [d for d in self._packs if shares[d] > 0 and self._packs[d]]
            # Ties (the first draw among them) go to the larger share, then to the first named.
            domain = max(wanted, key=lambda d: (credit[d], shares[d]))
            pack = next(queues[domain])
            credit[domain] -= self._tokens[pack]
            for d in self._packs:
                credit[d] += shares[d] * self._tokens[pack]
            yield domain, pack

    def _queue(self, domain: str) -> Iterator[int]:
        packs, turn = self._packs[domain], 0
        number = list(self._packs).index(domain)
        while True:
            order = range(len(packs))
            if turn:
                order = np.random.default_rng([self._seed, number, turn]).permutation(len(packs)).tolist()
            for i in order:
                yield packs[i]
            turn += 1


def hold_out(domains: Sequence[str], rows: int, seed: int) -> dict[str, list[int]]:
    """Rows of each domain to measure on: ``rows`` of them, at most a quarter of the domain.

    Raises:
        RecipeError: A domain has fewer than four rows.
    """
    out: dict[str, list[int]] = {}
    for number, domain in enumerate(dict.fromkeys(domains)):
        mine = [i for i, d in enumerate(domains) if d == domain]
        if len(mine) < 4:
            raise RecipeError(
                f"domain '{domain}' has {len(mine)} rows, too few to hold any out",
                where="train.mixture",
                hint="give it more rows, merge it with another domain, or use `by: source`",
            )
        chosen = np.random.default_rng([seed, number]).permutation(len(mine))[: max(1, min(rows, len(mine) // 4))]
        out[domain] = sorted(mine[i] for i in chosen)
    return out


@dataclass(frozen=True, slots=True)
class MixturePlan:
    """What a mixture trains on.

    Attributes:
        packs: Units of each pack; a pack holds one domain.
        sampler: Draws packs.
        mixture: The controller.
        heldout: Domain -> units that are measured and never trained on.
    """

    packs: list[list[int]]
    sampler: MixtureSampler
    mixture: Mixture
    heldout: dict[str, list[int]]


def plan_mixture(
    labels: Sequence[str], units: Sequence[Sequence[int]], lengths: Sequence[int], cfg: TrainConfig, seed: int
) -> MixturePlan:
    """Sort the units of a mix by domain, hold some out, and pack the rest.

    Args:
        labels: Domain of each document.
        units: Documents of each unit; those of one unit are of one tree and so of one domain.
        lengths: Tokens of each unit.
        cfg: Its ``mixture``, ``packing`` and ``max_length``.
        seed: For what is held out and for the order.

    Raises:
        RecipeError: The section and the mix do not fit, or a domain is too small.
    """
    of_unit = [labels[unit[0]] for unit in units]
    heldout = hold_out(of_unit, cfg.mixture.holdout_rows, seed)
    packs, domains = [], []
    for domain, out in heldout.items():
        mine = [u for u, d in enumerate(of_unit) if d == domain and u not in set(out)]
        sizes = [lengths[u] for u in mine]
        for pack in make_packs(sizes, packing=cfg.packing, max_length=cfg.max_length, seed=seed):
            packs.append([mine[i] for i in pack])
            domains.append(domain)
    tokens = [sum(lengths[u] for u in pack) for pack in packs]
    total = sum(tokens)
    shares = {d: sum(t for t, of in zip(tokens, domains, strict=True) if of == d) / total for d in heldout}
    mixture = make_mixture(cfg.mixture, shares)
    return MixturePlan(packs, MixtureSampler(domains, tokens, mixture.weights(), seed), mixture, heldout)


class MixtureCallback(TrainerCallback):  # type: ignore[misc]
    """Measures before the first step and every ``every`` steps, and passes the new shares on to the sampler.

    Args:
        mixture: The controller.
        sampler: Whose shares it sets.
        measure: Domain -> held-out loss, nats a token, of the model as it is.
        every: Optimizer steps between measurements.
    """

    def __init__(
        self, mixture: Mixture, sampler: MixtureSampler, measure: Callable[[], dict[str, float]], every: int
    ) -> None:
        self.mixture, self.sampler, self.measure, self.every = mixture, sampler, measure, every
        self._from = 0
        self._numbers: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._look()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 and state.global_step < state.max_steps:
            self._look()

    def _look(self) -> None:
        losses = self.measure()
        asked, realised = self.mixture.weights(), self.sampler.realised(self._from, self.sampler.drawn)
        total = sum(realised.values())
        numbers = {f"heldout/{d}": loss for d, loss in losses.items()}
        if total:
            numbers |= {f"asked/{d}": share for d, share in asked.items()}
            numbers |= {f"mix/{d}": tokens / total for d, tokens in realised.items()}
        self._from = self.sampler.drawn
        self.mixture.update(losses)
        self.sampler.set_shares(self.mixture.weights())
        self._numbers = numbers

    def take_numbers(self) -> dict[str, float]:
        """The numbers of the last measurement, once, for the log: ``heldout/<domain>`` in nats a token, and
        ``asked/<domain>`` and ``mix/<domain>``, shares of the tokens drawn since the measurement before it."""
        numbers, self._numbers = self._numbers, {}
        return numbers

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the controller, the changes of shares so far, and what is not logged yet."""
        return {
            "mixture": self.mixture.state_dict(),
            "changes": self.sampler.changes,
            "from": self._from,
            "numbers": self._numbers,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mixture.load_state_dict(state["mixture"])
        self.sampler.changes = [(int(at), dict(shares)) for at, shares in state["changes"]]
        self._from, self._numbers = int(state["from"]), dict(state["numbers"])


def heldout_losses(
    model: torch.nn.Module,
    documents: Mapping[str, Sequence[Document]],
    loss: Callable[[Sequence[Document]], tuple[float, float]],
) -> dict[str, float]:
    """Domain -> mean loss of its held-out documents, weighted by token.

    Args:
        model: Put into evaluation mode meanwhile.
        documents: Domain -> documents.
        loss: Of some documents: summed weighted loss, summed weight.
    """
    was_training = model.training
    model.eval()
    try:
        out = {}
        for domain, rows in documents.items():
            sums = [loss(rows[i : i + MEASURED_DOCUMENTS]) for i in range(0, len(rows), MEASURED_DOCUMENTS)]
            out[domain] = sum(s for s, _ in sums) / sum(w for _, w in sums)
        return out
    finally:
        model.train(was_training)
