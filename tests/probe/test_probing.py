"""The functions and commands of `regrow probe`: run folder, page, resume, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import regrow
from regrow import probing
from regrow.errors import RecipeError, RunError
from tests.fixtures.fact_bank import FactBank, FactBankEngine, labelled_texts
from tests.fixtures.tiny import save_tiny_llama, tiny_tokenizer
from tests.grow.helpers import HashEncoder


@pytest.fixture
def bank(monkeypatch):
    """`make_engine` and `load_encoder` replaced by what is exactly known."""
    import regrow.engines.choose
    import regrow.models.embed

    bank = FactBank(per_level=3)
    bank.made = []

    def make(name, model, **options):
        bank.made.append(name)
        return FactBankEngine(bank, tiny_tokenizer(), ["law", "code", "code", "code"])

    monkeypatch.setattr(regrow.engines.choose, "make_engine", make)
    monkeypatch.setattr(regrow.models.embed, "load_encoder", lambda name: HashEncoder())
    return bank


def _labels(path):
    rows = [{"text": t, "domain": d} for t, d in zip(*labelled_texts(12), strict=True)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_one_folder_and_one_page_over_all_probes(bank, tiny_model_dir, tmp_path):
    out = tmp_path / "run"
    data = bank.write(tmp_path / "qa.jsonl")
    settings = {"probe.mastery.max_new_tokens": 64}
    known = regrow.probe_mastery(str(tiny_model_dir), data, out, settings=settings)
    assert known.facts["counts"] == dict.fromkeys(known.facts["counts"], 6)
    shares = regrow.probe_domains(str(tiny_model_dir), _labels(tmp_path / "labels.jsonl"), out, samples=40, hard=True)
    assert shares.facts["shares"]["code"]["share"] == pytest.approx(0.75)
    page = (out / "probe.html").read_text()
    for part in ("HighlyKnown", "medicine", "held-out labelled texts", 'id="mastery"', 'id="domains"', "<svg"):
        assert part in page
    assert "min-k" not in page and "<script" not in page
    assert "HighlyKnown" in known.text() and str(known.path) in known.text()
    assert "75.0" in shares.text() and "named" not in shares.facts
    assert json.loads((out / "domains/domains.json").read_text()) == shares.facts
    # unchanged: nothing is asked again
    made = len(bank.made)
    again = regrow.probe_mastery(str(tiny_model_dir), data, out, settings=settings)
    assert again.facts == known.facts and len(bank.made) == made


def test_a_changed_setting_asks_again(bank, tiny_model_dir, tmp_path):
    data = bank.write(tmp_path / "qa.jsonl")
    for prompts in (2, 3):
        got = regrow.probe_mastery(
            str(tiny_model_dir), data, tmp_path / "run", prompts=prompts, settings={"probe.mastery.max_new_tokens": 64}
        )
        assert got.facts["prompts"] == prompts
    with pytest.raises(RunError, match="other settings"):
        regrow.probe_mastery(str(tiny_model_dir), data, tmp_path / "run", prompts=4, resume="always")


def test_a_folder_belongs_to_one_model(bank, tiny_model_dir, tmp_path):
    data = bank.write(tmp_path / "qa.jsonl")
    settings = {"probe.mastery.max_new_tokens": 64, "probe.mastery.prompts": 1}
    regrow.probe_mastery(str(tiny_model_dir), data, tmp_path / "run", settings=settings)
    other = save_tiny_llama(tmp_path / "other", seed=5)
    with pytest.raises(RunError, match="another model"):
        regrow.probe_mastery(str(other), data, tmp_path / "run", settings=settings)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/recipe.yaml").write_text("seed: 0\n")
    (tmp_path / "train/manifest.json").write_text((tmp_path / "run/manifest.json").read_text())
    with pytest.raises(RunError, match="holds a training run"):
        regrow.probe_mastery(str(tiny_model_dir), data, tmp_path / "train", settings=settings)


def test_text_of_the_data_is_escaped_on_the_page(bank, tiny_model_dir, tmp_path):
    lines = [json.loads(x) for x in bank.write(tmp_path / "qa.jsonl").read_text().splitlines()]
    for line in lines:
        line["relation"] = f"<script>alert('{line['relation']}')</script>"
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    got = regrow.probe_mastery(
        str(tiny_model_dir), tmp_path / "qa.jsonl", tmp_path / "run", settings={"probe.mastery.max_new_tokens": 64}
    )
    page = got.page.read_text()
    assert "<script" not in page and "&lt;script&gt;alert" in page


def test_unknown_and_impossible_settings_are_errors(tmp_path):
    for settings in ({"probe.mastery.promts": 3}, {"probe.min_k.k": 0}, {"probe.domains.labels": "medium"}):
        with pytest.raises(RecipeError, match="probe"):
            probing._recipe(settings)


def test_the_cost_without_a_model_being_asked(bank, tiny_model_dir, tmp_path):
    from regrow.recipe import parse_recipe

    recipe = parse_recipe("", overrides=[f"model.model_name_or_path={tiny_model_dir}"])
    told = probing.mastery_cost(recipe, bank.write(tmp_path / "qa.jsonl"))
    assert "24 questions: 240 greedy answers, then at most 3,840 sampled ones" in told and not bank.made


def test_min_k_from_the_command_line_with_control_and_reference(tiny_model_dir, tmp_path, capsys, monkeypatch):
    from regrow.cli import main

    (tmp_path / "a.txt").write_text("the mean of data\n\nthe mode of the data\n\nthe median, a middle value\n")
    (tmp_path / "b.txt").write_text("another text here\n\nand a fourth one of them\n")
    args = ["probe", "min-k", str(tiny_model_dir), str(tmp_path / "a.txt"), "-o", str(tmp_path / "run"), "--k", "0.5"]
    args += ["--control", str(tmp_path / "b.txt"), "--reference", str(tiny_model_dir), "--seed", "3"]
    monkeypatch.setattr(sys, "argv", ["regrow", *args])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    told = capsys.readouterr().out
    assert "Min-K%++" in told and "K = 50%" in told and "AUC" in told
    lines = [json.loads(x) for x in (tmp_path / "run/min-k/scores.jsonl").read_text().splitlines()]
    assert [x["set"] for x in lines] == ["data"] * 3 + ["control"] * 2
    assert all(abs(x["reference"]) < 1e-6 for x in lines)
    assert {"flagged" in x for x in lines if x["set"] == "data"} == {True}
    assert "min-k" in (tmp_path / "run/probe.html").read_text()


CHILD = """
import sys, time
from tests.fixtures.fact_bank import FactBank, FactBankEngine
from tests.fixtures.tiny import tiny_tokenizer
import regrow.engines.choose
class Slow(FactBankEngine):
    def sample(self, requests):
        for found in super().sample(requests):
            time.sleep(float(sys.argv[4]))
            yield found
