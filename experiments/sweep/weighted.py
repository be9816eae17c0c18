"""The largest ratio of a finished sweep again, with replay weighted down to its share of the tokens; see README.md.

python experiments/sweep/weighted.py --out runs/sweeps --runs agnews-0 sst2-0 --to experiments/sweep/results
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from experiments.intervals import told
from experiments.sweep.run import RATIOS, SUITES

from regrow.arms import PLAIN, at_ratio


def measure(run: Path, out: Path) -> None:
    """Train and score; what the sweep scored is not scored again."""
    from regrow.evaluate.items import read_items
    from regrow.evaluate.stage import evaluate
    from regrow.mix.stage import MixSummary
    from regrow.models.load import resolve_model
    from regrow.recipe import load_recipe
    from regrow.train.stage import train

    recipe, base, arm = load_recipe(run / "recipe.yaml"), resolve_model("smollm2").path, at_ratio(max(RATIOS))
    mixed = MixSummary(**json.loads((run / "mix" / arm / "mix.json").read_text(encoding="utf-8")))
    weight = mixed.even_weight  # as much of the loss as of the tokens
    cfg = recipe.train.model_copy(update={"replay_weight": weight})
    done = train(base, run / "mix" / arm, cfg, out / "train", seed=recipe.seed, label=f"{run.name} weighted")
    items = read_items(run / "suites/items.jsonl") + read_items(run / "corpus/own_dialogues.jsonl")
    known = [run / "suites/scores.jsonl", run / "eval/scores.jsonl"]
    models = {"base": base, "weighted": done.model_path}
    evaluate(models, items, recipe.evaluate, out / "eval", seed=recipe.seed, reuse=known)
    (out / "weight.json").write_text(json.dumps({"arm": arm, "replay_weight": weight}) + "\n", encoding="utf-8")


def values(folder: Path, arm: str, suite: str) -> dict[str, float]:
    with (folder / "eval/records.jsonl").open(encoding="utf-8") as file:
        records = [r for r in map(json.loads, file) if r["suite"] == suite and r["arm"] == arm]
    return {r["item_id"]: r["metrics"]["kl" if suite == "own-dialogues" else "acc"] for r in records}


def compare(run: Path, out: Path) -> dict[str, Any]:
    """Suite -> the weighted arm's mean, and its paired differences from the same mix unweighted and from plain SFT."""
    from regrow.evaluate.stats import paired_difference

    found: dict[str, Any] = json.loads((out / "weight.json").read_text(encoding="utf-8"))
    for suite in ("heldout", *SUITES):
        mine = values(out, "weighted", suite)
        found[suite] = {"weighted": float(np.mean(list(mine.values())))}
        for other in (found["arm"], PLAIN):
            theirs = values(run, other, suite)
            pair = [np.array([v[i] for i in sorted(mine)]) for v in (mine, theirs)]
            x = paired_difference(pair[0], pair[1], confidence=0.95, resamples=10_000, seed=0)
            found[suite][f"less {other}"] = {"value": x.value, "ci": [x.low, x.high]}
            found[suite][other] = float(pair[1].mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the sweeps")
    parser.add_argument("--runs", nargs="+", required=True)
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    facts = {}
    for name in args.runs:
        run, out = args.out / name, args.out / f"{name}-weighted"
        if not (out / "weight.json").is_file():
            measure(run, out)
        facts[name] = compare(run, out)
    lines = []
    for name, found in facts.items():
        arm = found["arm"]
        lines += [f"### {name}: {arm}, replay_weight {found['replay_weight']:.3f}", ""]
        lines += [f"| | {PLAIN} | {arm} | weighted | less {arm} | less {PLAIN} |", "| --- |" + " ---: |" * 5]
        for suite in ("heldout", *SUITES):
            x = found[suite]
            cells = [f"{x[a]:.3f}" for a in (PLAIN, arm, "weighted")]
            cells += [told(x[f"less {a}"]) for a in (arm, PLAIN)]
            lines.append(f"| {suite} | " + " | ".join(cells) + " |")
        lines.append("")
    args.to.mkdir(parents=True, exist_ok=True)
    (args.to / "weighted.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (args.to / "weighted.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
