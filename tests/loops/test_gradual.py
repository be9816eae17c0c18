"""Gradual fine-tuning: planted facts through real trainings of the tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import regrow
import regrow.engines.choose
from regrow.errors import DataError, ModelError, RecipeError, RunError
from regrow.loops.epochs import best_epoch, read_arm
from regrow.loops.facts import split_facts
from regrow.loops.gradual import gradual_cost, run_gradual
from regrow.probe.transitions import transitions
from tests.fixtures.fact_bank import FactBank
from tests.loops.mastered import (
    ARMS,
    BEST_DEV,
    BEST_TEST,
    DEV,
    EPOCHS,
    EPOCHS2,
    HIGHLY,
    LABELS,
    MAYBE,
    SEED,
    SETTINGS,
    TEST,
    UNKNOWN,
    WEAKLY,
    World,
    labels,
    lines,
    parts,
    read,
    recipe,
    world_of,
)
from tests.train.helpers import largest_difference


def test_the_three_parts_share_nothing(whole_gradual: tuple[Path, World], facts_file: Path) -> None:
    found = parts(whole_gradual[0])
    assert len(found["dev"]) == DEV and len(found["test"]) == TEST and len(found["train"]) == 40 - DEV - TEST
    assert set.union(*found.values()) == {x["id"] for x in lines(facts_file)}


def test_stage_1_trains_on_the_half_known_and_stage_2_on_what_that_raised(whole_gradual: tuple[Path, World]) -> None:
    run, world = whole_gradual
    train, planted = parts(run)["train"], world.bank.levels()
    mine = {level: {f for f in train if planted[f] == level} for level in (HIGHLY, MAYBE, WEAKLY, UNKNOWN)}
    trained = {arm: {x["id"] for x in _mixed(run / arm)} for arm in ARMS}
    assert trained["stage1"] == mine[MAYBE]
    raised = mine[WEAKLY] | {f for f in mine[UNKNOWN] if int(f[-1]) % 2 == 0}
    replay = trained["stage2"] - mine[MAYBE] - raised
    assert trained["stage2"] >= mine[MAYBE] | raised and replay <= mine[HIGHLY]
    assert len(replay) == round(0.25 * len(mine[MAYBE] | raised)), "a fifth of the whole set"
    assert trained["one-stage"] == train
    told = read(run / "gradual.json")["stage2_set"]
    assert (told["kept"], told["upgraded"], told["replay"]) == (len(mine[MAYBE]), len(raised), len(replay))


def _mixed(arm: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(arm / "mix/train.parquet", columns=["id"]).to_pylist()


def test_labels_and_what_moved(whole_gradual: tuple[Path, World]) -> None:
    run, world = whole_gradual
    facts = {f.id: f for f in world.bank.facts if f.id in parts(run)["train"]}
    found = {name: labels(run, name) for name in LABELS}
    for name in LABELS:
        assert found[name] == {i: world.level("base" if name == "control" else name, f) for i, f in facts.items()}
    told = read(run / "gradual.json")["transitions"]
    assert told["control"]["raised"] == told["control"]["lowered"] == 0
    pairs = {"control": ("base", "control"), "stage 1": ("base", "stage1"), "stage 2": ("stage1", "stage2"),
             "both stages": ("base", "stage2"), "one stage": ("base", "one-stage")}  # fmt: skip
    for name, (one, two) in pairs.items():
        assert told[name]["matrix"] == transitions(found[one], found[two])
    lost = sum(f.level == HIGHLY and i.endswith("/0") for i, f in facts.items())
    assert told["stage 1"]["forgotten"] == lost > 0 and told["both stages"]["forgotten"] == 0


def test_classifications_that_are_compared_have_other_prompts(whole_gradual: tuple[Path, World]) -> None:
    run, _ = whole_gradual
    draws = {name: [x["shots"] for x in lines(run / f"labels/{name}/prompts.jsonl")] for name in LABELS}
    for one, two in (("base", "control"), ("base", "stage1"), ("stage1", "stage2"), ("base", "one-stage")):
        assert draws[one] != draws[two]
    assert draws["control"] == draws["stage1"], "the control moves by the same chance"


def test_dev_chooses_and_test_does_not(whole_gradual: tuple[Path, World]) -> None:
    """Every arm has its best epoch on the test part elsewhere, and no test question is asked before all is chosen."""
    run, world = whole_gradual
    for arm in ARMS:
        found = read_arm(run / arm)
        assert found.best == BEST_DEV[arm] != BEST_TEST[arm]
        assert [e.dev for e in found.epochs] == [float(n == BEST_DEV[arm]) for n in range(1, len(found.epochs) + 1)]
        assert len(found.epochs) == (EPOCHS2 if arm == "stage2" else EPOCHS)
    asked = [a.fact in parts(run)["test"] for a in world.asked]
    first = asked.index(True)
    assert all(asked[first:]) and not any(asked[:first]), "all about the test part is asked at the end"
    assert {a.model for a in world.asked[first:]} == {"base", *ARMS}, "and of finished models only"


def test_the_kept_model_is_that_of_its_epoch(
    whole_gradual: tuple[Path, World], facts_file: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from regrow.mix.config import MixConfig
    from regrow.train.config import TrainConfig
    from regrow.train.stage import epoch_folder, train

    run, _ = whole_gradual
    cfg = recipe(tiny_model_dir).train.model_copy(update={"num_train_epochs": EPOCHS, "save_epochs": True})
    assert isinstance(cfg, TrainConfig) and MixConfig() == recipe(tiny_model_dir).mix
    done = train(tiny_model_dir, run / "stage1/mix", cfg, tmp_path, seed=SEED)
    apart = [largest_difference(run / "stage1/model", epoch_folder(tmp_path, n)) for n in range(1, EPOCHS + 1)]
    assert [d == 0 for d in apart] == [n == BEST_DEV["stage1"] for n in range(1, EPOCHS + 1)]
    assert largest_difference(done.model_path, epoch_folder(tmp_path, EPOCHS)) == 0
    assert not list(run.glob("*/train/epochs")) and not list(run.glob("*/train/model")), "the others are gone"


def test_other_test_questions_change_no_model_and_the_same_seed_gives_the_same_labels(
    whole_gradual: tuple[Path, World],
    facts_file: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, world = whole_gradual
    held = parts(run)
    rows = lines(facts_file)
    for name, chosen in (("qa", held["train"]), ("dev", held["dev"])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows if r["id"] in chosen))
    others = [
        {"id": f"new/{i}", "relation": "capital", "question": f"Where is {i}?", "answer": f"Nowhere {i}"}
        for i in range(5)
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in others))
    monkeypatch.setattr(regrow.engines.choose, "make_engine", World(world.dev, set()).make_engine)
    cfg = recipe(tiny_model_dir, gradual__dev=str(tmp_path / "dev.jsonl"), gradual__test=str(tmp_path / "test.jsonl"))
    again = run_gradual(cfg, tmp_path / "qa.jsonl", tmp_path / "run")
    for name in LABELS:
        assert labels(tmp_path / "run", name) == labels(run, name)
    for arm in ARMS:
        assert largest_difference(again.models[arm], run / arm / "model") == 0
        assert read_arm(tmp_path / "run" / arm).best == BEST_DEV[arm]
    assert again.facts["questions"]["test"] == 5


def test_what_is_told(whole_gradual: tuple[Path, World]) -> None:
    run, world = whole_gradual
    told, held = read(run / "gradual.json"), parts(run)
    test = told["test"]
    levels = {f.id: f for f in world.bank.facts if f.id in held["test"]}
    for name in ("base", *ARMS):
        # Each is asked in prompt 0 greedily, which knows what is HighlyKnown or MaybeKnown.
        known = {i: world.level(name, f) in (HIGHLY, MAYBE) for i, f in levels.items()}
        assert test["accuracy"][name]["value"] == pytest.approx(sum(known.values()) / len(known))
        for level in (HIGHLY, MAYBE, WEAKLY, UNKNOWN):
            mine = [known[i] for i, f in levels.items() if f.level == level]
            found = test["categories"][level]
            assert found["questions"] == len(mine)
            assert found["accuracy"] is None if not mine else found["accuracy"][name] == sum(mine) / len(mine)
    pair = next(d for d in test["differences"] if (d["after"], d["before"]) == ("stage2", "base"))
    assert pair["value"] == pytest.approx(test["accuracy"]["stage2"]["value"] - test["accuracy"]["base"]["value"])
    law = told["law"]
    assert law["points"] == 2 * EPOCHS + EPOCHS2 == len(law["models"])
    page = (run / "gradual.html").read_text(encoding="utf-8")
    for part in ('id="test"', 'id="epochs"', 'id="categories"', 'id="moves"', 'id="law"', "Control:", "<svg"):
        assert part in page
    assert "<script" not in page and 'src="http' not in page
    card = (run / "stage2/model/README.md").read_text(encoding="utf-8")
    assert "after stage 2" in card and f"{BEST_DEV['stage2']} of {EPOCHS2}" in card and "gradual:" in card


def test_the_finished_run_is_not_run_again_and_its_models_are_found(
    whole_gradual: tuple[Path, World], facts_file: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regrow.api import _tuned
    from regrow.report.compare import find_runs
    from regrow.runs import finished_models

    run, world = whole_gradual
    monkeypatch.setattr(regrow.engines.choose, "make_engine", world.make_engine)
    engines = len(world.engines)
    again = run_gradual(recipe(tiny_model_dir), facts_file, run)
    assert len(world.engines) == engines and again.facts == read(run / "gradual.json")
    assert str(run / "stage2/model") in again.text() and "after stage 2" in again.text()
    assert finished_models(run)["stage2"] == run / "stage2/model" == _tuned(run)
    assert [line.state for line in find_runs(run)] == ["done"]


def test_the_page_and_the_tables_come_again(
    whole_gradual: tuple[Path, World],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import sys

    from regrow.cli import main

    run, _ = whole_gradual
    for args in (["report", str(run), "-o", str(tmp_path / "again.html")], ["show", str(run)]):
        monkeypatch.setattr(sys, "argv", ["regrow", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    assert (tmp_path / "again.html").read_bytes() == (run / "gradual.html").read_bytes()
    assert "after stage 2 against before" in capsys.readouterr().out


def test_each_setting_reaches_its_place(
    facts_file: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything optional off, adapters, and rates of its own."""
    import regrow.train.stage as stage
    from tests.train.helpers import weights_of

    world, real, configs = world_of(facts_file), stage.train, {}
    monkeypatch.setattr(regrow.engines.choose, "make_engine", world.make_engine)
    monkeypatch.setattr(
        stage, "train", lambda *a, label, **k: (configs.update({label: a[2]}), real(*a, label=label, **k))[1]
    )
    off = {"gradual__control": False, "gradual__one_stage": False, "gradual__law": False, "gradual__shots": 0}
    second = {"augment": False, "replay": "none", "learning_rate": 3e-4, "weight_decay": 0.25, "epochs": 1}
    done = run_gradual(
        recipe(tiny_model_dir, train__method="lora", train__lora__r=4, gradual__epochs=2, **off,
               **{f"gradual__stage2__{k}": v for k, v in second.items()}), facts_file, tmp_path / "run",
    )  # fmt: skip
    run = tmp_path / "run"
    assert sorted(p.name for p in (run / "labels").iterdir()) == ["base", "stage1", "stage2"]
    assert set(done.models) == {"base", "stage1", "stage2"} and done.facts["law"] is None
    assert {x["id"] for x in _mixed(run / "stage2")} == {x["id"] for x in _mixed(run / "stage1")}
    one, two = configs["stage1"], configs["stage2"]
    assert (one.peak_learning_rate, one.weight_decay, one.num_train_epochs) == (1e-3, 0.0, 2)
    assert (two.peak_learning_rate, two.weight_decay, two.num_train_epochs) == (3e-4, 0.25, 1)
    held = parts(run)
    facts = {f.id: f for f in world.bank.facts}
    dev = [a for a in world.asked if a.fact in held["dev"]]
    assert dev and not [a for a in dev for f in facts.values() if f.id != a.fact and f.subject in a.prompt], "bare"
    assert not [a for a in world.asked if "/" in a.model and a.fact in held["train"]], "no trained fact is asked"
    for arm, before in (("stage1", tiny_model_dir), ("stage2", run / "stage1/model")):
        assert largest_difference(run / arm / "model", before) > 0
        assert any("lora_A" in name for name in weights_of(run / arm / "adapter"))
        assert not (run / arm / "asked").exists() and not list((run / arm).glob(".*.tmp"))


