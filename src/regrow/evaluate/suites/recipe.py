"""A suite out of a few lines of YAML: scenario x instruction x inferencer x metric, as in ChEF (arXiv 2311.02692).

```yaml
scenario: capitals.jsonl
instruction:
  template: "Answer with one word. {question}"
  examples: 2
inferencer: generate
metric: exact_match
```

What ChEF calls the scenario is a local file of items, the instruction is how they are put to the model (with examples
in the context), the inferencer how its answer is taken, the metric how that is judged. Of ChEF's inferencers these are
*PPL* (``likelihood``) and *Direct* (``generate``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from regrow.errors import DataError
from regrow.evaluate.items import Item
from regrow.evaluate.suites.local import check_name, read_local
from regrow.rows.row import Message
from regrow.section import Section


class Instruction(Section):
    """How an item is put to the model."""

    template: str = "{question}"
    """Text around the last question; ``{question}`` has to occur."""
    system: str = ""
    """A system message before everything."""
    examples: int = Field(0, ge=0)
    """That many items from the beginning of the file are shown with their answers first, and not asked."""
    opening: str = ""
    """What the model's answer starts with."""

    @field_validator("template")
    @classmethod
    def _asks(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError("the template needs {question}")
        return value


class SuiteRecipe(Section):
    """The YAML file."""

    scenario: str = Field(min_length=1)
    """A file of items as for ``file:``; a relative path is one beside the YAML file."""
    limit: int | None = Field(None, ge=1)
    """Ask only the first items."""
    instruction: Instruction = Instruction()
    inferencer: Literal["likelihood", "generate"] = "likelihood"
    """``likelihood`` compares choices, or checks whether greedy decoding would write the answer; ``generate`` really
    writes one, for every item, and shows choices numbered in the question."""
    max_new_tokens: int = Field(32, ge=1)
    """Longest generated answer."""
    metric: Literal["acc", "exact_match", "contains", "rouge_l"] = "acc"
    """``acc`` for ``likelihood``; for ``generate`` the others: the first line says the answer, the answer occurs in
    the text, or the overlap with it."""

    @model_validator(mode="after")
    def _fits(self) -> SuiteRecipe:
        if (self.metric == "acc") != (self.inferencer == "likelihood"):
            raise ValueError(
                "metric acc goes with inferencer likelihood; exact_match, contains and rouge_l go with generate"
            )
        return self


def read_recipe(path: str | Path) -> list[Item]:
    """Items of the suite that a YAML file describes; the suite is named after the file.

    Raises:
        DataError: The file or its scenario cannot be read, a key is unknown or wrong; names file and key.
    """
    path = Path(path)
    check_name(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        recipe = SuiteRecipe.model_validate(data)
    except OSError as error:
        raise DataError(error.strerror or str(error), where=str(path), hint="Check evaluate.suites.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(p) for p in first["loc"]) or "the file"
        raise DataError(f"{key}: {first['msg'].removeprefix('Value error, ')}", where=str(path)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"not valid YAML: {error}", where=str(path)) from error
    scenario = Path(recipe.scenario)
    items = read_local(scenario if scenario.is_absolute() else path.parent / scenario)
    shown = recipe.instruction.examples
    if len(items) <= shown:
        raise DataError(f"{shown} examples leave none of {len(items)} items to ask", where=str(path))
    head: list[Message] = (
        [{"role": "system", "content": recipe.instruction.system}] if recipe.instruction.system else []
    )
    for item in items[:shown]:
        head += [*_asked(item, recipe, path), {"role": "assistant", "content": _right(item, recipe)}]
    asked = items[shown:][: recipe.limit]
    return [_item(i, recipe, head, path) for i in asked]


def _item(item: Item, recipe: SuiteRecipe, head: list[Message], path: Path) -> Item:
    messages = [*head, *_asked(item, recipe, path)]
    if recipe.instruction.opening:
        messages.append({"role": "assistant", "content": recipe.instruction.opening})
    if recipe.inferencer == "likelihood":
        return replace(item, suite=path.stem, messages=messages)
    answers = item.answers
    if item.kind == "choice":
        n, text = item.answer_index + 1, item.choices[item.answer_index]
        answers = [f"{n}. {text}", text, str(n)]
    meta = {"generate": {"max_new_tokens": recipe.max_new_tokens, "metric": recipe.metric}}
    return Item(item.id, path.stem, item.domain, "answer", messages, answers=answers, meta=meta)


def _asked(item: Item, recipe: SuiteRecipe, path: Path) -> list[Message]:
    """The messages of an item with its last question inside the template."""
    if item.messages[-1]["role"] != "user":
        raise DataError(f"item '{item.id}' does not end with a question", where=str(path),
                        hint="Give the answer's beginning as instruction.opening.")  # fmt: skip
    question = str(item.messages[-1]["content"])
    if recipe.inferencer == "generate" and item.kind == "choice":
        # Numbers and not letters: the comparison drops articles, and "A" would be one.
        question += "".join(f"\n{k}. {choice}" for k, choice in enumerate(item.choices, 1))
    text = recipe.instruction.template.replace("{question}", question)
    return [*item.messages[:-1], {"role": "user", "content": text}]


def _right(item: Item, recipe: SuiteRecipe) -> str:
    if item.kind != "choice":
        return item.answers[0]
    text = item.choices[item.answer_index]
    return f"{item.answer_index + 1}. {text}" if recipe.inferencer == "generate" else text