regrow.engines.choose.make_engine = lambda name, model, **o: Slow(FactBank(per_level=3), tiny_tokenizer())
import regrow
regrow.probe_mastery(sys.argv[1], sys.argv[2], sys.argv[3],
    settings={"probe.mastery.max_new_tokens": 64, "probe.mastery.batch_items": 2})
"""


def test_kill_9_loses_and_doubles_nothing(tiny_model_dir, tmp_path):
    file = FactBank(per_level=3).write(tmp_path / "qa.jsonl")

    def start(out, rest):
        return subprocess.Popen([sys.executable, "-c", CHILD, str(tiny_model_dir), str(file), str(out), str(rest)])

    doomed = start(tmp_path / "cut", 0.02)
    ledger = tmp_path / "cut/mastery/ledger.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (ledger.exists() and ledger.read_bytes().count(b"\n") >= 4):
        assert doomed.poll() is None
        time.sleep(0.02)
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.wait()
    done = ledger.read_bytes().rpartition(b"\n")[0]
    assert done.count(b"\n") >= 3 and not (tmp_path / "cut/mastery/labels.jsonl").exists()
    assert start(tmp_path / "cut", 0).wait() == 0
    assert start(tmp_path / "whole", 0).wait() == 0
    for name in ("labels.jsonl", "prompts.jsonl", "mastery.json"):
        assert (tmp_path / "cut/mastery" / name).read_bytes() == (tmp_path / "whole/mastery" / name).read_bytes()


@pytest.mark.parametrize("form", ["chat", "plain"])
def test_through_the_transformers_engine(form, tiny_model_dir, tmp_path, monkeypatch):
    """A model of random weights knows nothing, says something, and says the same again."""
    import regrow.models.embed

    monkeypatch.setattr(regrow.models.embed, "load_encoder", lambda name: HashEncoder())
    data = FactBank(per_level=1).write(tmp_path / "qa.jsonl")
    labels = _labels(tmp_path / "labels.jsonl")
    small = {"probe.mastery.max_new_tokens": 4, "probe.mastery.form": form, "probe.domains.max_new_tokens": 8}
    found = []
    for name in ("a", "b"):
        out = tmp_path / name
        known = regrow.probe_mastery(
            str(tiny_model_dir), data, out, prompts=2, shots=2, samples=2, engine="transformers", settings=small
        )
        assert known.facts["counts"]["Unknown"] == 8 and known.facts["answers"] == 8 * 2 * 3
        said = regrow.probe_domains(
            str(tiny_model_dir), labels, out, samples=5, repeats=2, engine="transformers", settings=small
        )
        assert said.facts["start"] == "<|endoftext|>" and said.facts["texts"] + said.facts["empty"] == 10
        found.append([(out / f).read_bytes() for f in ("mastery/prompts.jsonl", "domains/samples.jsonl")])
    assert found[0] == found[1]
