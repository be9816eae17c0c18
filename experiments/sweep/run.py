"""Replay ratios on two domains, and whether the rule's recommendation holds in another run; see README.md.

python experiments/sweep/run.py --kit KIT --out runs/sweeps --to experiments/sweep/results
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

from experiments.intervals import told
from experiments.jobs import again, arguments, in_parallel
from experiments.tg_sft.data import news_question, read

from regrow.arms import at_ratio

DOMAINS = ("agnews", "sst2")
SEEDS = (0, 1)
"""A recommendation of the one is judged by the other."""
ROWS, TEST = {"agnews": 60, "sst2": 96}, 60
RATIOS = (0, 0.01, 0.05, 0.1, 0.2, 0.4)
SETTINGS: dict[str, Any] = {
    "data": {"test_size": TEST},
    "grow": {
        "turns": 1,
        "topics": ["medicine", "computer programming", "history", "everyday life", "stories", "business"],
        "answer": {"max_new_tokens": [128]},
    },
    "curate": {"holdout_dialogues": 24},
    "train": {"learning_rate": 3e-4, "per_device_train_batch_size": 4, "num_train_epochs": 1},
    "evaluate": {"n_facts": 60, "pool_sample": 300, "generate_samples": 0, "noise_floor": False},
}
SUITES = ("own-dialogues", "facts-pool")


def write_rows(kit: Path, domain: str, seed: int, path: Path) -> Path:
    """Rows to train on and to hold out; another draw for each seed."""
    rows = read(kit / f"continual/{domain}.jsonl")
    chosen = random.Random(seed).sample(rows, ROWS[domain] + TEST)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in chosen:
            turns = [{"role": "user", "content": news_question(row)}, {"role": "assistant", "content": row["output"]}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def job(kit: Path, out: Path, domain: str, seed: int) -> None:
    import regrow

    folder = out / f"{domain}-{seed}"
    rows = write_rows(kit, domain, seed, out / "rows" / f"{domain}-{seed}.jsonl")
    regrow.sweep("smollm2", rows, folder, replay_ratios=RATIOS, seed=seed, settings=SETTINGS)
    for arm in (folder / "train").glob("*/model/model.safetensors"):
        arm.unlink()  # half a gigabyte each


def compared(folder: Path, suite: str, seed: int) -> dict[str, Any]:
    """The comparison of `regrow sweep` with forgetting read from ``suite`` alone."""
    from regrow.evaluate.ratios import Sweep, compare_ratios
    from regrow.evaluate.saved import load_evaluation
    from regrow.evaluate.summary import summarise
    from regrow.evaluate.tables import tables
    from regrow.recipe import load_recipe

    recipe, saved = load_recipe(folder / "recipe.yaml"), load_evaluation(folder)
    records = [r for r in saved.records() if r.suite in ("heldout", suite)]
    results = summarise(records, arms := saved.results["arms"], recipe.evaluate, seed=seed)
    sweep = Sweep(recipe.arm_ratios(), recipe.sweep.margin, recipe.sweep.margin_nats)
    return compare_ratios(tables(records, arms), results, sweep, recipe.evaluate, seed=seed)


def realised(folder: Path) -> dict[str, dict[str, float]]:
    """Arm -> replay as a share of all tokens and of the trained ones."""
    out = {}
    for path in sorted((folder / "mix").glob("*/mix.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        out[path.parent.name] = {k: facts["realised"][k] for k in ("tokens", "train_tokens")}
    return out


def judged(other: dict[str, Any], ratio: float) -> dict[str, Any]:
    """What ``ratio`` gives up in a run that did not choose it."""
    arms = {a["ratio"]: a for a in other["arms"].values()}
    lost = {r: a["forgetting"]["value"] for r, a in arms.items()}
    above = lost[ratio] - min(lost.values())
    below = arms[ratio]["below_plain"]
    return {"above_best": above, "below_plain": below["value"], "below_plain_ci": below["ci"],
            "within": above <= other["on"]["forgetting"]["margin"]}  # fmt: skip


def analyse(out: Path, to: Path) -> None:
    """Tables of the runs that are finished, and what each recommendation is worth in the others of its domain."""
    from regrow.runs import versions

    seeds = {d: [s for s in SEEDS if (out / f"{d}-{s}/eval/results.json").is_file()] for d in DOMAINS}
    found = {
        f"{d}/{suite}/{s}": compared(out / f"{d}-{s}", suite, s) for d in DOMAINS for suite in SUITES for s in seeds[d]
    }
    mixes = {f"{d}-{s}": realised(out / f"{d}-{s}") for d in DOMAINS for s in seeds[d]}
    lines = []
    for domain, suite in ((d, suite) for d in DOMAINS if seeds[d] for suite in SUITES):
        mine, shares = seeds[domain], [mixes[f"{domain}-{s}"] for s in seeds[domain]]
        lines += [f"### {domain}, forgetting on {suite}", ""]
        lines += ["| ratio | of trained |" + "".join(f" gain, seed {s} | forgets, seed {s} |" for s in mine)]
        lines += ["| ---: | ---: |" + " ---: | ---: |" * len(mine)]
        runs = {s: found[f"{domain}/{suite}/{s}"] for s in mine}
        for ratio in RATIOS:
            arms = [r["arms"][at_ratio(ratio)] for r in runs.values()]
            trained = ", ".join(f"{100 * share[at_ratio(ratio)]['train_tokens']:.0f} %" for share in shares)
            cells = [f"{100 * ratio:g} %", trained]
            cells += [told(a[what], 2) for a in arms for what in ("gain", "forgetting")]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
        for seed, run in runs.items():
            judges = "".join(_verdict(run, judge, other) for other, judge in runs.items() if other != seed)
            lines += [f"Seed {seed}: {run['sentence']}{judges}", ""]
    to.mkdir(parents=True, exist_ok=True)
    facts = {"found": found, "realised": mixes, "versions": versions(), "machine": f"{platform.machine()}, one thread",
             "protocol": {"rows": ROWS, "test": TEST, "ratios": RATIOS, "settings": SETTINGS}}  # fmt: skip
    (to / "summary.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (to / "table.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def _verdict(run: dict[str, Any], judge: dict[str, Any], other: int) -> str:
    if run["ratio"] is None:
        return ""
    x = judged(judge, run["ratio"])
    low, high = x["below_plain_ci"]
    within = "within" if x["within"] else "above"
    return (
        f" In seed {other} it forgets {x['above_best']:.3f} more than the best ({within} the margin)"
        f" and learns {x['below_plain']:.2f} [{low:.2f}, {high:.2f}] less than plain."
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.job:
        job(args.kit, args.out, args.job[0], int(args.job[1]))
        return
    me = again(__file__, args)
    todo = [(d, s) for s in SEEDS for d in DOMAINS if not (args.out / f"{d}-{s}/eval/results.json").exists()]
    in_parallel([[*me, d, str(s)] for d, s in todo], args.workers, 1, args.out / "logs")
    if args.to:
        analyse(args.out, args.to)


if __name__ == "__main__":
    main()
