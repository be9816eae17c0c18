"""Names of the models of a run, as they stand in folders, results and on the page."""

from __future__ import annotations

from collections.abc import Sequence

BASE = "base"
PLAIN = "sft"
REPLAY = "regrow"
INTERPOLATE = "interpolate"
AT_RATIO = "replay-"
STAGE_ONE, STAGE_TWO, ONE_STAGE = "stage1", "stage2", "one-stage"
"""Of a gradual fine-tuning."""


def at_ratio(ratio: float) -> str:
    """The arm of a replay ratio in a sweep; that of ratio 0 is plain SFT."""
    return f"{AT_RATIO}{ratio:g}" if ratio else PLAIN


def ratio_in(arm: str) -> float | None:
    """The replay ratio in an arm's name (``replay-0.05``); None for any other arm."""
    if not arm.startswith(AT_RATIO):
        return None
    try:
        return float(arm.removeprefix(AT_RATIO))
    except ValueError:
        return None


def arms_of(names: Sequence[str]) -> list[str]:
    """Arm names for a list of models: base, then after, after-2, ..."""
    return [BASE, *("after" if i == 0 else f"after-{i + 1}" for i in range(len(names) - 1))]
