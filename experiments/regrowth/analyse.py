"""Table of the regrowth experiment.

    python experiments/regrowth/analyse.py --out runs/regrowth --to experiments/regrowth/results

Intervals: 95 %, percentile bootstrap, 2,000 resamples of seeds and, within each seed, of items (paired between arms).
With one seed they say nothing about other seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.regrowth.run import ARMS, DOMAIN_ROWS, LEARNING_RATE, REPLAY_RATIO, TILT, TOPICS, UPDATE_STEPS
from experiments.tg_sft.analyse import interval

from regrow.runs import versions

MEASURES = {
    "own KL": ("own-dialogues", "kl"),
    "own loss": ("own-dialogues", "nll"),
    "instructions, loss": ("instructions", "nll"),
    "AG News, loss": ("heldout", "nll"),
}
RESAMPLES = 2000


def load(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """measure -> item -> arm -> value; own dialogues also once for each topic (``own KL: TOPIC``)."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    with (folder / "eval/records.jsonl").open(encoding="utf-8") as file:
        for record in map(json.loads, file):
            for name, (suite, metric) in MEASURES.items():
                if record["suite"] != suite:
                    continue
                value = record["metrics"].get(metric, 0.0 if metric == "kl" else None)
                names = [name] + ([f"{name}: {record['domain']}"] if name == "own KL" else [])
                for n in names:
                    out.setdefault(n, {}).setdefault(record["item_id"], {})[record["arm"]] = value
    return out


def means(seeds: list[dict[str, dict[str, dict[str, float]]]], name: str, arm: str) -> float:
    return float(np.mean([np.mean([values[arm] for values in seed[name].values()]) for seed in seeds]))


def against(seeds: list, name: str, arm: str, other: str, rng: np.random.Generator) -> dict:
    """Mean of ``arm`` less ``other``, with an interval."""
    deltas = [np.array([v[arm] - v[other] for v in seed[name].values()]) for seed in seeds]
    drawn = []
    for _ in range(RESAMPLES):
        picked = [deltas[i] for i in rng.integers(len(deltas), size=len(deltas))]
        drawn.append(np.mean([d[rng.integers(len(d), size=len(d))].mean() for d in picked]))
    return {"value": float(np.mean([d.mean() for d in deltas])), "ci": interval(np.array(drawn))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    folders = sorted(p.parent for p in args.out.glob("seed*/evaluated"))
    seeds, rng = [load(f) for f in folders], np.random.default_rng(0)
    names = [*MEASURES, *(f"own KL: {t}" for t in TOPICS if all(f"own KL: {t}" in s for s in seeds))]
    summary: dict = {"seeds": [f.name for f in folders], "measures": {}, "cost": {}}
    for name in names:
        summary["measures"][name] = {
            "items": [len(s[name]) for s in seeds],
            "arms": {arm: means(seeds, name, arm) for arm in ["base", *ARMS]},
            "minus_fixed": {a: against(seeds, name, a, "fixed", rng) for a in ARMS if a != "fixed"},
        }
    topics = [n for n in names if n.startswith("own KL: ")]
    summary["worst_topic_kl"] = {
        arm: [max(np.mean([v[arm] for v in s[n].values()]) for n in topics) for s in seeds] for arm in ARMS
    }
    for arm in ARMS:
        facts = [json.loads((f / arm / "train.json").read_text()) for f in folders]
        loops = [f / arm / "train/regrowth.json" for f in folders]
        told = [json.loads(p.read_text()) for p in loops if p.is_file()]
        summary["cost"][arm] = {
            "steps": [f["steps"] for f in facts],
            "replay_tokens": [
                sum(f["realised"].values()) if f["realised"] else f["mix"]["replay"].get("tokens", 0) for f in facts
            ],
            "grown_tokens": [t["spent"] for t in told],
            "grown": [t["grown"] for t in told],
            "drawn": [t["drawn"] for t in told],
            "dip_by_topic": [{d: g["dip"] for d, g in f["gaps"].items()} for f in facts],
            "seconds": [round(f["whole_seconds"]) for f in facts],
        }
    summary |= {
        "versions": versions(),
        "machine": f"{platform.machine()}, one thread",
        "protocol": {
            "domain_rows": DOMAIN_ROWS, "replay_ratio": REPLAY_RATIO, "learning_rate": LEARNING_RATE, "tilt": TILT,
            "update_steps": UPDATE_STEPS, "resamples": RESAMPLES,
        },
    }  # fmt: skip
    args.to.mkdir(parents=True, exist_ok=True)
    (args.to / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    table = markdown(summary)
    (args.to / "table.md").write_text(table, encoding="utf-8")
    print(table)


def markdown(summary: dict) -> str:
    arms = ["base", *ARMS]
    lines = [f"Seeds: {', '.join(summary['seeds'])}. Nats a token. `*`: differs from fixed, 95 % interval.", ""]
    lines += ["| | " + " | ".join(arms) + " |", "| --- |" + " ---: |" * len(arms)]
    for name, found in summary["measures"].items():
        cells = []
        for arm in arms:
            delta = found["minus_fixed"].get(arm)
            star = "*" if delta and (delta["ci"][0] > 0 or delta["ci"][1] < 0) else ""
            cells.append(f"{found['arms'][arm]:.3f}{star}")
        lines.append(f"| {name} ({sum(found['items'])}) | " + " | ".join(cells) + " |")
    worst = {"base": 0.0} | {a: float(np.mean(v)) for a, v in summary["worst_topic_kl"].items()}
    lines.append("| own KL of the worst topic | " + " | ".join(f"{worst[a]:.3f}" for a in arms) + " |")
    costs = {"replay_tokens": "replay tokens", "grown_tokens": "tokens grown meanwhile", "seconds": "s"}
    for key, title in costs.items():
        values = {a: summary["cost"][a][key] for a in ARMS}
        cells = [", ".join(f"{v:,}" for v in values[a]) or "0" for a in ARMS]
        lines.append(f"| {title} | | " + " | ".join(cells) + " |")
    for name, found in summary["measures"].items():
        if ":" in name:
            continue
        deltas = found["minus_fixed"].items()
        told = (f"{a} {d['value']:+.3f} [{d['ci'][0]:+.3f}, {d['ci'][1]:+.3f}]" for a, d in deltas)
        lines.append(f"\n{name}, minus fixed: " + "; ".join(told) + ".")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
