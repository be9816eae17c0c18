"""Grown replay beside as much real general data, at two ratios; see README.md.

python experiments/sweep/general.py --kit KIT --out runs/general --to experiments/sweep/results --runs agnews-0 sst2-0
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.intervals import told
from experiments.jobs import again, arguments, in_parallel
from experiments.sweep.run import SETTINGS, SUITES, compared, write_rows
from experiments.tg_sft.data import general_dialogues, instruction

RATIOS = (0, 0.1, 0.4)


def write_general(kit: Path, path: Path) -> Path:
    """Dolly and self-instruct rows, none of which is evaluated here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": instruction(r), "completion": r["output"]} for r in general_dialogues(kit)[0]]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def job(kit: Path, out: Path, name: str) -> None:
    import regrow

    domain, seed = name.split("-")
    rows = write_rows(kit, domain, int(seed), out / "rows" / f"{name}.jsonl")
    general = write_general(kit, out / "rows" / "general.jsonl")
    settings = {**SETTINGS, "data": {**SETTINGS["data"], "on_bad": "drop", "general_loss": "hard"}}
    regrow.sweep("smollm2", rows, out / name, replay_ratios=RATIOS, general=general, seed=int(seed), settings=settings)
    for arm in (out / name / "train").glob("*/model/model.safetensors"):
        arm.unlink()  # half a gigabyte each


def differences(folder: Path, suite: str, seed: int) -> list[dict[str, Any]]:
    """Of each ratio: grown less general, with forgetting read from ``suite`` alone."""
    from regrow.evaluate.saved import load_evaluation
    from regrow.evaluate.sources import Pair, Replayed, compare_sources
    from regrow.evaluate.summary import summarise
    from regrow.evaluate.tables import tables
    from regrow.recipe import load_recipe

    recipe, saved = load_recipe(folder / "recipe.yaml"), load_evaluation(folder)
    records = [r for r in saved.records() if r.suite in ("heldout", suite)]
    results = summarise(records, arms := saved.results["arms"], recipe.evaluate, seed=seed)
    pairs = [
        Pair(p["grown"], p["other"], *(Replayed(*x) for x in zip(p["tokens"], p["loss"], strict=True)))
        for p in saved.results["sources"]
    ]
    return compare_sources(tables(records, arms), results, pairs, recipe.evaluate, seed=seed)


def analyse(out: Path, to: Path, names: list[str]) -> None:
    from regrow.runs import versions

    found: dict[str, Any] = {}
    lines = []
    for name in names:
        seed = int(name.split("-")[1])
        sweeps = {suite: compared(out / name, suite, seed)["arms"] for suite in SUITES}
        pairs = {suite: differences(out / name, suite, seed) for suite in SUITES}
        found[name] = {"arms": sweeps, "differences": pairs}
        lines += [f"### {name}", "", "| arm | gain | " + " | ".join(f"forgets, {s}" for s in SUITES) + " |"]
        lines += ["| --- |" + " ---: |" * (1 + len(SUITES))]
        for arm, facts in sweeps[SUITES[0]].items():
            lost = " | ".join(told(sweeps[s][arm]["forgetting"], 2) for s in SUITES)
            lines.append(f"| {arm} | {told(facts['gain'], 2)} | {lost} |")
        lines += ["", "Grown less general (positive is for grown):", ""]
        for k, first in enumerate(pairs[SUITES[0]]):
            lost = ", ".join(f"{s} {told(pairs[s][k]['forgetting'], 2)}" for s in SUITES)
            lines.append(f"- {first['grown']} ({first['tokens'][0]} and {first['tokens'][1]} tokens): gain "
                         f"{told(first['gain'], 2)}, {lost}")  # fmt: skip
        lines.append("")
    to.mkdir(parents=True, exist_ok=True)
    facts = {"found": found, "versions": versions(), "machine": f"{platform.machine()}, one thread",
             "protocol": {"ratios": RATIOS, "settings": SETTINGS}}  # fmt: skip
    (to / "general.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (to / "general.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--runs", nargs="+", default=["agnews-0", "sst2-0"])
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job(args.kit, args.out, args.job)
        return
    me = again(__file__, args)
    todo = [n for n in args.runs if not (args.out / n / "eval/results.json").exists()]
    in_parallel([[*me, n] for n in todo], args.workers, 1, args.out / "logs")
    if args.to:
        analyse(args.out, args.to, args.runs)


if __name__ == "__main__":
    main()
