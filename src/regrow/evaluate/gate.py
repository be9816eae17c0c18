"""A gate for continuous integration: does an evaluation stay within limits, judged on interval bounds."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from regrow.arms import main_arm
from regrow.errors import RunError
from regrow.evaluate.saved import Saved
from regrow.evaluate.seeds import over_seeds
from regrow.evaluate.stats import unseen_change
from regrow.evaluate.verdict import too_few

Outcome = Literal["passed", "undecided", "failed"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked. Points are percentage points of a 0..1 metric; nats are per token. None is not checked."""

    max_forgetting: float | None = None
    max_forgetting_nats: float | None = None
    min_gain: float | None = None
    min_gain_nats: float | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One limit on one suite.

    Attributes:
        name: ``forgetting on facts-pool``.
        suite, n, unit: What was measured; ``points`` or ``nats``.
        value, low, high: The forgetting or the gain, positive as named, with its interval.
        limit: The limit in the same unit.
        outcome: ``failed`` when the whole interval is beyond the limit, ``undecided`` when the limit is inside it.
            Both fail the gate: it passes on what was shown, not on what was not shown to be wrong.
        reason: In words.
    """

    name: str
    suite: str
    n: int
    unit: str
    value: float
    low: float
    high: float
    limit: float
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Gate:
    """The decision.

    Attributes:
        runs: Folders it was made from; several are several seeds.
        arm: The model that was judged.
        checks: One a suite and limit. All have to pass; each may be judged at the full level then, because the gate
            as a whole lets a bad model through no more often than its most lenient check does (intersection-union
            test, Berger, Technometrics 24, 1982).
        confidence: Level of the intervals.
    """

    runs: list[str]
    arm: str
    checks: list[Check]
    confidence: float

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(c.outcome == "passed" for c in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON summary."""
        return {
            "format": 1,
            "passed": self.passed,
            "arm": self.arm,
            "runs": self.runs,
            "confidence": self.confidence,
            "checks": [asdict(c) for c in self.checks],
        }

    def text(self) -> str:
        """For the terminal and the log of a CI job."""
        signs = {"passed": "ok  ", "undecided": "FAIL", "failed": "FAIL"}
        lines = [f"{signs[c.outcome]}  {c.name}: {c.reason}" for c in self.checks]
        n = sum(c.outcome != "passed" for c in self.checks)
        over = f", {len(self.runs)} seeds" if len(self.runs) > 1 else ""
        end = (
            f"gate passed: {self.arm}{over}" if not n else f"gate failed: {self.arm}{over}, {n} of {len(lines)} checks"
        )
        return "\n".join([*lines, end])

    def junit(self) -> str:
        """A JUnit XML report: one test case a check."""
        failures = sum(c.outcome != "passed" for c in self.checks)
        counts = {"tests": str(len(self.checks)), "failures": str(failures), "errors": "0", "skipped": "0"}
        root = ET.Element("testsuites", {"name": "regrow gate", **counts})
        suite = ET.SubElement(root, "testsuite", {"name": _xml(f"regrow gate {self.arm}"), "time": "0", **counts})
        for check in self.checks:
            case = ET.SubElement(suite, "testcase", classname="regrow.gate", name=_xml(check.name), time="0")
            if check.outcome == "passed":
                ET.SubElement(case, "system-out").text = _xml(check.reason)
            else:
                failure = ET.SubElement(case, "failure", type=check.outcome, message=_xml(check.reason))
                failure.text = _xml(check.reason)
        ET.indent(root)
        return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def judge(runs: Sequence[Saved], limits: Limits, *, suites: Sequence[str] = (), arm: str | None = None) -> Gate:
    """Hold an evaluation against limits.

    Args:
        runs: One finished evaluation, or several that differ in their seed; the intervals are then over seeds too.
        limits: At least one.
        suites: Retention suites to check. By default all that are unselected and measured in the unit of a limit.
        arm: Which model; the one with replay by default, else the last.

    Raises:
        RunError: Nothing to judge: no limit, no such arm or suite, or a suite in another unit than its limit.
    """
    where = str(runs[0].folder)
    if limits == Limits():
        raise RunError("no limit is given", where="regrow gate", hint="--max-forgetting 2, --min-gain 5")
    found = over_seeds(runs) if len(runs) > 1 else runs[0].results
    judged = arm or main_arm(found["arms"], (found.get("sweep") or {}).get("arm"))
    if judged is None or judged == "base" or judged not in found["arms"]:
        raise RunError(f"there is no trained model '{judged}' in this evaluation", where=where,
                       hint=f"It has: {', '.join(found['arms'][1:]) or 'only the base'}.")  # fmt: skip
    checks: list[Check] = []
    level = float(runs[0].results["settings"]["confidence"])
    if limits.max_forgetting is not None or limits.max_forgetting_nats is not None:
        checks += _forgetting(found["suites"], limits, suites, judged, where, level)
    elif suites:
        raise RunError("--suite names retention suites, and no limit on forgetting is given", where="regrow gate")
    if limits.min_gain is not None or limits.min_gain_nats is not None:
        checks.append(_gain(found["suites"], limits, judged, where, level))
    return Gate([str(r.folder) for r in runs], judged, checks, level)


