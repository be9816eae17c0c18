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


def facts(sft: float, regrow: float) -> list[Record]:
    return records("facts", "acc", {"base": np.ones(N), "sft": right(sft), "regrow": right(regrow)})


def heldout(sft: float, regrow: float) -> list[Record]:
    """Token loss with a base at 2 nats; lower is better."""
    noise = np.random.default_rng(9).normal(0, 0.1, N)
    return records("heldout", "nll", {"base": np.full(N, 2.0) + noise, "sft": sft + noise, "regrow": regrow - noise})


def test_a_smaller_loss_than_plain_sft_is_partly_kept() -> None:
    r = result(facts(0.7, 0.94) + heldout(1.0, 1.1))
    compared = r["suites"]["facts"]["differences"]["regrow"]
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
    assert "The model with replay lost" in said
    assert "points of accuracy on facts (300 items)" in said
    assert f"plain SFT lost {100 * low:.1f} to {100 * high:.1f} points" in said
    assert "Replay won back" in said
    assert "On heldout, it improved by" in said


def test_a_loss_no_smaller_than_plain_sfts_is_lost() -> None:
    same = records("facts", "acc", {"base": np.ones(N), "sft": right(0.7), "regrow": right(0.71, seed=1)})
    r = result(same)
    assert r["verdict"]["level"] == "lost"
    assert "not measurably less than plain SFT" in r["verdict"]["sentence"]
    worse = result(facts(0.9, 0.5))
    assert worse["verdict"]["level"] == "lost"
    assert "more than plain SFT lost" in worse["verdict"]["sentence"]
    alone = result(records("facts", "acc", {"base": np.ones(N), "regrow": right(0.8)}), ("base", "regrow"))
    assert alone["verdict"]["level"] == "lost"
    assert alone["suites"]["facts"]["differences"]["regrow"]["recovery"] is None


def test_no_loss_is_said_as_a_bound_not_as_equality() -> None:
    base, regrow = right(0.8), right(0.8)
    regrow[:10] = 1 - regrow[:10]
    r = result(records("facts", "acc", {"base": base, "sft": right(0.4, 2), "regrow": regrow}) + heldout(1.0, 1.0))
    assert r["verdict"]["level"] == "kept"
    assert "no loss could be shown" in r["verdict"]["sentence"]
    low, high = r["suites"]["facts"]["differences"]["regrow"]["vs_base"]["ci"]
    assert f"between {'−' if low < 0 else '+'}{abs(100 * low):.1f} points and " in r["verdict"]["sentence"]
    assert any("80 % power" in n for n in r["verdict"]["notes"])
    assert high >= 0


def test_nothing_learned_and_nothing_lost_is_no_change() -> None:
    base, flat = right(0.8), np.full(N, 2.0)
    regrow = base.copy()
    regrow[:6] = 1 - regrow[:6]
    wobble = flat + np.random.default_rng(0).normal(0, 0.5, N)
    found = records("facts", "acc", {"base": base, "regrow": regrow})
    r = result(found + records("heldout", "nll", {"base": flat, "regrow": wobble}), ("base", "regrow"))
    assert r["verdict"]["level"] == "no-change"
    assert r["verdict"]["sentence"].startswith("No change that can be told from chance")
    same = result(records("facts", "acc", {"base": base, "regrow": base}), ("base", "regrow"))
    assert same["verdict"]["sentence"].startswith("No change: ")
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


def test_direction_of_losses() -> None:
    r = result(records("code", "nll", {"base": right(0.5) + 1, "sft": right(0.5) + 1.5, "regrow": right(0.5) + 0.9}))
    suite = r["suites"]["code"]
    assert (suite["metric"], suite["higher_is_better"], suite["unit"]) == ("nll", False, "nats")
    assert suite["differences"]["sft"]["vs_base"]["better"] is False
    assert suite["differences"]["regrow"]["vs_base"]["better"] is True
    assert r["forgetting"]["sft"]["value"] == pytest.approx(0.5)
    assert r["forgetting"]["regrow"]["backward_transfer"] == pytest.approx(0.1)
    assert r["forgetting"]["sft"]["retention"] is None
    assert "improved" in r["verdict"]["sentence"]


