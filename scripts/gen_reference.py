"""Write docs/reference/recipe.md from the recipe's own types: `python scripts/gen_reference.py [--check]`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pydantic import BaseModel

from regrow.recipe import MARKS, Recipe

OUT = Path(__file__).resolve().parents[1] / "docs/reference/recipe.md"

HEAD = (
    """# The recipe

YAML; `regrow init` writes one with the main keys, `regrow init --all` with every key.
The same keys work on the command line:
`--set train.learning_rate=1e-5`.
Unknown keys are errors. Behind a value stands where it comes from: """
    + MARKS
    + """. This page is made from the code by `scripts/gen_reference.py`.
"""
)


def kind(annotation: object) -> str:
    text = str(annotation) if not isinstance(annotation, type) else annotation.__name__
    for old, new in (("typing.", ""), ("NoneType", "null"), ("None", "null"), ("|", "or")):
        text = text.replace(old, new)
    tail = ""
    if text.startswith("Optional["):
        text, tail = text[len("Optional[") : -1], " or null"
    if text.startswith("Literal["):
        text = text[len("Literal[") : -1].replace("'", "").replace(", ", " or ")
    if text.startswith("Union["):
        text = re.sub(r"Annotated\[(\w+), .*\)\](?=, |$)", r"\1", text[len("Union[") : -1]).replace(", ", " or ")
    return text.replace("Annotated[", "").replace("|", "\\|").split(", FieldInfo")[0] + tail


def default(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"' if value else '""'
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def section(model: BaseModel, path: str, depth: int) -> list[str]:
    lines: list[str] = []
    inner: list[tuple[str, BaseModel]] = []
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            inner.append((f"{path}{name}", value))
            continue
        text = " ".join((info.description or "").split())
        lines += [f"`{path}{name}`", f":   {kind(info.annotation)}, default `{default(value)}`.", f"    {text}", ""]
    for name, value in inner:
        doc = (type(value).__doc__ or "").strip().split("\n\n")[0]
        lines += [f"{'#' * min(depth, 4)} `{name}`", "", " ".join(doc.split()), ""]
        lines += section(value, f"{name}.", depth + 1)
    return lines


def main() -> int:
    text = HEAD + "\n" + "\n".join(section(Recipe(), "", 2)).rstrip() + "\n"
    if "--check" in sys.argv:
        if not OUT.exists() or OUT.read_text(encoding="utf-8") != text:
            print(f"{OUT} is out of date: run python scripts/gen_reference.py", file=sys.stderr)
            return 1
        return 0
    OUT.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
