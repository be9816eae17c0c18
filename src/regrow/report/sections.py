"""What each part of the page says, worked out from the run: plain dicts and charts for the template."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from regrow.arms import BASE, PLAIN, REPLAY
from regrow.report import charts, numbers
from regrow.report.load import RunData, arm_name
from regrow.report.numbers import is_number

LEVELS = {
    "kept": ("good", "✓", "Kept"),
    "partly": ("mid", "◐", "Partly kept"),
    "lost": ("bad", "✕", "Lost"),
    "no-change": ("", "–", "No change"),
}
STYLES = {BASE: 0, PLAIN: 1, REPLAY: 2}
FIRST_DOMAINS = 12
OWN = "own-dialogues"
_TONE_OF: dict[Any, str] = {True: "good", False: "bad"}
_WORD_OF: dict[Any, str] = {True: "better", False: "worse"}


def styles(run: RunData) -> dict[str, int]:
    """Arm -> number in the palette: base, sft and regrow always the same, others share what is left of it."""
    known = list(dict.fromkeys([*run.arms, *run.logs, *run.mixes]))
    other = [a for a in known if a not in STYLES]
    left = [n for n in (*range(3, len(charts.SHAPES)), STYLES[REPLAY]) if n != STYLES[REPLAY] or REPLAY not in known]
    return {a: STYLES[a] if a in STYLES else left[other.index(a) % len(left)] for a in known}


def verdict(run: RunData) -> dict[str, Any]:
    """The sentence at the top, with its badge."""
    if run.results is None:
        return {"tone": "", "sign": "–", "word": "Not evaluated", "notes": [],
                "sentence": "This run has not been evaluated yet."}  # fmt: skip
    found = run.results.get("verdict") or {}
    tone, sign, word = LEVELS.get(str(found.get("level")), ("", "–", str(found.get("level") or "No verdict")))
    return {
        "tone": tone,
        "sign": sign,
        "word": word,
        "sentence": str(found.get("sentence") or "The evaluation gave no verdict."),
        "notes": [str(n) for n in found.get("notes") or []],
    }


def headline(run: RunData) -> list[dict[str, Any]]:
    """One row a trained arm: what it learned, what changed of what it knew, how far its own words moved, how many of
    the facts it knew remain, what it won back."""
    rows = []
    for arm in run.arms[1:]:
        gain, lost = _effect(run, "gain", arm), _effect(run, "forgetting", arm)
        left = _effect(run, "remaining", arm)
        unit = numbers.unit_of(_suite(run, lost.get("suite"))) if lost else "share"
        kept = left if left else (lost if unit == "share" else {})
        on, recovery = _recovery(run, arm, [lost.get("suite"), OWN, left.get("suite")])
        rows.append(
            {
                "arm": arm,
                "gain": _cell(gain, numbers.unit_of(_suite(run, gain.get("suite")))),
                "change": _cell(_negated(lost), unit),
                "own": _own_words(run, arm) if lost.get("suite") != OWN else _cell({}, "nats"),
                "retention": numbers.level(kept.get("retention"), "share"),
                "retention_ci": numbers.interval(kept.get("retention_ci"), "share", signed=False),
                "recovery": numbers.share(recovery.get("value")) if recovery.get("defined") else "–",
                "recovery_ci": _recovery_interval(recovery),
                "recovery_on": on if recovery.get("defined") else "",
                "recovery_why": "" if recovery.get("defined") else str(recovery.get("reason") or ""),
            }
        )
    return rows


def _difference(run: RunData, name: Any, arm: str, which: str) -> dict[str, Any]:
    found = ((_suite(run, name).get("differences") or {}).get(arm) or {}).get(which)
    return found if isinstance(found, dict) else {}


def _own_words(run: RunData, arm: str) -> dict[str, str]:
    """The divergence from the base on the base's own dialogues. It is above zero for every trained model, so it is
    never called significant or not."""
    diff = _difference(run, OWN, arm, "vs_base")
    return _cell({"value": diff.get("diff"), "ci": diff.get("ci")}, numbers.unit_of(_suite(run, OWN)))


def _recovery(run: RunData, arm: str, suites: list[Any]) -> tuple[str, dict[str, Any]]:
    """The first suite, unselected ones before, on which plain SFT lost something, and what was won back there."""
    found = [(str(name), _difference(run, name, arm, "recovery")) for name in suites if name]
    return next(((n, r) for n, r in found if r.get("defined")), found[0] if found else ("", {}))


def _recovery_interval(recovery: dict[str, Any]) -> str:
    pair = numeric_pair(recovery.get("ci"))
    return f"[{numbers.share(pair[0])}, {numbers.share(pair[1])}]" if recovery.get("defined") and pair else ""


def _effect(run: RunData, what: str, arm: str) -> dict[str, Any]:
    found = ((run.results or {}).get(what) or {}).get(arm)
    return found if isinstance(found, dict) else {}


def _suite(run: RunData, name: Any) -> dict[str, Any]:
    found = ((run.results or {}).get("suites") or {}).get(name)
    return found if isinstance(found, dict) else {}


def _negated(effect: dict[str, Any]) -> dict[str, Any]:
    """Forgetting (positive is a loss) as a change (negative is a loss)."""
    out = dict(effect)
    if is_number(effect.get("value")):
        out["value"] = -effect["value"] + 0.0
    pair = numeric_pair(effect.get("ci"))
    if pair is not None:
        out["ci"] = [-pair[1] + 0.0, -pair[0] + 0.0]
    return out


def _cell(effect: dict[str, Any], unit: str) -> dict[str, str]:
    significant = effect.get("significant")
    return {
        "value": numbers.change(effect.get("value"), unit),
        "unit": numbers.change_unit(unit) if is_number(effect.get("value")) else "",
        "ci": numbers.interval(effect.get("ci"), unit),
        "word": "" if significant is None else ("" if significant else "no significant change"),
    }


def measured_on(run: RunData, what: str) -> dict[str, str] | None:
    """Which suite and metric the gain, or the forgetting, was read from."""
    for arm in run.arms[1:]:
        effect = _effect(run, what, arm)
        if effect:
            suite = _suite(run, effect.get("suite"))
            return {
                "suite": str(effect.get("suite")),
                "metric": numbers.metric_name(str(effect.get("metric"))),
                "n": numbers.integer(suite.get("n")),
                "unit": numbers.unit_of(suite),
            }
    return None


def confidence(run: RunData) -> str:
    """``95 %``, from the settings of the evaluation."""
    value = ((run.results or {}).get("settings") or {}).get("confidence")
    return numbers.share(value if is_number(value) else 0.95)


def tradeoff(run: RunData) -> Markup | None:
    """The picture: gain against change of what it knew. None when either is missing."""
    gain, lost = measured_on(run, "gain"), measured_on(run, "forgetting")
    if gain is None or lost is None:
        return None
    style = styles(run)
    points = [charts.Point(arm_name(BASE), 0, 0.0, 0.0)]
    told = []
    for arm in run.arms[1:]:
        x, y = _effect(run, "gain", arm), _negated(_effect(run, "forgetting", arm))
        if not (is_number(x.get("value")) and is_number(y.get("value"))):
            continue
        sx, sy = numbers.scale_of(gain["unit"]), numbers.scale_of(lost["unit"])
        points.append(
            charts.Point(arm_name(arm), style[arm], x["value"] * sx, y["value"] * sy, _pair(x, sx), _pair(y, sy))
        )
        told.append(
            f"{arm_name(arm)}: "
            f"{numbers.change(x['value'], gain['unit'])} {numbers.change_unit(gain['unit'])} on your data, "
            f"{numbers.change(y['value'], lost['unit'])} {numbers.change_unit(lost['unit'])} on what it knew"
        )
    if len(points) == 1:
        return None
    return charts.tradeoff(
        points,
        title="Learned against kept, differences from the base model. " + "; ".join(told) + ".",
        x_label=f"Learned on your data ({numbers.change_unit(gain['unit'])}) →",
        y_label=f"↑ Kept of what it knew ({numbers.change_unit(lost['unit'])})",
    )


def numeric_pair(ci: Any) -> tuple[float, float] | None:
    """An interval as two floats, or None when there is none."""
    if isinstance(ci, list) and len(ci) == 2 and all(map(is_number, ci)):
        return float(ci[0]), float(ci[1])
    return None


def _pair(effect: dict[str, Any], scale: float) -> tuple[float, float] | None:
    pair = numeric_pair(effect.get("ci"))
    return None if pair is None else (pair[0] * scale, pair[1] * scale)


_KINDS = ("your data", "what it knew", "what it knew, chosen because the base gets it right")


def _place(named: tuple[str, dict[str, Any]]) -> tuple[int, str]:
    """Gain first, selected suites last, by name within."""
    name, suite = named
    return (0 if suite.get("kind") == "gain" else 2 if suite.get("selected") else 1), name


def suite_rows(run: RunData) -> list[dict[str, Any]]:
    """The table of suites: levels, differences, noise floor, minimum detectable difference."""
    rows = []
    suites = (run.results or {}).get("suites") or {}
    for name, suite in sorted(suites.items(), key=_place):
        unit = numbers.unit_of(suite)
        arms = []
        for arm in run.arms:
            level = (suite.get("arms") or {}).get(arm) or {}
            diff = ((suite.get("differences") or {}).get(arm) or {}).get("vs_base") or {}
            arms.append(
                {
                    "arm": arm,
                    "value": numbers.level(level.get("value"), unit),
                    "ci": numbers.interval(level.get("ci"), unit, signed=False),
                    "diff": numbers.change(diff.get("diff"), unit) if diff else "",
                    "diff_ci": numbers.interval(diff.get("ci"), unit) if diff else "",
                    "tone": _TONE_OF.get(diff.get("better"), "") if diff else "",
                    "word": _WORD_OF.get(diff.get("better"), "no significant change") if diff else "",
                }
            )
        noise = suite.get("noise_floor") or {}
        rows.append(
            {
                "name": name,
                "kind": _KINDS[_place((name, suite))[0]],
                "n": numbers.integer(suite.get("n")),
                "metric": numbers.metric_name(str(suite.get("metric"))),
                "direction": "higher is better" if suite.get("higher_is_better") else "lower is better",
                "arms": arms,
                "noise": _fine(noise.get("diff"), unit),
                "flips": numbers.integer(noise.get("flips")) if unit == "share" and noise else "",
                "mdd": _fine(suite.get("mdd"), unit),
                "unit": numbers.change_unit(unit),
                "pool": suite.get("pool"),
            }
        )
    return rows


def pilot(run: RunData) -> dict[str, Any] | None:
    """What a pilot chose for this run and why; None where there was none."""
    facts = run.stage("pilot").get("facts") or {}
    if not isinstance(facts.get("why"), list):
        return None
    return {"why": [str(reason) for reason in facts["why"]], "ratio": numbers.level(facts.get("ratio"), "share")}


def _fine(value: Any, unit: str) -> str:
    """A small absolute difference; a true zero and a tiny number must not look alike."""
    if not is_number(value):
        return "–"
    scaled = abs(value) * numbers.scale_of(unit)
    return "0" if scaled == 0 else ("< 0.001" if scaled < 0.001 else f"{scaled:.3g}")


def domain_charts(run: RunData) -> list[dict[str, Any]]:
    """Bars by domain, one block a suite; the domains that lost most come first."""
    style, blocks = styles(run), []
    main = run.main_arm
    for row in suite_rows(run):
        suite = run.results["suites"][row["name"]] if run.results else {}
        domains = suite.get("domains") or {}
        if not domains:
            continue
        unit = numbers.unit_of(suite)
        values = [v for d in domains.values() for v in (d.get("arms") or {}).values() if is_number(v)]
        top = 1.0 if unit == "share" else max((abs(v) for v in values), default=1.0) or 1.0
        sign = 1 if suite.get("higher_is_better") else -1
        entries = []
        for name, domain in domains.items():
            by_arm = domain.get("arms") or {}
            base, arm = by_arm.get(BASE), by_arm.get(main)
            drop = sign * (base - arm) if is_number(base) and is_number(arm) else 0.0
            bars = [
                {
                    "arm": a,
                    "style": style[a],
                    "text": numbers.level(by_arm.get(a), unit),
                    "width": f"{max(0.0, min(1.0, by_arm[a] / top)) * 100:.2f}",
                }
                for a in run.arms
                if is_number(by_arm.get(a))
            ]
            entries.append({"name": name, "n": numbers.integer(domain.get("n")), "bars": bars, "drop": drop})
        entries.sort(key=lambda e: (-e["drop"], e["name"]))
        blocks.append({**row, "first": entries[:FIRST_DOMAINS], "rest": entries[FIRST_DOMAINS:]})
    return blocks


def training_curves(run: RunData) -> list[dict[str, Any]]:
    """Loss on the user's rows and on the replay rows, all arms in one drawing each."""
    style = styles(run)
    out: list[dict[str, Any]] = []
    for key, title in (
        ("loss/domain", "Loss on your data"),
        ("loss/replay", "Loss on the replay rows"),
        ("loss", "Loss"),
    ):
        if key == "loss" and out:
            continue
        series = []
        for arm, log in run.logs.items():
            pairs = [(r["step"], r[key]) for r in log if is_number(r.get("step")) and is_number(r.get(key))]
            if pairs:
                series.append(
                    charts.Series(
                        arm_name(arm), style[arm], [float(p[0]) for p in pairs], [float(p[1]) for p in pairs]
                    )
                )
        if series:
            ends = "; ".join(f"{s.label} from {s.ys[0]:.2f} to {s.ys[-1]:.2f}" for s in series)
            svg = charts.curves(series, title=f"{title}: {ends}.", x_label="step", y_label="nats/token")
            out.append({"title": title, "svg": svg, "only": series[0].label if len(series) == 1 else None})
    return out


