"""The ratio recommended, from records made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from regrow.evaluate.config import EvalConfig
from regrow.evaluate.gate import Limits, judge
from regrow.evaluate.items import Record
from regrow.evaluate.ratios import RULE, UNTESTED, Sweep, compare_ratios
from regrow.evaluate.saved import load_evaluation
from regrow.evaluate.summary import summarise
from regrow.evaluate.tables import tables
from regrow.evaluate.verdict import verdict
from tests.evaluate.saved import ones, records, write_evaluation

N = 600
CFG = EvalConfig(bootstrap=1000)
RATIOS = {"sft": 0.0, "replay-0.05": 0.05, "replay-0.2": 0.2}


def learned(**nll: float) -> list[Record]:
    """Held-out loss by arm; the base is at 2 nats."""
    noise = np.random.default_rng(3).normal(0, 0.05, (N, len(nll)))
    values = {a.replace("_", "."): np.full(N, v) + noise[:, k] for k, (a, v) in enumerate(nll.items())}
    return records("heldout", "nll", {"base": np.full(N, 2.0), **values})


def knew(n: int = N, **wrong: int) -> list[Record]:
    """Facts by arm, of which the base gets all right; what an arm gets wrong, those that get more wrong do too."""
    return records("facts-pool", "acc", {"base": np.ones(n), **{a: ones(n, w) for a, w in wrong.items()}})


def found(gain: dict[str, float], lost: dict[str, int], *, n: int = N, margin: float = 2.0) -> dict:
    rows = learned(**gain) + knew(n, **lost)
    arms = ["base", *RATIOS]
    results = summarise(rows, arms, CFG, seed=0)
    results["sweep"] = compare_ratios(tables(rows, arms), results, Sweep(RATIOS, margin, 0.1), CFG, seed=0)
    results["verdict"] = verdict(results, CFG.confidence)
    json.dumps(results, allow_nan=False)
    return results


def arms(sft: float, small: float, large: float) -> dict:
    return dict(zip(RATIOS, (sft, small, large), strict=True))


def test_the_smallest_ratio_that_keeps_as_much_is_recommended() -> None:
    results = found(arms(1.0, 1.0, 1.0), arms(90, 14, 12))
    sweep = results["sweep"]
    assert (sweep["arm"], sweep["ratio"]) == ("replay-0.05", 0.05)
    assert [x["keeps"] for x in sweep["arms"].values()] == [False, True, True]
    for part in ("Use a replay ratio of 0.05", "at most 2 points more on facts-pool", RULE, UNTESTED):
        assert part in sweep["sentence"]
    above = sweep["arms"]["sft"]["above"]
    assert above["than"] == "replay-0.2" and above["value"] == pytest.approx((90 - 12) / N)
    assert results["verdict"]["arm"] == "replay-0.05" and "5 % replay" in results["verdict"]["sentence"]
    assert any("still forgets" in n for n in sweep["notes"])


def test_more_replay_is_recommended_when_less_forgets_more() -> None:
    sweep = found(arms(1.0, 1.0, 1.0), arms(120, 60, 12))["sweep"]
    assert sweep["ratio"] == 0.2 and any("largest ratio tried" in n for n in sweep["notes"])


def test_no_replay_is_recommended_when_plain_forgets_nothing() -> None:
    sweep = found(arms(1.0, 1.0, 1.0), arms(3, 3, 2))["sweep"]
    assert (sweep["arm"], sweep["ratio"]) == ("sft", 0.0) and "No replay is needed" in sweep["sentence"]
    assert sweep["notes"] == [] or "still forgets" in sweep["notes"][0]


def test_a_ratio_that_is_shown_to_learn_less_is_not_recommended() -> None:
    sweep = found(arms(1.0, 1.0, 1.2), arms(120, 60, 12))["sweep"]
    assert sweep["arm"] is None and "No ratio is recommended" in sweep["sentence"] and "(0.2)" in sweep["sentence"]
    below = sweep["arms"]["replay-0.2"]["below_plain"]
    assert below["value"] == pytest.approx(0.2, abs=0.02) and below["ci"][0] > 0


def test_a_little_less_learned_does_not_rule_a_ratio_out() -> None:
    """With hundreds of items any difference is shown; what counts is one that matters."""
    sweep = found(arms(1.0, 1.0, 1.05), arms(120, 60, 12))["sweep"]
    below = sweep["arms"]["replay-0.2"]["below_plain"]
    assert 0 < below["ci"][0] < 0.1 and sweep["ratio"] == 0.2
    assert "not shown to learn more than 0.1 nats less than plain" in sweep["sentence"]


@pytest.mark.parametrize("wrong", [3, 0])
def test_a_gain_that_may_be_lost_is_said(wrong: int) -> None:
    answered = {"base": np.zeros(20), "sft": np.ones(20), "replay-0.05": np.ones(20), "replay-0.2": ones(20, wrong)}
    rows, names = records("heldout", "acc", answered) + knew(**arms(120, 60, 12)), ["base", *RATIOS]
    results = summarise(rows, names, CFG, seed=0)
    sweep = compare_ratios(tables(rows, names), results, Sweep(RATIOS, 2.0, 0.1), CFG, seed=0)
    assert sweep["ratio"] == 0.2
    said = [n for n in sweep["notes"] if n.startswith("It may cost gain: 15.0 points less than plain")]
    assert len(said) == (wrong > 0)


def test_without_a_gain_there_is_nothing_to_recommend() -> None:
    sweep = found(arms(2.1, 2.1, 2.1), arms(3, 3, 2))["sweep"]
    assert sweep["arm"] is None and "learned your data" in sweep["sentence"]


def test_few_items_lead_to_no_recommendation_rather_than_to_less_replay() -> None:
    """Four differences on twenty items in either direction: nothing shows which ratio forgets more."""
    values = {"base": np.ones(20), "sft": ones(20, 2), "replay-0.05": ones(20, 2, 2), "replay-0.2": ones(20, 2, 4)}
    rows = learned(**arms(1.0, 1.0, 1.0)) + records("facts-pool", "acc", values)
    names = ["base", *RATIOS]
    results = summarise(rows, names, CFG, seed=0)
    sweep = compare_ratios(tables(rows, names), results, Sweep(RATIOS, 2.0, 0.1), CFG, seed=0)
    assert sweep["arm"] is None and "with 20 items none is shown" in sweep["sentence"]


def test_no_change_on_few_items_shows_nothing() -> None:
    """Resampling twenty equal items gives an interval of width zero; twenty items do not show a difference of 2
    points away."""
    results = found(arms(1.0, 1.0, 1.0), arms(0, 0, 0), n=20)
    assert results["sweep"]["arm"] is None
    assert results["sweep"]["arms"]["sft"]["above"]["ci"][1] == pytest.approx(1 - 0.025 ** (1 / 20))


def test_the_margin_decides() -> None:
    lost = arms(120, 60, 12)
    assert found(arms(1.0, 1.0, 1.0), lost, margin=12.0)["sweep"]["ratio"] == 0.05
    assert found(arms(1.0, 1.0, 1.0), lost, margin=1.0)["sweep"]["ratio"] == 0.2


def test_forgetting_in_nats_has_its_own_margin() -> None:
    wobble = np.random.default_rng(5).uniform(0.8, 1.2, N)
    moved = {"base": np.zeros(N), "sft": 0.9 * wobble, "replay-0.05": 0.18 * wobble, "replay-0.2": 0.1 * wobble}
    rows = learned(**arms(1.0, 1.0, 1.0)) + records("own-dialogues", "kl", moved)
    names = ["base", *RATIOS]
    results = summarise(rows, names, CFG, seed=0)
    for nats, ratio in ((0.1, 0.05), (0.05, 0.2)):
        sweep = compare_ratios(tables(rows, names), results, Sweep(RATIOS, 2.0, nats), CFG, seed=0)
        assert sweep["ratio"] == ratio and f"{nats:g} nats" in sweep["sentence"]


def test_three_dialogues_recommend_no_ratio() -> None:
    names = ["base", *RATIOS]
    for n, ratio in ((3, None), (4, 0.05)):
        moved = {a: np.full(n, v) for a, v in zip(names, (0.0, 0.9, 0.18, 0.1), strict=True)}
        rows = learned(**arms(1.0, 1.0, 1.0)) + records("own-dialogues", "kl", moved)
        results = summarise(rows, names, CFG, seed=0)
        assert compare_ratios(tables(rows, names), results, Sweep(RATIOS, 2.0, 0.1), CFG, seed=0)["ratio"] == ratio


def test_what_was_not_measured_is_said() -> None:
    names = ["base", *RATIOS]
    for rows, what in ((learned(**arms(1.0, 1.0, 1.0)), "forgetting"), (knew(**arms(9, 9, 9)), "gain")):
        results = summarise(rows, names, CFG, seed=0)
        sweep = compare_ratios(tables(rows, names), results, Sweep(RATIOS, 2.0, 0.1), CFG, seed=0)
        assert sweep["arm"] is None and f"the {what} was not measured" in sweep["sentence"]


def test_the_front_holds_what_no_other_beats() -> None:
    sweep = found(arms(1.0, 1.1, 1.2), arms(60, 90, 12))["sweep"]
    assert {a: x["front"] for a, x in sweep["arms"].items()} == arms(True, False, True)


def test_the_gate_judges_the_ratio_recommended(tmp_path) -> None:
    rows = learned(**arms(1.0, 1.0, 1.0)) + knew(**arms(90, 14, 12))
    folder = write_evaluation(tmp_path / "run", rows, ["base", *RATIOS])
    assert judge([load_evaluation(folder)], Limits(max_forgetting=50)).arm == "replay-0.2"
    folder = write_evaluation(tmp_path / "swept", rows, ["base", *RATIOS], sweep=Sweep(RATIOS, 2.0, 0.1))
    assert judge([load_evaluation(folder)], Limits(max_forgetting=50)).arm == "replay-0.05"
