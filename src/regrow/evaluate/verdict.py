"""The result in one short sentence, out of interval bounds and never out of a point estimate alone.

The sentence is about unselected measures: the gain, suites in which a change can go either way, and the distance from
the base's own dialogues. What remains of the facts the base knew (a selected suite) stands in the notes.
"""

from __future__ import annotations

from typing import Any

from regrow.arms import BASE, GENERAL, PLAIN, REPLAY, main_arm, ratio_in, replay_text

NAMES = {BASE: "the base", PLAIN: "plain SFT", REPLAY: "the model with replay",
         GENERAL: "the model with general data"}  # fmt: skip
MOVED = 0.1
"""Nats per token. The divergence from the base on its own dialogues is above zero for every trained model, so being
significant says nothing; from this lower bound on it counts as harm. A tenth of a nat makes each token about a tenth
less likely. Our choice."""

LEAST_DIALOGUES = 4
"""Of one value a bootstrap interval is a point, and of two or three it has too few different resamples: nothing to
call harm by, or kept. Our choice."""

LEAST_GAIN = 0.01
"""Nats per token. A smaller gain than this one per cent of a token's probability can be significant and still is
nothing that a user would notice. Our choice."""


def verdict(results: dict[str, Any], confidence: float) -> dict[str, Any]:
    """``sentence``, ``level``, ``arm`` and ``notes`` for results that have no verdict yet."""
    arm = main_arm(results["arms"], (results.get("sweep") or {}).get("arm"))
    if arm is None:
        return {"sentence": "Only the base was evaluated; there is nothing to compare.", "level": "no-change",
                "arm": None, "notes": []}  # fmt: skip
    name = _name(arm)
    if _identical(results, arm):
        text = f"{name} does on every item as the base does"
    else:
        gained, kept = learned(results, arm), "; ".join(_kept(results, arm))
        text = f"{name} {gained}; {kept}" if gained else f"{name}: {kept}"
    sentence = text[0].upper() + text[1:] + "."
    return {"sentence": sentence, "level": _level(results, arm), "arm": arm,
            "notes": _notes(results, arm, confidence)}  # fmt: skip


def _name(arm: str) -> str:
    ratio = ratio_in(arm)
    if ratio is None:
        return NAMES.get(arm, f"'{arm}'")
    return f"the model with {100 * ratio:g} % {replay_text(arm)}"


def harmed(suite: dict[str, Any], arm: str) -> bool:
    """Whether a suite shows a loss: significantly worse, or a divergence on own dialogues of more than `MOVED`."""
    diff = suite["differences"][arm]["vs_base"]
    if suite["metric"] == "kl":
        return bool(diff["ci"][0] > MOVED)
    return diff["better"] is False


def too_few(suite: dict[str, Any]) -> bool:
    """Whether a divergence was measured on too few dialogues to say anything by."""
    return bool(suite["metric"] == "kl" and suite["n"] < LEAST_DIALOGUES)