def test_confidence_and_gain_suites_are_read() -> None:
    wide, narrow = (result(facts(0.7, 0.9), cfg=EvalConfig(bootstrap=1000, confidence=c)) for c in (0.99, 0.8))
    width = [np.ptp(r["suites"]["facts"]["arms"]["sft"]["ci"]) for r in (wide, narrow)]
    assert width[0] > 1.5 * width[1]
    r = result(facts(0.7, 0.9), cfg=EvalConfig(bootstrap=200, gain_suites=["facts"]))
    assert r["suites"]["facts"]["kind"] == "gain"
    assert r["forgetting"] == {}
    assert r["gain"]["sft"]["value"] == pytest.approx(-0.3)
    assert "no retention suite" in r["verdict"]["sentence"]


def test_headline_and_flips() -> None:
    assert headline(["code", "own-dialogues", "facts"]) == "facts"
    assert headline(["code", "own-dialogues"]) == "own-dialogues"
    assert headline(["code", "news"]) == "code"
    assert headline([]) is None
    found = facts(0.7, 0.9)
    pool = [Record(r.item_id, "facts-pool", r.domain, r.arm, r.metrics) for r in found]
    r = result(found + pool)
    assert r["flips"]["sft"] == {"lost": 90, "kept": 210, "won": 0}
    assert r["lost"]["sft"] == [f"facts:{k}" for k in range(N) if right(0.7)[k] == 0]


def test_other_suites_that_became_worse_are_named() -> None:
    r = result(facts(0.7, 1.0) + records("code", "nll", {a: right(0.5) + v for a, v in
                                                         (("base", 1.0), ("sft", 1.5), ("regrow", 1.2))}))  # fmt: skip
    assert any("Also worse on code" in n for n in r["verdict"]["notes"])


def test_a_missing_or_doubled_record_is_an_error() -> None:
    found = facts(0.7, 0.9)
    with pytest.raises(ValueError, match="expected"):
        tables(found[:-1], ("base", "sft", "regrow"))
    with pytest.raises(ValueError, match="two records"):
        tables([*found, found[0]], ("base", "sft", "regrow"))


def test_the_verdict_names_what_replay_undid_on_other_suites():
    from regrow.evaluate.verdict import verdict

    def compared(better, recovery):
        half = {"diff": 0.0, "ci": [0.1, 0.2], "p": 0.01, "significant": True}
        return {"vs_base": {**half, "better": False}, "vs_sft": {**half, "better": better}, "recovery": recovery}

    def suite(better, recovery):
        both = {"sft": compared(None, None), "regrow": compared(better, recovery)}
        return {"kind": "retention", "n": 24, "metric": "kl", "unit": "nats", "higher_is_better": False,
                "differences": both, "noise_floor": None, "mdd": None}  # fmt: skip

    undone = {"value": 0.7, "ci": [0.6, 0.8], "defined": True, "reason": None}
    loss = {"suite": "facts", "metric": "kl", "value": 0.15, "ci": [0.1, 0.2], "significant": True}
    results = {
        "arms": ["base", "sft", "regrow"],
        "suites": {"facts": suite(None, undone), "own-dialogues": suite(True, undone), "other": suite(None, undone)},
        "gain": {},
        "forgetting": {"sft": loss, "regrow": loss},
    }
    sentence = verdict(results, 0.95)["sentence"]
    assert "On own-dialogues (24 items) replay undid 60 % to 80 % of the harm of plain SFT" in sentence
    assert "On other" not in sentence
    assert verdict(results, 0.95)["level"] == "partly"
    results["suites"]["other"]["differences"]["regrow"]["vs_sft"]["better"] = False
    assert verdict(results, 0.95)["level"] == "lost"
