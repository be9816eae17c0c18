"""Which replay ratio to use: several ratios of one run set against each other, and a rule on interval bounds.

The rule is ours. In its test (`experiments/sweep`) it held for what is forgotten where it took the largest ratio, two
times of three, and for what is learned once of three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regrow.arms import PLAIN, at_ratio, is_general, is_regrown, source_of
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.tables import SuiteTable, paired
from regrow.evaluate.verdict import amount_text, bounds_text, too_few

RULE = "smallest-sufficient"
UNTESTED = "a rule of ours that is not validated"


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is compared.

    Attributes:
        ratios: Trained arm -> replay ratio; plain SFT with 0 among them. Arms whose replay is not grown once
            (general data, regrown) are set beside the others and not recommended.
        margin: A difference that does not matter, in points.
        margin_nats: The same where a suite is measured in nats per token.
    """

    ratios: dict[str, float]
    margin: float
    margin_nats: float


def compare_ratios(
    found: Sequence[SuiteTable], results: dict[str, Any], sweep: Sweep, cfg: EvalConfig, *, seed: int
) -> dict[str, Any]:
    """Set the arms of a sweep against each other and recommend one.

    Gain and forgetting are those of ``results``: the gain suite, and the retention suite that verdicts are about.
    A ratio *keeps* when it is shown to forget at most the margin more than every other: the upper bounds of all its
    differences are within it. The burden of proof lies on the ratio, so that few items lead to no recommendation and
    never to less replay; and as all differences have to pass, each may be judged at the full level (intersection-union
    test, Berger, Technometrics 24, 1982). A ratio *learns* when the lower bound of its gain is above zero and it is
    not shown to gain less than plain SFT by more than the margin. The rule ``smallest-sufficient`` recommends the
    smallest ratio that does both; that several ratios are tried in turn is not corrected for. Intervals are paired,
    over items alone: another training seed may move them.

    Args:
        found: All arms on the same items.
        results: What `regrow.evaluate.summary.summarise` made of them.
        sweep: Ratios and margins.
        cfg: Resamples, confidence.
        seed: Of the resampling.

    Returns:
        ``rule``, ``arm`` and ``ratio`` recommended (None when there is none), ``sentence``, ``notes``, ``on``
        (``gain`` and ``forgetting``: ``suite``, ``unit``, ``margin``), and ``arms``: arm -> ``ratio``, ``gain`` and
        ``forgetting`` (against the base, positive as named), ``above`` (what it forgets above the arm named in
        ``than``, the one of the largest upper bound; of an arm beside the others the grown one of its ratio) and
        ``below_plain`` (gain below plain SFT's), each with ``value`` and ``ci``, ``source`` of its replay (``grown``,
        ``general`` or ``regrown``; plain SFT counts as grown), whether it ``keeps`` and ``learns``, and whether it is
        on the ``front``: no other arm has both estimates at least as good and one better.
    """
    out: dict[str, Any] = {"rule": RULE, "arm": None, "ratio": None, "notes": [], "arms": {}}
    gain, lost = results["gain"], results["forgetting"]
    missing = "gain" if not gain else "forgetting" if not lost else None
    if missing:
        return {**out, "sentence": f"No ratio is recommended: the {missing} was not measured."}
    tables = {t.name: t for t in found}
    gained, kept = (tables[next(iter(x.values()))["suite"]] for x in (gain, lost))
    on_gain, on_lost = results["suites"][gained.name], results["suites"][kept.name]
    less, worse = (-1.0 if on_gain["higher_is_better"] else 1.0), (-1.0 if on_lost["higher_is_better"] else 1.0)
    margins = {"share": sweep.margin / 100, "nats": sweep.margin_nats}
    out["on"] = {
        what: {"suite": t.name, "unit": suite["unit"], "margin": margins.get(suite["unit"])}
        for what, t, suite in (("gain", gained, on_gain), ("forgetting", kept, on_lost))
    }
    margin, given_up = out["on"]["forgetting"]["margin"], out["on"]["gain"]["margin"] or 0.0
    arms = sorted(sweep.ratios, key=lambda a: (is_general(a), is_regrown(a), sweep.ratios[a]))
    grown = [a for a in arms if not (is_general(a) or is_regrown(a))]
    for arm in arms:
        others = [a for a in grown if a != arm] if arm in grown else [at_ratio(sweep.ratios[arm])]
        against = [{"than": a, **paired(kept, arm, a, worse, cfg, seed)} for a in others]
        above = max(against, key=lambda d: d["ci"][1])
        below = paired(gained, arm, PLAIN, less, cfg, seed)
        out["arms"][arm] = {
            "ratio": sweep.ratios[arm],
            "source": source_of(arm) or "grown",
            "gain": {k: gain[arm][k] for k in ("value", "ci")},
            "forgetting": {k: lost[arm][k] for k in ("value", "ci")},
            "above": above,
            "below_plain": below,
            "keeps": margin is not None and above["ci"][1] <= margin and not too_few(on_lost),
            "learns": gain[arm]["ci"][0] > 0 and below["ci"][0] <= given_up,
            "front": _on_front(arm, arms, gain, lost),
        }
    return out | _recommend(out, {a: out["arms"][a] for a in grown}, on_lost["n"])


