"""What the probes found, as tables for the terminal and as one page; reads the JSON files that they left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from regrow.errors import RunError
from regrow.report import charts, numbers
from regrow.runs import read_manifest

FILES = {"domains": "domains/domains.json", "mastery": "mastery/mastery.json", "min-k": "min-k/min_k.json",
         "skills": "skills/skills.json"}  # fmt: skip
CATEGORIES = ("HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown")
MEANING = {
    "HighlyKnown": "right in every few-shot prompt",
    "MaybeKnown": "right in some prompts",
    "WeaklyKnown": "right only when sampled",
    "Unknown": "never right",
}
SCORES = {
    "min_k": "Min-K%",
    "min_k_plus": "Min-K%++",
    "loss": "loss (its negative)",
    "zlib": "loss / zlib bytes",
    "lowercase": "lower-cased loss / loss",
    "reference": "reference's loss - loss",
}
Rows = list[list[str]]
Table = tuple[str, list[str], Rows]
"""Title, columns, rows."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page."""

    id: str
    head: str
    tables: list[Table]
    notes: list[str]
    chart: Markup | None = None

    def text(self) -> str:
        """For the terminal, without the chart."""
        return "\n\n".join([self.head, *(plain_table(columns, rows) for _, columns, rows in self.tables), *self.notes])


def text_table(probe: str, facts: dict[str, Any]) -> str:
    """A probe's result for the terminal.

    Args:
        probe: ``domains``, ``mastery``, ``min-k`` or ``skills``.
        facts: What stands in its JSON file.
    """
    return Section(probe, *_VIEWS[probe](facts)).text()


def build_page(run: Path, out: Path, *, confidence: float) -> Path:
    """Write the page over all probes of a run folder; returns its path.

    Raises:
        RunError: The folder has no manifest, or a probe's file is damaged.
    """
    manifest = read_manifest(run)
    sections = []
    for probe, file in FILES.items():
        path = run / file
        if manifest["stages"].get(probe, {}).get("status") != "done" or not path.is_file():
            continue
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            head, tables, notes = _VIEWS[probe](facts)
            chart = _CHARTS[probe](facts) if probe in _CHARTS else None
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"the file is damaged: {error!r}", where=str(path), hint="probe again") from error
        sections.append(Section(probe, head, tables, notes, chart))
    name = (manifest.get("model") or {}).get("name", "")
    return write_page(sections, manifest, out, title=f"What {name} knows", confidence=confidence)


def write_page(
    sections: Sequence[Section], manifest: dict[str, Any], out: Path, *, title: str, confidence: float
) -> Path:
    """Write a page of sections, each with its chart, tables and notes, in one file without scripts.

    Args:
        sections: In order.
        manifest: Of the run: model and versions.
        out: The file.
        title: Of the page.
        confidence: Level of the intervals.
    """
    from regrow.rows.writers import atomic_path

    env = Environment(autoescape=True, undefined=StrictUndefined)
    page = env.from_string(_asset("probes.html.j2")).render(
        sections=sections, title=title, model=(manifest.get("model") or {}).get("name", ""),
        confidence=f"{confidence:.0%}", versions=manifest.get("versions") or {},
        css=Markup(_asset("style.css")),  # noqa: S704 - a file of this package
    )  # fmt: skip
    with atomic_path(out) as tmp:
        tmp.write_bytes(page.encode("utf-8", "replace"))
    return out


def _asset(name: str) -> str:
    return resources.files("regrow.report").joinpath(name).read_text(encoding="utf-8")


def plain_table(columns: Sequence[str], rows: Rows) -> str:
    """A table for the terminal."""
    from io import StringIO

    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    file = StringIO()
    Console(file=file, width=140, color_system=None, force_terminal=False, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())


View = tuple[str, list[Table], list[str]]


def _mastery(facts: dict[str, Any]) -> View:
    rows = [
        [c, numbers.integer(facts["counts"][c]), numbers.level(facts["shares"][c], "share"),
         numbers.interval(facts["intervals"][c], "share", signed=False), MEANING[c]]
        for c in CATEGORIES
    ]  # fmt: skip
    tables = [("How well the facts are known", ["category", "questions", "share", "interval", ""], rows)]
    if facts["relations"]:
        by = [
            [name, *(numbers.integer(n[c]) for c in CATEGORIES)] for name, n in facts["relations"].items()
        ]  # fmt: skip
        tables.append(("By relation", ["relation", *CATEGORIES], by))
    known = f"{facts['accuracy'] * 100:.1f} % of the greedy answers are right"
    how = f"{facts['prompts']} prompts of {facts['shots']} shots a question, {facts['samples']} samples a prompt"
    head = f"mastery of {facts['questions']:,} facts (SliCK): {known}"
    return head, tables, [f"{how}; {facts['answers']:,} answers in all."]


