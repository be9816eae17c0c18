"""Two stages by mastery against one stage on all facts, on a real model; see README.md beside this file.

python experiments/gradual/run.py --kit KIT --out runs/gradual --to experiments/gradual/results
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.intervals import over_seeds, told
from experiments.jobs import again, arguments, in_parallel
from experiments.tg_sft.data import read

RELATIONS = {
    "capital": r"The capital of .+ is$",
    "country": r"The country of .+ is$",
    "native language": r"The native language of .+ is$",
    "official language": r"The official language of .+ is$",
    "sport": r"The sport played by .+ is$",
}
TRAIN, DEV, TEST = 24, 8, 24
"""Facts of each relation."""
SETTINGS: dict[str, Any] = {
    "probe.mastery": {"prompts": 3, "shots": 4, "samples": 3, "max_new_tokens": 12, "engine": "openvino"},
    "train": {"learning_rate": 3e-4, "per_device_train_batch_size": 8, "logging_steps": 5},
    "gradual": {"epochs": 6, "law": False, "stage2": {"epochs": 3, "learning_rate": 1.5e-4}},
}
MODELS = ("base", "stage1", "stage2", "one-stage")
PAIRS = (("stage1", "base"), ("one-stage", "base"), ("stage1", "one-stage"), ("stage2", "stage1"),
         ("stage2", "one-stage"))  # fmt: skip


def facts(kit: Path) -> dict[str, list[dict[str, str]]]:
    """Relation -> its facts, no question twice."""
    out: dict[str, dict[str, dict[str, str]]] = {name: {} for name in RELATIONS}
    for row in read(kit / "general_qa/wikidata_facts.jsonl"):
        for name, pattern in RELATIONS.items():
            if re.match(pattern, row["prompt"]):
                asked = f"{row['prompt']} …"
                out[name][asked] = {"question": asked, "answer": row["answer"], "relation": name}
    return {name: list(found.values()) for name, found in out.items()}


def write_parts(kit: Path, seed: int, folder: Path) -> tuple[Path, Path, Path]:
    """Train, dev and test files: the test facts are the same for all seeds, the others another draw for each."""
    parts: dict[str, list[dict[str, str]]] = {"train": [], "dev": [], "test": []}
    for rows in facts(kit).values():
        rows = random.Random(0).sample(rows, len(rows))
        drawn = random.Random(seed + 1).sample(rows[TEST:], TRAIN + DEV)
        parts["test"] += rows[:TEST]
        parts["train"] += drawn[:TRAIN]
        parts["dev"] += drawn[TRAIN:]
    folder.mkdir(parents=True, exist_ok=True)
    for name, chosen in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in chosen), encoding="utf-8")
    return folder / "train.jsonl", folder / "dev.jsonl", folder / "test.jsonl"


def job(kit: Path, out: Path, seed: int) -> None:
    import regrow

    train, dev, test = write_parts(kit, seed, out / f"parts{seed}")
    folder = out / f"seed{seed}"
    regrow.gradual("smollm2", train, folder, dev=dev, test=test, method="lora", seed=seed, settings=SETTINGS)
    for weights in folder.glob("*/model/model.safetensors"):
        weights.unlink()  # half a gigabyte each


def right(folder: Path) -> dict[str, Any]:
    """``categories`` of the test questions before any training, and ``right``: model -> 0 or 1 a question."""
    return json.loads((folder / "test/test.json").read_text(encoding="utf-8"))


def analyse(out: Path, to: Path, seeds: list[int]) -> None:
    from regrow.runs import versions

    tests = [right(out / f"seed{s}") for s in seeds]
    found = [json.loads((out / f"seed{s}/gradual.json").read_text(encoding="utf-8")) for s in seeds]
    for run in found:
        for part in ("dev", "test"):  # files of this machine
            run["settings"]["gradual"][part] = Path(run["settings"]["gradual"][part]).name
    pairs = {
        f"{a} - {b}": over_seeds([[x - y for x, y in zip(t["right"][a], t["right"][b], strict=True)] for t in tests])
        for a, b in PAIRS
    }
    lines = [f"{5 * TEST} test questions, the same for seeds {', '.join(map(str, seeds))}; exact match.", ""]
    lines += ["| model | mean | " + " | ".join(f"seed {s}" for s in seeds) + " |"]
    lines += ["| --- | ---: |" + " ---: |" * len(seeds)]
    for name in MODELS:
        each = [sum(t["right"][name]) / len(t["right"][name]) for t in tests]
        cells = " | ".join(f"{x:.3f}" for x in each)
        lines.append(f"| {name} | {sum(each) / len(each):.3f} | {cells} |")
    lines += ["", "| difference | in points, seeds and questions resampled | by seed |", "| --- | --- | --- |"]
    for name, value in pairs.items():
        lines.append(f"| {name} | {told(value)} | {', '.join(f'{x:+.3f}' for x in value['seeds'])} |")
    lines += ["", "| seed | " + " | ".join(["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"])
              + " | raised to MaybeKnown by chance | by stage 1 | trained on in stage 1, 2, one stage "
              "| steps | no longer HighlyKnown: by chance, after stage 1, both stages, one stage |"]  # fmt: skip
    lines += ["| ---: |" + " ---: |" * 9]
    for seed, run in zip(seeds, found, strict=True):
        moved = {n: run["transitions"][n]["to_maybe_known"] for n in ("control", "stage 1")}
        arms = [run["arms"][a] for a in MODELS[1:]]
        sizes = ", ".join(str(sum(a["facts"].values())) for a in arms)
        steps = ", ".join(str(a["steps"]) for a in arms)
        gone = ", ".join(
            str(run["transitions"][n]["forgotten"]) for n in ("control", "stage 1", "both stages", "one stage")
        )
        counts = " | ".join(str(n) for n in run["labels"]["base"].values())
        lines.append(f"| {seed} | {counts} | {moved['control']} | {moved['stage 1']} | {sizes} | {steps} | {gone} |")
    to.mkdir(parents=True, exist_ok=True)
    kept = {"tests": tests, "pairs": pairs, "runs": found, "versions": versions(),
            "machine": f"{platform.machine()}, one thread",
            "protocol": {"settings": SETTINGS, "facts of a relation": [TRAIN, DEV, TEST]}}  # fmt: skip
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
    me = again(__file__, args)
    todo = [s for s in args.seeds if not (args.out / f"seed{s}/gradual.json").exists()]
    in_parallel([[*me, str(s)] for s in todo], args.workers, 1, args.out / "logs")
    if args.to:
        analyse(args.out, args.to, args.seeds)


if __name__ == "__main__":
    main()
