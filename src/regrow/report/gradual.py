"""What a gradual fine-tuning found, as tables for the terminal and as one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from regrow.errors import RunError
from regrow.report import charts, numbers
from regrow.report.probes import CATEGORIES, STYLES, Section, category_bar, write_page

NAMES = {
    "base": "before", "control": "before, again", "stage1": "after stage 1", "stage2": "after stage 2",
    "one-stage": "one stage on everything",
}  # fmt: skip
RESULTS, PAGE = "gradual.json", "gradual.html"
STYLE = {"stage1": 1, "stage2": 2, "one-stage": 3}


def text_tables(facts: dict[str, Any]) -> str:
    """All tables for the terminal.

    Args:
        facts: What stands in ``gradual.json``.
    """
    return "\n\n".join(section.text() for section in _sections(facts))


def build_page(facts: dict[str, Any], manifest: dict[str, Any], out: Path, *, confidence: float) -> Path:
    """Write the page; returns its path."""
    title = f"{facts['model']}, fine-tuned by what it knows"
    return write_page(_sections(facts), manifest, out, title=title, confidence=confidence)


def saved(run: Path) -> dict[str, Any] | None:
    """What stands in a run's ``gradual.json``; None for another kind of run.

    Raises:
        RunError: The file is damaged.
    """
    file = run / RESULTS
    if not file.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"the file is damaged: {error}", where=str(file), hint="run it again") from error
    return found


def card_facts(facts: dict[str, Any], manifest: dict[str, Any], arm: str, recipe: str) -> dict[str, Any]:
    """What the card of a model says, as `regrow.models.card.write_model_card` takes it.

    Args:
        facts: What stands in ``gradual.json``.
        manifest: Of the run.
        arm: ``stage1``, ``stage2`` or ``one-stage``.
        recipe: As YAML.
    """
    done, accuracy = facts["arms"][arm], facts["test"]["accuracy"]
    replayed = done["replay_tokens"]
    return {
        "base_model": facts["model"], "origin": manifest["model"]["origin"], "arm": NAMES[arm],
        **({"replay": {"tokens a pass": replayed}} if replayed else {}),
        "gain": {"exact match on the test questions, before": accuracy["base"], "after": accuracy[arm]},
        "training": {"facts": sum(done["facts"].values()), "kept epoch": f"{done['best']} of {len(done['epochs'])}",
                     "steps": done["steps"], "tokens": done["tokens"]},
        "versions": manifest.get("versions") or {}, "recipe": recipe,
    }  # fmt: skip


def _sections(facts: dict[str, Any]) -> list[Section]:
    return [_test(facts), _epochs(facts), _categories(facts), _moves(facts), _law(facts)]


def _test(facts: dict[str, Any]) -> Section:
    test, n = facts["test"], facts["questions"]["test"]
    rows = [
        [NAMES[name], _share(found["value"]), _ci(found), *_by_category(test["categories"], name)]
        for name, found in test["accuracy"].items()
    ]
    known = [f"{c} ({test['categories'][c]['questions']:,})" for c in CATEGORIES]
    differences = [
        [f"{NAMES[d['after']]} against {NAMES[d['before']]}", f"{numbers.change(d['value'], 'share')} points",
         numbers.interval([d["low"], d["high"]], "share")]
        for d in test["differences"]
    ]  # fmt: skip
    return Section(
        "test",
        f"{n:,} test questions, asked once after everything was chosen",
        [
            ("Exact match, by how well the model knew the fact before", ["model", "all", "interval", *known], rows),
            ("Differences, paired by question", ["", "difference", "interval"], differences),
        ],
        ["One seed: the intervals are over questions and do not contain what another training would give."],
    )


def _by_category(categories: dict[str, Any], name: str) -> list[str]:
    return [_share(categories[c]["accuracy"][name]) if categories[c]["accuracy"] else "–" for c in CATEGORIES]


def _epochs(facts: dict[str, Any]) -> Section:
    rows = []
    for name, arm in facts["arms"].items():
        best = arm["epochs"][arm["best"] - 1]
        trained = ", ".join(f"{n:,} {c}" for c in CATEGORIES if (n := arm["facts"].get(c)))
        fitted = "–" if best["fitted"] is None else f"{sum(best['fitted'].values()):,}"
        rows.append([NAMES[name], f"{arm['best']} of {len(arm['epochs'])}", _share(best["dev"]), fitted, trained])
    second = facts["stage2_set"]
    notes = [
        f"Stage 2 trained on {second['kept']:,} MaybeKnown facts again, {second['upgraded']:,} that stage 1 raised to "
        f"MaybeKnown and {second['replay']:,} HighlyKnown ones as replay."
    ]
    if second["replay"] < second["replay_wanted"]:
        notes.append(f"{second['replay_wanted']:,} facts of replay were wanted; there are no more HighlyKnown ones.")
    for name, arm in facts["arms"].items():
        if arm["dropped"]:
            left_out = ", ".join(f"{n:,} {why}" for why, n in arm["dropped"].items())
            notes.append(f"Left out of {NAMES[name]}: {left_out}.")
        if arm["replay_tokens"]:
            notes.append(f"Replay from the corpus in {NAMES[name]}: {arm['replay_tokens']:,} tokens a pass.")
    series = [
        charts.Series(NAMES[name], STYLE[name], [float(e["epoch"]) for e in arm["epochs"]],
                      [100 * e["dev"] for e in arm["epochs"]])
        for name, arm in facts["arms"].items()
    ]  # fmt: skip
    keys = [(STYLE[name], NAMES[name]) for name in facts["arms"]]
    chart = charts.curves(series, title="Exact match on the dev part by epoch", x_label="epoch", y_label="dev, %")
    columns = ["model", "kept epoch", "dev", "fitted facts", "trained on"]
    head = f"epochs, chosen on {facts['questions']['dev']:,} dev questions"
    return Section("epochs", head, [("The kept epochs", columns, rows)], notes, chart + _legend(keys))


def _categories(facts: dict[str, Any]) -> Section:
    rows = [[NAMES[name], *(numbers.integer(n[c]) for c in CATEGORIES)] for name, n in facts["labels"].items()]
    bars = Markup("").join(
        Markup("<p>{}</p>{}").format(NAMES[name], category_bar(counts)) for name, counts in facts["labels"].items()
    )
    head = f"how well the {facts['questions']['train']:,} facts of the train part are known"
    legend = _legend([(STYLES[c], c) for c in CATEGORIES])
    return Section("categories", head, [("Facts by category", ["model", *CATEGORIES], rows)], [], bars + legend)


def _moves(facts: dict[str, Any]) -> Section:
    moves = facts["transitions"]
    rows = [
        [name, numbers.integer(m["raised"]), numbers.integer(m["lowered"]), numbers.integer(m["to_maybe_known"]),
         f"{m['highly_known'][0]:,} to {m['highly_known'][1]:,}",
         f"{m['forgotten']:,}" + (f" ({_share(m['forgotten_share'])})" if m["forgotten_share"] is not None else "")]
        for name, m in moves.items()
    ]  # fmt: skip
    columns = [
        "",
        "raised",
        "lowered",
        "Weakly/Unknown to MaybeKnown",
        "HighlyKnown",
        "forgotten (HighlyKnown to lower)",
    ]
    tables = [("What moved", columns, rows)]
    for name, m in moves.items():
        matrix = [[one, *(numbers.integer(m["matrix"][one][two]) for two in CATEGORIES)] for one in CATEGORIES]
        tables.append((f"{name}: from (rows) to (columns)", [name, *CATEGORIES], matrix))
    notes = ["Every two classifications that are compared were made with different random prompts."]
    if "control" in moves:
        notes.append(
            f"Control: the untrained model under two draws of prompts. {moves['control']['raised']:,} facts rise and "
            f"{moves['control']['lowered']:,} fall by chance alone; read a stage's moves against that."
        )
    return Section("moves", "what moved between two classifications", tables, notes)


def _law(facts: dict[str, Any]) -> Section:
    fit = facts["law"]
    head = "the linear law of fitted facts (SliCK): dev accuracy = b0 + b1 known + b2 unknown"
    if fit is None:
        return Section("law", head, [], ["Switched off (gradual.law: false)."])
    if fit["refused"] is not None:
        return Section("law", head, [], [f"Not fitted: {fit['refused']}."])
    rows = [["b0, nothing fitted", numbers.level(fit["intercept"], "share")],
            ["b1, all facts fitted and known before", f"{numbers.change(fit['known'], 'share')} points"],
            ["b2, all facts fitted and Unknown before", f"{numbers.change(fit['unknown'], 'share')} points"],
            ["R²", f"{fit['r2']:.2f}"], ["models", numbers.integer(fit["points"])]]  # fmt: skip
    notes = [
        "A point is a model after an epoch; fitted facts are trained ones that it answers, as a share of the train "
        "part. Epochs of one training hang together, so there are no p-values. The paper's coefficients on its own "
        "test set are +7.3 and −8.3 points, R² 0.86."
    ]
    return Section("law", head, [("Least squares", ["", ""], rows)], notes)


def _legend(keys: list[tuple[int, str]]) -> Markup:
    items = Markup("").join(Markup("<li>{}{}</li>").format(charts.legend_marker(style), name) for style, name in keys)
    return Markup('<ul class="legend">{}</ul>').format(items)


def _share(value: float) -> str:
    return numbers.level(value, "share")


def _ci(found: dict[str, float]) -> str:
    return numbers.interval([found["low"], found["high"]], "share", signed=False)