def cost(run: RunData) -> list[dict[str, str]]:
    """Seconds, tokens, speed and disk of each stage, in the order they ran."""
    rows = []
    total_s = total_b = 0.0
    for name, stage in run.manifest["stages"].items():
        if not isinstance(stage, dict):
            continue
        spent = stage.get("seconds")
        outputs = stage.get("outputs") or {}
        size = sum(f.get("bytes", 0) for f in outputs.values() if isinstance(f, dict))
        tokens = _stage_tokens(run, name, stage)
        total_s += spent if is_number(spent) else 0.0
        total_b += size
        rows.append(
            {
                "stage": name,
                "status": "" if stage.get("status") == "done" else str(stage.get("status")),
                "seconds": numbers.seconds(spent),
                "tokens": numbers.integer(tokens),
                "speed": numbers.integer(tokens / spent) if tokens and is_number(spent) and spent > 0 else "–",
                "disk": numbers.size(size) if outputs else "–",
            }
        )
    if rows:
        rows.append({"stage": "Total", "status": "", "seconds": numbers.seconds(total_s), "tokens": "", "speed": "",
                     "disk": numbers.size(total_b)})  # fmt: skip
    return rows


def _stage_tokens(run: RunData, name: str, stage: dict[str, Any]) -> float | None:
    """Tokens that a stage worked through: trained (from the log) or generated (from its facts)."""
    if name != "grow" and not name.startswith("train/"):
        return None
    facts = stage.get("facts") or {}
    for key in ("tokens_generated", "generated_tokens", "sampled_tokens", "n_tokens", "tokens"):
        if is_number(facts.get(key)):
            return float(facts[key])
    seen = [r["tokens"] for r in run.logs.get(name.removeprefix("train/"), []) if is_number(r.get("tokens"))]
    return float(max(seen)) if seen else None


def environment(run: RunData) -> list[tuple[str, str]]:
    """Versions, machine, seeds, model and revision."""
    out: list[tuple[str, str]] = []
    model = run.manifest.get("model") or {}
    base = ((run.results or {}).get("models") or {}).get(BASE) or {}
    for label, value in (
        ("Model", model.get("name") or base.get("path")),
        ("Revision", model.get("revision") or base.get("revision")),
        ("Taken from", model.get("origin")),
        ("Seed", run.manifest.get("seed")),
        ("Made", run.manifest.get("created")),
    ):
        if value not in (None, ""):
            out.append((label, str(value)))
    versions = {**(run.manifest.get("versions") or {}), **((run.results or {}).get("versions") or {})}
    if "platform" in versions:
        out.append(("Machine", str(versions.pop("platform"))))
    if versions:
        out.append(("Versions", ", ".join(f"{k} {v}" for k, v in sorted(versions.items()))))
    return out
