"""A sweep on the page and in the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from regrow.evaluate.ratios import Sweep
from regrow.report.build import build_report, load_report
from regrow.report.load import load_run
from regrow.report.sections import styles
from tests.evaluate.saved import ones, records, write_evaluation
from tests.report.pages import parse
from tests.report.test_page import HOSTILE, assert_contained

N = 400
RATIOS = {
    "sft": 0.0,
    "replay-0.01": 0.01,
    "replay-0.05": 0.05,
    "replay-0.1": 0.1,
    "replay-0.2": 0.2,
    "replay-0.4": 0.4,
}
LOST = (90, 70, 12, 10, 10, 9)
NLL = (1.0, 1.0, 1.01, 1.02, 1.05, 1.2)


def swept(folder: Path, suite: str = "facts-pool") -> Path:
    noise = np.random.default_rng(0).normal(0, 0.05, (N, len(RATIOS)))
    loss = {a: np.full(N, NLL[k]) + noise[:, k] for k, a in enumerate(RATIOS)}
    rows = records("heldout", "nll", {"base": np.full(N, 2.0), **loss})
    rows += records(suite, "acc", {"base": np.ones(N), **{a: ones(N, LOST[k]) for k, a in enumerate(RATIOS)}})
    write_evaluation(folder, rows, ["base", *RATIOS], sweep=Sweep(RATIOS, 2.0, 0.1))
    for arm, ratio in RATIOS.items():
        (folder / "mix" / arm).mkdir(parents=True)
        mixed = {"asked": {"replay_ratio": ratio, "unit": "tokens"}, "realised": {"tokens": ratio},
                 "domain": {"tokens": 1000, "rows": 10, "train_tokens": 500},
                 "replay": {"tokens": round(1000 * ratio / (1 - ratio)), "rows": 2, "train_tokens": 10}}  # fmt: skip
        (folder / "mix" / arm / "mix.json").write_text(json.dumps(mixed))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return swept(tmp_path_factory.mktemp("runs") / "run")


def test_the_page_has_one_chart_of_all_ratios_and_the_recommendation(run: Path, tmp_path: Path) -> None:
    html = build_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert_contained(html)
    page = parse(html)
    assert all(len(set(columns)) == 1 for columns in page.tables()), page.tables()
    text = page.text().replace("\N{NO-BREAK SPACE}", " ")
    assert "Use a replay ratio of 0.05" in text and "is not validated" in text
    assert [e for e in page.elements if e.attrs.get("id") == "sweep"]
    charts = [e for e in page.all("svg") if "chart" in e.attrs.get("class", "").split()]
    assert [e.attrs["class"] for e in charts] == ["chart wide", "chart narrow"], "the sweep's, and no other beside it"
    for label in ("0 %", "1 %", "5 %", "10 %", "20 %", "40 %"):
        assert f"{label}: +" in charts[0].attrs["aria-label"].replace("\N{NO-BREAK SPACE}", " ")
    bars = [e for e in page.elements if e.tag == "path" and e.attrs.get("class", "").startswith("bar")]
    assert len(bars) == 2 * 2 * len(RATIOS), "two intervals a ratio, in each of the two drawings"
    assert len([e for e in page.elements if e.attrs.get("class") == "front"]) == 2
    assert "5 % (recommended)" in text and text.count("recommended") >= 3


def test_the_terminal_has_the_table(run: Path) -> None:
    told = load_report(run).text_table().replace("\N{NO-BREAK SPACE}", " ")
    row = [line for line in told.splitlines() if line.startswith("5 % ")][-1]  # the first is the headline's
    assert "1,053" in row and row.rstrip().endswith("recommended, front")
    assert "+0.99" in row and "+3.0" in row
    assert told.rstrip().splitlines()[-2].startswith("Use a replay ratio of 0.05")


def test_no_two_arms_look_like_the_base_or_like_plain_fine_tuning(run: Path) -> None:
    style = styles(load_run(run))
    assert style["base"] == 0 and style["sft"] == 1
    assert all(2 <= style[a] <= 5 for a in RATIOS if a != "sft")
    assert len({style[a] for a in list(RATIOS)[1:5]}) == 4


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    run = swept(tmp_path / "run", suite=HOSTILE.encode("utf-8", "ignore").decode())
    file = run / "eval/results.json"
    results = json.loads(file.read_text())
    results["sweep"]["notes"] = [HOSTILE]
    results["sweep"]["arms"]["replay-0.1"]["above"]["than"] = HOSTILE
    file.write_text(json.dumps(results))
    html = build_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert_contained(html)
    assert "<script>alert(1)" not in html and "alert(1)" in html
