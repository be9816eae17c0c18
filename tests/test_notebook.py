"""The example notebook runs from top to bottom, and what the functions give back shows itself, escaped."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest

from regrow.api import StageSummary
from regrow.probing import ProbeResult
from regrow.views import Evaluation, Sequence, facts_html, shown, text_html
from tests.report.fixture_run import make_run
from tests.report.pages import parse

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples/notebook.ipynb"
BAD = "<script>alert(1)</script>\"'&"


def assert_safe(html: str) -> None:
    assert "<script" not in html and BAD in parse(html).text()


def test_results_show_themselves_and_escape_what_they_show(tmp_path: Path) -> None:
    facts = {"dialogues": 12345, "share": 0.123456, "name_of_it": BAD, "deep": {"a": BAD}, "long": "x" * 999}
    html = StageSummary("grow", Path(BAD), facts)._repr_html_()
    assert_safe(html)
    text = parse(html).text()
    assert "12,345" in text and "0.1235" in text and "name of it" in text and "x" * 300 not in text
    assert_safe(facts_html(BAD, tmp_path, {}))
    assert_safe(text_html(BAD))
    assert shown(None) == "None" and shown(True) == "True"


def test_an_evaluation_is_a_dict_that_shows_its_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n_items=30)
    results = json.loads((run / "eval/results.json").read_text())
    found = Evaluation(results, run)
    assert found == results and found["arms"] == ["base", "sft", "regrow"]
    assert results["verdict"]["sentence"] in parse(found._repr_html_()).text()


def test_a_sequence_and_a_probe_show_their_tables(tmp_path: Path) -> None:
    matrix = {"law" + BAD: {"n": 5, "metric": "acc", "unit": "share", "task": True, "values": [0.3, 0.7]}}
    results: dict[str, Any] = {
        "models": ["base", "step-1"], "tasks": ["law"], "matrix": matrix, "metric": "acc", "unit": "share",
        "higher_is_better": True, "confidence": 0.95,
        "metrics": {"average_accuracy": {"value": 0.7, "ci": [0.6, 0.8]}},
    }  # fmt: skip
    html = Sequence(results, tmp_path)._repr_html_()
    assert "<script" not in html and "70.0" in parse(html).text() and html.startswith("<pre>")


@pytest.mark.parametrize("probe", ["min-k"])
def test_a_probe_shows_its_table(tmp_path: Path, probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regrow.report.probes.text_table", lambda name, facts: f"{name} {BAD}")
    assert_safe(ProbeResult(probe, tmp_path, {}, tmp_path / "probe.html")._repr_html_())


def test_the_notebook_runs(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat and nbclient run the notebook")
    nbclient = pytest.importorskip("nbclient", reason="nbformat and nbclient run the notebook")
    pytest.importorskip("ipykernel", reason="a notebook needs a kernel")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    )
    nb = nbformat.read(NOTEBOOK, as_version=4)
    [parameters] = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    names = {node.targets[0].id for node in ast.parse(parameters.source).body if isinstance(node, ast.Assign)}
    settings = {
        "grow.encoder": "none", "curate.dedup_method": "minhash", "curate.embedding_threshold": None,
        "evaluate.suites": ["own-dialogues", "heldout"], "evaluate.bootstrap": 200, "evaluate.generate_samples": 0,
    }  # fmt: skip
    small = {"model": str(tiny_model_dir), "engine": "dummy", "rows": 30, "dialogues": 16, "steps": 2,
             "folder": str(tmp_path / "nb"), "settings": settings}  # fmt: skip
    assert set(small) == names, "the first cell holds all settings"
    parameters.source = "\n".join(f"{k} = {v!r}" for k, v in small.items())
    nbclient.NotebookClient(nb, timeout=300, kernel_name="python3").execute()
    shown = [o.data["text/html"] for c in nb.cells for o in c.get("outputs", []) if "text/html" in o.get("data", {})]
    assert sum("<table>" in html for html in shown) >= 3, "a stage, the run and the evaluation show themselves"
    assert (tmp_path / "nb/run/report.html").is_file() and (tmp_path / "nb/eval/report.html").is_file()
