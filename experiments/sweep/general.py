"""Grown replay beside as much real general data, at two ratios; see README.md.

python experiments/sweep/general.py --kit KIT --out runs/general --to experiments/sweep/results --runs agnews-0 sst2-0
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.sweep.beside import main
from experiments.sweep.run import SETTINGS, write_rows
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


if __name__ == "__main__":
    main(__file__, __doc__, job, ["agnews-0", "sst2-0"], {"ratios": RATIOS, "settings": SETTINGS})
