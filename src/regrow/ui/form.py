"""The recipe as a form: its fields out of the types that read it, what was typed back into a checked recipe."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from regrow.errors import RecipeError
from regrow.recipe import Recipe, read_value

TERMINAL_ONLY = {
    "model.trust_remote_code": "runs code that comes with a model",
    "grow.serve.python": "names a program",
    "grow.serve.binary": "names a program",
    "grow.serve.arguments": "goes to a program's command line",
    "evaluate.lm_eval_include_path": "names a folder of task files, which may hold code",
    "train.launch.config_file": "names a file that starts programs",
    "train.launch.accelerate": "goes to what starts the processes",
    "train.trainer_args": "may name any folder to write to",
    "train.report_to": "lets a tracker write outside the folder of runs",
}
"""Keys that the page may not set, and why: what they name is run, or written outside the folder of runs."""
FIRST = (
    "model.model_name_or_path", "data.path", "compare", "seed", "mix.replay_ratio", "train.method",
    "train.num_train_epochs", "train.learning_rate", "train.per_device_train_batch_size", "grow.engine",
)  # fmt: skip
"""What most runs set; stands above everything else."""
IMPLEMENTATION = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Field:
    """One input of the form.

    Attributes:
        key: ``train.learning_rate``.
        kind: ``bool``, ``choice``, ``int``, ``float``, ``text`` and ``long`` (taken as they are, the latter with its
            line ends), or ``yaml`` (lists, tables, unions).
        choices: Of a ``choice``.
        default: As text; what an empty input stands for.
        help: What the key does.
        least, most: Bounds of a number, as text with their kind: ``> 0``, ``≤ 1``.
        first: Whether it stands above the sections.
        locked: Why only the command line may set it, else None.
    """

    key: str
    kind: str
    choices: list[str]
    default: str
    help: str
    least: str
    most: str
    first: bool
    locked: str | None


def form() -> dict[str, Any]:
    """All sections with their fields, in the recipe's order."""
    sections: list[dict[str, Any]] = []
    _collect(Recipe(), "", "", sections)
    return {"sections": [{**s, "fields": [asdict(f) for f in s["fields"]]} for s in sections if s["fields"]]}


def _collect(section: BaseModel, prefix: str, help_: str, out: list[dict[str, Any]]) -> None:
    here: dict[str, Any] = {"name": prefix.rstrip("."), "help": help_, "fields": []}
    out.append(here)
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            doc = " ".join((type(value).__doc__ or "").strip().split("\n\n")[0].split())
            _collect(value, f"{prefix}{name}.", doc, out)
        else:
            here["fields"].append(_field(f"{prefix}{name}", info, value))


def _field(key: str, info: FieldInfo, value: Any) -> Field:
    kind, choices = _kind(info.annotation)
    if kind == "text" and isinstance(value, str) and "\n" in value:
        kind = "long"
    bounds = _bounds(info)
    return Field(
        key=key,
        kind=kind,
        choices=choices,
        default=_text(value, kind),
        help=" ".join((info.description or "").split()),
        least=bounds[0],
        most=bounds[1],
        first=key in FIRST,
        locked=TERMINAL_ONLY.get(key),
    )


def _kind(annotation: Any) -> tuple[str, list[str]]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _kind(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        return _kind(inner[0]) if len(inner) == 1 else ("yaml", [])
    if typing.get_origin(annotation) is typing.Literal:
        return "choice", [str(c) for c in typing.get_args(annotation)]
    kinds: dict[Any, str] = {bool: "bool", int: "int", float: "float", str: "text"}
    return kinds.get(annotation, "yaml"), []


def _bounds(info: FieldInfo) -> tuple[str, str]:
    least = most = ""
    for rule in info.metadata:
        if isinstance(rule, Ge):
            least = f"≥ {rule.ge:g}"
        elif isinstance(rule, Gt):
            least = f"> {rule.gt:g}"
        elif isinstance(rule, Le):
            most = f"≤ {rule.le:g}"
        elif isinstance(rule, Lt):
            most = f"< {rule.lt:g}"
    return least, most


def _text(value: Any, kind: str) -> str:
    """A value as one would type it."""
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, str) and kind != "yaml":
        return value
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("\n...\n").strip()
    )


def typed(recipe: Recipe) -> dict[str, str]:
    """The keys in which a recipe differs from the defaults, as one would type them into the form."""
    kinds = {f["key"]: f["kind"] for s in form()["sections"] for f in s["fields"]}
    mine, standard = _leaves(recipe), _leaves(Recipe())
    return {k: _text(v, kinds[k]) for k, v in mine.items() if k in kinds and v != standard.get(k)}


def _leaves(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        out |= _leaves(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {f"{prefix}{name}": value}
    return out


def check(values: Mapping[str, str]) -> tuple[Recipe | None, dict[str, str]]:
    """What was typed, as a recipe, or what is wrong with it.

    Args:
        values: Key -> what was typed. An empty text is the default.

    Returns:
        The recipe, or None; and key -> what is wrong with it, where ``""`` stands for no key in particular.
    """
    known = {f["key"]: f["kind"] for s in form()["sections"] for f in s["fields"]}
    problems: dict[str, str] = {}
    nested: dict[str, Any] = {}
    for key, text in values.items():
        if key not in known:
            problems[key] = "there is no such key"
            continue
        if not text.strip():
            continue
        try:
            value = _value(text, known[key])
        except RecipeError as error:
            problems[key] = error.message
            continue
        spot = nested
        *sections, name = key.split(".")
        for section in sections:
            spot = spot.setdefault(section, {})
        spot[name] = value
    recipe = None
    try:
        recipe = Recipe.model_validate(nested)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            key = _key(found["loc"], known)
            problems.setdefault(key, _message(found, named=bool(key)))
    if recipe is not None:
        problems |= {k: v for k, v in refused(recipe).items() if k not in problems}
    if not values.get("data.path", "").strip():
        problems.setdefault("data.path", "say which data: a file, a folder, a hub name, or `demo`")
    return (None, problems) if problems or recipe is None else (recipe, {})


def _value(text: str, kind: str) -> Any:
    if kind == "long":
        return text
    return text.strip() if kind in ("text", "choice") else read_value(text)


def _key(loc: tuple[int | str, ...], known: Mapping[str, str]) -> str:
    """The input that an error belongs to: the longest known key that begins its place."""
    parts = [str(p) for p in loc]
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in known:
            return ".".join(parts[:n])
    return ""


def _message(found: Any, *, named: bool) -> str:
    text = str(found["msg"]).removeprefix("Value error, ")
    where = "" if named else ".".join(str(p) for p in found["loc"])
    return f"{where}: {text}" if where else text


def refused(recipe: Recipe) -> dict[str, str]:
    """Keys of a recipe that a page may not run with, and why: it may not name code, or places to write to."""
    mine, standard = _leaves(recipe), _leaves(Recipe())
    out = {
        key: f"can only be set on the command line: it {why}"
        for key, why in TERMINAL_ONLY.items()
        if mine[key] != standard[key]
    }
    attention = mine["train.attn_implementation"]
    if attention is not None and not IMPLEMENTATION.fullmatch(attention):
        out["train.attn_implementation"] = "can only be a plain name here: other names load code from the hub"
    return out