def _on_front(arm: str, arms: Sequence[str], gain: dict[str, Any], lost: dict[str, Any]) -> bool:
    mine = gain[arm]["value"], -lost[arm]["value"]
    others = [(gain[a]["value"], -lost[a]["value"]) for a in arms]
    return not any(o[0] >= mine[0] and o[1] >= mine[1] and o != mine for o in others)


def _recommend(found: dict[str, Any], arms: dict[str, Any], n: int) -> dict[str, Any]:
    """The rule, in results and in words."""
    on = found["on"]
    unit, suite = on["forgetting"]["unit"], on["forgetting"]["suite"]
    if on["forgetting"]["margin"] is None:
        why = f"forgetting on {suite} is measured in neither points nor nats, so there is no margin for it"
        return {"sentence": f"No ratio is recommended: {why} ({RULE}, {UNTESTED})."}
    shown = f"shown to forget at most {_amount(on['forgetting'])} more on {suite}"
    less = f"shown to learn {'more than ' + _amount(on['gain']) + ' ' if on['gain']['margin'] else ''}less"
    keeping = [f"{x['ratio']:g}" for x in arms.values() if x["keeps"]]
    chosen = next((a for a, x in arms.items() if x["keeps"] and x["learns"]), None)
    if chosen is None:
        if not any(x["gain"]["ci"][0] > 0 for x in arms.values()):
            why = "none is shown to have learned your data"
        elif not keeping:
            why = f"with {n} items none is {shown} than every other; more items, or a larger sweep.margin, may decide"
        else:
            why = (
                f"those {shown} than any other ({', '.join(keeping)}) are not shown to learn, or are {less} than "
                "plain fine-tuning; the chart shows what each costs"
            )
        return {"sentence": f"No ratio is recommended: {why} ({RULE}, {UNTESTED})."}
    ratio = arms[chosen]["ratio"]
    if ratio == 0:
        text = f"No replay is needed on this data: plain fine-tuning is {shown} than any ratio tried"
    else:
        text = (
            f"Use a replay ratio of {ratio:g}: the smallest {shown} than any other tried, and not {less} than plain "
            "fine-tuning"
        )
    notes = []
    low, high = arms[chosen]["forgetting"]["ci"]
    if low > 0:
        notes.append(f"It still forgets {bounds_text(low, high, unit)} on {suite}.")
    below = arms[chosen]["below_plain"]
    if below["value"] > (on["gain"]["margin"] or 0.0):
        by = amount_text(below["value"], on["gain"]["unit"])
        notes.append(
            f"It may cost gain: {by} less than plain fine-tuning, which the held-out rows are too few to show. "
            "train.replay_weight below 1 leaves your rows more of the loss."
        )
    if ratio == max(x["ratio"] for x in arms.values()):
        notes.append("It is the largest ratio tried; more replay may keep more.")
    return {"arm": chosen, "ratio": ratio, "sentence": f"{text} ({RULE}, {UNTESTED}).", "notes": notes}


def _amount(on: dict[str, Any]) -> str:
    return f"{100 * on['margin']:g} points" if on["unit"] == "share" else f"{on['margin']:g} nats"
