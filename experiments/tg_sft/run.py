"""One command for the TG-SFT experiment; see README.md beside this file. Started again, it continues.

python experiments/tg_sft/run.py --kit KIT --out runs/tg_sft --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.jobs import in_parallel
from experiments.tg_sft.data import domain_rows, items, real_rows

from regrow.evaluate.items import read_items

TRAINED = [
    "sft",
    "balance",
    "balance-soft",
    "wide",
    "real",
    "lora",
    "lora-balance",
    "balance-once",
    "sft-long",
]
ARMS = ["base", *TRAINED, "interpolate"]
CORPUS_OF = {
    "wide": "wide",
    "balance": "balance",
    "balance-once": "balance",
    "balance-soft": "balance",
    "lora-balance": "balance",
    "real": "real",
}
REPLAY_RATIO = 0.25
ROWS_A_STEP = 4
DOMAIN_ROWS = 100
LEARNING_RATE = {"full": 3e-4, "lora": 2e-3}
TOP_K = 32
TOPICS = [
    "health and medicine",
    "computer programming",
    "history and society",
    "science and nature",
    "business and work",
    "everyday life",
]
"""Few topics, so that each is a bush and not a single branch at this size."""


def grow_corpora(out: Path, kit: Path, dialogues: int) -> None:
    """Grow both shapes to the same budget, clean them, and shape the real dialogues like a corpus."""
    from regrow.curate.config import CurateConfig
    from regrow.curate.stage import curate
    from regrow.evaluate.config import EvalConfig
    from regrow.evaluate.stage import build_suites
    from regrow.grow.config import GrowConfig
    from regrow.grow.stage import grow
    from regrow.models.embed import load_encoder
    from regrow.models.load import resolve_model

    model = resolve_model("smollm2")
    all_items = out / "items.jsonl"
    if not all_items.exists():
        own = build_suites(EvalConfig(suites=["facts"], n_facts=120, pool_sample=0), model, [], out / "suites", seed=0)
        wanted = [*read_items(own), *items(kit, 24)]
        tmp = all_items.with_suffix(".tmp")
        tmp.write_text("".join(json.dumps(asdict(i)) + "\n" for i in wanted), encoding="utf-8")
        tmp.rename(all_items)
    common = {
        "engine": "openvino",
        "dialogues": dialogues,
        "topics": TOPICS,
        "top_logprobs": TOP_K,
        "answer": {"max_new_tokens": [128, 160]},
        "retries": 1,
        "refill_rounds": 2,
    }
    for shape, extra in {"balance": {"shape": [8, 2, 2, 1]}, "wide": {"shape": "wide", "turns": 2}}.items():
        grown = out / "grow" / shape
        if not (grown / "dialogues.parquet").exists():
            grow(GrowConfig(**common, **extra), model, grown, seed=0)
        cleaned = out / "corpus" / shape
        if not (cleaned / "dialogues.parquet").exists():
            curate(
                grown,
                CurateConfig(holdout_dialogues=24 if shape == "balance" else 0),
                cleaned,
                items=read_items(all_items),
                domain_rows=domain_rows(kit, DOMAIN_ROWS),
                encoder=load_encoder("minilm"),
                seed=0,
            )
    if not (out / "corpus/real/dialogues.parquet").exists():
        write_real(out / "corpus/real", kit, model.path)


def write_real(folder: Path, kit: Path, model: Path) -> None:
    """Real dialogues as a corpus of one-turn trees, so that they take the same way through the mix."""
    from regrow.grow.corpus import Dialogue, Node, write_corpus
    from regrow.models.load import load_tokenizer
    from regrow.models.turns import derive_turns

    tokenizer = load_tokenizer(model)
    turns = derive_turns(tokenizer)
    nodes, dialogues = [], []
    for i, row in enumerate(real_rows(kit)):
        question, answer = (m["content"].strip() for m in row.messages)
        ids = [turns.encode_content(tokenizer, text) for text in (question, answer)]
        names = [f"t{i:04d}/0", f"t{i:04d}/0/0"]
        for layer, (name, role, text, tokens) in enumerate(
            zip(names, ("user", "assistant"), (question, answer), ids, strict=True), 1
        ):
            nodes.append(
                Node(
                    id=name,
                    parent=names[0] if layer == 2 else f"t{i:04d}",
                    tree=i,
                    topic="real",
                    layer=layer,
                    role=role,
                    token_ids=tokens,
                    text=text,
                    logprob=None,
                    token_logprobs=None,
                    finish="stop",
                    kept=True,
                    reason=None,
                    seed=0,
                    n_paths=1,
                )
            )
        dialogues.append(
            Dialogue(
                id=names[1], messages=row.messages, node_ids=names, topic="real", tree=i, n_tokens=sum(map(len, ids))
            )
        )
    write_corpus(folder, nodes, dialogues, {"model": "none: real dialogues", "engine": "none"})


def job(out: Path, kit: Path, arm: str, seed: int) -> None:
    """Mix and train one arm with one seed."""
    from regrow.mix.config import MixConfig
    from regrow.mix.stage import mix
    from regrow.models.load import resolve_model
    from regrow.train.config import TrainConfig
    from regrow.train.stage import train

    model = resolve_model("smollm2")
    folder = out / f"seed{seed}" / arm
    rows = domain_rows(kit, DOMAIN_ROWS)
    if arm == "sft-long":
        steps = json.loads((out / f"seed{seed}/balance/train.json").read_text())["steps"]
        extra = rows[: steps * ROWS_A_STEP - len(rows)]
        rows += [type(r)(id=f"{r.id}#again", messages=r.messages, domain=r.domain) for r in extra]
    method: Literal["full", "lora"] = "lora" if arm.startswith("lora") else "full"
    corpus = out / "corpus" / CORPUS_OF[arm] if arm in CORPUS_OF else None
    mixed = mix(
        rows,
        corpus,
        model.path,
        MixConfig(
            replay_ratio=REPLAY_RATIO if corpus else 0.0, tree_loss="once" if arm == "balance-once" else "paths"
        ),
        folder / "mix",
        seed=seed,
    )
    cfg = TrainConfig(
        method=method,
        learning_rate=LEARNING_RATE[method],
        num_train_epochs=1,
        per_device_train_batch_size=ROWS_A_STEP,
        warmup_ratio=0.1,
        replay_loss="soft" if arm == "balance-soft" else "hard",
        merge_adapter=method == "lora",
        save_steps=10_000,
        logging_steps=5,
    )
    done = train(model.path, folder / "mix", cfg, folder / "train", seed=seed, label=f"{arm}/{seed}")
    facts = {**done.to_dict(), "mix": mixed.to_dict()}
    tmp = folder / "train.json.tmp"
    tmp.write_text(json.dumps(facts, indent=1, default=str), encoding="utf-8")
    tmp.rename(folder / "train.json")


def evaluate_seed(out: Path, seed: int) -> None:
    """Score base and all arms of one seed on all items."""
    from regrow.evaluate.config import EvalConfig
    from regrow.evaluate.stage import evaluate
    from regrow.models.load import resolve_model
    from regrow.train.interpolate import interpolate

    base = resolve_model("smollm2").path
    folder = out / f"seed{seed}"
    half = folder / "interpolate/model"
    trained = [arm for arm in TRAINED if (folder / arm / "train.json").exists()]
    models = {"base": base} | {arm: folder / arm / "train/model" for arm in trained}
    if "sft" in trained:
        if not (half / "config.json").exists():
            interpolate(base, folder / "sft/train/model", 0.5, half)
        models["interpolate"] = half
    wanted = read_items(out / "items.jsonl") + read_items(out / "corpus/balance/own_dialogues.jsonl")
    # "instructions" is an embedded suite's name too, and items of such a suite count only when it is named.
    suites = ["facts", "own-dialogues", "heldout", "instructions"]
    cfg = EvalConfig(suites=suites, generate_samples=0, max_length=320, max_dialogues=24, noise_floor=seed == 0)
    evaluate(models, wanted, cfg, folder / "eval", seed=seed)
    (folder / "evaluated").write_text("yes\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=TRAINED, default=TRAINED, help="Train only these.")
    parser.add_argument("--dialogues", type=int, default=108)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--job", nargs=2, metavar=("ARM", "SEED"))
    parser.add_argument("--evaluate", type=int, metavar="SEED")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.job:
        job(args.out, args.kit, args.job[0], int(args.job[1]))
        return
    if args.evaluate is not None:
        evaluate_seed(args.out, args.evaluate)
        return
    grow_corpora(args.out, args.kit, args.dialogues)
    me = [sys.executable, str(Path(__file__).resolve()), "--kit", str(args.kit), "--out", str(args.out)]
    for seed in args.seeds:
        # sft-long takes its number of steps from balance, so it comes after.
        for group in ([a for a in args.arms if a != "sft-long"], [a for a in args.arms if a == "sft-long"]):
            todo = [a for a in group if not (args.out / f"seed{seed}/{a}/train.json").exists()]
            in_parallel([[*me, "--job", a, str(seed)] for a in todo], args.workers, args.threads, args.out / "logs")
        if not (args.out / f"seed{seed}/evaluated").exists():
            in_parallel([[*me, "--evaluate", str(seed)]], 1, args.workers * args.threads, args.out / "logs")


if __name__ == "__main__":
    main()
