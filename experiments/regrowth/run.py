"""One command for the regrowth experiment; see README.md beside this file. Started again, it continues.

python experiments/regrowth/run.py --kit KIT --out runs/regrowth --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.jobs import in_parallel
from experiments.tg_sft.data import domain_rows, general_dialogues, instruction, news_question, pick, read

from regrow.curate.config import CurateConfig
from regrow.evaluate.items import read_items
from regrow.grow.config import GrowConfig
from regrow.loops.config import RegrowthConfig
from regrow.mix.config import MixConfig
from regrow.train.config import TrainConfig

ARMS = ["plain", "fixed", "weights", "regrowth"]
TOPICS = ["computer programming", "cooking and food", "business and the economy", "stories and poems"]
"""Near to news and far from it, so that a news domain has reason to forget them unevenly."""
DOMAIN_ROWS = 32
ROWS_A_STEP = 4
REPLAY_RATIO = 0.5
"""About what the corpus holds once its held-out part is out: with spare dialogues nothing would be missing."""
LEARNING_RATE = 3e-4
UPDATE_STEPS = 3
TILT = 0.75
GROW = GrowConfig(
    engine="openvino",
    topics=TOPICS,
    shape=[24, 1],
    tokens=6000,
    question={"max_new_tokens": 40},
    answer={"max_new_tokens": [80]},
    retries=1,
    refill_rounds=2,
)
CURATE = CurateConfig(holdout_dialogues=16, watch_dialogues=3)
MIX = MixConfig(replay_ratio=REPLAY_RATIO, max_length=512)
REGROWTH = {
    "weights": RegrowthConfig(tokens=0),
    "regrowth": RegrowthConfig(tokens=1500, every_steps=3, min_tokens=200),
}


def items(kit: Path, n: int = 12) -> list:
    """Held-out news as dialogues, and general instructions that have nothing to do with it."""
    from regrow.evaluate.items import Item

    def dialogue(suite: str, row_id: str, question: str, answer: str) -> Item:
        said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return Item(id=row_id, suite=suite, domain=suite, kind="dialogue", messages=said)

    news = pick([r for r in read(kit / "continual/agnews.jsonl") if r["split"] == "test"], 2 * n)
    out = [dialogue("heldout", r["id"], news_question(r), r["output"]) for r in news]
    general = pick(general_dialogues(kit)[1], n)
    return out + [dialogue("instructions", r["id"], instruction(r), r["output"][:300]) for r in general]


def prepare(out: Path, kit: Path, seed: int) -> None:
    """Grow and curate the corpus of a seed."""
    from regrow.curate.stage import curate
    from regrow.grow.stage import grow
    from regrow.models.embed import load_encoder
    from regrow.models.load import resolve_model

    model, folder = resolve_model("smollm2"), out / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = items(kit)
    (folder / "items.jsonl").write_text("".join(json.dumps(asdict(i)) + "\n" for i in wanted), encoding="utf-8")
    started = time.monotonic()
    if not (folder / "grown/dialogues.parquet").exists():
        grow(GROW, model, folder / "grown", seed=seed)
    if not (folder / "corpus/dialogues.parquet").exists():
        curate(
            folder / "grown", CURATE, folder / "corpus",
            items=wanted, domain_rows=domain_rows(kit, DOMAIN_ROWS), encoder=load_encoder("minilm"), seed=seed,
        )  # fmt: skip
    (folder / "prepared").write_text(f"{time.monotonic() - started:.0f} s\n")


def job(out: Path, kit: Path, arm: str, seed: int) -> None:
    """Mix and train one arm with one seed."""
    from regrow.loops.regrowth import Grounds, train_with_regrowth
    from regrow.mix.parts import write_watched
    from regrow.mix.stage import mix
    from regrow.models.embed import load_encoder
    from regrow.models.load import resolve_model
    from regrow.train.stage import train

    started = time.monotonic()
    model, folder = resolve_model("smollm2"), out / f"seed{seed}"
    corpus, mine = folder / "corpus", folder / arm
    rows = domain_rows(kit, DOMAIN_ROWS)
    mixed = mix(rows, None if arm == "plain" else corpus, model.path, MIX, mine / "mix", seed=seed)
    write_watched(corpus, [], model.path, MIX, mine / "mix")
    controlled = arm in REGROWTH
    cfg = TrainConfig(
        learning_rate=LEARNING_RATE,
        num_train_epochs=1,
        per_device_train_batch_size=ROWS_A_STEP,
        warmup_ratio=0.1,
        save_steps=10_000,
        logging_steps=3,
        mixture={"update_steps": UPDATE_STEPS} | ({"controller": "forgetting", "tilt": TILT} if controlled else {}),
    )
    label = f"{arm}/{seed}"
    if controlled:
        grounds = Grounds(
            folder / "grown", corpus, GROW, CURATE,
            items=read_items(folder / "items.jsonl"), domain_rows=rows, encoder=lambda: load_encoder("minilm"),
        )  # fmt: skip
        done = train_with_regrowth(
            REGROWTH[arm], model, mine / "mix", MIX, cfg, grounds, mine / "train", seed=seed, label=label
        )
    else:
        done = train(model.path, mine / "mix", cfg, mine / "train", seed=seed, label=label)
    facts = {**done.to_dict(), "mix": mixed.to_dict(), "whole_seconds": time.monotonic() - started}
    tmp = mine / "train.json.tmp"
    tmp.write_text(json.dumps(facts, indent=1, default=str), encoding="utf-8")
    tmp.rename(mine / "train.json")


def evaluate_seed(out: Path, seed: int) -> None:
    """Score base and all arms of one seed."""
    from regrow.evaluate.config import EvalConfig
    from regrow.evaluate.stage import evaluate
    from regrow.models.load import resolve_model

    folder = out / f"seed{seed}"
    models = {"base": resolve_model("smollm2").path} | {arm: folder / arm / "train/model" for arm in ARMS}
    wanted = read_items(folder / "items.jsonl") + read_items(folder / "corpus/own_dialogues.jsonl")
    # "instructions" is an embedded suite's name too, and items of such a suite count only when it is named.
    suites = ["own-dialogues", "heldout", "instructions"]
    cfg = EvalConfig(suites=suites, generate_samples=0, max_length=320, noise_floor=False)
    evaluate(models, wanted, cfg, folder / "eval", seed=seed)
    (folder / "evaluated").write_text("yes\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prepare", type=int, metavar="SEED")
    parser.add_argument("--job", nargs=2, metavar=("ARM", "SEED"))
    parser.add_argument("--evaluate", type=int, metavar="SEED")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.prepare is not None:
        prepare(args.out, args.kit, args.prepare)
    elif args.job:
        job(args.out, args.kit, args.job[0], int(args.job[1]))
    elif args.evaluate is not None:
        evaluate_seed(args.out, args.evaluate)
    else:
        me = [sys.executable, str(Path(__file__).resolve()), "--kit", str(args.kit), "--out", str(args.out)]
        for seed in args.seeds:
            folder, logs = args.out / f"seed{seed}", args.out / "logs"
            if not (folder / "prepared").exists():
                in_parallel([[*me, "--prepare", str(seed)]], 1, args.threads, logs)
            todo = [a for a in ARMS if not (folder / a / "train.json").exists()]
            in_parallel([[*me, "--job", a, str(seed)] for a in todo], args.workers, args.threads, logs)
            if not (folder / "evaluated").exists():
                in_parallel([[*me, "--evaluate", str(seed)]], 1, args.threads, logs)


if __name__ == "__main__":
    main()
