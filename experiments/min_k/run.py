"""Inject passages by fine-tuning, hold their twins out, and see what Min-K% sees: see README.md.

python experiments/min_k/run.py --kit KIT_FOLDER --out runs/min_k
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from pathlib import Path

from regrow.api import mix, train
from regrow.probing import probe_min_k
from regrow.report.probes import text_table
from regrow.runs import versions

SOURCES = ("speeches", "shakespeare")


def passages(kit: Path, source: str, n: int, words: int, seed: int) -> list[str]:
    """One passage a document, from its middle."""
    with (kit / f"text/{source}.jsonl").open(encoding="utf-8") as f:
        documents = [json.loads(line)["text"].split() for line in f]
    long = [d for d in documents if len(d) >= 3 * words]
    chosen = random.Random(f"{source}/{seed}").sample(long, min(n, len(long)))
    return [" ".join(d[len(d) // 2 : len(d) // 2 + words]) for d in chosen]


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--each", type=int, default=16, help="passages of each source, half of them members")
    parser.add_argument("--words", type=int, default=40)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    inside: list[str] = []
    outside: list[str] = []
    for source in SOURCES:
        texts = passages(args.kit, source, args.each, args.words, args.seed)
        random.Random(args.seed).shuffle(texts)
        inside += texts[: len(texts) // 2]
        outside += texts[len(texts) // 2 :]
    members, held = write(out / "members.jsonl", inside), write(out / "heldout.jsonl", outside)
    if not (out / "mix/train.parquet").exists():
        mix(args.model, members, out / "mix", replay_ratio=0.0, seed=args.seed)
    settings = {
        "train.num_train_epochs": args.epochs,
        "train.per_device_train_batch_size": 8,
        "train.gradient_accumulation_steps": 1,
    }
    train(args.model, out / "mix", out / "train", learning_rate=args.learning_rate, seed=args.seed, settings=settings)
    found = {}
    for name, model in (("before", args.model), ("after", str(out / "train/model"))):
        reference = args.model if name == "after" else None
        done = probe_min_k(model, members, out / name, control=held, reference=reference, seed=args.seed)
        found[name] = done.facts
        print(f"\n{name}\n{text_table('min-k', done.facts)}")
    results = {
        "settings": {k: str(v) for k, v in vars(args).items() if k not in ("kit", "out")},
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": versions(),
        **found,
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