def _forgetting(
    suites: dict[str, Any], limits: Limits, wanted: Sequence[str], arm: str, where: str, level: float
) -> list[Check]:
    retention = {name: s for name, s in suites.items() if s["kind"] == "retention"}
    for name in wanted:
        if name not in retention:
            raise RunError(f"no retention suite '{name}'", where=where, hint=f"It has: {', '.join(retention)}.")
    limit_of = {"share": limits.max_forgetting, "nats": limits.max_forgetting_nats}
    chosen = wanted or [n for n, s in retention.items() if not s["selected"] and limit_of.get(s["unit"]) is not None]
    measured = {suites[n]["unit"] for n in chosen}
    for unit, option in (("share", "--max-forgetting"), ("nats", "--max-forgetting-nats")):
        if limit_of[unit] is not None and unit not in measured:
            have = ", ".join(f"{n} ({_unit(s['unit'])}{', selected' * s['selected']})" for n, s in retention.items())
            hint = f"Retention suites: {have or 'none'}. A selected one has to be named with --suite."
            raise RunError(f"no suite is measured in {_unit(unit)}, which {option} limits", where=where, hint=hint)
    out = []
    for name in chosen:
        limit = limit_of.get(suites[name]["unit"])
        if limit is None:
            option = "--max-forgetting-nats" if suites[name]["unit"] == "nats" else "--max-forgetting"
            raise RunError(f"'{name}' is measured in {_unit(suites[name]['unit'])}", where=where,
                           hint=f"Limit it with {option}.")  # fmt: skip
        out.append(_check("forgetting", name, suites[name], arm, limit, level))
    return out


def _gain(suites: dict[str, Any], limits: Limits, arm: str, where: str, level: float) -> Check:
    gains = [name for name, s in suites.items() if s["kind"] == "gain"]
    if not gains:
        raise RunError("the gain was not measured: there is no gain suite", where=where,
                       hint="`data.test_size` holds rows out; `regrow eval --data` takes them.")  # fmt: skip
    name = gains[0]
    limit = {"share": limits.min_gain, "nats": limits.min_gain_nats}.get(suites[name]["unit"])
    if limit is None:
        option = "--min-gain-nats" if suites[name]["unit"] == "nats" else "--min-gain"
        raise RunError(f"the gain on '{name}' is measured in {_unit(suites[name]['unit'])}", where=where,
                       hint=f"Ask for it with {option}.")  # fmt: skip
    return _check("gain", name, suites[name], arm, limit, level)


def _check(kind: str, name: str, suite: dict[str, Any], arm: str, limit: float, level: float) -> Check:
    diff = suite["differences"][arm]["vs_base"]
    ends = list(diff["ci"])
    if suite["unit"] == "share" and ends == [0, 0]:
        unseen = unseen_change(suite["n"], level)
        ends = [-unseen, unseen]
    scale = 100.0 if suite["unit"] == "share" else 1.0
    sign = scale * (1 if (kind == "gain") == suite["higher_is_better"] else -1)
    low, high = sorted(sign * v + 0.0 for v in ends)
    value, unit = sign * diff["diff"] + 0.0, _unit(suite["unit"])
    near, far = (high, low) if kind == "forgetting" else (low, high)  # the bound that decides, and the other one
    good = near <= limit if kind == "forgetting" else near >= limit
    hopeless = far > limit if kind == "forgetting" else far < limit
    if too_few(suite):
        good = hopeless = False
    outcome: Outcome = "passed" if good else ("failed" if hopeless else "undecided")
    digits = 1 if unit == "points" else 3
    asked = f"{'at most' if kind == 'forgetting' else 'at least'} {limit:g} {unit} asked"
    shown = f"{low:.{digits}f} to {high:.{digits}f} {unit} ({suite['n']} items)"
    bound = "upper" if kind == "forgetting" else "lower"
    why = {
        "passed": f"the {bound} bound is within it",
        "failed": "the whole interval is beyond it",
        "undecided": f"the {bound} bound is beyond it, so this was not shown{_items(value, near, limit, suite['n'])}",
    }[outcome]
    if too_few(suite):
        why = "too few dialogues to decide"
    reason = f"{shown}, {asked}: {why}"
    if suite["selected"]:
        reason += ". The items were chosen because the base gets them right, so this overstates the loss"
    return Check(f"{kind} on {name}", name, suite["n"], unit, value, low, high, limit, outcome, reason)


def _items(value: float, bound: float, limit: float, n: int) -> str:
    """About how many items would decide: the interval shrinks with the root of their number."""
    room, half = abs(limit - value), abs(bound - value)
    between = min(value, bound) < limit < max(value, bound)
    if not between or room == 0:
        return ""
    need = n * (half / room) ** 2
    return f"; about {round(need, -2 if need >= 1000 else -1):,.0f} items would show it if the value stays {value:.3g}"


def _unit(unit: str) -> str:
    return {"share": "points", "nats": "nats"}.get(unit, unit)


def _xml(text: str) -> str:
    """Text without the characters that XML 1.0 cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def write_summaries(gate: Gate, *, junit: Path | None, summary: Path | None) -> None:
    """Write the JUnit XML and the JSON summary, each where a path is given."""
    import json

    from regrow.rows.writers import atomic_write_text

    for path, text in ((junit, gate.junit()), (summary, json.dumps(gate.to_dict(), indent=1) + "\n")):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(path, text)
