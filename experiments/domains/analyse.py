"""Table of the mixtures over six domains.

python experiments/domains/analyse.py --out runs/mixtures --to experiments/domains/results
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.domains.data import DOMAINS
from experiments.domains.mixtures import ARMS, LEARNING_RATE, ROWS_A_STEP, STEPS, TARGET, UPDATE_STEPS
from experiments.domains.scoring import difference, load, mean
from experiments.intervals import RESAMPLES, told

from regrow.runs import versions

PAIRS = [
    ("uniform", "inverse"), ("constant", "uniform"), ("dynamic", "constant"), ("dynamic", "uniform"),
    ("expansion", "rest-uniform"),
]  # fmt: skip


def shares(folder: Path, arm: str) -> dict[str, float]:
    """Realised shares of the tokens, in the mean over the intervals between looks."""
    lines = [json.loads(x) for x in (folder / arm / "train/monitor.jsonl").read_text(encoding="utf-8").splitlines()]
    return {d: float(np.mean([x[f"mix/{d}"] for x in lines if f"mix/{d}" in x])) for d in DOMAINS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    folders = sorted(p.parents[1] for p in args.out.glob("seed*/eval/results.json"))
    seeds, every, others = [load(f) for f in folders], list(DOMAINS), [d for d in DOMAINS if d != TARGET]
    groups = {"mean of six": every, "the five others": others} | {d: [d] for d in DOMAINS}
    known = json.loads((args.out / "prepared.json").read_text())
    summary = {
        "seeds": [f.name for f in folders],
        "losses": {g: {a: mean(seeds, d, a) for a in ["base", *ARMS]} for g, d in groups.items()},
        "differences": {
            f"{a} - {b}": {g: difference(seeds, d, a, b) for g, d in groups.items()} for a, b in PAIRS
        },
        "shares": {a: {d: float(np.mean([shares(f, a)[d] for f in folders])) for d in DOMAINS} for a in ARMS},
        "prepared": known,
        "versions": versions(),
        "machine": f"{platform.machine()}, one thread",
        "protocol": {"steps": STEPS, "rows_a_step": ROWS_A_STEP, "update_steps": UPDATE_STEPS,
                     "learning_rate": LEARNING_RATE, "target": TARGET, "resamples": RESAMPLES},
    }  # fmt: skip
    args.to.mkdir(parents=True, exist_ok=True)
    (args.to / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    table = markdown(summary)
    (args.to / "table.md").write_text(table, encoding="utf-8")
    print(table)


def markdown(summary: dict) -> str:
    arms = ["base", *ARMS]
    lines = [f"Seeds: {', '.join(summary['seeds'])}. Loss in nats a token, lower is better.", ""]
    lines += ["| | " + " | ".join(arms) + " |", "| --- |" + " ---: |" * len(arms)]
    for group, values in summary["losses"].items():
        lines.append(f"| {group} | " + " | ".join(f"{values[a]:.3f}" for a in arms) + " |")
    for domain in DOMAINS:
        cells = [f"{100 * summary['shares'][a][domain]:.0f} %" for a in ARMS]
        lines.append(f"| share of {domain} | | " + " | ".join(cells) + " |")
    lines += ["", "| difference | mean of six | the five others | " + f"{TARGET} |", "| --- | ---: | ---: | ---: |"]
    for pair, found in summary["differences"].items():
        cells = [told(found[g]) for g in ("mean of six", "the five others", TARGET)]
        lines.append(f"| {pair} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
