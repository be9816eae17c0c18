"""The evaluation stage from end to end on tiny models, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from regrow.errors import DataError
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import Item
from regrow.evaluate.stage import CACHE, _enough, build_suites, evaluate
from regrow.models.load import resolve_model
from regrow.rows.row import Row
from tests.evaluate.models import assert_alike, choice, dialogues, perturbed, small_pool

CFG = EvalConfig(n_facts=24, pool_sample=20, generate_samples=2, max_new_tokens=4, bootstrap=400, max_dialogues=4)
ROWS = [
    Row(f"h{k}", [{"role": "user", "content": f"What is {k}?"}, {"role": "assistant", "content": "data"}])
    for k in range(6)
]


@pytest.fixture(scope="module")
def forgetful(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return perturbed(tiny_model_dir, tmp_path_factory.mktemp("sft"))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def run(tiny_model_dir: Path, forgetful: Path, tmp_path_factory: pytest.TempPathFactory):
    """Items and results of base, a forgetful sft and a regrow that is the base."""
    out = tmp_path_factory.mktemp("run")
    path = build_suites(CFG, resolve_model(str(tiny_model_dir)), ROWS, out / "suites", seed=0, pool=small_pool)
    items = [Item(**d) for d in read(path)] + dialogues()
    models = {"base": tiny_model_dir, "sft": forgetful, "regrow": tiny_model_dir}
    return out, items, evaluate(models, items, CFG, out / "eval", seed=0)


def test_items_are_what_the_settings_ask_for(run) -> None:
    out, items, _ = run
    count = {s: sum(i.suite == s for i in items) for s in {i.suite for i in items}}
    assert count == {"facts": 24, "facts-pool": 20, "heldout": 6, "own-dialogues": 6}
    pool = json.loads((out / "suites/pool.json").read_text())
    assert pool["selected"] == 24
    assert 0 < pool["accuracy"] < 1
    assert pool["n"] <= pool["candidates"] == 150
    assert sum(d["selected"] for d in pool["domains"].values()) == 24


def test_a_second_call_asks_the_base_nothing_and_gives_the_same_items(run, tiny_model_dir: Path) -> None:
    out, _, _ = run
    before = (out / "suites/items.jsonl").read_bytes(), (out / "suites" / CACHE).read_bytes()
    build_suites(CFG, resolve_model(str(tiny_model_dir)), ROWS, out / "suites", seed=0, pool=small_pool)
    assert before == ((out / "suites/items.jsonl").read_bytes(), (out / "suites" / CACHE).read_bytes())


def test_a_domain_without_candidates_left_does_not_keep_the_search_going() -> None:
    right = [choice(f"a{k}", domain="a") for k in range(20)] + [choice(f"b{k}", domain="b") for k in range(2)]
    more = [choice("c", domain="a")]
    assert _enough(right, more, 20)
    assert not _enough(right, [*more, choice("d", domain="b")], 20)
    assert not _enough(right, more, 23)


def test_results_have_the_keys_of_the_schema(run) -> None:
    r = run[2].results
    assert json.loads(run[2].path.read_text()) == r
    assert set(r) == {"format", "arms", "suites", "gain", "forgetting", "remaining", "verdict", "flips", "lost",
                      "lost_topics", "settings", "versions", "models"}  # fmt: skip
    assert r["arms"] == ["base", "sft", "regrow"]
    for name, suite in r["suites"].items():
        assert set(suite) == {"kind", "selected", "n", "metric", "higher_is_better", "unit", "arms", "secondary",
                              "differences", "domains", "noise_floor", "planned", "mdd", "pool", "flips",
                              "calibration"}, name  # fmt: skip
        assert set(suite["arms"]) == set(r["arms"])
        assert set(suite["differences"]) == {"sft", "regrow"}
        assert set(suite["noise_floor"]) == {"n", "mean_abs", "max_abs", "flips", "diff"}
        assert sum(d["n"] for d in suite["domains"].values()) == suite["n"]
        for compared in suite["differences"].values():
            assert set(compared) == {"vs_base", "vs_sft", "recovery"}
            assert set(compared["vs_base"]) == {"diff", "ci", "p", "p_holm", "mdd", "significant", "better"}
    assert [(s["kind"], s["metric"], s["unit"]) for s in r["suites"].values()] == [
        ("retention", "acc", "share"), ("retention", "acc", "share"), ("gain", "acc", "share"),
        ("retention", "kl", "nats"),
    ]  # fmt: skip
    assert set(r["suites"]["facts"]["pool"]) == {"n", "accuracy", "selected"}
    assert r["suites"]["heldout"]["pool"] is None
    assert r["suites"]["own-dialogues"]["n"] == 4
    assert set(r["verdict"]) == {"sentence", "level", "arm", "notes"}
    assert r["settings"]["n_facts"] == 24
    assert set(r["models"]["sft"]) == {"path", "revision"}
    assert r["models"]["base"] != r["models"]["sft"]


def test_the_forgetful_arm_lost_and_the_copy_of_the_base_won_all_of_it_back(run) -> None:
    r = run[2].results
    facts = r["suites"]["facts"]
    assert facts["arms"]["base"]["value"] == 1.0
    assert facts["arms"]["sft"]["value"] < 0.8
    assert facts["differences"]["sft"]["vs_base"]["better"] is False
    assert facts["differences"]["sft"]["vs_sft"] is None
    assert facts["differences"]["regrow"]["recovery"] == {
        "value": 1.0,
        "ci": [1.0, 1.0],
        "defined": True,
        "reason": None,
    }
    assert r["suites"]["own-dialogues"]["arms"]["regrow"]["value"] == 0
    assert r["suites"]["own-dialogues"]["arms"]["sft"]["value"] > 0.001
    moved = r["suites"]["own-dialogues"]["differences"]["sft"]["vs_base"]
    assert moved["ci"][0] > 0 and moved["better"] is None, "the signs of four dialogues give no p-value below 2/16"
    lost = r["flips"]["sft"]["lost"]
    assert lost == len(r["lost"]["sft"]) == round(24 * r["remaining"]["sft"]["value"])
    assert {name: s["selected"] for name, s in r["suites"].items()} == {
        "facts": True, "facts-pool": False, "heldout": False, "own-dialogues": False}  # fmt: skip
    assert r["forgetting"]["sft"]["suite"] == "facts-pool"
    assert r["suites"]["facts"]["flips"]["sft"] == {"lost": lost, "kept": 24 - lost, "won": 0, "never": 0}
    assert set(r["suites"]["facts"]["calibration"]) == {"base", "sft", "regrow"}
    assert r["suites"]["heldout"]["calibration"] is None, "nothing is chosen there"
    assert r["flips"]["regrow"] == {"lost": 0, "kept": 24, "won": 0}
    assert all(name.startswith("facts:") for name in r["lost"]["sft"])
    assert r["verdict"]["level"] == "no-change"
    assert r["verdict"]["sentence"].startswith("The model with replay does on every item as the base")


def test_records_follow_items_and_arms_and_some_were_really_written(run) -> None:
    out, items, _ = run
    records = read(out / "eval/records.jsonl")
    places = list(dict.fromkeys((r["suite"], r["item_id"]) for r in records))
    assert [r["arm"] for r in records] == ["base", "sft", "regrow"] * len(places)
    wanted = [(i.suite, i.id) for i in items]
    assert places == [p for p in wanted if p in set(places)]
    heldout = [r for r in records if r["suite"] == "heldout"]
    assert sum("rouge_l" in r["metrics"] for r in heldout) == 2 * 3
    facts = [r for r in records if r["suite"] == "facts"]
    assert {r["output"] for r in facts} <= {"red", "green", "blue", "black"}
    assert all({"acc", "nll", "tokens", "margin"} <= set(r["metrics"]) for r in facts)
    assert all((r["metrics"]["acc"] == 1) == (r["metrics"]["margin"] > 0) for r in facts)


def test_generation_is_what_the_model_says_alone(tiny_model_dir: Path, tmp_path: Path) -> None:
    from regrow.models.generate import chat_once
    from regrow.models.load import load_model, load_tokenizer

    model, tokenizer = load_model(tiny_model_dir), load_tokenizer(tiny_model_dir)
    items = [Item(f"q{k}", "mine", "d", "answer", [{"role": "user", "content": "Why? " * k}], answers=["x"])
             for k in (1, 4, 9)]  # fmt: skip
    cfg = CFG.model_copy(update={"generate_samples": 3, "max_new_tokens": 6})
    evaluate({"base": tiny_model_dir, "again": tiny_model_dir}, items, cfg, tmp_path, seed=0)
    for r, item in zip(read(tmp_path / "records.jsonl")[::2], items, strict=True):
        assert r["output"] == chat_once(model, tokenizer, item.messages, max_new_tokens=6)


def test_what_the_items_can_see_is_said_before_they_are_scored(tiny_model_dir: Path, tmp_path: Path, capsys) -> None:
    items = [choice(f"n{k}", suite="news", right=k % 4) for k in range(200)] + dialogues(2, suite="code")
    seen = []
    for share in (0.15, 0.4):
        cfg = EvalConfig(bootstrap=200, generate_samples=0, noise_floor=False, suites=[], assumed_discordance=share)
        r = evaluate({"base": tiny_model_dir}, items, cfg, tmp_path, seed=0).results
        told = capsys.readouterr().err
        planned = r["suites"]["news"]["planned"]
        assert planned["discordance"] == share
        line = f"news: 200 items can see a difference of {100 * planned['difference']:.1f} points (80% power"
        assert line in told
        assert told.index(line) < (told.index("scoring base") if "scoring base" in told else len(told))
        assert "code:" not in told and r["suites"]["code"]["planned"] is None, "no spread of a loss is known before"
        seen.append(planned["difference"])
    assert seen[0] < seen[1]


def test_scores_of_an_earlier_evaluation_are_taken_over(
    tiny_model_dir: Path, forgetful: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regrow.evaluate.score import Scorer

    items = [choice(f"n{k}", suite="news", right=k % 4) for k in range(12)] + dialogues(3, suite="code")
    cfg = EvalConfig(bootstrap=200, generate_samples=1, max_new_tokens=4, suites=[])
    models = {"base": tiny_model_dir, "sft": forgetful}
    evaluate(models, items, cfg, tmp_path / "one", seed=0)

    def no_scoring(*_: object, **__: object) -> None:
        raise AssertionError("an item was scored a second time")

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", no_scoring)
        evaluate(models, items, cfg, tmp_path / "two", seed=0, reuse=[tmp_path / "one" / CACHE])
    for name in ("records.jsonl", "results.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert not read(tmp_path / "two" / CACHE), "taken over, not copied"
    more = [*items, choice("new", suite="news")]
    evaluate(models, more, cfg, tmp_path / "two", seed=0, reuse=[tmp_path / "one" / CACHE])
    scored = read(tmp_path / "two" / CACHE)
    assert scored and len({e["item"] for e in scored}) == 1, "only the new item"


def test_switches(tiny_model_dir: Path, forgetful: Path, tmp_path: Path) -> None:
    cfg = EvalConfig(suites=["facts"], noise_floor=False, generate_samples=0, bootstrap=200, gain_suites=["news"])
    items = [choice(f"n{k}", suite="news", right=k % 4) for k in range(12)] + dialogues(3, suite="code") + dialogues(2)
    r = evaluate({"base": tiny_model_dir, "mine": forgetful}, items, cfg, tmp_path, seed=0).results
    assert {name: s["kind"] for name, s in r["suites"].items()} == {"news": "gain", "code": "retention"}
    assert all(s["noise_floor"] is None for s in r["suites"].values())
    assert r["gain"]["mine"]["suite"] == "news"
    assert r["forgetting"]["mine"]["suite"] == "code"
    assert r["remaining"] == {}
    assert r["forgetting"]["mine"]["retention"] is None
    assert r["suites"]["code"]["differences"]["mine"]["vs_sft"] is None
    assert "kl" in r["suites"]["code"]["secondary"]
    assert not any("rouge_l" in rec["metrics"] for rec in read(tmp_path / "records.jsonl"))


def test_what_cannot_be_evaluated_is_said(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate({"base": tiny_model_dir}, [], EvalConfig(), tmp_path, seed=0)
    with pytest.raises(DataError, match="two items"):
        evaluate({"base": tiny_model_dir}, [choice("a"), choice("a")], EvalConfig(), tmp_path, seed=0)
    impossible = lambda seed: [  # noqa: E731
        Item(
            "a",
            "facts",
            "d",
            "answer",
            [{"role": "user", "content": "?"}],
            answers=["zebra crossing"],
            meta={"fact": "a"},
        )
    ]
    with pytest.raises(DataError, match="none of the facts"):
        build_suites(CFG, resolve_model(str(tiny_model_dir)), [], tmp_path / "s", seed=0, pool=impossible)


CHILD = """
import json, sys, time
from pathlib import Path
from regrow.evaluate import cache, stage
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import Item
spec = json.loads(Path(sys.argv[1]).read_text())
if spec["slow"]:
    add = cache.ScoreCache.add
    def slow(self, name, values):
        add(self, name, values)
        print("batch", flush=True)
        time.sleep(0.2)
    cache.ScoreCache.add = slow
