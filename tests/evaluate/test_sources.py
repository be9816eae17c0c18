"""Grown replay beside general data, from records made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from regrow.evaluate.config import EvalConfig
from regrow.evaluate.sources import Pair, Replayed, compare_sources
from regrow.evaluate.summary import summarise
from regrow.evaluate.tables import tables
from tests.evaluate.saved import ones, records

N = 400
CFG = EvalConfig(bootstrap=1000)


def beside(
    grown: float, general: float, wrong: tuple[int, int], arms: tuple[str, str] = ("regrow", "general")
) -> dict:
    """Held-out loss of both arms (the base has 2 nats), and facts each gets wrong (the base none)."""
    noise = np.random.default_rng(0).normal(0, 0.05, (N, 2))
    loss = {"base": np.full(N, 2.0), arms[0]: grown + noise[:, 0], arms[1]: general + noise[:, 1]}
    knew = {"base": np.ones(N), **{a: ones(N, w) for a, w in zip(arms, wrong, strict=True)}}
    rows, names = records("heldout", "nll", loss) + records("facts-pool", "acc", knew), ["base", *arms]
    pairs = [Pair(*arms, Replayed(4510, "soft"), Replayed(91, "hard"))]
    (found,) = compare_sources(tables(rows, names), summarise(rows, names, CFG, seed=0), pairs, CFG, seed=0)
    return found


def test_positive_is_for_the_grown_arm_whatever_the_measure() -> None:
    found = beside(1.0, 1.3, (10, 50))
    assert found["gain"]["value"] == pytest.approx(0.3, abs=0.01) and found["gain"]["unit"] == "nats"
    assert found["forgetting"]["value"] == pytest.approx(40 / N) and found["forgetting"]["unit"] == "share"
    low, high = found["forgetting"]["ci"]
    assert 0 < low < 40 / N < high
    assert "learned 0.2" in found["sentence"] and "nats more on heldout" in found["sentence"]
    assert "points less on facts-pool" in found["sentence"]


def test_what_each_replayed_is_said() -> None:
    found = beside(1.0, 1.0, (10, 10))
    assert found["tokens"] == [4510, 91] and found["loss"] == ["soft", "hard"]
    assert "(4,510 tokens, soft loss), against your general data (91 tokens, ordinary loss)" in found["sentence"]


def test_negative_is_said_as_plainly() -> None:
    found = beside(1.3, 1.0, (50, 10))
    assert found["gain"]["ci"][1] < 0 and found["forgetting"]["ci"][1] < 0
    assert "nats less on heldout" in found["sentence"] and "points more on facts-pool" in found["sentence"]


def test_nothing_that_chance_could_do_is_called_a_difference() -> None:
    found = beside(1.0, 1.0, (20, 20), ("replay-0.05", "general-0.05"))
    assert found["sentence"].count("no difference") == 2 and "at 5 %" in found["sentence"]
    low, high = found["forgetting"]["ci"]
    assert low == -high < 0, "equal answers on some items do not show that there is no difference"
