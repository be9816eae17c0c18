"""The experiment's rows and items, read from the benchmark slices in KIT."""

from __future__ import annotations

import json
import random
from pathlib import Path

from regrow.evaluate.items import Item
from regrow.rows.row import Row


def read(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def pick(rows: list[dict], n: int, seed: int = 0) -> list[dict]:
    """A fixed sample in the original order."""
    chosen = sorted(random.Random(seed).sample(range(len(rows)), min(n, len(rows))))
    return [rows[i] for i in chosen]


def instruction(row: dict) -> str:
    return f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]


def news_question(row: dict) -> str:
    return f"{row['instruction']}\nOptions: {', '.join(row['options'])}\n\n{row['input']}"


def domain_rows(kit: Path, n: int) -> list[Row]:
    rows = [r for r in read(kit / "continual/agnews.jsonl") if r["split"] == "train"]
    return [
        Row(
            id=r["id"],
            messages=[
                {"role": "user", "content": news_question(r)},
                {"role": "assistant", "content": r["output"]},
            ],
            domain="news",
        )
        for r in pick(rows, n)
    ]


def general_dialogues(kit: Path) -> tuple[list[dict], list[dict]]:
    """Dolly and self-instruct rows, cut in two: for training on, for evaluating on."""
    rows = [r for r in read(kit / "instructions/dolly_hh.jsonl") if 20 <= len(r["output"]) <= 1500]
    rows += [r for r in read(kit / "instructions/self_instruct.jsonl") if 20 <= len(r["output"]) <= 1500]
    random.Random(1).shuffle(rows)
    return rows[120:], rows[:120]


def real_rows(kit: Path) -> list[Row]:
    """Real dialogues in the place of grown ones."""
    return [
        Row(
            id=r["id"],
            source="replay",
            domain="real",
            messages=[
                {"role": "user", "content": instruction(r)},
                {"role": "assistant", "content": r["output"]},
            ],
        )
        for r in general_dialogues(kit)[0]
    ]


def _dialogue(suite: str, row_id: str, question: str, answer: str) -> Item:
    return Item(
        id=row_id,
        suite=suite,
        domain=suite,
        kind="dialogue",
        messages=[{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    )


MAX_QUESTION = 1200
"""Characters; the evaluation reads 320 tokens of a dialogue, and would see no answer behind a longer question."""


def items(kit: Path, n: int) -> list[Item]:
    """About ``n`` items of each kit suite."""
    out: list[Item] = []
    news = pick([r for r in read(kit / "continual/agnews.jsonl") if r["split"] == "test"], 3 * n)
    for r in news:
        out.append(
            Item(
                id=r["id"],
                suite="heldout",
                domain="news",
                kind="choice",
                messages=[{"role": "user", "content": news_question(r)}],
                choices=list(r["options"]),
                answer_index=r["options"].index(r["output"]),
            )
        )
    for r in pick(general_dialogues(kit)[1], n):
        out.append(_dialogue("instructions", r["id"], instruction(r), r["output"][:400]))
    code = [r for r in read(kit / "code/code_instruct.jsonl") if len(r["output"]) <= 500]
    for r in pick(code, n):
        out.append(_dialogue("code", r["id"], instruction(r), r["output"]))
    medicine = [r for r in read(kit / "medicine/medquad_sft.jsonl") if r["split"] == "test"]
    for r in pick(medicine, n):
        out.append(_dialogue("medicine", r["id"], r["instruction"], r["output"][:400]))
    for r in pick(read(kit / "text/speeches.jsonl"), n // 2):
        text = r["text"][:700]
        cut = text.index(" ", 200)
        out.append(_dialogue("speeches", r["id"], "Continue this speech:\n\n" + text[:cut], text[cut + 1 :]))
    for r in pick(read(kit / "knowledge_mc/arc_easy.jsonl"), 2 * n):
        out.append(
            Item(
                id=r["id"],
                suite="arc-easy",
                domain="science",
                kind="choice",
                messages=[{"role": "user", "content": r["question"]}],
                choices=list(r["choices"]),
                answer_index=r["answer_index"],
            )
        )
    for r in pick(read(kit / "general_qa/wikidata_facts.jsonl"), 2 * n):
        out.append(
            Item(
                id=r["id"],
                suite="wikidata",
                domain="general",
                kind="answer",
                messages=[{"role": "user", "content": f"Complete the sentence: {r['prompt']}"}],
                answers=[r["answer"]],
            )
        )
    return [item for item in out if item.kind != "dialogue" or len(item.messages[0]["content"]) <= MAX_QUESTION]
