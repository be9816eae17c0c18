"""Results and the verdict from records made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import Record
from regrow.evaluate.summary import headline, summarise
from regrow.evaluate.tables import tables
from regrow.evaluate.verdict import verdict

CFG = EvalConfig(bootstrap=1000)
N = 300


def records(suite: str, metric: str, values: dict[str, np.ndarray]) -> list[Record]:
    """One record an item and arm, in the order the stage writes them."""
    n = len(next(iter(values.values())))
    return [Record(str(k), suite, f"d{k % 3}", a, {metric: float(v[k])}) for k in range(n) for a, v in values.items()]


def right(share: float, seed: int = 0) -> np.ndarray:
    out = np.zeros(N)
    out[np.random.default_rng(seed).permutation(N)[: round(share * N)]] = 1
    return out


def result(
    found: list[Record], arms: tuple[str, ...] = ("base", "sft", "regrow"), cfg: EvalConfig = CFG, **more
) -> dict:
    r = summarise(found, arms, cfg, seed=0, **more)
    r["verdict"] = verdict(r, cfg.confidence)
    json.dumps(r, allow_nan=False)
    return r


def facts(sft: float, regrow: float, suite: str = "facts") -> list[Record]:
    return records(suite, "acc", {"base": np.ones(N), "sft": right(sft), "regrow": right(regrow)})


def pool(sft: float, regrow: float) -> list[Record]:
    """The unselected suite, with a base that is right on all of it: what is lost there is lost."""
    return facts(sft, regrow, "facts-pool")


def heldout(sft: float, regrow: float) -> list[Record]:
    """Token loss with a base at 2 nats; lower is better."""
    noise = np.random.default_rng(9).normal(0, 0.1, N)
    return records("heldout", "nll", {"base": np.full(N, 2.0) + noise, "sft": sft + noise, "regrow": regrow - noise})


def own(sft: float, regrow: float) -> list[Record]:
    """Divergence from the base on its own dialogues."""
    wobble = np.random.default_rng(5).uniform(0.8, 1.2, N)
    return records("own-dialogues", "kl", {"base": np.zeros(N), "sft": sft * wobble, "regrow": regrow * wobble})


def test_a_smaller_loss_than_plain_sft_is_partly_kept() -> None:
    r = result(pool(0.7, 0.94) + heldout(1.0, 1.1))
    compared = r["suites"]["facts-pool"]["differences"]["regrow"]
    assert compared["vs_base"]["diff"] == pytest.approx(-0.06)
    assert compared["vs_sft"]["diff"] == pytest.approx(0.24)
    assert compared["recovery"]["value"] == pytest.approx(0.8)
    assert r["forgetting"]["sft"]["value"] == pytest.approx(0.3)
    assert r["forgetting"]["sft"]["retention"] == pytest.approx(0.7)
    assert r["forgetting"]["sft"]["backward_transfer"] == pytest.approx(-0.3)
    low, high = r["forgetting"]["sft"]["ci"]
    assert low < 0.3 < high
    assert r["gain"]["sft"]["value"] == pytest.approx(1.0)
    assert r["gain"]["sft"]["significant"]
    assert r["verdict"]["level"] == "partly"
    said = r["verdict"]["sentence"]
    assert said.startswith("The model with replay learned your data; it lost ")
    assert "points of accuracy on facts-pool, " in said and "less than plain SFT" in said
    assert r["verdict"]["notes"][0].startswith("Gain on heldout (300 items): +0.")
    assert f"plain SFT −{100 * high:.1f} to −{100 * low:.1f} points" in r["verdict"]["notes"][1]


def test_a_gain_of_no_size_or_on_few_items_is_no_learning() -> None:
    little = np.random.default_rng(1).normal(0.004, 0.002, N)
    losses = {"base": np.full(N, 2.0), "sft": 2.0 - little, "regrow": 2.0 - little}
    r = result(pool(1.0, 1.0) + records("heldout", "nll", losses))
    assert r["gain"]["regrow"]["significant"]
    assert r["verdict"]["sentence"].startswith("The model with replay hardly changed on your data (+0.00")
    assert r["verdict"]["level"] == "no-change"
    losses = {arm: np.linspace(1, 2, 6) - (arm != "base") for arm in ("base", "sft", "regrow")}
    six = result(pool(1.0, 1.0) + records("heldout", "nll", losses))
    assert six["gain"]["regrow"]["value"] == pytest.approx(1.0) and not six["gain"]["regrow"]["significant"]
    assert "no significant change on your data" in six["verdict"]["sentence"]
    assert "heldout: 6 items are too few for any difference to count as significant." in six["verdict"]["notes"]


def test_a_divergence_is_harm_on_four_dialogues_and_not_on_three() -> None:
    """It is never below zero, so what counts is its size and not whether it is there."""
    far = {"base": np.zeros(4), "sft": np.full(4, 0.5), "regrow": np.array([0.28, 0.29, 0.29, 0.3])}
    r = result(pool(1.0, 1.0) + records("own-dialogues", "kl", far))
    assert r["verdict"]["level"] in ("lost", "partly")
    assert any(n.startswith("own-dialogues (4 items): worse, +0.28") for n in r["verdict"]["notes"])
    three = {arm: values[:3] for arm, values in far.items()}
    few = result(pool(1.0, 1.0) + records("own-dialogues", "kl", three))["verdict"]
    assert few["level"] == "kept" and "too few dialogues to say how far it moved (3)" in few["sentence"]
    assert any(n.startswith("own-dialogues (3 items): too few to say") for n in few["notes"])
    alone = result(records("own-dialogues", "kl", three))["verdict"]
    assert alone["level"] == "no-change", "nothing is known, so nothing is said to be kept"
    near = {"base": np.zeros(4), "sft": np.full(4, 0.5), "regrow": np.full(4, 0.05)}
    told = result(pool(1.0, 1.0) + records("own-dialogues", "kl", near))["verdict"]["notes"]
    assert any(n.startswith("own-dialogues (4 items): close to the base") for n in told)
    assert not any("too few" in n for n in told), "four are enough, whatever a test of signs could say"


def test_a_loss_no_smaller_than_plain_sfts_is_lost() -> None:
    same = records("facts-pool", "acc", {"base": np.ones(N), "sft": right(0.7), "regrow": right(0.71, seed=1)})
    r = result(same)
    assert r["verdict"]["level"] == "lost"
    assert r["verdict"]["sentence"].startswith("The model with replay: it lost ")
    assert "not measurably less than plain SFT" in r["verdict"]["sentence"]
    worse = result(pool(0.9, 0.5))
    assert worse["verdict"]["level"] == "lost"
    assert "more than plain SFT" in worse["verdict"]["sentence"]
    alone = result(records("facts-pool", "acc", {"base": np.ones(N), "regrow": right(0.8)}), ("base", "regrow"))
    assert alone["verdict"]["level"] == "lost"
    assert alone["suites"]["facts-pool"]["differences"]["regrow"]["recovery"] is None


def test_the_selected_suite_alone_never_makes_the_verdict() -> None:
    """The facts the base got right can only be lost; without selection as many were won as lost: nothing changed."""
    base = right(0.6)
    after = base.copy()
    after[np.flatnonzero(base)[:20]], after[np.flatnonzero(base == 0)[:20]] = 0, 1
    unselected = records("facts-pool", "acc", {"base": base, "sft": after, "regrow": after})
    r = result(facts(0.8, 0.9) + unselected + own(0.6, 0.02) + heldout(1.0, 1.1))
    assert r["suites"]["facts"]["differences"]["regrow"]["vs_base"]["better"] is False
    assert r["verdict"]["level"] == "kept"
    assert r["verdict"]["sentence"] == (
        "The model with replay learned your data; no significant change on facts-pool; it moved no more than 0.020 "
        "nats a token from its own-dialogues, 97 to 97 % less than plain SFT."
    )
    assert r["forgetting"]["regrow"]["suite"] == "facts-pool"
    told = next(n for n in r["verdict"]["notes"] if n.startswith("Of 300 facts it knew, "))
    assert "chosen because the base gets them right, so any change reads as a loss" in told
    low, high = r["remaining"]["regrow"]["retention_ci"]
    assert low < 0.9 < high and f"{100 * low:.1f} to {100 * high:.1f} % remain" in told and "plain SFT" in told
    assert r["suites"]["facts"]["selected"] and not r["suites"]["facts-pool"]["selected"]


def test_where_only_the_selected_suite_was_measured_it_decides_and_is_marked() -> None:
    r = result(facts(0.7, 0.7))
    assert r["verdict"]["level"] == "lost" and r["forgetting"]["sft"]["suite"] == "facts"
    assert any("any change reads as a loss" in n for n in r["verdict"]["notes"])


def test_moving_far_from_its_own_dialogues_is_harm_although_knowledge_is_kept() -> None:
    same = records("facts-pool", "acc", dict.fromkeys(("base", "sft", "regrow"), right(0.6)))
    r = result(same + own(0.7, 0.2))
    assert r["verdict"]["level"] == "partly"
    assert "no significant change on facts-pool; it moved 0.19" in r["verdict"]["sentence"]
    assert result(same + own(0.2, 0.7))["verdict"]["level"] == "lost"
    assert result(same + own(0.2, 0.09))["verdict"]["level"] == "kept"


def test_no_change_is_said_in_words_with_its_bounds_and_what_could_be_seen() -> None:
    base, regrow = right(0.8), right(0.8)
    regrow[:10] = 1 - regrow[:10]
    found = records("facts-pool", "acc", {"base": base, "sft": right(0.4, 2), "regrow": regrow})
    r = result(found + heldout(1.0, 1.0))
    assert r["verdict"]["level"] == "kept"
    assert "no significant change on facts-pool" in r["verdict"]["sentence"]
    low, high = r["suites"]["facts-pool"]["differences"]["regrow"]["vs_base"]["ci"]
    told = r["verdict"]["notes"][1]
    assert told.startswith("facts-pool (300 items): no significant change, ")
    assert f"{'−' if low < 0 else '+'}{abs(100 * low):.1f} to " in told
    mdd = r["suites"]["facts-pool"]["differences"]["regrow"]["vs_base"]["mdd"]
    assert any(f"find a difference of {100 * mdd:.1f} points with 80 % power" in n for n in r["verdict"]["notes"])
    assert high >= 0


def test_nothing_learned_and_nothing_lost_is_no_change() -> None:
    base, flat = right(0.8), np.full(N, 2.0)
    regrow = base.copy()
    regrow[:6] = 1 - regrow[:6]
    wobble = flat + np.random.default_rng(0).normal(0, 0.5, N)
    found = records("facts-pool", "acc", {"base": base, "regrow": regrow})
    r = result(found + records("heldout", "nll", {"base": flat, "regrow": wobble}), ("base", "regrow"))
    assert r["verdict"]["level"] == "no-change"
    assert r["verdict"]["sentence"] == (
        "The model with replay shows no significant change on your data; no significant change on facts-pool."
    )
    same = result(records("facts", "acc", {"base": base, "regrow": base}), ("base", "regrow"))
    assert same["verdict"]["sentence"] == "The model with replay does on every item as the base does."
    only = result(records("facts", "acc", {"base": base}), ("base",))
    assert only["verdict"]["level"] == "no-change"
    assert only["verdict"]["arm"] is None
    assert only["suites"]["facts"]["mdd"] is None


def test_recovery_is_undefined_when_plain_sft_lost_nothing() -> None:
    r = result(facts(1.0, 0.9))
    found = r["suites"]["facts"]["differences"]["regrow"]["recovery"]
    assert found["defined"] is False
    assert found["value"] is None
    assert "no more than the noise" in found["reason"]


def test_a_difference_within_the_noise_floor_is_not_significant() -> None:
    found = facts(0.7, 0.96)
    quiet = records("facts", "acc", {"base": right(0.99)})
    loud = records("facts", "acc", {"base": right(0.95)})
    assert result(found, noise=quiet)["suites"]["facts"]["differences"]["regrow"]["vs_base"]["significant"]
    r = result(found, noise=loud)
    assert r["suites"]["facts"]["noise_floor"]["flips"] == 15
    assert r["suites"]["facts"]["noise_floor"]["diff"] == pytest.approx(-0.05)
    assert not r["suites"]["facts"]["differences"]["regrow"]["vs_base"]["significant"]
    assert r["suites"]["facts"]["differences"]["regrow"]["vs_base"]["better"] is None


def test_significance_is_corrected_for_the_number_of_suites() -> None:
    """Nine lost and one won: p = .012 (mid-p), enough alone and not as the best of ten suites."""
    base = np.ones(N)
    base[9] = 0
    after = base.copy()
    after[:10] = 1 - after[:10]
    one = records("news", "acc", {"base": base, "regrow": after})
    quiet = [r for k in range(9) for r in records(f"s{k}", "acc", dict.fromkeys(("base", "regrow"), base))]
    alone, many = (result(f, ("base", "regrow"))["suites"]["news"]["differences"]["regrow"]["vs_base"]
                   for f in (one, one + quiet))  # fmt: skip
    assert alone["p"] == many["p"] == pytest.approx(0.0117, abs=1e-4)
    assert alone["p_holm"] == alone["p"] and alone["significant"] and alone["better"] is False
    assert many["p_holm"] == pytest.approx(10 * many["p"])
    assert not many["significant"] and many["better"] is None
    assert many["ci"] == alone["ci"] and many["ci"][1] < 0, "the interval is of one suite"


def test_few_resamples_are_raised_so_that_holm_can_reject() -> None:
    found = [r for k in range(12) for r in records(f"s{k}", "nll", {"base": right(0.5), "regrow": right(0.5) + 1})]
    r = result(found, ("base", "regrow"), EvalConfig(bootstrap=100))
    assert all(s["differences"]["regrow"]["vs_base"]["significant"] for s in r["suites"].values())


def test_direction_of_losses() -> None:
    r = result(records("code", "nll", {"base": right(0.5) + 1, "sft": right(0.5) + 1.5, "regrow": right(0.5) + 0.9}))
    suite = r["suites"]["code"]
    assert (suite["metric"], suite["higher_is_better"], suite["unit"]) == ("nll", False, "nats")
    assert suite["differences"]["sft"]["vs_base"]["better"] is False
    assert suite["differences"]["regrow"]["vs_base"]["better"] is True
    assert r["forgetting"]["sft"]["value"] == pytest.approx(0.5)
    assert r["forgetting"]["regrow"]["backward_transfer"] == pytest.approx(0.1)
    assert r["forgetting"]["sft"]["retention"] is None
    assert "it became better on code" in r["verdict"]["sentence"]


def test_confidence_and_gain_suites_are_read() -> None:
    wide, narrow = (result(facts(0.7, 0.9), cfg=EvalConfig(bootstrap=1000, confidence=c)) for c in (0.99, 0.8))
    width = [np.ptp(r["suites"]["facts"]["arms"]["sft"]["ci"]) for r in (wide, narrow)]
    assert width[0] > 1.5 * width[1]
    r = result(facts(0.7, 0.9), cfg=EvalConfig(bootstrap=200, gain_suites=["facts"]))
    assert r["suites"]["facts"]["kind"] == "gain"
    assert r["forgetting"] == {}
    assert r["gain"]["sft"]["value"] == pytest.approx(-0.3)
    assert r["remaining"] == {} and "what it kept was not measured" in r["verdict"]["sentence"]


def test_headline_and_flips() -> None:
    assert headline(["code", "own-dialogues", "facts", "facts-pool"]) == "facts-pool"
    assert headline(["own-dialogues", "code", "news", "facts"]) == "code"
    assert headline(["facts", "own-dialogues"]) == "own-dialogues"
    assert headline(["facts"]) == "facts"
    assert headline([]) is None
    found = facts(0.7, 0.9)
    pool = [Record(r.item_id, "facts-pool", r.domain, r.arm, r.metrics) for r in found]
    r = result(found + pool)
    assert r["flips"]["sft"] == {"lost": 90, "kept": 210, "won": 0}
    assert r["lost"]["sft"] == [f"facts:{k}" for k in range(N) if right(0.7)[k] == 0]
    assert r["suites"]["facts-pool"]["flips"]["sft"] == {"lost": 90, "kept": 210, "won": 0, "never": 0}


def test_other_suites_that_became_worse_are_named() -> None:
    r = result(pool(0.7, 1.0) + records("code", "nll", {a: right(0.5) + v for a, v in
                                                        (("base", 1.0), ("sft", 1.5), ("regrow", 1.2))}))  # fmt: skip
    assert "it lost 0.200 to 0.200 nats of token loss on code, 60 to 60 % less" in r["verdict"]["sentence"]
    assert "no significant change on facts-pool" in r["verdict"]["sentence"]


def test_calibration_is_of_the_items_where_the_models_choose() -> None:
    found = facts(0.5, 1.0)
    for r in found:
        r.metrics["confidence"] = 0.75
    told = result(found)["suites"]["facts"]["calibration"]
    assert told == pytest.approx({"base": 0.25, "sft": 0.25, "regrow": 0.25})
    assert result(facts(0.5, 1.0))["suites"]["facts"]["calibration"] is None


def test_a_missing_or_doubled_record_is_an_error() -> None:
    found = facts(0.7, 0.9)
    with pytest.raises(ValueError, match="expected"):
        tables(found[:-1], ("base", "sft", "regrow"))
    with pytest.raises(ValueError, match="two records"):
        tables([*found, found[0]], ("base", "sft", "regrow"))
