"""The result in one sentence, out of interval bounds and never out of a point estimate alone."""

from __future__ import annotations

from typing import Any

from regrow.evaluate.summary import BASE, FACTS_POOL, PLAIN, REPLAY

NAMES = {BASE: "the base", PLAIN: "plain SFT", REPLAY: "the model with replay"}


def verdict(results: dict[str, Any], confidence: float) -> dict[str, Any]:
    """``sentence``, ``level``, ``arm`` and ``notes`` for results that have no verdict yet."""
    arm = main_arm(results["arms"])
    if arm is None:
        return {"sentence": "Only the base was evaluated; there is nothing to compare.", "level": "no-change",
                "arm": None, "notes": []}  # fmt: skip
    notes = _notes(results, arm)
    gain, loss = results["gain"].get(arm), results["forgetting"].get(arm)
    name = _name(arm)
    level = _level(results, arm)
    if _identical(results, arm):
        text = f"No change: {name} does on every item as well as the base"
    elif loss is None:
        text = "What was kept was not measured: there is no retention suite"
    else:
        text = _kept(results, arm, confidence)
    if level == "no-change" and gain and not _identical(results, arm):
        text = f"No change that can be told from chance: {text[0].lower()}{text[1:]}"
    if not _identical(results, arm):
        text += _elsewhere(results, arm, loss["suite"] if loss else None)
    if gain and not _identical(results, arm):
        text += f". On {gain['suite']}, {_gained(results, gain)}"
    sentence = text[0].upper() + text[1:] + "."
    return {"sentence": sentence, "level": level, "arm": arm, "notes": notes}


def main_arm(arms: list[str]) -> str | None:
    """The arm the verdict is about: the one with replay, else the last."""
    trained = [a for a in arms if a != BASE]
    return REPLAY if REPLAY in trained else (trained[-1] if trained else None)


def _name(arm: str) -> str:
    return NAMES.get(arm, f"'{arm}'")


def _identical(results: dict[str, Any], arm: str) -> bool:
    pairs = [s["differences"][arm]["vs_base"] for s in results["suites"].values()]
    return bool(pairs) and all(p["diff"] == 0 and p["ci"] == [0, 0] for p in pairs)


def _level(results: dict[str, Any], arm: str) -> str:
    loss, gain = results["forgetting"].get(arm), results["gain"].get(arm)
    if loss is None or _identical(results, arm):
        return "no-change"
    compared = results["suites"][loss["suite"]]["differences"][arm]
    if compared["vs_base"]["better"] is False:
        against = [
            s["differences"][arm]["vs_sft"]["better"]
            for s in results["suites"].values()
            if s["kind"] == "retention" and s["differences"][arm]["vs_sft"]
        ]
        return "partly" if True in against and False not in against else "lost"
    return "no-change" if gain and not gain["significant"] and not loss["significant"] else "kept"


def _kept(results: dict[str, Any], arm: str, confidence: float) -> str:
    loss = results["forgetting"][arm]
    suite = results["suites"][loss["suite"]]
    compared = suite["differences"][arm]
    unit, metric = suite["unit"], _metric(suite["metric"])
    where = f"on {loss['suite']} ({suite['n']} items)"
    sure = f"{confidence:.0%} interval".replace("%", " %")
    low, high = loss["ci"]
    plain = ""
    if arm != PLAIN and PLAIN in results["forgetting"]:
        plain = f"; plain SFT {_change(results['forgetting'][PLAIN], unit)}"
    if compared["vs_base"]["better"] is True:
        by = f"{_range(-high, -low, unit)} of {metric}"
        return f"{_name(arm)} improved {where} by {by}, {sure}{plain}"
    if compared["vs_base"]["better"] is None:
        if low == high == 0:
            return f"{where}, {_name(arm)} lost nothing{plain}"
        ends = (-high, -low) if suite["higher_is_better"] else (low, high)
        bound = f"the change in {metric} lies between {_signed(ends[0], unit)} and {_signed(ends[1], unit)}"
        return f"{where}, no loss could be shown for {_name(arm)}: {bound} ({sure}){plain}"
    verb = "lost" if suite["higher_is_better"] else "became worse by"
    text = f"{_name(arm)} {verb} {_range(low, high, unit)} of {metric} {where}, {sure}{plain}"
    if compared["vs_sft"] is None:
        return text
    recovery = compared["recovery"]
    if compared["vs_sft"]["better"] and recovery["defined"]:
        a, b = recovery["ci"]
        return f"{text}. Replay won back {a:.0%} to {b:.0%} of what plain SFT lost".replace("%", " %")
    if compared["vs_sft"]["better"] is False:
        return f"{text}. That is more than plain SFT lost"
    return text if compared["vs_sft"]["better"] else f"{text}. That is not measurably less than plain SFT"