items = [Item(**d) for d in spec["items"]]
models = {k: Path(v) for k, v in spec["models"].items()}
stage.evaluate(models, items, EvalConfig(**spec["cfg"]), Path(spec["out"]), seed=0)
"""


def test_killed_in_the_middle_it_goes_on_and_scores_nothing_twice(
    tiny_model_dir: Path, forgetful: Path, tmp_path: Path
) -> None:
    items = [choice(f"n{k}", suite="news", right=k % 4) for k in range(30)] + dialogues(8, suite="code")
    cfg = {"bootstrap": 200, "batch_tokens": 100, "generate_samples": 2, "max_new_tokens": 4, "suites": ["facts"]}
    models = {"base": tiny_model_dir, "sft": forgetful}
    evaluate(models, items, EvalConfig(**cfg), tmp_path / "whole", seed=0)
    spec = {"items": [asdict(i) for i in items], "models": {k: str(v) for k, v in models.items()}, "cfg": cfg,
            "out": str(tmp_path / "killed"), "slow": True}  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "spec.json")], stdout=subprocess.PIPE,
                             env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert child.stdout is not None
    for _ in range(5):
        assert child.stdout.readline() == b"batch\n"
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed/results.json").exists()
    cut = tmp_path / "killed" / CACHE
    done = read(cut)
    whole = read(tmp_path / "whole" / CACHE)
    assert 0 < len(done) < len(whole)
    cut.write_bytes(cut.read_bytes() + b'{"pass": "torn')
    time.sleep(0.01)
    again = evaluate(models, items, EvalConfig(**cfg), tmp_path / "killed", seed=0)
    after = read(cut)
    assert after[: len(done)] == done
    assert sorted((e["pass"], e["item"]) for e in after) == sorted((e["pass"], e["item"]) for e in whole)
    assert_alike(*(read(tmp_path / run / "records.jsonl") for run in ("killed", "whole")))
    assert_alike(*(json.loads((tmp_path / run / "results.json").read_text()) for run in ("killed", "whole")))
    assert again.path == tmp_path / "killed/results.json"
