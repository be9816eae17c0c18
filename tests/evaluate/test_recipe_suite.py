"""Suites out of a few lines of YAML: every key changes what is asked or judged, mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from regrow.errors import DataError
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import Item
from regrow.evaluate.rouge import contains
from regrow.evaluate.stage import build_suites, evaluate
from regrow.evaluate.suites.recipe import read_recipe
from regrow.models.load import resolve_model
from tests.evaluate.models import perturbed

CHOICES = [{"question": f"Colour {k}?", "choices": ["red", "a rose"], "answer": 1} for k in range(5)]
ANSWERS = [{"question": f"Capital {k}?", "answers": ["Rome", "Roma"], "id": f"c{k}"} for k in range(5)]


def suite(folder: Path, rows: list[dict], **keys) -> list[Item]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "mine.yaml").write_text(yaml.safe_dump({"scenario": "rows.jsonl", **keys}))
    return read_recipe(folder / "mine.yaml")


def test_the_least_recipe_is_the_file_itself(tmp_path: Path) -> None:
    items = suite(tmp_path, CHOICES)
    assert len(items) == 5 and {(i.suite, i.kind) for i in items} == {("mine", "choice")}
    assert items[0].messages == [{"role": "user", "content": "Colour 0?"}] and "generate" not in items[0].meta


def test_the_instruction_is_put_around_each_question(tmp_path: Path) -> None:
    how = {"template": "Briefly. {question} Now.", "system": "You teach.", "examples": 2, "opening": "It is"}
    items = suite(tmp_path, ANSWERS, instruction=how, limit=2)
    assert [i.id for i in items] == ["c2", "c3"], "examples are not asked; the limit counts what is"
    assert items[0].messages == [
        {"role": "system", "content": "You teach."},
        {"role": "user", "content": "Briefly. Capital 0? Now."},
        {"role": "assistant", "content": "Rome"},
        {"role": "user", "content": "Briefly. Capital 1? Now."},
        {"role": "assistant", "content": "Rome"},
        {"role": "user", "content": "Briefly. Capital 2? Now."},
        {"role": "assistant", "content": "It is"},
    ]
    assert items[0].answers == ["Rome", "Roma"]


def test_choices_to_write_are_numbered_and_any_way_to_name_the_right_one_counts(tmp_path: Path) -> None:
    keys = {"inferencer": "generate", "metric": "exact_match", "max_new_tokens": 5, "instruction": {"examples": 1}}
    item = suite(tmp_path, CHOICES, **keys)[0]
    assert item.messages[0]["content"] == "Colour 0?\n1. red\n2. a rose"
    assert item.messages[1]["content"] == "2. a rose"
    assert (item.kind, item.answers) == ("answer", ["2. a rose", "a rose", "2"])
    assert item.meta["generate"] == {"max_new_tokens": 5, "metric": "exact_match"}


def test_containment_is_of_whole_words() -> None:
    assert contains("I think it is Rome, Italy.", ["Paris", "rome"])
    assert not contains("Romeo", ["Rome"]) and not contains("the a", ["a"]), "an empty reference is in no text"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"metrik": "acc"}, "metrik: Extra inputs"),
        ({"metric": "contains"}, "metric acc goes with inferencer likelihood"),
        ({"inferencer": "generate"}, "metric acc goes with inferencer likelihood"),
        ({"instruction": {"template": "no place"}}, r"instruction.template: the template needs"),
        ({"instruction": {"examples": 5}}, "leave none of 5 items"),
        ({"scenario": "none.jsonl"}, "none.jsonl"),
        ({"limit": 0}, "limit: "),
    ],
)
def test_mistakes_are_named(tmp_path: Path, keys: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        suite(tmp_path, CHOICES, **keys)


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(DataError, match="not valid YAML"):
        read_recipe(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_text("just text")
    with pytest.raises(DataError, match="the file: "):
        read_recipe(tmp_path / "x.yaml")
    with pytest.raises(DataError, match=r"none\.yaml"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "facts.yaml").write_text("scenario: rows.jsonl")
    with pytest.raises(DataError, match="embedded suite"):
        read_recipe(tmp_path / "facts.yaml")
    started = [
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "It is"}], "answer": "x"}
    ]
    with pytest.raises(DataError, match="does not end with a question"):
        suite(tmp_path, started)


def test_a_suite_that_is_written_is_judged_by_what_every_model_writes(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All items are generated, at their own length and once, although the settings ask for no samples."""
    asked: list[tuple[str, int, int]] = []

    def write(arm, prompts, max_new_tokens, stop):
        asked.append((arm.arm, len(prompts), max_new_tokens))
        return ["It is Rome, I think." if arm.arm == "base" else "Paris" for _ in prompts]

    monkeypatch.setattr("regrow.evaluate.generate._greedy", write)
    suite(tmp_path, ANSWERS, inferencer="generate", metric="contains", max_new_tokens=3)
    cfg = EvalConfig(suites=[f"recipe:{tmp_path / 'mine.yaml'}"], generate_samples=0, bootstrap=200)
    models = {"base": tiny_model_dir, "other": perturbed(tiny_model_dir, tmp_path / "other")}

    def results() -> dict:
        path = build_suites(cfg, resolve_model(str(tiny_model_dir)), [], tmp_path / "suites", seed=0)
        items = [Item(**json.loads(line)) for line in path.read_text().splitlines()]
        return evaluate(models, items, cfg, tmp_path / "eval", seed=0).results["suites"]["mine"]

    found = results()
    assert asked == [("base", 5, 3), ("other", 5, 3)]
    assert (found["metric"], found["unit"], found["n"]) == ("contains", "share", 5)
    assert {a: v["value"] for a, v in found["arms"].items()} == {"base": 1.0, "other": 0.0}
    assert found["flips"]["other"]["lost"] == 5
    assert found["noise_floor"] is None, "the second pass writes nothing"
    records = [json.loads(line) for line in (tmp_path / "eval/records.jsonl").read_text().splitlines()]
    assert all(set(rec["metrics"]) == {"contains", "rouge_l", "nll", "tokens", "margin"} for rec in records)
    assert records[0]["output"] == "It is Rome, I think."
    results()
    assert len(asked) == 2, "nothing is written twice"
    suite(tmp_path, ANSWERS, inferencer="generate", metric="exact_match", max_new_tokens=9)
    found = results()
    assert asked[2:] == [("base", 5, 9), ("other", 5, 9)], "another length is another answer"
    assert found["metric"] == "exact_match" and found["arms"]["base"]["value"] == 0, (
        "the line says more than the answer"
    )
