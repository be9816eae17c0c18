"""Names of the models of a run, as they stand in folders, results and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Source = Literal["grown", "general", "regrown"]

BASE = "base"
PLAIN = "sft"
REPLAY = "regrow"
INTERPOLATE = "interpolate"
GENERAL = "general"
"""Replay out of a file of the user's own."""
AT_RATIO: dict[Source, str] = {"grown": "replay-", "general": "general-", "regrown": "regrown-"}
"""Where the replay of a sweep's arm is from -> how the arm's name begins."""
STAGE_ONE, STAGE_TWO, ONE_STAGE = "stage1", "stage2", "one-stage"
"""Of a gradual fine-tuning."""


def at_ratio(ratio: float, source: Source = "grown") -> str:
    """The arm of a replay ratio in a sweep; that of ratio 0 is plain SFT."""
    return f"{AT_RATIO[source]}{ratio:g}" if ratio else PLAIN


def ratio_in(arm: str) -> float | None:
    """The replay ratio in an arm's name (``replay-0.05``, ``general-0.05``); None for any other arm."""
    prefix = next((p for p in AT_RATIO.values() if arm.startswith(p)), None)
    try:
        return None if prefix is None else float(arm.removeprefix(prefix))
    except ValueError:
        return None


def source_of(arm: str) -> Source | None:
    """Where an arm's replay is from: ``grown`` once, out of the base; ``general``, a file of the user's own;
    ``regrown``, a corpus that grew on where the training was forgetting. None for an arm of no replay."""
    if arm in (BASE, PLAIN, INTERPOLATE):
        return None
    if arm == GENERAL:
        return "general"
    named: Source | None = next((s for s, prefix in AT_RATIO.items() if arm.startswith(prefix)), None)
    return named if named is not None and ratio_in(arm) is not None else "grown"


def replay_text(arm: str) -> str:
    """What an arm of a sweep replays, for readers."""
    return {"general": "general data", "regrown": "replay, regrown"}.get(source_of(arm) or "", "replay")


def is_general(arm: str) -> bool:
    """Whether an arm's replay is the user's own general data and not grown."""
    return source_of(arm) == "general"


def is_grown(arm: str) -> bool:
    """Whether an arm of a run is trained on a corpus grown once."""
    return source_of(arm) == "grown"


def is_regrown(arm: str) -> bool:
    """Whether an arm's replay grows on where its training forgets."""
    return source_of(arm) == "regrown"


def main_arm(arms: Sequence[str], chosen: str | None = None) -> str | None:
    """The arm that a page, or a verdict, is about: grown replay before general data before the rest.

    Args:
        arms: Base first.
        chosen: What a sweep recommends.
    """
    trained = [a for a in arms if a != BASE]
    if chosen in trained:
        return chosen
    if REPLAY in trained:
        return REPLAY
    found = (next(filter(kind, reversed(trained)), None) for kind in (is_grown, is_general, bool))
    return next(filter(None, found), None)


def arms_of(names: Sequence[str]) -> list[str]:
    """Arm names for a list of models: base, then after, after-2, ..."""
    return [BASE, *("after" if i == 0 else f"after-{i + 1}" for i in range(len(names) - 1))]