def test_the_default_rate_of_stage_2_is_half_and_dev_questions_show_train_answers(
    whole_gradual: tuple[Path, World],
) -> None:
    run, world = whole_gradual
    stages = read(run / "manifest.json")["stages"]
    rates = {arm: stages[arm]["inputs"]["arm.learning_rate"] for arm in ARMS}
    assert rates == {"stage1": 1e-3, "stage2": 5e-4, "one-stage": 1e-3}
    assert stages["stage2"]["inputs"]["arm.weight_decay"] == 0.01
    held, facts = parts(run), {f.id: f for f in world.bank.facts}
    for asked in world.asked:
        if asked.fact in held["dev"] | held["test"]:
            shown = {f.id for f in facts.values() if f.answer in asked.prompt}
            assert len(shown) == 4 and shown <= held["train"]
            assert {facts[i].relation for i in shown} == {facts[asked.fact].relation}


@pytest.mark.slow
def test_a_grown_corpus_as_replay(
    facts_file: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    grown = {"grow.encoder": "none", "grow.topics": ["bees", "iron"]}
    regrow.grow(str(tiny_model_dir), tmp_path / "corpus", engine="dummy", shape=[8, 1], dialogues=16, settings=grown)
    monkeypatch.setattr(regrow.engines.choose, "make_engine", world_of(facts_file).make_engine)
    settings = {k: v for k, v in recipe(tiny_model_dir).model_dump()["gradual"].items() if k in ("dev", "test")}
    done = regrow.gradual(
        str(tiny_model_dir), facts_file, tmp_path / "run", **settings, epochs=1, stage2_epochs=1,
        corpus=tmp_path / "corpus", replay_ratio=0.5, compare=False, seed=SEED,
        settings={k: v for k, v in SETTINGS.items() if not k.startswith("gradual") and k != "seed"}
        | {"gradual.control": False, "gradual.law": False},
    )  # fmt: skip
    mixed = pq.read_table(tmp_path / "run/stage2/mix/train.parquet").to_pylist()
    planted = FactBank(per_level=5).levels()
    yours = {row["id"] for row in mixed if row["source"] == "domain"}
    assert not [i for i in yours if planted[i] == HIGHLY] and done.facts["stage2_set"]["replay"] == 0
    tokens = {s: sum(r["n_tokens"] for r in mixed if r["source"] == s) for s in ("domain", "replay")}
    assert tokens["replay"] / sum(tokens.values()) == pytest.approx(0.5, abs=0.05)
    assert done.facts["arms"]["stage2"]["replay_tokens"] == tokens["replay"]
    assert done.facts["arms"]["stage1"]["replay_tokens"] == 0


def test_the_command(
    facts_file: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import sys

    import regrow.loops.gradual as loop
    from regrow.cli import main

    taken: list[Any] = []

    class Done:
        def text(self) -> str:
            return "told"

    monkeypatch.setattr(loop, "run_gradual", lambda *a, **k: taken.append((a, k)) or Done())

    def call(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["regrow", "gradual", str(tiny_model_dir), str(facts_file), *more])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    options = ["--dev", "0.2", "--test", "t.jsonl", "--epochs", "4", "--epochs2", "2", "--no-augment", "--no-compare"]
    assert call("-o", str(tmp_path), *options, "--corpus", "c", "--replay-ratio", "0.3", "--method", "lora") == 0
    (cfg, data, out), _ = taken[0]
    g = cfg.gradual
    assert (g.dev, g.test, g.epochs, g.stage2.epochs, g.one_stage) == (0.2, "t.jsonl", 4, 2, False)
    assert (g.stage2.augment, g.stage2.replay, g.stage2.corpus, g.stage2.replay_ratio) == (False, "corpus", "c", 0.3)
    assert (cfg.train.method, data, out) == ("lora", str(facts_file), tmp_path) and "told" in capsys.readouterr().out
    assert call("--dev", "7", "--replay", "none") == 0
    assert taken[1][0][0].gradual.dev == 7 and taken[1][0][0].gradual.stage2.replay == "none"
    assert call("--replay", "none", "--corpus", "c") == 1 and "belong together" in capsys.readouterr().err
    assert call("--cost") == 0 and "classify 32 facts 5 times" in capsys.readouterr().out and len(taken) == 2


@pytest.mark.parametrize(
    ("change", "message", "error"),
    [
        ({"train__max_steps": 5}, "steps would cut the epochs", RecipeError),
        ({"probe__mastery__form": "plain"}, "asked in turns", RecipeError),
        ({"probe__mastery__engine": "openai"}, "a server has one model", RecipeError),
        ({"gradual__dev": 39}, "too few to hold out", DataError),
        ({"gradual__dev": "nowhere.jsonl"}, "nowhere.jsonl", DataError),
    ],
)
def test_what_cannot_end_well_is_refused_at_once(
    change: dict[str, Any],
    message: str,
    error: type[Exception],
    facts_file: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        run_gradual(recipe(tiny_model_dir, **change), facts_file, tmp_path / "run")
    assert not (tmp_path / "run/stage1").exists()


@pytest.mark.parametrize("change", [{"gradual.dev": 0}, {"gradual.test": 1.5}, {"gradual.dev": ""},
                                    {"gradual.stage2.replay": "corpus"}, {"gradual.stage2.corpus": "x"}])  # fmt: skip
def test_settings_that_make_no_sense_are_errors(change: dict[str, Any]) -> None:
    from regrow.recipe import parse_recipe

    with pytest.raises(RecipeError, match="gradual"):
        parse_recipe("", options=change)


def test_a_model_without_turns_is_refused(facts_file: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_model_dir, tmp_path / "bare")
    (tmp_path / "bare/chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        run_gradual(recipe(tmp_path / "bare"), facts_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_half_knows_nothing_says_so(facts_file: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Through the transformers engine: random weights know no fact."""
    small = {"probe__mastery__prompts": 1, "probe__mastery__samples": 1, "probe__mastery__max_new_tokens": 4}
    with pytest.raises(DataError, match=r"no question is MaybeKnown \(28 Unknown\)"):
        run_gradual(recipe(tiny_model_dir, gradual__control=False, **small), facts_file, tmp_path / "run")


def test_a_folder_of_another_run_is_refused(facts_file: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    manifest = {"format": "regrow-run/1", "stages": {"data": {"status": "running", "inputs": {}}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="another kind of run"):
        run_gradual(recipe(tiny_model_dir), facts_file, tmp_path)


def test_the_cost_is_an_upper_bound(facts_file: Path, tiny_model_dir: Path, whole_gradual: tuple[Path, World]) -> None:
    told = gradual_cost(recipe(tiny_model_dir), facts_file)
    assert "classify 28 facts 5 times  280 greedy answers, 1,120 sampled ones" in told
    exams = (DEV + 28) * (2 * EPOCHS + EPOCHS2) + TEST * 4
    assert f"{exams:,} answers" in told
    one_pass = read(whole_gradual[0] / "one-stage/mix/mix.json")["domain"]["tokens"]
    assert f"train one-stage  {one_pass * EPOCHS:,} tokens" in told


def test_the_highest_dev_accuracy_wins_and_the_earliest_of_equals() -> None:
    assert best_epoch([0.1, 0.4, 0.3]) == 2
    assert best_epoch([0.2, 0.4, 0.4]) == 2
    assert best_epoch([0.0, 0.0]) == 1


def test_a_question_in_two_parts_is_refused(facts_file: Path, tmp_path: Path) -> None:
    first = lines(facts_file)[0] | {"id": "again"}
    first["question"] = first["question"].upper()
    (tmp_path / "test.jsonl").write_text(json.dumps(first) + "\n")
    with pytest.raises(DataError, match="also stands in the train part"):
        split_facts(facts_file, 3, str(tmp_path / "test.jsonl"), seed=0)
