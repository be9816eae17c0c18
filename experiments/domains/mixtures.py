"""Mixtures over six domains on a small real model; see README.md beside this file. Started again, it continues.

python experiments/domains/mixtures.py --kit KIT --out runs/mixtures --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.domains.data import DOMAINS, split
from experiments.domains.scoring import score
from experiments.jobs import in_parallel

from regrow.mix.config import MixConfig
from regrow.train.config import TrainConfig

TRAIN, TEST = 100, 16
"""Rows and items a domain."""
STEPS, ROWS_A_STEP, UPDATE_STEPS, HOLDOUT = 24, 3, 6, 3
LEARNING_RATE = 1e-4
TARGET = "medicine"
ABILITIES = ["inverse", "uniform", "constant", "dynamic"]
EXPANSIONS = ["expansion", "rest-uniform"]
"""``rest-uniform`` gives the target what ``expansion`` gave it, so it comes after."""
ARMS = [*ABILITIES, *EXPANSIONS]
SAMPLES, REPEATS = 100, 2


def prepare(out: Path, kit: Path) -> None:
    """What the model talks about by itself, and how low each domain's loss comes when it is all that is trained on."""
    from regrow import probe_domains

    labels = out / "labels.jsonl"
    rows, _ = split(kit, TRAIN, TEST, 0)
    labelled = [{"text": r.messages[1]["content"], "domain": d} for d, found in rows.items() for r in found]
    labels.write_text("".join(json.dumps(r) + "\n" for r in labelled), encoding="utf-8")
    found = probe_domains("smollm2", labels, out / "probe", samples=SAMPLES, repeats=REPEATS)
    weights = {d: found.facts["shares"][d]["share"] for d in DOMAINS}
    reference = {}
    for domain in DOMAINS:
        folder = out / "reference" / domain
        _train(kit, folder, 0, {"controller": "uniform"}, only=domain)
        last = (folder / "train/monitor.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        reference[domain] = json.loads(last)[f"heldout/{domain}"]
    (out / "prepared.json").write_text(json.dumps({"weights": weights, "reference": reference}, indent=1))


def _train(kit: Path, folder: Path, seed: int, mixture: dict, only: str | None = None) -> dict:
    from regrow.mix.stage import mix
    from regrow.models.load import resolve_model
    from regrow.train.stage import train

    model = resolve_model("smollm2").path
    rows, _ = split(kit, TRAIN, TEST, seed)
    wanted = [r for d in ([only] if only else DOMAINS) for r in rows[d]]
    mix(wanted, None, model, MixConfig(max_length=320), folder / "mix", seed=seed)
    cfg = TrainConfig(
        learning_rate=LEARNING_RATE, max_steps=STEPS, per_device_train_batch_size=ROWS_A_STEP, warmup_ratio=0.1,
        save_steps=10_000, logging_steps=UPDATE_STEPS,
        mixture={"update_steps": UPDATE_STEPS, "holdout_rows": HOLDOUT} | mixture,
    )  # fmt: skip
    return train(model, folder / "mix", cfg, folder / "train", seed=seed, label=folder.name).to_dict()


def mixture_of(arm: str, folder: Path, weights: dict, reference: dict) -> dict:
    """The recipe section ``train.mixture`` of an arm."""
    if arm in ("uniform", "inverse", "constant"):
        return {"controller": arm, "weights": weights}
    if arm == "dynamic":
        return {"controller": "fostering", "weights": weights, "reference": reference}
    if arm == "expansion":
        return {"controller": "expansion", "target": TARGET, "weights": weights, "reference": reference}
    lines = (folder / "expansion/train/monitor.jsonl").read_text(encoding="utf-8").splitlines()
    # Intervals have the same number of steps, so the mean of their shares is nearly that of the whole.
    shares = [s for line in lines if (s := json.loads(line).get(f"mix/{TARGET}")) is not None]
    share = sum(shares) / len(shares)
    rest = {d: (1 - share) / (len(DOMAINS) - 1) for d in DOMAINS}
    return {"controller": "constant", "weights": rest | {TARGET: share}}


def job(out: Path, kit: Path, arm: str, seed: int) -> None:
    """Train one arm with one seed."""
    started = time.monotonic()
    known, folder = json.loads((out / "prepared.json").read_text()), out / f"seed{seed}"
    done = _train(kit, folder / arm, seed, mixture_of(arm, folder, known["weights"], known["reference"]))
    tmp = folder / arm / "train.json.tmp"
    tmp.write_text(json.dumps(done | {"seconds": time.monotonic() - started}, indent=1, default=str))
    tmp.rename(folder / arm / "train.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--evaluate", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.prepare:
        prepare(args.out, args.kit)
    elif args.job:
        job(args.out, args.kit, args.job[0], int(args.job[1]))
    elif args.evaluate is not None:
        folder = args.out / f"seed{args.evaluate}"
        models = {arm: folder / arm / "train/model" for arm in ARMS}
        score(models, split(args.kit, TRAIN, TEST, 0)[1], folder / "eval", args.evaluate)
    else:
        me = [sys.executable, str(Path(__file__).resolve()), "--kit", str(args.kit), "--out", str(args.out)]
        logs = args.out / "logs"
        if not (args.out / "prepared.json").exists():
            in_parallel([[*me, "--prepare"]], 1, args.threads, logs)
        folders = {seed: args.out / f"seed{seed}" for seed in args.seeds}
        for arms in ([a for a in ARMS if a != "rest-uniform"], ["rest-uniform"]):
            todo = [(a, s) for s, f in folders.items() for a in arms if not (f / a / "train.json").exists()]
            in_parallel([[*me, "--job", a, str(s)] for a, s in todo], args.workers, args.threads, logs)
        unscored = [s for s, f in folders.items() if not (f / "eval/results.json").exists()]
        in_parallel([[*me, "--evaluate", str(s)] for s in unscored], args.workers, args.threads, logs)


if __name__ == "__main__":
    main()
