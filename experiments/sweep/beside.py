"""Sweeps in which other replay stands beside replay grown once: what `general.py` and `regrown.py` share."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.intervals import told
from experiments.jobs import again, arguments, in_parallel
from experiments.sweep.run import SUITES, compared


def differences(folder: Path, suite: str, seed: int) -> list[dict[str, Any]]:
    """Of each ratio: grown once less the other, with forgetting read from ``suite`` alone."""
    from regrow.evaluate.saved import load_evaluation
    from regrow.evaluate.sources import Pair, Replayed, compare_sources
    from regrow.evaluate.summary import summarise
    from regrow.evaluate.tables import tables
    from regrow.recipe import load_recipe

    recipe, saved = load_recipe(folder / "recipe.yaml"), load_evaluation(folder)
    records = [r for r in saved.records() if r.suite in ("heldout", suite)]
    results = summarise(records, arms := saved.results["arms"], recipe.evaluate, seed=seed)
    pairs = []
    for p in saved.results["sources"]:
        grown, other = zip(p["tokens"], p["loss"], strict=True)
        pairs.append(Pair(p["grown"], p["other"], Replayed(*grown), Replayed(*other, p["regrown"])))
    return compare_sources(tables(records, arms), results, pairs, recipe.evaluate, seed=seed)


def analyse(out: Path, to: Path, names: list[str], stem: str, protocol: dict[str, Any]) -> None:
    """Tables of the runs in ``<stem>.md``, all numbers in ``<stem>.json``."""
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
        lines += ["", f"Grown once less {stem} (positive is for grown once):", ""]
        for k, first in enumerate(pairs[SUITES[0]]):
            lost = ", ".join(f"{s} {told(pairs[s][k]['forgetting'], 2)}" for s in SUITES)
            grew = f", {first['regrown']} grown anew" if first["regrown"] else ""
            lines.append(f"- {first['grown']} ({first['tokens'][0]} and {first['tokens'][1]} tokens{grew}): gain "
                         f"{told(first['gain'], 2)}, {lost}")  # fmt: skip
        lines.append("")
    to.mkdir(parents=True, exist_ok=True)
    facts = {"found": found, "versions": versions(), "machine": f"{platform.machine()}, one thread",
             "protocol": protocol}  # fmt: skip
    (to / f"{stem}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (to / f"{stem}.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def main(
    script: str, doc: str | None, job: Callable[[Path, Path, str], None], runs: list[str], protocol: dict[str, Any]
) -> None:
    """The command line of such an experiment; its results are named as its script."""
    parser = arguments(doc)
    parser.add_argument("--runs", nargs="+", default=runs)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        job(args.kit, args.out, args.job)
        return
    me = again(script, args)
    todo = [n for n in args.runs if not (args.out / n / "eval/results.json").exists()]
    in_parallel([[*me, n] for n in todo], args.workers, 1, args.out / "logs")
    if args.to:
        analyse(args.out, args.to, args.runs, Path(script).stem, protocol)
