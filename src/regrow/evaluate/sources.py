"""Replay grown once against other replay at the same ratio: general data of the user, or regrown on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regrow.arms import Source, ratio_in, source_of
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.tables import SuiteTable, paired
from regrow.evaluate.verdict import amount_text, bounds_text

LOSSES = {"soft": "soft loss", "hard": "ordinary loss"}
OTHERS: dict[Source | None, str] = {
    "general": "your general data",
    "regrown": "replay regrown where it was forgetting",
}


@dataclass(frozen=True, slots=True)
class Replayed:
    """What an arm replayed.

    Attributes:
        tokens: Of replay in its stream.
        loss: On them; None without any.
        regrown: Tokens grown for it while it trained.
    """

    tokens: int
    loss: str | None
    regrown: int = 0


@dataclass(frozen=True, slots=True)
class Pair:
    """An arm with replay grown once and another at its ratio, and what each replayed."""

    grown: str
    other: str
    of_grown: Replayed
    of_other: Replayed


def compare_sources(
    found: Sequence[SuiteTable],
    results: dict[str, Any],
    pairs: Sequence[Pair],
    cfg: EvalConfig,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """Set arms with replay grown once beside those with as much other replay.

    Args:
        found: All arms on the same items.
        results: What `regrow.evaluate.summary.summarise` made of them; says which suites gain and forgetting are of.
        pairs: The arms.
        cfg: Resamples, confidence.
        seed: Of the resampling.

    Returns:
        One a pair: ``grown`` and ``other``, the arms; ``source`` of the other (``general``, ``regrown``); ``tokens``
        and ``loss`` of each's replay and the tokens ``regrown`` for the other; and of what was measured ``gain`` (how
        much more the grown arm learned) and ``forgetting`` (how much less it forgot), each with ``suite``, ``unit``,
        ``value`` and ``ci``; paired intervals over items. ``sentence`` says it.
    """
    tables = {t.name: t for t in found}
    out = []
    for pair in pairs:
        both = (pair.of_grown, pair.of_other)
        told: dict[str, Any] = {
            "grown": pair.grown, "other": pair.other, "source": source_of(pair.other),
            "tokens": [x.tokens for x in both], "loss": [x.loss for x in both], "regrown": pair.of_other.regrown,
        }  # fmt: skip
        for what in ("gain", "forgetting"):
            if not results[what]:
                continue
            suite = results[what][pair.grown]["suite"]
            sign = 1.0 if results["suites"][suite]["higher_is_better"] else -1.0
            difference = paired(tables[suite], pair.grown, pair.other, sign, cfg, seed)
            told[what] = {"suite": suite, "unit": results["suites"][suite]["unit"], **difference}
        out.append({**told, "sentence": _sentence(told)})
    return out


def _sentence(told: dict[str, Any]) -> str:
    ratio = ratio_in(told["grown"])
    clauses = []
    for what, more, less in (("gain", "learned {} more", "learned {} less"),
                             ("forgetting", "forgot {} less", "forgot {} more")):  # fmt: skip
        if what not in told:
            continue
        (low, high), unit, suite = told[what]["ci"], told[what]["unit"], told[what]["suite"]
        if low > 0 or high < 0:
            least, most = sorted((abs(low), abs(high)))
            amount = bounds_text(least, most, unit)
            clauses.append(f"{(more if low > 0 else less).format(amount)} on {suite}")
        else:
            widest = amount_text(max(abs(low), abs(high)), unit)
            clauses.append(f"no difference on {suite} that can be told from chance (at most {widest})")
    at = f" at {100 * ratio:g} %" if ratio is not None else ""
    grown, other = (
        f"{n:,} tokens" + (f", {LOSSES[loss]}" if loss in LOSSES else "")
        for n, loss in zip(told["tokens"], told["loss"], strict=True)
    )
    if told["source"] == "regrown":
        other += f"; {told['regrown']:,} tokens more grown for it"
    return (
        f"Grown replay{at} ({grown}), against {OTHERS[told['source']]} ({other}): "
        f"{'; '.join(clauses) or 'not measured'}."
    )
