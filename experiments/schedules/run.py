"""The infinite schedule against repeated cosine over a sequence of domains; see README.md beside this file.

python experiments/schedules/run.py --kit KIT --out runs/schedules --seeds 0 1 2 --to experiments/schedules/results
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from experiments.domains.data import texts
from experiments.intervals import over_seeds, told
from experiments.jobs import again, arguments, in_parallel
from experiments.small import save_random, write_token_mix

from regrow.train.config import TrainConfig

SEQUENCE = ("general", "law", "medicine", "code")
TRAIN, TEST = 150, 60
"""Texts a domain."""
EPOCHS, BATCH, LEARNING_RATE, VOCABULARY = 20, 8, 1e-3, 2000
ARMS = ("cosine", "constant", "low", "infinite")
LOW = LEARNING_RATE / 4
"""The flat rate of the infinite schedule, held by the arm ``low`` throughout: the rate without the shape."""


def tokenizer_of(kit: Path, folder: Path) -> Any:
    """Byte-level BPE of the training texts of all domains; end of text is id 0."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    every = [t for domain, found in texts(kit).items() if domain in SEQUENCE for t in found[TEST:]]
    bpe.train_from_iterator(every, VOCABULARY, special_tokens=["<end>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<end>", pad_token="<end>")
    tokenizer.save_pretrained(folder)
    return tokenizer


def rows(kit: Path, tokenizer: Any, seed: int) -> tuple[dict[str, list[list[int]]], dict[str, list[list[int]]]]:
    """Domain -> token rows to train on, another draw for each seed, and domain -> rows to test on."""
    rng, train, test = np.random.default_rng(seed), {}, {}
    for domain, found in texts(kit).items():
        if domain in SEQUENCE:
            chosen = rng.permutation(len(found) - TEST)[:TRAIN] + TEST
            train[domain] = [[*tokenizer.encode(found[i])[:255], 0] for i in chosen]
            test[domain] = [[*tokenizer.encode(t)[:255], 0] for t in found[:TEST]]
    return train, test


def settings_of(arm: str, number: int) -> TrainConfig:
    """The training of the ``number``-th domain. The infinite one anneals in the last domain alone."""
    settings: dict[str, Any] = {"lr_scheduler_type": arm}
    if arm in ("constant", "low"):
        settings = {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.0 if number else 0.03}
    if arm == "infinite":
        last = number == len(SEQUENCE) - 1
        settings["infinite"] = {"continues": number > 0, "flat_end": 0.8 if last else 1.0}
    return TrainConfig(
        learning_rate=LOW if arm == "low" else LEARNING_RATE, num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH, max_length=256, save_steps=10**6, logging_steps=50, **settings,
    )  # fmt: skip


def losses(model_dir: Path, test: dict[str, list[list[int]]]) -> dict[str, list[float]]:
    """Domain -> nats a token of each test text."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    out: dict[str, list[float]] = {}
    with torch.no_grad():
        for domain, found in test.items():
            out[domain] = [float(model(ids, labels=ids).loss) for r in found for ids in [torch.tensor([r])]]
    return out


def job(kit: Path, out: Path, arm: str, seed: int) -> None:
    from transformers import LlamaConfig

    from regrow.train.stage import train

    folder, began = out / f"seed{seed}" / arm, time.monotonic()
    tokenizer = tokenizer_of(kit, folder / "start")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=256, pad_token_id=0, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    model = save_random(folder / "start", seed, config)
    trained, tested = rows(kit, tokenizer, seed)
    after, tokens = [], {}
    for number, domain in enumerate(SEQUENCE):
        tokens[domain] = sum(map(len, trained[domain]))
        mix = write_token_mix(folder / domain / "mix", {domain: [(r, [1.0] * len(r)) for r in trained[domain]]})
        train(model, mix, settings_of(arm, number), folder / domain / "train", seed=seed, label=f"{arm}/{domain}")
        model = folder / domain / "train/model"  # without an annealed phase the flat model is this one
        after.append(losses(model, tested))
    found = {"after": after, "tokens": tokens, "seconds": time.monotonic() - began}
    (folder / "result.json").write_text(json.dumps(found))


def table(found: dict[str, list[list[dict[str, list[float]]]]]) -> tuple[list[str], dict[str, Any]]:
    """Losses after the whole sequence and their paired differences. How far a domain rose since it was trained is no
    outcome: an arm that anneals at the end alone lowers every loss by that, and would seem to have forgotten less.

    Args:
        found: Arm -> seed -> after each domain -> domain -> nats a token of each test text.
    """
    last = len(SEQUENCE) - 1
    final = {a: np.array([[s[last][d] for d in SEQUENCE] for s in seeds]) for a, seeds in found.items()}
    measures = {
        "mean of all": {a: x.mean(1) for a, x in final.items()},
        "last domain": {a: x[:, last] for a, x in final.items()},
        "earlier three": {a: x[:, :last].mean(1) for a, x in final.items()},
    }
    lines = ["| loss at the end | " + " | ".join(ARMS) + " |", "| --- |" + " ---: |" * len(ARMS)]
    for i, domain in enumerate(SEQUENCE):
        lines.append(f"| {domain} | " + " | ".join(f"{final[a][:, i].mean():.3f}" for a in ARMS) + " |")
    for name, values in measures.items():
        lines.append(f"| {name} | " + " | ".join(f"{values[a].mean():.3f}" for a in ARMS) + " |")
    differences = {
        f"infinite - {other}": {n: over_seeds(v["infinite"] - v[other]) for n, v in measures.items()}
        for other in ARMS
        if other != "infinite"
    }
    lines += ["", "| difference | " + " | ".join(measures) + " |", "| --- |" + " ---: |" * len(measures)]
    for pair, each in differences.items():
        lines.append(f"| {pair} | " + " | ".join(map(told, each.values())) + " |")
    means = {n: {a: v[a].mean(1).tolist() for a in ARMS} for n, v in measures.items()}
    return lines, {"differences": differences, "means": means}


def analyse(out: Path, to: Path, seeds: list[int]) -> None:
    from regrow.runs import versions

    runs = {a: [json.loads((out / f"seed{s}/{a}/result.json").read_text()) for s in seeds] for a in ARMS}
    lines, facts = table({a: [r["after"] for r in rs] for a, rs in runs.items()})
    facts |= {"tokens": runs["cosine"][0]["tokens"], "seeds": seeds, "versions": versions(),
              "machine": f"{platform.machine()}, one thread",
              "protocol": {"sequence": SEQUENCE, "texts": TRAIN, "test": TEST, "epochs": EPOCHS, "batch": BATCH,
                           "learning_rate": LEARNING_RATE, "vocabulary": VOCABULARY}}  # fmt: skip
    to.mkdir(parents=True, exist_ok=True)
    (to / "summary.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (to / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def main() -> None:
    parser = arguments(__doc__, seeds=[0, 1, 2])
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job(args.kit, args.out, args.job[0], int(args.job[1]))
        return
    me = again(__file__, args)
    todo = [(a, s) for s in args.seeds for a in ARMS if not (args.out / f"seed{s}/{a}/result.json").exists()]
    in_parallel([[*me, a, str(s)] for a, s in todo], args.workers, 1, args.out / "logs")
    if args.to:
        analyse(args.out, args.to, args.seeds)


if __name__ == "__main__":
    main()
