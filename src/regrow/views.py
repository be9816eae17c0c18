"""How results show themselves in a notebook: small HTML tables in which every text is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

MAX_CHARS = 200


def facts_html(title: str, path: Path, facts: Mapping[str, Any]) -> str:
    """What one step did, as a table of names and values."""
    rows = Markup("").join(
        Markup("<tr><th style='text-align:left'>{}</th><td style='text-align:left'>{}</td></tr>").format(
            name.replace("_", " "), shown(value)
        )
        for name, value in facts.items()
    )
    return str(Markup("<p><strong>{}</strong> <code>{}</code></p><table>{}</table>").format(title, path, rows))


def text_html(text: str) -> str:
    """A table that was made for a terminal."""
    return str(Markup("<pre>{}</pre>").format(text))


def shown(value: Any) -> str:
    """A value for a reader: thousands separated, four digits of a fraction, at most `MAX_CHARS` characters."""
    if isinstance(value, bool) or value is None:
        text = str(value)
    elif isinstance(value, int):
        text = f"{value:,}"
    elif isinstance(value, float):
        text = f"{value:,.4g}"
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 1] + "…"


def in_words(value: Any) -> str:
    """A value for a terminal: as `shown`, with names and values of a mapping one after the other."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {in_words(inner)}" for key, inner in value.items())
    return shown(value)


class Evaluation(dict[str, Any]):
    """``eval/results.json`` as a dict, shown as the head of its report.

    Attributes:
        path: The folder of the evaluation, with its ``report.html``.
    """

    def __init__(self, results: Mapping[str, Any], path: Path) -> None:
        super().__init__(results)
        self.path = path

    def _repr_html_(self) -> str:
        from regrow.report.build import load_report

        return load_report(self.path)._repr_html_()


class Sequence(dict[str, Any]):
    """``continual.json`` as a dict, shown as its matrix and metrics.

    Attributes:
        path: The folder of the evaluation.
    """

    def __init__(self, results: Mapping[str, Any], path: Path) -> None:
        super().__init__(results)
        self.path = path

    def _repr_html_(self) -> str:
        from regrow.evaluate.continual import sequence_text

        return text_html(sequence_text(dict(self)))
