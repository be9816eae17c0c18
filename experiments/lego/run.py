"""Skill-It against stratified sampling on LEGO; see README.md beside this file. Started again, it continues.

python experiments/lego/run.py --out runs/lego --seeds 0 1 2 3 4 --to experiments/lego/results
"""

from __future__ import annotations

import argparse
import json
import platform
import string
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from experiments.jobs import in_parallel
from experiments.small import save_random, write_token_mix

from regrow.train.config import TrainConfig

SKILLS = [f"s{i}" for i in range(1, 6)]
GRAPH = {s: {} for s in SKILLS} | {"s2": {"s1": 0.5, "s3": 0.5, "s4": 0.5}}
"""The graph in the authors' LEGO script: off-diagonal edges are 0.5."""
STEPS, BATCH, UPDATES, LOOKS, LEARNING_RATE = 1200, 64, 6, 8, 5e-4
"""The authors: 6,000 steps of 32, six updates with twenty looks between two, 5e-5 on a pretrained GPT-Neo of 125 M
parameters."""
HELD_OUT = 100
"""Chains a skill that the controller measures."""
ARMS = {
    "stratified": {"controller": "uniform"},
    "skill-it": {"controller": "skill-it", "graph": GRAPH, "eta": 0.5, "looks": LOOKS},
}
WORDS = ["<pad>", "0", "1", "+", "-", "=", ";", "?", ":", *string.ascii_lowercase]
LETTERS = 10
TRAIN, TEST = 6000, 500
"""Chains a skill."""


def chain(rng: np.random.Generator, skill: int, shuffled: bool) -> list[str]:
    """Five variables, each the one before it or its opposite, and a question for the ``skill``-th: words, and last its
    value."""
    names = [string.ascii_lowercase[i] for i in rng.permutation(LETTERS)[: len(SKILLS)]]
    signs = rng.integers(0, 2, len(SKILLS))
    clauses = [
        [name, "=", "-" if sign else "+", "1" if i == 0 else names[i - 1], ";"]
        for i, (name, sign) in enumerate(zip(names, signs, strict=True))
    ]
    order = rng.permutation(len(clauses)) if shuffled else range(len(clauses))
    value = 1 - int(signs[:skill].sum()) % 2
    return [word for i in order for word in clauses[i]] + ["?", names[skill - 1], ":", str(value)]


def make(seed: int, n: int, shuffled: bool) -> dict[str, list[list[int]]]:
    """Skill -> ``n`` rows of token ids."""
    ids = {word: i for i, word in enumerate(WORDS)}
    out = {}
    for number, skill in enumerate(SKILLS, 1):
        rng = np.random.default_rng([seed, number])
        out[skill] = [[ids[w] for w in chain(rng, number, shuffled)] for _ in range(n)]
    return out


def save_model(folder: Path, seed: int) -> Path:
    """A GPT-2 of 0.8 M parameters with random weights; as the authors' model, with learned positions."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>").save_pretrained(folder)
    config = GPT2Config(
        vocab_size=len(WORDS), n_embd=128, n_layer=4, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0,
        pad_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return save_random(folder, seed, config)


def write_mix(folder: Path, seed: int, shuffled: bool, every: bool) -> Path:
    """With the loss on the value asked for, or on every token."""
    found = make(seed, TRAIN, shuffled)
    return write_token_mix(
        folder, {s: [(ids, [float(every)] * (len(ids) - 1) + [1.0]) for ids in rows] for s, rows in found.items()}
    )


def accuracies(model_dir: Path, shuffled: bool) -> dict[str, float]:
    """Of new chains, how often the right one of the two values is likelier."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    zero, one = WORDS.index("0"), WORDS.index("1")
    out = {}
    for skill, rows in make(10**6, TEST, shuffled).items():
        ids = torch.tensor(rows)
        with torch.no_grad():
            logits = model(ids[:, :-1]).logits[:, -1]
        out[skill] = float(((logits[:, one] > logits[:, zero]) == (ids[:, -1] == one)).float().mean())
    return out


