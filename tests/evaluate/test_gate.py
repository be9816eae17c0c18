"""The gate: what it decides on, its summaries, and its exit codes in real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from regrow.errors import RunError
from regrow.evaluate.gate import Gate, Limits, judge
from regrow.evaluate.items import Record
from regrow.evaluate.saved import load_evaluation
from tests.evaluate.saved import ones, records, write_evaluation

N = 400


def pool(lost: int, won: int = 0) -> list[Record]:
    """The unselected suite: the base is right on 300 of 400."""
    base = ones(N, 100)
    after = base.copy()
    after[100 : 100 + lost], after[:won] = 0, 1
    return records("facts-pool", "acc", {"base": base, "sft": ones(N, 250), "regrow": after})


def heldout(gained: int) -> list[Record]:
    return records("heldout", "acc", {"base": ones(N, N), "sft": ones(N, 0), "regrow": ones(N, N - gained)})


def own(kl: float) -> list[Record]:
    wobble = np.random.default_rng(0).uniform(0.9, 1.1, N)
    return records("own-dialogues", "kl", {"base": np.zeros(N), "sft": 0.5 * wobble, "regrow": kl * wobble})


def facts(lost: int) -> list[Record]:
    return records("facts", "acc", {"base": ones(N, 0), "sft": ones(N, 90), "regrow": ones(N, lost)})


def decided(tmp_path: Path, found: list[Record], limits: Limits, **more) -> Gate:
    return judge([load_evaluation(write_evaluation(tmp_path / "run", found))], limits, **more)


@pytest.mark.parametrize(
    ("lost", "won", "limit", "outcome"),
    [
        (4, 4, 2, "passed"),  # 0 points, about +-1.4
        (10, 0, 1, "failed"),  # 2.5 points, from 1.0 on
        (10, 6, 2, "undecided"),  # 1 point, but it could be 2.9: the point value alone would pass
        (0, 0, 1, "passed"),
        (0, 0, 0.5, "undecided"),  # nothing changed, but 400 items cannot rule out 0.9 points
        (0, 12, 2, "passed"),
    ],
)
def test_forgetting_is_decided_by_its_upper_bound(
    tmp_path: Path, lost: int, won: int, limit: float, outcome: str
) -> None:
    gate = decided(tmp_path, pool(lost, won), Limits(max_forgetting=limit))
    (check,) = gate.checks
    assert (check.outcome, check.name, check.unit) == (outcome, "forgetting on facts-pool", "points")
    assert check.value == pytest.approx((lost - won) / N * 100)
    assert gate.passed == (outcome == "passed") == (check.high <= limit)
    assert ("whole interval" in check.reason) == (check.low > limit) == (outcome == "failed")
    assert ("items would show it" in check.reason) == (outcome == "undecided")


@pytest.mark.parametrize("kl", [0.01, 0.5])
def test_three_dialogues_decide_nothing(tmp_path: Path, kl: float) -> None:
    few = records("own-dialogues", "kl", {"base": np.zeros(3), "sft": np.full(3, 0.5), "regrow": np.full(3, kl)})
    (check,) = decided(tmp_path, few, Limits(max_forgetting_nats=0.1)).checks
    assert check.outcome == "undecided" and "too few dialogues to decide" in check.reason


@pytest.mark.parametrize(("gained", "outcome"), [(60, "passed"), (24, "undecided"), (4, "failed")])
def test_gain_is_decided_by_its_lower_bound(tmp_path: Path, gained: int, outcome: str) -> None:
    (check,) = decided(tmp_path, heldout(gained), Limits(min_gain=5)).checks
    assert (check.outcome, check.value) == (outcome, pytest.approx(gained / N * 100))
    assert check.low < check.value < check.high


def test_all_unselected_suites_of_the_unit_are_checked_and_one_that_fails_is_enough(tmp_path: Path) -> None:
    news = [Record(r.item_id, "news", r.domain, r.arm, r.metrics) for r in pool(60)]
    found = pool(2, 2) + news + facts(30) + own(0.05) + heldout(80)
    gate = decided(tmp_path, found, Limits(max_forgetting=3, max_forgetting_nats=0.1, min_gain=5))
    assert [(c.suite, c.outcome) for c in gate.checks] == [
        ("facts-pool", "passed"), ("news", "failed"), ("own-dialogues", "passed"), ("heldout", "passed")]  # fmt: skip
    assert not gate.passed
    assert gate.text().endswith("gate failed: regrow, 1 of 4 checks")


def test_a_selected_suite_is_checked_when_named_and_then_marked(tmp_path: Path) -> None:
    gate = decided(tmp_path, pool(2) + facts(40), Limits(max_forgetting=20), suites=["facts"])
    (check,) = gate.checks
    assert check.outcome == "passed" and "overstates the loss" in check.reason


def test_another_arm_can_be_judged(tmp_path: Path) -> None:
    gate = decided(tmp_path, pool(0), Limits(max_forgetting=2), arm="sft")
    assert gate.arm == "sft" and gate.checks[0].outcome == "failed"


def test_several_seeds_are_judged_together(tmp_path: Path) -> None:
    """Each alone passes; that they disagree makes the bound wider."""
    saved = [
        load_evaluation(write_evaluation(tmp_path / f"s{k}", pool(lost), seed=k)) for k, lost in enumerate((0, 18))
    ]
    limits = Limits(max_forgetting=4.5)
    items = saved[1].results["suites"]["facts-pool"]["differences"]["regrow"]["vs_base"]["ci"]
    together = judge(saved, limits)
    assert together.checks[0].value == pytest.approx(2.25)
    assert together.checks[0].high - together.checks[0].low > 100 * (items[1] - items[0])
    assert together.text().endswith(f"regrow, 2 seeds{', 1 of 1 checks' if not together.passed else ''}")


@pytest.mark.parametrize(
    ("limits", "more", "message"),
    [
        (Limits(), {}, "no limit"),
        (Limits(max_forgetting=2), {"suites": ["none"]}, "no retention suite 'none'"),
        (Limits(max_forgetting=2), {"suites": ["own-dialogues"]}, "points, which --max-forgetting limits"),
        (Limits(max_forgetting=2, max_forgetting_nats=1), {"suites": ["own-dialogues"]}, "measured in points"),
        (
            Limits(max_forgetting_nats=2),
            {"suites": ["facts-pool", "own-dialogues"]},
            "'facts-pool' is measured in points",
        ),
        (Limits(min_gain_nats=0.1), {}, "measured in points"),
        (Limits(min_gain=1), {"suites": ["facts"]}, "no limit on forgetting"),
        (Limits(min_gain=1), {"arm": "none"}, "no trained model 'none'"),
        (Limits(min_gain=1), {"arm": "base"}, "no trained model 'base'"),
    ],
)
def test_what_cannot_be_judged_is_an_error_and_not_a_pass(tmp_path: Path, limits, more, message: str) -> None:
    with pytest.raises(RunError, match=message):
        decided(tmp_path, pool(0) + own(0.1) + heldout(9), limits, **more)


def test_a_run_without_unselected_suites_or_without_a_gain_is_not_judged_by_others(tmp_path: Path) -> None:
    run = load_evaluation(write_evaluation(tmp_path / "run", facts(0)))
    with pytest.raises(RunError, match="no suite is measured in points"):
        judge([run], Limits(max_forgetting=2))
    with pytest.raises(RunError, match="gain was not measured"):
        judge([run], Limits(min_gain=2))


def test_junit_is_xml_whatever_a_suite_is_called(tmp_path: Path) -> None:
    found = [Record(r.item_id, "a<b>&\x0b\ufffe", r.domain, r.arm, r.metrics) for r in pool(60)]
    run = load_evaluation(write_evaluation(tmp_path / "run", found))
    root = ET.fromstring(judge([run], Limits(max_forgetting=2)).junit())
    assert root.find("testsuite/testcase").get("name") == "forgetting on a<b>&\ufffd\ufffd"


def regrow_gate(*args: object) -> subprocess.CompletedProcess[str]:
    code = "from regrow.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, "gate", *map(str, args)], capture_output=True, text=True)


def test_exit_codes_and_summaries_in_a_real_process(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "run", pool(10, 6) + heldout(60))
    junit, summary = tmp_path / "ci/gate.xml", tmp_path / "ci/gate.json"
    passed = regrow_gate(run, "--max-forgetting", 5, "--min-gain", 5, "--junit", junit, "--json", summary)
    assert passed.returncode == 0, passed.stderr
    assert "ok    forgetting on facts-pool: " in passed.stdout and "gate passed: regrow" in passed.stdout
    assert json.loads(summary.read_text())["passed"] is True
    assert ET.parse(junit).getroot().get("failures") == "0"

    failed = regrow_gate(run, "--max-forgetting", 2, "--min-gain", 5, "--junit", junit, "--json", summary)
    assert failed.returncode == 2, (failed.stdout, failed.stderr)
    assert "FAIL  forgetting on facts-pool: " in failed.stdout and "Traceback" not in failed.stderr
    told = json.loads(summary.read_text())
    assert told["passed"] is False and [c["outcome"] for c in told["checks"]] == ["undecided", "passed"]
    assert told["checks"][0]["limit"] == 2 and told["confidence"] == 0.95
    root = ET.parse(junit).getroot()
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    assert "was not shown" in root.find("testsuite/testcase/failure").get("message")

    wrong = regrow_gate(tmp_path / "none", "--max-forgetting", 2)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: ")
    assert regrow_gate(run).returncode == 1 and regrow_gate(run, "--max-forgetting", "x").returncode == 1