def judged(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The retention suites that the verdict is about: the unselected ones, or all where there is no other."""
    kept = {name: s for name, s in results["suites"].items() if s["kind"] == "retention"}
    return {name: s for name, s in kept.items() if not s["selected"]} or kept


def _identical(results: dict[str, Any], arm: str) -> bool:
    pairs = [s["differences"][arm]["vs_base"] for s in results["suites"].values()]
    return bool(pairs) and all(p["diff"] == 0 and p["ci"] == [0, 0] for p in pairs)


def _level(results: dict[str, Any], arm: str) -> str:
    suites = {name: s for name, s in judged(results).items() if not too_few(s)}
    if not suites or _identical(results, arm):
        return "no-change"
    if any(harmed(s, arm) for s in suites.values()):
        against = [d["better"] for s in suites.values() if (d := s["differences"][arm]["vs_sft"])]
        return "partly" if True in against and False not in against else "lost"
    gain = results["gain"].get(arm)
    changed = any(s["differences"][arm]["vs_base"]["significant"] for s in suites.values() if s["metric"] != "kl")
    learned_nothing = gain and (not gain["significant"] or _negligible(results, gain))
    return "no-change" if learned_nothing and not changed else "kept"


def learned(results: dict[str, Any], arm: str) -> str:
    """What was learned of the user's data, in a few words; empty when that was not measured."""
    gain = results["gain"].get(arm)
    if gain is None:
        return ""
    if not gain["significant"]:
        return "shows no significant change on your data"
    if _negligible(results, gain):
        return f"hardly changed on your data ({_span(gain['ci'], 'nats')})"
    return "learned your data" if gain["value"] > 0 else "became worse on your data"


def _negligible(results: dict[str, Any], gain: dict[str, Any]) -> bool:
    unit = results["suites"][gain["suite"]]["unit"]
    return bool(unit == "nats" and max(abs(v) for v in gain["ci"]) < LEAST_GAIN)


def _kept(results: dict[str, Any], arm: str) -> list[str]:
    """Clauses on what it knew: what was lost, what shows no change, how far its own dialogues moved."""
    suites = judged(results)
    if not suites:
        return ["what it kept was not measured"]
    out = []
    known = {name: s for name, s in suites.items() if s["metric"] != "kl"}
    lost = {name: s for name, s in known.items() if harmed(s, arm)}
    better = [name for name, s in known.items() if s["differences"][arm]["vs_base"]["better"] is True]
    for name, s in lost.items():
        out.append(f"it lost {_bounds(s, arm)} on {name}{_against(s, arm)}")
    if better:
        out.append(f"it became better on {_and(better)}")
    if same := [name for name in known if name not in lost and name not in better]:
        out.append(f"no significant change on {_and(same)}")
    for name, s in suites.items():
        if name not in known:
            if too_few(s):
                out.append(f"{name} has too few dialogues to say how far it moved ({s['n']})")
                continue
            low, high = s["differences"][arm]["vs_base"]["ci"]
            far = bounds_text(low, high, "nats") if low > MOVED else f"no more than {amount_text(high, 'nats')}"
            out.append(f"it moved {far} a token from its {name}{_against(s, arm)}")
    return out


def _against(suite: dict[str, Any], arm: str) -> str:
    """How a loss compares with plain SFT's; empty when there is nothing to compare."""
    vs, recovery = suite["differences"][arm]["vs_sft"], suite["differences"][arm]["recovery"]
    if vs is None or not recovery["defined"]:
        return ", more than plain SFT" if vs is not None and vs["better"] is False else ""
    if vs["better"]:
        a, b = recovery["ci"]
        return f", {100 * a:.0f} to {100 * b:.0f} % less than plain SFT"
    return ", more than plain SFT" if vs["better"] is False else ", not measurably less than plain SFT"


def _notes(results: dict[str, Any], arm: str, confidence: float) -> list[str]:
    """The numbers behind the sentence, unselected suites first, then what limits them."""
    sure = f"{confidence:.0%} interval".replace("%", " %")
    notes, caveats = [], []
    suites = results["suites"]
    if gain := results["gain"].get(arm):
        suite = suites[gain["suite"]]
        span = _span(gain["ci"], suite["unit"])
        notes.append(f"Gain on {gain['suite']} ({suite['n']} items): {span} of {_metric(suite)}, {sure}.")
    for name, suite in judged(results).items():
        notes.append(_measured(name, suite, arm, sure) + ".")
    if left := results["remaining"].get(arm):
        notes.append(_remaining(results, left, arm, sure))
    notes += [
        pair["sentence"] for pair in results.get("sources", ()) if pair["grown"] == arm and "sweep" not in results
    ]
    for name, suite in suites.items():
        floor, diff = suite["noise_floor"], suite["differences"][arm]["vs_base"]
        if floor and floor["flips"]:
            caveats.append(f"{name}: other batches alone change {floor['flips']} of {floor['n']} results of the base.")
        if suite["metric"] == "kl":
            continue  # judged by its size
        if suite["unit"] != "share" and 2 ** (1 - suite["n"]) * len(suites) > 1 - confidence:
            caveats.append(f"{name}: {suite['n']} items are too few for any difference to count as significant.")
        elif diff["mdd"] and not diff["significant"] and not suite["selected"]:
            size = amount_text(diff["mdd"], suite["unit"])
            seen = f"{suite['n']} items find a difference of {size} with 80 % power"
            caveats.append(f"{name}: {seen}; a smaller one may go unseen.")
    return notes + caveats


def _measured(name: str, suite: dict[str, Any], arm: str, sure: str) -> str:
    diff = suite["differences"][arm]["vs_base"]
    word = {True: "better", False: "worse", None: "no significant change"}[diff["better"]]
    if suite["metric"] == "kl":
        low, high = diff["ci"]
        word = "worse" if low > MOVED else ("close to the base" if high <= MOVED else "somewhat off the base")
        word = "too few to say" if too_few(suite) else word
    told = f"{name} ({suite['n']} items): {word}, {_span(diff['ci'], suite['unit'])} of {_metric(suite)}, {sure}"
    if arm != PLAIN and PLAIN in suite["differences"]:
        told += f"; plain SFT {_span(suite['differences'][PLAIN]['vs_base']['ci'], suite['unit'])}"
    return told


def _remaining(results: dict[str, Any], left: dict[str, Any], arm: str, sure: str) -> str:
    def share(found: dict[str, Any]) -> str:
        low, high = found["retention_ci"] or [None, None]
        return f"{100 * low:.1f} to {100 * high:.1f} %" if low is not None else "an unknown share"

    n = results["suites"][left["suite"]]["n"]
    told = f"Of {n} facts it knew, {share(left)} remain ({sure}"
    if arm != PLAIN and PLAIN in results["remaining"]:
        told += f"; plain SFT {share(results['remaining'][PLAIN])}"
    return f"{told}). These were chosen because the base gets them right, so any change reads as a loss."


def _bounds(suite: dict[str, Any], arm: str) -> str:
    low, high = sorted(abs(v) for v in suite["differences"][arm]["vs_base"]["ci"])
    return f"{bounds_text(low, high, suite['unit'])} of {_metric(suite)}"


def _metric(suite: dict[str, Any]) -> str:
    names = {
        "acc": "accuracy",
        "nll": "token loss",
        "kl": "divergence from the base",
        "exact_match": "exact match",
        "contains": "answers that contain the right one",
        "followed": "instructions followed to the letter",
        "answered": "harmless requests that are answered",
        "refused": "harmful requests that are refused",
    }
    metric = str(suite["metric"])
    return names.get(metric, metric)


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def amount_text(value: float, unit: str) -> str:
    """An amount with its unit; shares as points."""
    if unit == "share":
        return f"{100 * value:.1f} points"
    return f"{value:.3f} nats" if unit == "nats" else f"{value:.3g}"


def _span(ci: list[float], unit: str) -> str:
    """An interval of a difference: both ends signed, one unit behind them."""
    low, high = (f"{'−' if v < 0 else '+'}{amount_text(abs(v), unit)}" for v in ci)
    return f"{low.split()[0]} to {high}"


def bounds_text(low: float, high: float, unit: str) -> str:
    """Two amounts with one unit behind them."""
    return f"{amount_text(low, unit).split()[0]} to {amount_text(high, unit)}"
