"""The stability gap on the page and in the terminal."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from regrow.errors import RunError
from regrow.report.build import build_report
from regrow.report.compare import gaps_table
from regrow.report.gaps import gaps
from regrow.report.load import load_run
from tests.report.fixture_run import make_run

GAPS = {
    "<b>bees</b>": {"dip": 0.25, "at_step": 20, "recovered_step": 1060, "end": -0.031},
    "law": {"dip": 1.5, "at_step": 40, "recovered_step": None, "end": 0.72},
    "mine": {"dip": 0.0, "at_step": 0, "recovered_step": 0, "end": -1.5},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "run")
    (folder / "train/regrow/train.json").write_text(json.dumps({"gaps": GAPS}))
    (folder / "train/sft/train.json").write_text(json.dumps({"steps": 5}))
    return folder


def test_deepest_first_and_what_did_not_come_back_says_so(run: Path) -> None:
    rows = gaps(load_run(run))
    assert [r["domain"] for r in rows] == ["law", "<b>bees</b>", "mine"]
    assert [(r["dip"], r["at"], r["back"], r["end"]) for r in rows] == [
        ("1.500", "40", "not by the end", "+0.72"),
        ("0.250", "20", "1,060", "−0.031"),
        ("0.000", "", "", "−1.50"),
    ]


def test_on_the_page_and_in_the_terminal(run: Path, tmp_path: Path) -> None:
    page = build_report(run, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Stability gap by model and domain" in page and "1,060" in page and "<b>bees</b>" not in page
    console = Console(file=StringIO(), width=160)
    console.print(gaps_table(load_run(run)))
    assert "not by the end" in console.file.getvalue()  # type: ignore[attr-defined]


def test_without_a_monitor_there_is_nothing(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert gaps_table(load_run(folder)) is None
    assert "Stability gap" not in build_report(folder, tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_damaged_summary_is_named(run: Path) -> None:
    (run / "train/sft/train.json").write_text("{")
    with pytest.raises(RunError, match=r"train\.json"):
        load_run(run)
