"""The model card: what was trained, on what, and what it cost in old abilities."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def escape(text: object) -> str:
    """Any value as plain one-line Markdown: nothing of it becomes markup, HTML or a table cell's end."""
    flat = " ".join(str(text).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", flat)


def write_model_card(folder: str | Path, facts: Mapping[str, Any]) -> Path:
    """Write ``README.md`` with the YAML header of the Hugging Face hub into a model folder.

    Args:
        folder: The model's folder.
        facts: All optional. ``base_model`` (name), ``origin`` (``hub`` when that is its name there), ``license``,
            ``language`` (str or list), ``datasets`` (list of hub names), ``arm``, ``summary`` (one sentence);
            ``replay``, ``gain``, ``forgetting``, ``training``, ``versions`` (mappings or lists of mappings, shown as
            tables; a number may be a mapping with ``value`` (or ``mean``), ``low`` and ``high``, the 95 % interval);
            ``recipe`` (YAML text). Other keys are shown at the end.

    Returns:
        The path of the card.
    """
    import yaml

    from regrow import __version__
    from regrow.rows.writers import atomic_write_text

    base = str(facts.get("base_model") or "")
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["regrow", "replay"],
    }
    if facts.get("origin") == "hub":  # a local folder may have the name of somebody's model there
        header["base_model"] = base
    for key in ("license", "language", "datasets"):
        if facts.get(key):
            header[key] = facts[key]
    title = f"{escape(base or 'A model')}, fine-tuned" + (f" ({escape(facts['arm'])})" if facts.get("arm") else "")
    parts = [f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---", f"# {title}"]
    if facts.get("summary"):
        parts.append(escape(facts["summary"]))
    mixed = "new data only"
    if replay := facts.get("replay"):
        mixed = "new data mixed with replay data that the base model wrote itself"
        if "general data" in replay:
            mixed = "new data mixed with general data of whoever trained it"
        if str(replay.get("engine", "")).startswith("dummy"):
            mixed = "new data mixed with random words of the dummy engine, which protect nothing (a trial run)"
    parts.append(f"Trained with Regrow {__version__}: {mixed}.")
    done = {"base_model", "origin", "license", "language", "datasets", "arm", "summary", "recipe"}
    for key, heading in SECTIONS.items():
        done.add(key)
        if facts.get(key):
            parts += [f"## {heading}", _shown(facts[key])]
    if facts.get("recipe"):
        parts += ["## Recipe", _fenced(str(facts["recipe"]), "yaml")]
    rest = {key: value for key, value in facts.items() if key not in done and value not in (None, "", [], {})}
    if rest:
        parts += ["## Further facts", _shown(rest)]
    path = Path(folder) / "README.md"
    atomic_write_text(path, "\n\n".join(parts) + "\n")
    return path


SECTIONS = {
    "replay": "Replay corpus",
    "gain": "Gain on the new data",
    "forgetting": "Forgetting",
    "training": "Training",
    "versions": "Versions",
}


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        rows = [(escape(key), _cell(entry)) for key, entry in value.items()]
        return _table(("what", "value"), rows)
    if (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and value
        and all(isinstance(v, Mapping) for v in value)
    ):
        columns = list(dict.fromkeys(key for row in value for key in row))
        return _table([escape(c) for c in columns], [[_cell(row.get(c, "")) for c in columns] for row in value])
    return _cell(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    """A value on one line; a mapping with an interval becomes ``0.12 [0.05, 0.19]``."""
    if isinstance(value, Mapping):
        middle = value.get("value", value.get("mean"))
        low, high = value.get("low"), value.get("high")
        if middle is not None and low is not None and high is not None:
            # Numbers only: nothing in them needs escaping, and the brackets stand for the interval.
            return f"{_number(middle)} [{_number(low)}, {_number(high)}]"
        return ", ".join(f"{escape(key)}: {_cell(entry)}" for key, entry in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_cell(entry) for entry in value)
    return _number(value)


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape(value)