def _domains(facts: dict[str, Any]) -> View:
    rows = []
    order = sorted(facts["shares"], key=lambda d: -facts["shares"][d]["share"])
    for d in order:
        s = facts["shares"][d]
        ci = numbers.interval([s["low"], s["high"]], "share", signed=False)
        each = " ".join(numbers.level(r[d], "share") for r in facts["repeats"])
        rows.append(
            [d, numbers.level(s["share"], "share"), ci, each, numbers.level(s["soft"], "share"),
             numbers.level(s["hard"], "share")]
        )  # fmt: skip
    judge = facts["judge"]
    found = [
        [label, numbers.level(judge["recall"][label], "share"), *(numbers.integer(row[d]) for d in judge["recall"])]
        for label, row in judge["confusion"].items()
    ]
    tables = [
        ("Shares of the model's own text", ["domain", "share", "interval", "each repetition", "soft", "hard"], rows),
        ("The judge on held-out labelled texts", ["label", "found", *judge["recall"]], found),
    ]
    worth = (
        f"The judge names {numbers.level(judge['accuracy'], 'share')} of {judge['tested']:,} held-out labelled texts "
        f"right (always naming the most frequent: {numbers.level(judge['majority'], 'share')}; loss "
        f"{judge['loss']:.2f} nats); it learned from {judge['trained']:,}. Its mistakes are in the shares, not in "
        "their intervals."
    )
    left = f"{facts['texts']:,} texts judged, {facts['empty']:,} empty ones left out, {facts['cut']:,} cut at the cap."
    head = f"domains: what the model says when it starts from {facts['start']!r} ({facts['labels']} labels)"
    return head, tables, [worth, left]


def _min_k(facts: dict[str, Any]) -> View:
    told = facts["separation"]
    columns = ["score", "mean"]
    if told:
        columns += ["control", "AUC", "interval", "best accuracy", f"found at {facts['fpr']:.0%} false"]
    rows = []
    for name, means in facts["means"].items():
        row = [SCORES[name], f"{means['data']:.4g}"]
        if told:
            s = told[name]
            row += [f"{means['control']:.4g}", f"{s['auc']:.3f}", f"[{s['low']:.3f}, {s['high']:.3f}]",
                    numbers.level(s["best_accuracy"], "share"), numbers.level(s["tpr"], "share")]  # fmt: skip
        rows.append(row)
    head = f"min-k: {facts['texts']:,} texts, K = {facts['k']:.0%}; higher means more likely seen"
    notes = []
    if facts["threshold"] is None:
        notes.append(
            "Without control texts a score is not evidence: give texts of the same kind and length that the model "
            "cannot have seen (--control)."
        )
    else:
        notes.append(
            f"{facts['flagged']:,} of {facts['texts']:,} texts lie above the control texts' threshold "
            f"({facts['threshold']:.4g} on Min-K%). AUC 0.5: the score sees no difference."
        )
    notes.append(f"Longest run of tokens that are the model's first choice: {facts['recited']:,}.")
    if facts["cut"] or facts["skipped"]:
        notes.append(f"{facts['cut']:,} texts were cut, {facts['skipped']:,} were too short to score.")
    return head, [("Scores", columns, rows)], notes


def _skills(facts: dict[str, Any]) -> View:
    names = facts["skills"]
    graph = [[i, *(numbers.level(facts["graph"][i][j], "share") if facts["graph"][i][j] else "0" for j in names)]
             for i in names]  # fmt: skip
    losses = [["before", *(f"{facts['before'][j]:.3f}" for j in names)]]
    losses += [[f"after {i}", *(f"{facts['after'][i][j]:.3f}" for j in names)] for i in names]
    tables = [
        ("How much training on a row's skill lowers the loss of a column's", ["trained on", *names], graph),
        ("Loss on held-out rows, nats a token", ["", *names], losses),
    ]
    edges = sum(facts["graph"][i][j] > 0 for i in names for j in names if i != j)
    notes = [
        f"{edges} of {len(names) * (len(names) - 1)} edges between different skills. One training of {facts['steps']} "
        "steps a skill and no intervals: another seed moves small drops.",
        "To train with the graph: --recipe skills/graph.yaml of this folder.",
    ]
    if facts["diagnosis"]:
        notes.append(f"Of no use as it is: {facts['diagnosis']}.")
    return f"skills: what training on one of {len(names)} helps the others (Skill-It)", tables, notes


STYLES = dict(zip(CATEGORIES, (4, 2, 5, 1), strict=True))


def category_bar(counts: dict[str, int]) -> Markup:
    """The categories of a classification as one bar."""
    parts = [(f"{c}: {counts[c]:,}", float(counts[c]), f"mark a{STYLES[c]}") for c in CATEGORIES]
    return charts.stacked(parts, title="; ".join(label for label, _, _ in parts))


def _mastery_chart(facts: dict[str, Any]) -> Markup:
    keys = Markup("").join(
        Markup("<li>{}{} {}</li>").format(
            charts.legend_marker(STYLES[c]), c, numbers.level(facts["shares"][c], "share")
        )
        for c in CATEGORIES
    )
    return category_bar(facts["counts"]) + Markup('<ul class="legend">{}</ul>').format(keys)


def _domains_chart(facts: dict[str, Any]) -> Markup:
    rows = Markup("")
    for d in sorted(facts["shares"], key=lambda d: -facts["shares"][d]["share"]):
        share = facts["shares"][d]["share"]
        rows += Markup(
            '<li><div class="what"><span>{}</span></div><div class="bar-row a2"><div class="track">'
            '<div class="fill" style="width:{:.2f}%"></div></div><span class="num">{}</span></div></li>'
        ).format(d, share * 100, numbers.level(share, "share"))
    return Markup('<ul class="domains">{}</ul>').format(rows)


_VIEWS = {"mastery": _mastery, "domains": _domains, "min-k": _min_k, "skills": _skills}
_CHARTS = {"mastery": _mastery_chart, "domains": _domains_chart}
