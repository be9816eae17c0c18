"""Suite `instructions`: strict checks of each kind of constraint, prompts from the seed alone, judged by what is
written."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import Item
from regrow.evaluate.stage import build_suites, evaluate
from regrow.evaluate.suites.constraints import CHECKS, follows, judge
from regrow.evaluate.suites.instructions import (
    COMBINED,
    MAKERS,
    MANNERS,
    MAX_NEW_TOKENS,
    SHAPES,
    instruction_items,
)
from regrow.models.load import resolve_model
from tests.evaluate.models import perturbed

CASES: dict[str, tuple[dict, list[str], list[str]]] = {
    "words_at_most": ({"n": 3}, ["one two three", "don't stop well-known"], ["one two three four"]),
    "words_at_least": ({"n": 3}, ["one two three", "1 2 3 4"], ["one two", "- * -"]),
    "sentences": (
        {"n": 2},
        ["One. Two!", 'He said "no." She left.', "It costs 3.50 euros. Good", "Really?! Yes."],
        ["One.", "One. Two. Three.", "One. Two. And more"],
    ),
    "paragraphs": ({"n": 2}, ["a\n\nb", "a\nb\n \n\nc"], ["a\nb", "a\n\nb\n\nc"]),
    "bullets": ({"n": 2}, ["- a\n- b", "Here:\n* a\n• b"], ["- a", "- a\n- b\n- c", "-a\n-b"]),
    "numbered": ({"n": 2}, ["1. a\n2. b", "1) a\n\n2) b"], ["1. a\n3. b", "1. a\n2. b\n3. c", "2. a\n1. b"]),
    "lower_case": ({}, ["a small text, é."], ["A small text", "123"]),
    "upper_case": ({}, ["ALL OF IT 1!"], ["ALL of it", "123"]),
    "json_keys": (
        {"keys": ["a", "b"]},
        ['{"b": 1, "a": null}'],
        [
            "[" * 99_999,
            '```json\n{"a": 1, "b": 2}\n```',
            '{"a": 1}',
            '{"a": 1, "b": 2, "c": 3}',
            "[]",
            "{'a': 1, 'b': 2}",
            '"ab"',
        ],
    ),
    "starts_with": ({"phrase": "In short:"}, ["In short: yes"], ["in short: yes", "Well. In short: yes"]),
    "ends_with": ({"phrase": "That is all."}, ["Yes. That is all."], ["That is all. Yes", "that is all."]),
    "contains": ({"word": "warm", "n": 2}, ["Warm, warm soup"], ["warm", "warmth and warmer"]),
    "avoids": ({"word": "the"}, ["Then they left"], ["See THE sea", "the"]),
    "no_comma": ({}, ["a; b"], ["a, b"]),
    "no_digit": ({}, ["ten"], ["10", "year 2"]),
    "quoted": ({}, ['"all of it"', "“all of it”"], ['"all" of it', '"all of it', '"a "b" c"', '""']),
    "title": ({}, ["# A title\ntext"], ["# A title", "text\n# A title", "#title\ntext"]),
    "slots": ({"n": 2}, ["Dear [name], see you on [day]."], ["Dear [name]", "[]", "[a\nb] [c]"]),
    "one_of": ({"options": ["yes", "no"]}, ["yes", " no\n"], ["Yes", "yes.", "yes no"]),
    "asks": ({}, ["Is it?"], ["Is it? Yes."]),
}


def test_every_kind_is_made_checked_and_tested_here() -> None:
    assert set(CASES) == set(CHECKS) == set(MAKERS) and len(CASES) >= 12


@pytest.mark.parametrize("kind", CASES)
def test_a_check_is_strict(kind: str) -> None:
    arguments, good, bad = CASES[kind]
    for text in good:
        assert follows(text, {"kind": kind, **arguments}), text
        assert follows(f" {text}\n", {"kind": kind, **arguments}), "white space at the ends does not count"
    for text in [*bad, "", " \n"]:
        assert not follows(text, {"kind": kind, **arguments}), text


def test_all_constraints_have_to_be_followed() -> None:
    both = [{"kind": "lower_case"}, {"kind": "words_at_most", "n": 2}]
    assert judge("a b", both) == {"followed": 1.0, "followed_share": 1.0}
    assert judge("a b c", both) == {"followed": 0.0, "followed_share": 0.5}
    with pytest.raises(KeyError):
        follows("a", {"kind": "rhymes"})


def test_items_come_from_the_seed_alone_and_cover_every_kind() -> None:
    items = instruction_items(400, seed=3)
    assert items == instruction_items(400, seed=3)
    assert {i.messages[0]["content"] for i in items} != {i.messages[0]["content"] for i in instruction_items(400, 4)}
    assert len({i.id for i in items}) == len({i.messages[0]["content"] for i in items}) == 400
    single = Counter(i.domain for i in items if i.domain != COMBINED)
    assert set(single) == set(MAKERS) and max(single.values()) - min(single.values()) <= 6
    pairs = [i for i in items if i.domain == COMBINED]
    assert 60 < len(pairs) < 140
    for item in pairs:
        shape, manner = (c["kind"] for c in item.meta["constraints"])
        assert shape in SHAPES and manner in MANNERS
    assert len(instruction_items(1000, seed=0)) == 1000, "the most that the settings allow"
    for item in items:
        assert json.loads(json.dumps(item.meta)) == item.meta, "items go through JSON"
        assert judge("x", item.meta["constraints"])["followed"] in (0.0, 1.0)
        for c in item.meta["constraints"]:
            said = [str(v) for v in (c.get("n"), c.get("phrase"), *c.get("keys", []), *c.get("options", [])) if v]
            told = item.messages[0]["content"].replace("once", "1").replace("twice", "2").replace("three times", "3")
            assert all(v in told or (v == "1" and "one" in told) for v in said), "the prompt says what is checked"


def test_the_suite_is_judged_by_what_every_model_writes(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def write(arm, prompts, max_new_tokens, stop):
        asked.append((arm.arm, max_new_tokens))
        return ["no capital letters here" if arm.arm == "base" else "Capital, 1" for _ in prompts]

    monkeypatch.setattr("regrow.evaluate.generate._greedy", write)
    cfg = EvalConfig(suites=["instructions"], n_instructions=60, bootstrap=200, generate_samples=0)
    path = build_suites(cfg, resolve_model(str(tiny_model_dir)), [], tmp_path / "suites", seed=1)
    items = [Item(**json.loads(line)) for line in path.read_text().splitlines()]
    assert len(items) == 60, "n_instructions"
    models = {"base": tiny_model_dir, "after": perturbed(tiny_model_dir, tmp_path / "other")}
    done = evaluate(models, items, cfg, tmp_path / "eval", seed=1).results
    assert {n for _, n in asked} == {MAX_NEW_TOKENS}
    assert "instructions: every model writes up to 9,600 tokens" in capsys.readouterr().err, "the cost is said"
    suite = done["suites"]["instructions"]
    assert (suite["kind"], suite["metric"], suite["unit"], suite["n"]) == ("retention", "followed", "share", 60)
    assert suite["domains"]["lower_case"]["arms"] == {"base": 1.0, "after": 0.0}
    assert suite["domains"]["no_digit"]["arms"] == {"base": 1.0, "after": 0.0}
    assert suite["differences"]["after"]["vs_base"]["better"] is False and suite["flips"]["after"]["won"] == 0
    assert suite["secondary"]["followed_share"]["base"]["value"] >= suite["arms"]["base"]["value"]
    assert suite["noise_floor"] is None
    assert "instructions followed to the letter on instructions" in done["verdict"]["sentence"]
    records = [json.loads(line) for line in (tmp_path / "eval/records.jsonl").read_text().splitlines()]
    assert all(set(r["metrics"]) == {"followed", "followed_share"} for r in records)
    assert records[0]["output"] == "no capital letters here"
    only = evaluate(models, items, cfg.model_copy(update={"suites": ["facts", "instructions"]}), tmp_path / "eval",
                    seed=1)  # fmt: skip
    assert only.results["suites"]["instructions"]["arms"] == suite["arms"]


def test_it_is_only_run_when_it_is_named() -> None:
    assert EvalConfig().suites == ["facts", "own-dialogues", "heldout"]
