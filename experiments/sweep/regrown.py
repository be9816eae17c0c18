"""Replay that grows on where it is forgetting beside as much replay grown once; see README.md.

python experiments/sweep/regrown.py --kit KIT --out runs/regrown --to experiments/sweep/results --runs agnews-0
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.sweep.beside import main
from experiments.sweep.run import SETTINGS, write_rows

RATIOS = (0, 0.4)
TOKENS = 1500
SETTINGS_OF: dict[str, Any] = {
    **SETTINGS,
    "curate": {**SETTINGS["curate"], "watch_dialogues": 3},
    "train": {**SETTINGS["train"], "mixture": {"update_steps": 4, "tilt": 0.75}},
    "regrowth": {"every_steps": 4, "min_tokens": 200},
}


def job(kit: Path, out: Path, name: str) -> None:
    import regrow

    domain, seed = name.split("-")
    rows = write_rows(kit, domain, int(seed), out / "rows" / f"{name}.jsonl")
    regrow.sweep("smollm2", rows, out / name, replay_ratios=RATIOS, regrown=TOKENS, seed=int(seed),
                 settings=SETTINGS_OF)  # fmt: skip
    for arm in (out / name / "train").glob("*/model/model.safetensors"):
        arm.unlink()  # half a gigabyte each


if __name__ == "__main__":
    protocol = {"ratios": RATIOS, "tokens": TOKENS, "settings": SETTINGS_OF}
    main(__file__, __doc__, job, ["agnews-0"], protocol)
