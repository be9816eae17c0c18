"""`--general`: as much of the user's own general data as there is grown replay, side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from regrow.api import _tuned
from regrow.arms import is_general, is_grown, main_arm, ratio_in
from regrow.cli import build_app
from regrow.cost import estimate
from regrow.errors import DataError, RecipeError, RegrowError
from regrow.pipeline import run
from regrow.plan import pairs, planned
from regrow.recipe import load_recipe, parse_recipe
from regrow.report.load import load_run
from regrow.report.sweep import sweep
from regrow.runs import read_manifest
from tests.pipeline.test_sweep import RECIPE

ARMS = {"sft": 0.0, "regrow": 0.3, "general": 0.3}
FOUND = "An evaluation item that also stands in the general data, word by word"


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("general")
    mine = [{"prompt": f"What does {FOUND} number {i} return?", "completion": f"{i} weeks."} for i in range(48)]
    others = [{"prompt": f"Describe lake {i}.", "completion": f"It is {i} miles long and cold."} for i in range(150)]
    write(made / "mine.jsonl", mine)
    write(made / "general.jsonl", others + mine)
    (made / "small.yaml").write_text(RECIPE.format(model=tiny_model_dir, data=made / "mine.jsonl"))
    return made


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def call(folder: Path, name: str, out: Path, *more: str) -> str:
    files = ["--recipe", str(folder / "small.yaml"), "-o", str(out), "--general", str(folder / "general.jsonl")]
    model = load_recipe(folder / "small.yaml").model.model_name_or_path
    done = CliRunner().invoke(build_app(), [name, model, str(folder / "mine.jsonl"), *files, *more])
    assert done.exit_code == 0, done.exception
    return done.stdout


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Path, str]:
    return folder / "run", call(folder, "tune", folder / "run", "--replay-ratio", "0.3")


def replayed(out: Path, arm: str) -> list[dict[str, Any]]:
    rows = pq.read_table(out / f"mix/{arm}/train.parquet").to_pylist()
    return [r for r in rows if r["source"] == "replay"]


def test_the_arm_trains_on_as_much_of_the_file_as_there_is_grown(finished: tuple[Path, str]) -> None:
    out, _ = finished
    assert list(read_manifest(out)["models"]) == ["base", *ARMS]
    mixes = {arm: json.loads((out / f"mix/{arm}/mix.json").read_text()) for arm in ARMS}
    wanted = mixes["sft"]["domain"]["tokens"] * 0.3 / 0.7
    for arm in ("regrow", "general"):
        longest = max(r["n_tokens"] for r in replayed(out, arm))
        assert abs(mixes[arm]["replay"]["tokens"] - wanted) <= longest / 2, arm
        assert mixes[arm]["domain"] == mixes["sft"]["domain"]
    assert {r["domain"] for r in replayed(out, "general")} == {"general"}
    assert {r["domain"] for r in replayed(out, "regrow")} == {"rivers", "birds"}
    assert json.loads((out / "train/general/train.json").read_text())["replay_loss"] == "hard"


def test_what_the_evaluation_asks_is_not_in_it(finished: tuple[Path, str]) -> None:
    out, _ = finished
    texts = [d["messages"][0]["content"] for d in pq.read_table(out / "general/corpus/dialogues.parquet").to_pylist()]
    heldout = [json.loads(x) for x in (out / "data/heldout.jsonl").read_text().splitlines()]
    assert texts and not {r["messages"][0]["content"] for r in heldout} & set(texts)
    facts = read_manifest(out)["stages"]["general"]["facts"]
    assert facts["kept"] == len(texts) and sum(facts["dropped"].values()) == facts["dialogues"] - facts["kept"] > 0
    assert not list((out / "general").glob(".*")), "nothing of the work is left"


def test_both_are_set_beside_each_other(finished: tuple[Path, str]) -> None:
    out, said = finished
    results = json.loads((out / "eval/results.json").read_text())
    (pair,) = results["sources"]
    assert (pair["grown"], pair["other"]) == ("regrow", "general")
    assert pair["tokens"] == [sum(r["n_tokens"] for r in replayed(out, arm)) for arm in ("regrow", "general")]
    assert pair["loss"] == ["hard", "hard"]
    assert (pair["gain"]["suite"], pair["forgetting"]["suite"]) == ("heldout", "own-dialogues")
    kl = results["suites"]["own-dialogues"]["arms"]
    assert pair["forgetting"]["value"] == pytest.approx(kl["general"]["value"] - kl["regrow"]["value"]) != 0
    assert results["verdict"]["arm"] == "regrow" and pair["sentence"] in results["verdict"]["notes"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "General data" in said and "General data" in page and "against your general data" in page
    card = (out / "train/general/model/README.md").read_text()
    assert "new data mixed with general data of whoever trained it" in card and "wrote itself" not in card


def test_another_file_redoes_what_is_made_of_it(folder: Path, finished: tuple[Path, str], tmp_path: Path) -> None:
    copy, other = tmp_path / "run", tmp_path / "other.jsonl"
    shutil.copytree(finished[0], copy)
    write(other, [{"prompt": f"Describe hill {i}.", "completion": f"It is {i} feet high."} for i in range(150)])
    before = read_manifest(copy)["stages"]
    run(load_recipe(copy / "recipe.yaml", [f"data.general={other}"]), copy)
    after = read_manifest(copy)["stages"]
    redone = {name for name in after if after[name] != before[name]}
    assert redone == {"general", "mix/general", "train/general", "eval"}


def test_without_grown_replay_nothing_is_grown(folder: Path) -> None:
    settings = {"data.general": str(folder / "general.jsonl"), "arms": ["sft", "general"]}
    recipe = parse_recipe((folder / "small.yaml").read_text(), options=settings)
    assert planned(recipe) == ["data", "suites", "general", "mix/sft", "train/sft", "mix/general", "train/general",
                               "eval"]  # fmt: skip
    cost = estimate(recipe)
    assert cost.sampled_tokens == 0 and cost.train_tokens["general"] > cost.train_tokens["sft"]
    assert cost.replay_tokens == pytest.approx(cost.train_tokens["general"] - cost.train_tokens["sft"], abs=1)


def test_general_data_alone_is_what_a_run_is_about(folder: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    """The base reads it, so that its loss is the one that grown replay would have."""
    settings = {"data.general": str(folder / "general.jsonl"), "arms": ["sft", "general"], "train.replay_loss": "auto",
                "grow.top_logprobs": 5}  # fmt: skip
    done = run(parse_recipe((folder / "small.yaml").read_text(), options=settings), tmp_path / "run")
    assert done.results["verdict"]["arm"] == "general" and "sources" not in done.results
    assert json.loads((tmp_path / "run/train/general/train.json").read_text())["replay_loss"] == "soft"
    assert json.loads((tmp_path / "run/mix/general/mix.json").read_text())["topk"] == 5
    rows = replayed(tmp_path / "run", "general")
    assert rows and all(r["topk_k"] == 5 and len(r["topk_ids"]) == 5 * r["n_train_tokens"] for r in rows)
    assert_like_the_model(rows[0], tiny_model_dir)
    assert _tuned(tmp_path / "run") == done.models["general"].resolve(), "what an export exports"


def test_the_ordinary_loss_when_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    settings = {"data.general": str(folder / "general.jsonl"), "arms": ["sft", "general"], "train.replay_loss": "auto",
                "data.general_loss": "hard"}  # fmt: skip
    recipe = parse_recipe((folder / "small.yaml").read_text(), options=settings)
    assert recipe.train_of("general").replay_loss == "hard" and recipe.train_of("sft").replay_loss == "auto"
    run(recipe, tmp_path / "run")
    assert json.loads((tmp_path / "run/train/general/train.json").read_text())["replay_loss"] == "hard"
    before = read_manifest(tmp_path / "run")["stages"]
    run(parse_recipe((folder / "small.yaml").read_text(), options=settings | {"data.general_loss": "auto"}),
        tmp_path / "run")  # fmt: skip
    after = read_manifest(tmp_path / "run")["stages"]
    assert {name for name in after if after[name] != before[name]} == {"mix/general", "train/general", "eval"}
    assert json.loads((tmp_path / "run/train/general/train.json").read_text())["replay_loss"] == "soft"


def assert_like_the_model(row: dict[str, Any], model_dir: Path) -> None:
    """The stored distribution is what plain transformers says before each trained token."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    with torch.no_grad():
        logits = model(torch.tensor([row["input_ids"]])).logits[0]
    trained = [i for i, w in enumerate(row["loss_weights"]) if w > 0]
    assert trained[0] > 0
    logprobs, ids = logits[[i - 1 for i in trained]].float().log_softmax(-1).topk(row["topk_k"])
    stored = torch.tensor(row["topk_logprobs"]).reshape(len(trained), -1)
    torch.testing.assert_close(stored, logprobs, atol=2e-3, rtol=2e-3)
    assert (torch.tensor(row["topk_ids"]).reshape(len(trained), -1)[:, 0] == ids[:, 0]).all()


