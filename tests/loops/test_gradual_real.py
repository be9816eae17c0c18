"""Gradual fine-tuning through the transformers engine: what a model knows is known as it decides what is right.

A tiny model with large weights says something else to every prompt. What it says greedily is made an accepted answer
of some questions: in both prompts (HighlyKnown), in the first only (MaybeKnown), in none (Unknown).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regrow.engines.choose import make_engine
from regrow.evaluate.rouge import normalise
from regrow.loops.gradual import run_gradual
from regrow.models.load import load_tokenizer, resolve_model
from regrow.probe.mastery import probe_mastery
from regrow.probe.texts import read_questions
from tests.fixtures.tiny import save_tiny_llama
from tests.loops.mastered import HIGHLY, MAYBE, SEED, UNKNOWN, labels, lines, read, recipe
from tests.train.helpers import largest_difference

ASK = {"prompts": 2, "shots": 2, "samples": 1, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaForCausalLM

    folder = save_tiny_llama(tmp_path_factory.mktemp("talkative"))
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers" in name and weight.dim() == 2:
                weight *= 20
    model.save_pretrained(folder)
    return folder


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def said(text: str) -> str:
    """What exact match reads of an answer."""
    return next((line for line in text.splitlines() if line.strip()), "")


def test_known_mastery_goes_through_the_real_engine(talkative: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": f"f{i}", "question": f"What is item {i}?", "answers": [f"word {i}"]} for i in range(24)
    ]
    cfg = recipe(talkative, **{f"probe__mastery__{k}": v for k, v in ASK.items()}).probe.mastery
    engine = make_engine("transformers", resolve_model(talkative))
    first = read_questions(write(tmp_path / "first.jsonl", rows))
    probe_mastery(first, cfg, tmp_path / "first", engine=engine, tokenizer=load_tokenizer(talkative), seed=SEED)
    engine.close()
    planted: dict[str, str] = {}
    for number, (row, told) in enumerate(zip(rows, lines(tmp_path / "first/prompts.jsonl"), strict=True)):
        one, two = map(said, told["greedy"])
        apart = bool(normalise(one)) and bool(normalise(two)) and normalise(one) != normalise(two)
        level = (HIGHLY, MAYBE, UNKNOWN)[number % 3] if apart else UNKNOWN
        # The first answer, which other questions' prompts show, stays: the prompts are the same again.
        row["answers"] = [f"word {number}", *{HIGHLY: [one, two], MAYBE: [one], UNKNOWN: []}[level]]
        planted[str(row["id"])] = level
    assert {HIGHLY, MAYBE, UNKNOWN} == set(planted.values())
    held = [[{"question": f"{what} {i}?", "answer": f"word {i}"} for i in range(4)] for what in ("Who is", "Where is")]
    chosen = recipe(
        talkative, **{f"probe__mastery__{k}": v for k, v in ASK.items()}, gradual__epochs=2, gradual__one_stage=False,
        gradual__dev=str(write(tmp_path / "dev.jsonl", held[0])), gradual__shots=2,
        gradual__test=str(write(tmp_path / "test.jsonl", held[1])),
    )  # fmt: skip
    done = run_gradual(chosen, write(tmp_path / "qa.jsonl", rows), tmp_path / "run")
    assert labels(tmp_path / "run", "base") == planted
    assert done.facts["arms"]["stage1"]["facts"] == {MAYBE: list(planted.values()).count(MAYBE)}
    assert done.facts["transitions"]["control"]["lowered"] > 0, "other prompts, other words: chance alone moves facts"
    assert largest_difference(done.models["stage1"], talkative) > 0
    assert largest_difference(done.models["stage2"], done.models["stage1"]) > 0
    assert read(tmp_path / "run/gradual.json")["test"]["accuracy"].keys() == {"base", "stage1", "stage2"}
    answered = {json.loads(line)["pass"] for line in (tmp_path / "run/stage1/ledger.jsonl").read_text().splitlines()}
    assert answered == {"dev/1", "dev/2", "fitted/1", "fitted/2"}
