"""Small models and items that the tests of evaluation share."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from regrow.evaluate.items import Item, Record

COLOURS = ("red", "green", "blue", "black")


def perturbed(source: Path, out: Path, scale: float = 0.5, seed: int = 3) -> Path:
    """A copy of a tiny model with noise on all weights: it has forgotten something."""
    import torch
    from transformers import LlamaForCausalLM

    shutil.copytree(source, out, dirs_exist_ok=True)
    model = LlamaForCausalLM.from_pretrained(source)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += scale * p.std() * torch.randn(p.shape, generator=generator) if p.dim() > 1 else 0
    model.save_pretrained(out)
    return out


def choice(name: str, suite: str = "facts", domain: str = "d", right: int = 0, question: str = "") -> Item:
    """A multiple-choice item."""
    said = [{"role": "user", "content": question or f"What is the colour of {name}?"},
            {"role": "assistant", "content": "The colour is"}]  # fmt: skip
    return Item(name, suite, domain, "choice", said, choices=list(COLOURS), answer_index=right, meta={"fact": name})


def small_pool(seed: int) -> list[Item]:
    """A pool of made-up facts in three domains, as `build_suites` takes it."""
    out = []
    for k in range(150):
        domain = ("one", "two", "three")[k % 3]
        item = choice(
            f"{domain}/{k}/choice", domain=domain, right=(k + seed) % 4, question=f"Which colour has {k} calendars?"
        )
        item.meta["fact"] = f"{domain}/{k}"
        out.append(item)
    return out


def dialogues(n: int = 6, suite: str = "own-dialogues") -> list[Item]:
    """Short dialogues of one turn."""
    return [
        Item(f"d{k}", suite, "talk", "dialogue", [
            {"role": "user", "content": f"Tell me about the mean, part {k}."},
            {"role": "assistant", "content": f"The mean is the sum of the data over their number, see {k}."},
        ])
        for k in range(n)
    ]  # fmt: skip


def record(item: Item, arm: str = "base", **metrics: float) -> Record:
    """A record of an item."""
    return Record(item.id, item.suite, item.domain, arm, metrics)


def assert_alike(got: object, expected: object, path: str = "") -> None:
    """Two JSON documents are equal but for rounding: kernels sum in another order with another number of threads, and
    a process that is started does not always have as many as its parent."""
    if isinstance(expected, dict) and isinstance(got, dict):
        assert list(got) == list(expected), path
        for key, value in expected.items():
            assert_alike(got[key], value, f"{path}/{key}")
    elif isinstance(expected, list) and isinstance(got, list):
        assert len(got) == len(expected), path
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert_alike(a, b, f"{path}/{i}")
    elif isinstance(expected, float) and isinstance(got, float):
        assert math.isclose(got, expected, rel_tol=1e-3, abs_tol=1e-5), f"{path}: {got} and {expected}"
    else:
        assert got == expected, path