def test_in_a_sweep_each_ratio_has_one_and_none_is_recommended(folder: Path, tmp_path: Path) -> None:
    said = call(folder, "sweep", tmp_path / "run", "--replay-ratios", "0,0.1,0.3")
    results = json.loads((tmp_path / "run/eval/results.json").read_text())
    found = results["sweep"]
    assert list(found["arms"]) == ["sft", "replay-0.1", "replay-0.3", "general-0.1", "general-0.3"]
    for arm, facts in found["arms"].items():
        assert facts["source"] == ("general" if arm.startswith("general") else "grown")
    assert found["arms"]["general-0.1"]["above"]["than"] == "replay-0.1"
    assert not any(x["above"]["than"].startswith("general") for x in found["arms"].values())
    assert found["arm"] is None or not found["arm"].startswith("general")
    assert [(p["grown"], p["other"]) for p in results["sources"]] == [
        ("replay-0.1", "general-0.1"), ("replay-0.3", "general-0.3")
    ]  # fmt: skip
    small, large = ([r["id"] for r in replayed(tmp_path / "run", f"general-{x}")] for x in ("0.1", "0.3"))
    assert small == large[: len(small)]
    page = sweep(load_run(tmp_path / "run"))
    assert page is not None and page["rows"][-1]["ratio"] == "30\N{NO-BREAK SPACE}% general data"
    assert all(p["sentence"] in page["notes"] and p["sentence"] in said for p in results["sources"])
    assert "30\N{NO-BREAK SPACE}% general data" in said


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("arms: [sft, general]", "needs data.general"),
        ("{arms: [sft, regrow], data: {general: g.jsonl}}", "name it in arms"),
        ("{data: {general: g.jsonl}, train: {mixture: {controller: uniform}}}", "fixed ratio"),
        ("{data: {general: g.jsonl}, arms: [sft, general], auto: {pilot_rows: 50}}", "no arm has grown replay"),
    ],
)
def test_what_does_not_go_together(text: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        parse_recipe(text)


def test_a_file_that_is_not_there_is_told_before_anything_is_spent(folder: Path, tmp_path: Path) -> None:
    recipe = load_recipe(folder / "small.yaml", [f"data.general={tmp_path / 'no.jsonl'}"])
    with pytest.raises(DataError, match=r"no\.jsonl"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run/data").exists()


@pytest.mark.parametrize(
    ("rows", "settings", "why"),
    [
        ([{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "?"},
                        {"role": "tool", "content": "4"}, {"role": "assistant", "content": "4"}]}], {}, "tool turns"),
        ([{"prompt": "a", "completion": "b"}], {"mix.replay_ratio": 0}, "mix.replay_ratio above 0"),
        ([{"q": "a", "a": "b"}], {}, "data.columns is for your own data"),
    ],
)  # fmt: skip
def test_what_cannot_be_replayed_is_told_before_anything_is_spent(
    folder: Path, tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], why: str
) -> None:
    write(tmp_path / "general.jsonl", rows)
    options = {"data.general": str(tmp_path / "general.jsonl"), **settings}
    with pytest.raises(RegrowError) as error:
        run(parse_recipe((folder / "small.yaml").read_text(), options=options), tmp_path / "run")
    assert why in f"{error.value} {error.value.hint}" and not (tmp_path / "run/data").exists()


def test_names() -> None:
    assert is_general("general") and is_general("general-0.05") and ratio_in("general-0.05") == 0.05
    assert not is_general("generally") and not is_general("general-x") and not is_general("replay-0.05")
    assert is_grown("regrow") and is_grown("replay-0.1") and not any(map(is_grown, ("sft", "general", "interpolate")))
    assert main_arm(["base", "sft", "replay-0.4", "general-0.4"]) == "replay-0.4"
    assert main_arm(["base", "sft", "general", "interpolate"]) == "general" and main_arm(["base"]) is None
    assert main_arm(["base", "sft", "interpolate"]) == "interpolate" and main_arm(["base", "after"]) == "after"
    assert main_arm(["base", "sft", "replay-0.1", "replay-0.4"], "replay-0.1") == "replay-0.1"
    ratios = {"sft": 0.0, "replay-0.1": 0.1, "replay-0.4": 0.4, "general-0.1": 0.1, "general-0.4": 0.4}
    assert pairs(ratios) == [("replay-0.1", "general-0.1"), ("replay-0.4", "general-0.4")]
    assert pairs({"sft": 0.0, "regrow": 0.2}) == []
