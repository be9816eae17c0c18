"""Texts of six domains out of KIT, asked for by one short prompt each: a domain's loss is that of its texts."""

from __future__ import annotations

import random
from pathlib import Path

from experiments.tg_sft.data import read

from regrow.evaluate.items import Item
from regrow.rows.row import Row

DOMAINS = ("law", "medicine", "finance", "science", "code", "general")
SHORTEST, LONGEST = 200, 600
"""Characters of a text."""


def texts(kit: Path) -> dict[str, list[str]]:
    """Domain -> different texts in a fixed order; those under `SHORTEST` left out, long ones cut at a word."""
    found = {
        "law": [r["input"] for r in read(kit / "law/legalbench_fewshot.jsonl")],
        "medicine": [r["output"] for r in read(kit / "medicine/medquad_sft.jsonl")],
        "finance": [r["context"] for r in read(kit / "finance/tatqa.jsonl")],
        "science": [r["question"] for r in read(kit / "science/scibench.jsonl")],
        "code": [f"{r['instruction']}\n\n{r['output']}" for r in read(kit / "code/code_instruct.jsonl")],
        "general": [r["output"] for r in read(kit / "instructions/dolly_hh.jsonl")],
    }
    out = {}
    for domain in DOMAINS:
        kept = [_cut(t.strip()) for t in dict.fromkeys(found[domain]) if len(t.strip()) >= SHORTEST]
        random.Random(0).shuffle(kept)
        out[domain] = list(dict.fromkeys(kept))
    return out


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0]


def dialogue(domain: str, text: str) -> list[dict[str, str]]:
    asked = f"Write a short text about {domain}." if domain != "general" else "Write a short text."
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": text}]


def split(kit: Path, train: int, test: int, seed: int) -> tuple[dict[str, list[Row]], list[Item]]:
    """``train`` rows a domain, another draw for each seed, and ``test`` items a domain that are the same for all."""
    rows: dict[str, list[Row]] = {}
    items: list[Item] = []
    for domain, found in texts(kit).items():
        for k, text in enumerate(found[:test]):
            items.append(
                Item(id=f"{domain}/{k}", suite=domain, domain=domain, kind="dialogue", messages=dialogue(domain, text))
            )
        rest = found[test:]
        chosen = random.Random(seed).sample(range(len(rest)), min(train, len(rest)))
        rows[domain] = [Row(id=f"{domain}/{k}", messages=dialogue(domain, rest[k]), domain=domain) for k in chosen]
    return rows, items