def job(out: Path, arm: str, seed: int, shuffled: bool, steps: int, every: bool) -> None:
    from regrow.train.stage import train

    folder, began = out / f"seed{seed}" / arm, time.monotonic()
    model = save_model(folder / "start", seed)
    cfg = TrainConfig(
        learning_rate=LEARNING_RATE, max_steps=steps, per_device_train_batch_size=BATCH, warmup_ratio=0.02,
        save_steps=10**6, logging_steps=steps // UPDATES, weight_decay=0.0,
        mixture={"update_steps": steps // UPDATES // LOOKS, "holdout_rows": HELD_OUT} | ARMS[arm],
    )  # fmt: skip
    mix = write_mix(folder / "mix", seed, shuffled, every)
    train(model, mix, cfg, folder / "train", seed=seed, label=f"{arm}/{seed}")
    looks = [json.loads(x) for x in (folder / "train/monitor.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {"accuracy": accuracies(folder / "train/model", shuffled), "looks": looks,
             "seconds": time.monotonic() - began}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(found, indent=1))


def analyse(out: Path, to: Path, seeds: list[int], shuffled: bool, steps: int) -> None:
    from regrow.runs import versions

    found = {a: [json.loads((out / f"seed{s}/{a}/result.json").read_text()) for s in seeds] for a in ARMS}
    mean = {a: [float(np.mean(list(r["accuracy"].values()))) for r in runs] for a, runs in found.items()}
    lines = [
        f"{steps:,} steps of {BATCH}, seeds {', '.join(map(str, seeds))}; accuracy on {TEST} new chains a skill.",
        "",
    ]
    lines += ["| arm | seed | mean | " + " | ".join(SKILLS) + " |", "| --- | ---: | ---: |" + " ---: |" * len(SKILLS)]
    for arm, runs in found.items():
        for seed, run, value in zip(seeds, runs, mean[arm], strict=True):
            cells = " | ".join(f"{run['accuracy'][s]:.3f}" for s in SKILLS)
            lines.append(f"| {arm} | {seed} | {value:.3f} | {cells} |")
    ahead = sum(a > b for a, b in zip(mean["skill-it"], mean["stratified"], strict=True))
    lines += ["", f"Skill-It is ahead on {ahead} of {len(seeds)} seeds."]
    to.mkdir(parents=True, exist_ok=True)
    facts = {"mean_accuracy": mean, "runs": found, "versions": versions(),
             "machine": f"{platform.machine()}, one thread",
             "protocol": {"steps": steps, "batch": BATCH, "learning_rate": LEARNING_RATE, "shuffled": shuffled,
                          "updates": UPDATES, "looks": LOOKS, "held_out": HELD_OUT, "chains": TRAIN}}  # fmt: skip
    (to / "summary.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (to / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--to", type=Path, help="folder for the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--in-order", action="store_true", help="clauses in the order of the chain: easier")
    parser.add_argument("--all-tokens", action="store_true", help="the loss on every token, as the authors train")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    shuffled = not args.in_order
    if args.job:
        job(args.out, args.job[0], int(args.job[1]), shuffled, args.steps, args.all_tokens)
        return
    me = [sys.executable, str(Path(__file__).resolve()), "--out", str(args.out), "--steps", str(args.steps)]
    me += ["--in-order"] if args.in_order else []
    me += ["--all-tokens"] if args.all_tokens else []
    for seed in args.seeds:
        todo = [a for a in ARMS if not (args.out / f"seed{seed}/{a}/result.json").exists()]
        in_parallel([[*me, "--job", a, str(seed)] for a in todo], args.workers, 1, args.out / "logs")
    if args.to:
        analyse(args.out, args.to, args.seeds, shuffled, args.steps)


if __name__ == "__main__":
    main()
