"""More branches for a corpus that is grown already: an order of dialogues by topic, up to a budget of tokens.

They are new trees in the same store, planted and expanded like the first ones, so all that holds for growing holds
here: one transaction for each parent, seeds out of tree paths, nothing lost or made twice when it is killed. Trees
are numbered on, so no branch has the id, and with it the seed, of an older one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.engines.base import Engine
from regrow.errors import RunError
from regrow.grow.config import GrowConfig
from regrow.grow.plan import Want
from regrow.grow.rounds import mixed_want, trees_for, turns_of
from regrow.grow.stage import Ground, opened, score
from regrow.grow.topics import TextEncoder
from regrow.grow.written import write_grown
from regrow.progress import task

if TYPE_CHECKING:
    from regrow.models.load import ResolvedModel


@dataclass(frozen=True, slots=True)
class Added:
    """What an order brought.

    Attributes:
        dialogues, tokens: By topic; tokens of the distinct turns on these dialogues.
        first_tree: Its trees have this number or a higher one.
    """

    dialogues: dict[str, int]
    tokens: dict[str, int]
    first_tree: int

    def to_dict(self) -> dict[str, Any]:
        """JSON shape."""
        return asdict(self)


def grow_more(
    cfg: GrowConfig,
    model: ResolvedModel,
    out: Path,
    *,
    order: str,
    dialogues: Mapping[str, int],
    tokens: int,
    seed: int,
    engine: Engine | None = None,
    encoder: TextEncoder | None = None,
) -> Added:
    """Grow an order of dialogues into the store of ``out`` and write the whole corpus anew.

    Args:
        cfg, model, out, seed, engine, encoder: As the corpus was grown with (`regrow.grow.stage.grow`).
        order: Its name. The same call again goes on with it, or finds it done.
        dialogues: Topic -> dialogues wanted.
        tokens: Budget, in tokens of distinct kept turns. How long the next dialogues will be is taken from those of
        the
            topic that are there, so it may be passed by as much as they turn out longer.

    Raises:
        RunError: The order is known with other numbers; otherwise as `grow`.
    """
    with opened(cfg, model, out, seed, engine, encoder) as ground:
        store = ground.store
        key, wanted = f"order/{order}", {"dialogues": dict(sorted(dialogues.items())), "tokens": tokens}
        known = store.get(key)
        if known is None:
            known = wanted | {"first": len(store.trees())}
            store.put(key, known)
        if {name: known[name] for name in wanted} != wanted:
            raise RunError(f"the order '{order}' was another one", where=str(out), hint="grow into another folder")
        first = int(known["first"])
        names: list[str] = store.get("topics")
        if odd := sorted(set(dialogues) - set(names)):
            raise RunError(f"the corpus has no topic '{odd[0]}'", where=str(out), hint=", ".join(names))
        _passes(cfg, ground, names, dialogues, tokens, first)
        if cfg.top_logprobs:
            score(cfg, ground, model, seed)
        write_grown(out, store, cfg, ground.script, ground.tokenizer, model, ground.engine, seed)
        return Added(*_had(ground, first), first)


def _passes(
    cfg: GrowConfig, ground: Ground, names: list[str], dialogues: Mapping[str, int], tokens: int, first: int
) -> None:
    """Plant and expand until the order is met, the budget spent, or the refill rounds used up."""
    store, script = ground.store, ground.script
    while True:
        trees = store.trees()
        with task("growing more", None, "nodes") as bar:
            ground.grower.run(bar)
        had, spent = _had(ground, first)
        passes = len({t.round for t in trees if t.tree >= first})
        missing = {t: n - had.get(t, 0) for t, n in dialogues.items() if n > had.get(t, 0)}
        missing = fit(missing, _costs(ground, names), tokens - sum(spent.values()))
        if not missing or passes > cfg.refill_rounds:
            return
        wants: dict[int, Want] = {}
        for topic, n in missing.items():
            number = names.index(topic)
            done = store.finished()
            of_topic = sum(c for (t, _), c in done.items() if t == number)
            wants[number] = (
                mixed_want(number, n, of_topic, done, script.layers_per_turn)
                if cfg.shape == "mixed-turns"
                else {turns_of(cfg): n}
            )
        store.plant(trees_for(cfg, names, wants, len(trees), max(t.round for t in trees) + 1))


def fit(wanted: Mapping[str, int], costs: Mapping[str, float], tokens: float) -> dict[str, int]:
    """As much of an order as the budget allows, every topic cut by the same factor.

    Args:
        wanted: Topic -> dialogues.
        costs: Topic -> tokens of a dialogue.
        tokens: Budget.
    """
    whole = sum(n * costs[t] for t, n in wanted.items())
    if whole <= tokens:
        return dict(wanted)
    if tokens <= 0:
        return {}
    exact = {t: n * tokens / whole for t, n in wanted.items()}
    out = {t: math.floor(x) for t, x in exact.items()}
    left = tokens - sum(n * costs[t] for t, n in out.items())
    for topic in sorted(wanted, key=lambda t: (out[t] - exact[t], t)):
        if costs[topic] <= left:
            out[topic] += 1
            left -= costs[topic]
    return {t: n for t, n in out.items() if n}


def _costs(ground: Ground, names: list[str]) -> dict[str, float]:
    """Tokens of distinct turns a dialogue, by topic: the mean of what is there; of all topics where one has none."""
    of = {t.tree: t.name for t in ground.store.trees()}
    tokens, dialogues = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for tree, n in ground.store.tokens_by_tree().items():
        tokens[of[tree]] += n
    for tree, n in ground.store.dialogues_by_tree().items():
        dialogues[of[tree]] += n
    mean = sum(tokens.values()) / max(1, sum(dialogues.values()))
    return {t: tokens[t] / dialogues[t] if dialogues[t] else mean for t in names}


def _had(ground: Ground, first: int) -> tuple[dict[str, int], dict[str, int]]:
    """Dialogues and tokens by topic in the trees from ``first`` on."""
    dialogues: dict[str, int] = {}
    tokens: dict[str, int] = {}
    names = {t.tree: t.name for t in ground.store.trees() if t.tree >= first}
    by_tree, of_tree = ground.store.dialogues_by_tree(), ground.store.tokens_by_tree()
    for tree, name in names.items():
        dialogues[name] = dialogues.get(name, 0) + by_tree.get(tree, 0)
        tokens[name] = tokens.get(name, 0) + of_tree.get(tree, 0)
    return dialogues, tokens
