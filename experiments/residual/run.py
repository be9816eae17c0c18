"""The instruction residual against training the tuned model further; see README.md beside this file.

python experiments/residual/run.py --kit KIT --out runs/residual --seeds 0 1 2 --to experiments/residual/results
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.domains.data import dialogue, texts
from experiments.intervals import over_seeds, told
from experiments.jobs import again, arguments, in_parallel
from experiments.tg_sft.data import items as kit_items
from experiments.tg_sft.data import news_question, read

from regrow.evaluate.items import Item
from regrow.rows.row import Row

SKILL_ROWS, NEW_ROWS, TEST = 100, 100, 24
"""News rows that make the tuned model, texts of medicine, and test texts."""
LEARNING_RATE, ROWS_A_STEP = 3e-4, 4
ARMS = ("tuned", "continued", "residual", "halfway", "continued base")
SUITES = {"skill": ("heldout", "acc"), "medicine": ("medicine", "nll"), "instructions": ("instructions", "nll")}
"""Outcome -> suite and metric."""
PAIRS = (("continued", "tuned"), ("residual", "tuned"), ("residual", "continued"), ("residual", "halfway"))


def skill_rows(kit: Path, seed: int) -> list[Row]:
    found = [r for r in read(kit / "continual/agnews.jsonl") if r["split"] == "train"]
    return [
        Row(
            id=r["id"],
            domain="news",
            messages=[{"role": "user", "content": news_question(r)}, {"role": "assistant", "content": r["output"]}],
        )
        for r in random.Random(seed).sample(found, SKILL_ROWS)
    ]


def new_rows(kit: Path, seed: int) -> list[Row]:
    rest = texts(kit)["medicine"][TEST:]
    chosen = random.Random(seed).sample(range(len(rest)), NEW_ROWS)
    return [Row(id=f"medicine/{k}", messages=dialogue("medicine", rest[k]), domain="medicine") for k in chosen]


def test_items(kit: Path) -> list[Item]:
    wanted = [i for i in kit_items(kit, TEST) if i.suite in ("heldout", "instructions")]
    return wanted + [
        Item(
            id=f"medicine/{k}", suite="medicine", domain="medicine", kind="dialogue", messages=dialogue("medicine", t)
        )
        for k, t in enumerate(texts(kit)["medicine"][:TEST])
    ]


def trained(model: Path, rows: list[Row], folder: Path, seed: int) -> Path:
    from regrow.mix.config import MixConfig
    from regrow.mix.stage import mix
    from regrow.train.config import TrainConfig
    from regrow.train.stage import train

    mix(rows, None, model, MixConfig(max_length=320), folder / "mix", seed=seed)
    cfg = TrainConfig(
        learning_rate=LEARNING_RATE, num_train_epochs=1, per_device_train_batch_size=ROWS_A_STEP, warmup_ratio=0.1,
        save_steps=10_000, logging_steps=5,
    )  # fmt: skip
    train(model, folder / "mix", cfg, folder / "train", seed=seed, label=f"{folder.name}/{seed}")
    return folder / "train/model"


def job(kit: Path, out: Path, seed: int) -> None:
    import regrow
    from regrow.evaluate.config import EvalConfig
    from regrow.evaluate.stage import evaluate
    from regrow.models.load import resolve_model

    base, folder = resolve_model("smollm2").path, out / f"seed{seed}"
    skill, new = skill_rows(kit, seed), new_rows(kit, seed)
    tuned = trained(base, skill, folder / "tuned", seed)
    models = {"base": base, "tuned": tuned, "continued": trained(tuned, new, folder / "continued", seed)}
    models["continued base"] = trained(base, new, folder / "base", seed)
    three = [base, tuned, models["continued base"]]
    models["residual"] = regrow.merge(three, folder / "residual", method="residual")
    models["halfway"] = regrow.merge([tuned, models["continued"]], folder / "halfway", weight=0.5)
    cfg = EvalConfig(suites=["heldout", "instructions"], generate_samples=0, max_length=320, noise_floor=False)
    evaluate(models, test_items(kit), cfg, folder / "eval", seed=seed)
    (folder / "evaluated").write_text("yes\n")
    for weights in folder.glob("**/*.safetensors"):
        weights.unlink()  # half a gigabyte each


def outcomes(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Outcome -> arm -> its number of each item, in one order for all arms."""
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in SUITES}
    with (folder / "eval/records.jsonl").open(encoding="utf-8") as file:
        for record in map(json.loads, file):
            for name, (suite, metric) in SUITES.items():
                if record["suite"] == suite:
                    found[name].setdefault(record["arm"], {})[record["item_id"]] = record["metrics"][metric]
    return {n: {a: [v[i] for i in sorted(v)] for a, v in arms.items()} for n, arms in found.items()}


def analyse(out: Path, to: Path, seeds: list[int]) -> None:
    from regrow.runs import versions

    each = [outcomes(out / f"seed{s}") for s in seeds]
    lines = [f"Seeds {', '.join(map(str, seeds))}; in brackets each seed.", ""]
    lines += ["| model | skill, share right | medicine, nats a token | instructions, nats a token |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    for arm in ("base", *ARMS):
        cells = []
        for name in SUITES:
            means = [sum(e[name][arm]) / len(e[name][arm]) for e in each]
            cells.append(f"{sum(means) / len(means):.3f} ({', '.join(f'{x:.2f}' for x in means)})")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    pairs: dict[str, dict[str, Any]] = {}
    lines += ["", "| difference | skill | medicine | instructions |", "| --- | --- | --- | --- |"]
    for a, b in PAIRS:
        one = {n: over_seeds([[x - y for x, y in zip(e[n][a], e[n][b], strict=True)] for e in each]) for n in SUITES}
        pairs[f"{a} - {b}"] = one
        lines.append(f"| {a} - {b} | {' | '.join(told(v) for v in one.values())} |")
    counts = {n: len(each[0][n]["base"]) for n in SUITES}
    lines += ["", "Items: " + ", ".join(f"{n} {c}" for n, c in counts.items()) + "."]
    to.mkdir(parents=True, exist_ok=True)
    kept = {"outcomes": each, "pairs": pairs, "seeds": seeds, "versions": versions(),
            "machine": f"{platform.machine()}, one thread",
            "protocol": {"skill_rows": SKILL_ROWS, "new_rows": NEW_ROWS, "learning_rate": LEARNING_RATE,
                         "rows_a_step": ROWS_A_STEP}}  # fmt: skip
    (to / "summary.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    (to / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def main() -> None:
    parser = arguments(__doc__, seeds=[0, 1, 2])
    parser.add_argument("--job", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.job is not None:
        job(args.kit, args.out, args.job)
        return
    todo = [s for s in args.seeds if not (args.out / f"seed{s}/evaluated").exists()]
    in_parallel([[*again(__file__, args), str(s)] for s in todo], args.workers, 1, args.out / "logs")
    if args.to:
        analyse(args.out, args.to, args.seeds)


if __name__ == "__main__":
    main()
