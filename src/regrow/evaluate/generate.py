"""Really generated answers for a sample of items, greedy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from regrow.evaluate.cache import ScoreCache, item_hash, pass_key
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import Item, Record
from regrow.evaluate.measure import Arm
from regrow.evaluate.render import prompt_text
from regrow.evaluate.rouge import contains, exact_match, rouge_l
from regrow.evaluate.served import TOGETHER, Served
from regrow.evaluate.suites import constraints, refusals
from regrow.evaluate.suites.own import sample
from regrow.progress import task

BATCH = 8
"""Prompts in one call of ``generate``, sorted by length so that little is padding."""
LONG = 4
"""Dialogues may run this many times longer than short answers."""


def generated_items(items: Sequence[Item], cfg: EvalConfig, seed: int) -> list[Item]:
    """The items to generate for: at most ``cfg.generate_samples`` a suite, and all that are judged by what is written.

    Items of kind answer, and dialogues whose last message is the assistant's; what a model picks among choices
    is known without generating.
    """
    suites: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if "generate" not in item.meta and (item.kind == "answer" or (item.kind == "dialogue" and _question(item))):
            suites[item.suite].append(item)
    judged = [i for i in items if "generate" in i.meta]
    return judged + [i for found in suites.values() for i in sample(found, cfg.generate_samples, seed)]


def _question(item: Item) -> list[dict[str, Any]]:
    """The dialogue up to the last answer; empty when there is none."""
    if item.kind in ("answer", "written"):
        return item.messages
    ends = item.meta.get("kind") != "text" and len(item.messages) > 1 and item.messages[-1]["role"] == "assistant"
    return item.messages[:-1] if ends else []


def add_generated(
    arm: Arm, records: Sequence[Record], items: Sequence[Item], cfg: EvalConfig, cache: ScoreCache
) -> None:
    """Generate for ``items`` and put the text (``output``) and its metrics into their records.

    ``exact_match`` (or ``contains``, where a suite asks for that) against any accepted answer and ``rouge_l`` against
    the best fitting one; dialogues are compared with their last message. Items of kind ``written`` are judged by their
    constraints, or by whether they were refused.
    """
    settings = {**arm.place, "max_length": cfg.max_length}
    size = TOGETHER if isinstance(arm, Served) else BATCH

    def limit(item: Item) -> int:
        return int(item.meta.get("generate", {}).get("max_new_tokens", cfg.max_new_tokens))

    def name(most: int) -> str:
        return pass_key("generate", arm.revision, {**settings, "max_new_tokens": most})

    by_place = {(r.suite, r.item_id): r for r in records}
    unique = {(limit(i), item_hash(i)): i for i in items}
    groups = sorted({(limit(i), i.kind == "dialogue") for i in items})
    stop = stop_ids(arm)
    with task(f"generating {arm.arm}", len(unique), "items") as bar:
        for most, talk in groups:
            keys = [k for k, i in unique.items() if (k[0], i.kind == "dialogue") == (most, talk)]
            texts = {h: prompt_text(arm.tokenizer, _question(unique[h])) for h in keys}
            prompts = {h: arm.tokenizer.encode(t, add_special_tokens=False) for h, t in texts.items()}
            room = most * (LONG if talk else 1)
            keys.sort(key=lambda h: (len(prompts[h]), prompts[h]))
            for start in range(0, len(keys), size):
                batch = keys[start : start + size]
                if any(cache.get(name(most), h) is None for _, h in batch):
                    said = _greedy(arm, [prompts[h][-cfg.max_length :] for h in batch], room, stop)
                    cache.add(name(most), [(h, {"text": t}) for (_, h), t in zip(batch, said, strict=True)])
                bar.advance(len(batch))
    for item in items:
        value = cache.get(name(limit(item)), item_hash(item))
        if value is None:
            raise RuntimeError(f"item {item.suite}:{item.id} was not generated")
        record = by_place[item.suite, item.id]
        record.output = value["text"]
        if "generate" in item.meta and item.kind == "answer":
            record.metrics.pop("acc", None)  # right is what was written, not what would have been likely
        record.metrics.update(_judged(item, record.output))


def _judged(item: Item, text: str) -> dict[str, float]:
    """The metrics of a generated text."""
    metric = item.meta.get("generate", {}).get("metric")
    if item.kind == "written":
        if "constraints" in item.meta:
            return constraints.judge(text, item.meta["constraints"])
        return refusals.judge(text, metric)
    references = item.answers if item.kind == "answer" else [str(item.messages[-1]["content"])]
    right, name = (contains, "contains") if metric == "contains" else (exact_match, "exact_match")
    return {name: float(right(text, references)), "rouge_l": max(rouge_l(text, r) for r in references)}


def stop_ids(arm: Arm) -> list[int]:
    """Tokens that end an answer: the tokenizer's and the generation settings' end, and the chat template's."""
    config = None if isinstance(arm, Served) else arm.model.generation_config.eos_token_id
    ids = set(config if isinstance(config, list) else [config]) | {arm.tokenizer.eos_token_id}
    if arm.tokenizer.chat_template is not None:
        from regrow.models.turns import derive_turns

        ids |= set(derive_turns(arm.tokenizer).stop_ids("assistant"))
    return sorted(i for i in ids if i is not None)


def _greedy(arm: Arm, prompts: Sequence[list[int]], max_new_tokens: int, stop: list[int]) -> list[str]:
    if isinstance(arm, Served):
        return arm.write(prompts, max_new_tokens, stop)
    import torch

    longest = max(map(len, prompts))
    pad = arm.tokenizer.pad_token_id if arm.tokenizer.pad_token_id is not None else 0
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    with torch.inference_mode():
        out = arm.model.generate(
            ids.to(arm.model.device), attention_mask=mask.to(arm.model.device), do_sample=False, num_beams=1,
            temperature=None, top_p=None, top_k=None, repetition_penalty=1.0, max_new_tokens=max_new_tokens,
            eos_token_id=stop or None, pad_token_id=pad,
        )  # fmt: skip
    texts = []
    for row in out[:, longest:].tolist():
        end = next((k for k, t in enumerate(row) if t in stop), len(row))
        texts.append(arm.tokenizer.decode(row[:end], skip_special_tokens=True).strip())
    return texts
