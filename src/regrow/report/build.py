"""The report: one self-contained HTML page, a compact view for notebooks, a table for the terminal."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from regrow.report import charts, numbers, sections, sweep
from regrow.report.corpus_view import CorpusView, load_corpus
from regrow.report.gaps import gaps
from regrow.report.items_view import OUTCOME_HELP, OUTCOMES, PLAIN_LIST, ItemsView, load_items
from regrow.report.load import RunData, arm_name, load_run
from regrow.report.lost_view import lost_topics
from regrow.report.mixture import mixture

TONES = {"lost": "bad", "saved": "good", "kept": "", "won": "good", "never": ""}


@dataclass(frozen=True, slots=True)
class Report:
    """A run as a reader sees it. Shows itself in notebooks; ``text_table()`` is for terminals."""

    run: RunData

    def html(self) -> str:
        """The whole page.

        Raises:
            RunError: A file of the corpus is damaged.
        """
        return _render(self.run, load_items(self.run), load_corpus(self.run))

    def save(self, out: str | Path) -> Path:
        """Write the page atomically; returns its path."""
        from regrow.rows.writers import atomic_path

        out = Path(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(out) as tmp:
            # Lone surrogates can stand in model output that came through JSON escapes; UTF-8 cannot carry them.
            tmp.write_bytes(self.html().encode("utf-8", "replace"))
        return out

    def text_table(self) -> str:
        """The verdict, the headline numbers of each arm with intervals, and the notes behind it, as plain text."""
        from io import StringIO

        from rich.box import SIMPLE
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        told = sections.verdict(self.run)
        rows = sections.headline(self.run)
        if not rows:
            return "\n".join([told["sentence"], *self.run.notes])
        columns = ("", "learned on your data", "change on what it knew", "own words moved (nats)", "kept", "won back")
        table = Table(*columns, box=SIMPLE, show_edge=False, pad_edge=False)
        for row in rows:
            gain, change = (
                " ".join(x for x in (c["value"], c["unit"], c["ci"], "(not significant)" * bool(c["word"])) if x)
                for c in (row["gain"], row["change"])
            )
            own = " ".join(x for x in (row["own"]["value"], row["own"]["ci"]) if x)
            kept = " ".join(x for x in (row["retention"], row["retention_ci"]) if x)
            back = " ".join(x for x in (row["recovery"], row["recovery_ci"]) if x)
            table.add_row(*(Text(x) for x in (arm_name(row["arm"]), gain, change, own, kept, back)))
        console = Console(file=StringIO(), width=160, color_system=None, force_terminal=False, legacy_windows=False)
        console.print(table)
        body = "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())  # type: ignore[attr-defined]
        notes = "".join(f"- {n}\n" for n in told["notes"])
        ratios = "\n".join(sweep.text(self.run))
        pilot = sections.pilot(self.run)
        notes += "".join(f"- pilot: {reason}\n" for reason in (pilot or {"why": []})["why"])
        return f"{told['word']}: {told['sentence']}\n\n{body}\n\n{notes}" + (f"\n{ratios}\n" if ratios else "")

    def _repr_html_(self) -> str:
        told = sections.verdict(self.run)
        head = "".join(
            f"<th style='text-align:left'>{h}</th>"
            for h in ("", "Learned on your data", "Change on what it knew", "Own words moved by", "Kept", "Won back")
        )
        body = Markup("")
        for row in sections.headline(self.run):
            cells = Markup("")
            for c in (row["gain"], row["change"], row["own"]):
                cells += Markup("<td style='text-align:left'>{} {} <small>{}</small></td>").format(
                    c["value"], c["unit"], c["ci"]
                )
            for value, ci in ((row["retention"], row["retention_ci"]), (row["recovery"], row["recovery_ci"])):
                cells += Markup("<td style='text-align:left'>{} <small>{}</small></td>").format(value, ci)
            body += Markup("<tr><th style='text-align:left'>{}</th>{}</tr>").format(arm_name(row["arm"]), cells)
        table = Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(Markup(head), body)  # noqa: S704
        sentence = Markup("<p><strong>{}</strong> {}</p>").format(told["word"] + ":", told["sentence"])
        return str(sentence + (table if body else Markup("")) + _list(self.run.notes))


def kept_title(run: RunData) -> str:
    """What the share that was kept is a share of."""
    return "Of the facts it knew, remain" if sections.measured_on(run, "remaining") else "Kept of the base’s score"


def _list(notes: list[str]) -> Markup:
    if not notes:
        return Markup("")
    return Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}</li>").format(n) for n in notes))


def load_report(run_dir: str | Path) -> Report:
    """Read a run directory, finished or not.

    Raises:
        RunError: The folder holds nothing of a run, or a file in it is damaged.
    """
    return Report(load_run(run_dir))


def build_report(run_dir: str | Path, out: str | Path) -> Path:
    """Write the report page of a run; reads only files of ``run_dir``.

    Args:
        run_dir: The run directory. Whatever is missing in it is said on the page.
        out: The HTML file to write.

    Raises:
        RunError: The folder holds nothing of a run, or a file in it is damaged.
    """
    return load_report(run_dir).save(out)


def json_for_html(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in, nor open a comment in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)  # noqa: S704 - every character that HTML could read as markup is gone


@lru_cache
def _asset(name: str) -> str:
    return resources.files("regrow.report").joinpath(name).read_text(encoding="utf-8")


def _version() -> str:
    try:
        return metadata.version("regrow")
    except metadata.PackageNotFoundError:
        return "from source"


def _render(run: RunData, items: ItemsView, corpus: CorpusView | None) -> str:
    style = sections.styles(run)
    script = _asset("page.js")
    ratios = sweep.sweep(run)
    shown: dict[str, Any] = {
        "pilot": sections.pilot(run),
        "sweep": ratios,
        "tradeoff": None if ratios and ratios["chart"] else sections.tradeoff(run),
        "headline": sections.headline(run),
        "suites": sections.suite_rows(run),
        "domains": sections.domain_charts(run),
        "lost": lost_topics(run),
        "items": items,
        "corpus": corpus,
        "mixture": mixture(run),
        "curves": sections.training_curves(run),
        "gaps": gaps(run),
        "cost": sections.cost(run),
        "environment": sections.environment(run),
        "recipe": run.recipe,
    }
    data = {
        "arms": [{"name": arm_name(a), "style": style[a] % len(charts.SHAPES)} for a in items.arms],
        "outcomes": OUTCOMES,
        "tones": TONES,
        "items": [item.to_json() for item in items.items],
        "tree": [
            [t.topic, t.n_nodes, t.n_kept, [n.to_json() for n in t.roots], t.hidden]
            for t in (corpus.trees if corpus else [])
        ],
    }
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    page = env.from_string(_asset("template.html.j2"))
    return page.render(
        **shown,
        toc=_toc(shown),
        verdict=sections.verdict(run),
        notes=run.notes,
        subject=_subject(run),
        run_name=run.path.resolve().name,
        arms=run.arms,
        trained=run.arms[1:],
        main=run.main_arm,
        logged=list(run.logs),
        plain_items=items.items[:PLAIN_LIST],
        item_domains=sorted({i.domain for i in items.items if i.domain}),
        outcomes=OUTCOMES,
        outcome_help=OUTCOME_HELP,
        tones=TONES,
        on_gain=sections.measured_on(run, "gain"),
        on_forgetting=sections.measured_on(run, "forgetting"),
        on_remaining=sections.measured_on(run, "remaining"),
        kept_title=kept_title(run),
        own_words=any(row["own"]["value"] != "–" for row in shown["headline"]),
        confidence=sections.confidence(run),
        corpus_folder=run.corpus_dir.name if run.corpus_dir else "",
        command=_command(run),
        style=style,
        version=_version(),
        arm_name=arm_name,
        key=charts.legend_marker,
        integer=numbers.integer,
        share=numbers.share,
        css=Markup(_asset("style.css")),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704 - a file of this package
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=json_for_html(data),
    )


def _toc(shown: dict[str, Any]) -> list[tuple[str, str]]:
    parts = [
        ("pilot", "Chosen by a pilot", shown["pilot"]),
        ("sweep", "Replay ratios", shown["sweep"]),
        ("result", "Learned against kept", shown["tradeoff"] or shown["headline"]),
        ("suites", "Every suite", shown["suites"]),
        ("domains", "By domain", shown["domains"]),
        ("lost", "What was lost", shown["lost"]),
        ("items", "Question by question", shown["items"].total),
        ("corpus", "The corpus", shown["corpus"]),
        ("mixture", "The mixture", shown["mixture"]),
        ("training", "Training", shown["curves"]),
        ("cost", "Cost", shown["cost"]),
        ("again", "Make it again", True),
    ]
    return [("verdict", "Verdict"), *((id_, title) for id_, title, there in parts if there)]


def _subject(run: RunData) -> str:
    """One line on what this run was: model, data, sizes."""
    model = (run.manifest.get("model") or {}).get("name")
    facts = run.stage("data").get("facts") or {}
    parts = []
    if model:
        parts.append(f"{model}, fine-tuned")
    if numbers.is_number(facts.get("train")):
        parts.append(f"on {numbers.integer(facts['train'])} rows")
        if numbers.is_number(facts.get("heldout")):
            parts.append(f"with {numbers.integer(facts['heldout'])} held out")
    return (" ".join(parts) + ".") if parts else ""


def _command(run: RunData) -> str:
    version = (run.manifest.get("versions") or {}).get("regrow")
    recipe = shlex.quote(str(Path(run.path.resolve().name) / "recipe.yaml"))
    return (f"# with Regrow {version}\n" if version else "") + f"regrow run {recipe} -o again"