def _elsewhere(results: dict[str, Any], arm: str, head: str | None) -> str:
    """What replay won back on the other retention suites, where that is significant."""
    told = ""
    for name, suite in results["suites"].items():
        compared = suite["differences"][arm]
        recovery, vs_sft = compared["recovery"], compared["vs_sft"]
        if name == head or suite["kind"] != "retention" or not recovery or not recovery["defined"]:
            continue
        if vs_sft and vs_sft["better"] and recovery["ci"]:
            a, b = recovery["ci"]
            of = _metric(suite["metric"])
            told += f". On {name} ({suite['n']} items) replay undid {a:.0%} to {b:.0%} of the harm of plain SFT ({of})"
    return told.replace("%", " %")


def _change(loss: dict[str, Any], unit: str) -> str:
    low, high = loss["ci"]
    if not loss["significant"]:
        return f"lost no measurable amount ({_range(low, high, unit)})"
    if loss["value"] > 0:
        return f"lost {_range(low, high, unit)}"
    return f"improved by {_range(-high, -low, unit)}"


def _gained(results: dict[str, Any], gain: dict[str, Any]) -> str:
    suite = results["suites"][gain["suite"]]
    low, high = gain["ci"]
    unit, metric = suite["unit"], _metric(gain["metric"])
    if not gain["significant"]:
        return f"no improvement could be shown ({_range(low, high, unit)} of {metric})"
    if gain["value"] > 0:
        return f"it improved by {_range(low, high, unit)} of {metric}"
    return f"it became worse by {_range(-high, -low, unit)} of {metric}"


def _metric(name: str) -> str:
    return {"acc": "accuracy", "nll": "token loss", "kl": "divergence from the base",
            "exact_match": "exact match"}.get(name, name)  # fmt: skip


def _amount(value: float, unit: str) -> str:
    if unit == "share":
        return f"{100 * value:.1f} points"
    return f"{value:.3f} nats" if unit == "nats" else f"{value:.3g}"


def _signed(value: float, unit: str) -> str:
    sign = "−" if value < 0 else "+"
    return f"{sign}{_amount(abs(value), unit)}"


def _range(low: float, high: float, unit: str) -> str:
    """Two amounts with one unit behind them."""
    return f"{_amount(low, unit).split()[0]} to {_amount(high, unit)}"


def _notes(results: dict[str, Any], arm: str) -> list[str]:
    notes = []
    loss = results["forgetting"].get(arm)
    head = loss["suite"] if loss else None
    for name, suite in results["suites"].items():
        compared = suite["differences"][arm]
        if suite["kind"] == "retention" and name != head and compared["vs_base"]["better"] is False:
            low, high = sorted(map(abs, compared["vs_base"]["ci"]))
            notes.append(f"Also worse on {name}: {_range(low, high, suite['unit'])} of {_metric(suite['metric'])}.")
        floor = suite["noise_floor"]
        if floor and floor["flips"]:
            notes.append(f"{name}: other batches alone change {floor['flips']} of {floor['n']} results of the base.")
        recovery = compared["recovery"]
        if name == head and recovery and not recovery["defined"]:
            notes.append(f"Recovery on {name} is undefined: {recovery['reason']}.")
        if name == head and suite["mdd"] is not None and compared["vs_base"]["significant"] is False:
            size = _amount(suite["mdd"], suite["unit"])
            notes.append(
                f"{name}: {suite['n']} items find a difference of {size} with 80 % power; a smaller one may go unseen."
            )
    if head == "facts":
        text = "facts holds items the base gets right, so any change shows as a loss"
        notes.append(
            f"{text}; {FACTS_POOL} shows it without that selection." if FACTS_POOL in results["suites"] else f"{text}."
        )
    return notes
