"""`regrow tune --auto`: a pilot chooses the replay ratio and the topics' shares; from formulas to the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from markupsafe import escape
from typer.testing import CliRunner

import regrow
from regrow.cli import build_app
from regrow.cost import estimate
from regrow.errors import DataError, RecipeError
from regrow.loops.pilot import PILOT_ROWS, apply_choice, choose, pilot_recipe, pilot_rows, topic_shares, with_pilot
from regrow.plan import planned
from regrow.recipe import DataConfig, load_recipe, parse_recipe
from regrow.rows.row import Row
from regrow.runs import read_manifest

SMALL = """
seed: 3
grow: {{ engine: dummy, encoder: none, turns: 1, topics: [rivers, birds] }}
curate: {{ dedup_method: minhash, embedding_threshold: null, holdout_dialogues: 4 }}
train: {{ num_train_epochs: 3, learning_rate: 6.0e-3, replay_loss: soft, per_device_train_batch_size: 4 }}
evaluate: {{ suites: [own-dialogues, heldout], generate_samples: 0, bootstrap: 200, noise_floor: false }}
auto: {{ pilot_rows: {rows}, replay_ratios: [0, 0.4], watch_dialogues: {watch} }}
"""


def rows_of(n: int) -> list[Row]:
    return [
        Row(f"r{i}", [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"{i} weeks."}])
        for i in range(n)
    ]


def results(ratio: float | None) -> dict:
    """What a pilot's evaluation says, as far as the choice reads it."""
    return {
        "sweep": {
            "ratio": ratio, "sentence": "Because.", "notes": [], "arms": {"sft": {"ratio": 0.0}, "a": {"ratio": 0.4}},
        },
        "forgetting": {"sft": {"suite": "own-dialogues", "ci": [0.2, 0.4]}},
        "suites": {"own-dialogues": {"unit": "nats"}},
    }  # fmt: skip


def monitored(pilot: Path, **kl: float) -> Path:
    log = pilot / "train/sft/monitor.jsonl"
    log.parent.mkdir(parents=True)
    lines = [{"step": s} | {f"heldout_kl/{t}": s * x for t, x in kl.items()} for s in (0, 1)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return pilot


def test_shares_follow_what_was_forgotten(tmp_path: Path):
    recipe = parse_recipe("grow: {topics: [rivers, birds, unwatched]}\ntrain: {mixture: {tilt: 0.5}}")
    shares, forgotten = topic_shares(recipe, monitored(tmp_path, rivers=0.3, birds=0.1, yours=9.0))
    assert forgotten == {"rivers": 0.3, "birds": 0.1}
    # p = 1/3 each; what is not watched counts as the mean of the others, 0.2: w = p/2 + (f / 0.6)/2
    assert shares == {"rivers": 0.4167, "birds": 0.25, "unwatched": 0.3333}


def test_shares_start_from_the_users_quota(tmp_path: Path):
    recipe = parse_recipe("grow: {quota: {rivers: 3, birds: 1}}\ntrain: {mixture: {tilt: 1.0}}")
    shares, _ = topic_shares(recipe, monitored(tmp_path, rivers=0.1, birds=0.3))
    assert shares == {"rivers": 0.5, "birds": 0.5}  # 3 x 0.1 to 1 x 0.3


def test_shares_stay_when_nothing_moved(tmp_path: Path):
    recipe = parse_recipe("grow: {topics: [rivers, birds]}")
    chosen = choose(recipe, monitored(tmp_path, rivers=0.003, birds=0.001), results(0.1), rows=40, of=80)
    assert chosen.quota == {} and chosen.forgotten == {"rivers": 0.003, "birds": 0.001}
    assert any(reason.startswith("None of 2 topics moved") for reason in chosen.why)


def test_asked_topics_become_those_of_the_pilot(tmp_path: Path):
    recipe = parse_recipe("grow: {ask_topics: 2}")
    monitored(tmp_path, bees=0.2, law=0.2, domain=3.0)  # the last are the user's rows, of which nothing can be grown
    (tmp_path / "grow").mkdir()
    (tmp_path / "grow/corpus.json").write_text('{"counts": {"topics": {"bees": 5, "law": 4}}}')
    chosen = choose(recipe, tmp_path, results(0.1), rows=40, of=80).to_dict()
    after = apply_choice(recipe, chosen)
    assert after.grow.ask_topics == 0 and after.grow.topics == ["bees", "law"]
    assert after.grow.quota == {"bees": 0.5, "law": 0.5} and after.mix.replay_ratio == 0.1


def test_a_pilot_that_cannot_decide_leaves_the_ratio(tmp_path: Path):
    recipe = parse_recipe("mix: {replay_ratio: 0.3}\nauto: {pilot_rows: 50}")
    chosen = choose(recipe, tmp_path, results(None), rows=40, of=80)
    assert not chosen.decided and chosen.ratio == 0.3 and any("stays" in reason for reason in chosen.why)
    after = apply_choice(recipe, chosen.to_dict())
    assert after.mix.replay_ratio == 0.3 and after.auto.pilot_rows == 0 and not after.grow.quota


def test_no_replay_when_none_is_needed(tmp_path: Path):
    recipe = parse_recipe(
        "arms: [sft, regrow, interpolate]\ncurate: {watch_dialogues: 4}\nregrowth: {tokens: 9}\n"
        "train: {mixture: {controller: forgetting}}"
    )
    after = apply_choice(recipe, choose(recipe, tmp_path, results(0.0), rows=40, of=80).to_dict())
    assert after.arms == ["sft", "interpolate"] and "grow" not in planned(after)


def test_a_pilot_is_a_sweep_of_the_same_training():
    text = "train: {learning_rate: 3.0e-4, max_steps: 100}\ngrow: {tokens: 10000}\nsweep: {margin_nats: 0.05}\n"
    recipe = parse_recipe(text + "arms: [regrow]\nauto: {pilot_rows: 80, replay_ratios: [0.3, 0], watch_dialogues: 3}")
    inner = pilot_recipe(recipe, 0.25)
    assert inner.sweep.replay_ratios == [0.0, 0.3] and inner.auto.pilot_rows == 0
    assert inner.train.max_steps == 25 and inner.train.learning_rate == 3e-4
    assert inner.sweep.margin_nats == 0.05 and inner.grow.tokens is None
    assert inner.train.mixture.update_steps > 10**6, "measured before and after, and at no step between"
    assert inner.curate.watch_dialogues == 3 and inner.evaluate.suites == ["own-dialogues", "heldout"]
    assert pilot_recipe(parse_recipe("grow: {dialogues: 7}"), 0.5).grow.dialogues is None


def test_a_pilot_reads_its_own_rows_and_not_as_yours():
    text = (
        "data: {path: mine.csv, format: alpaca, columns: {instruction: task}, on_bad: drop, max_rows: 99, domain: law,"
        " test_size: 7, quality: {reference: good.jsonl}}"
    )
    inner = pilot_recipe(parse_recipe(text), 0.5)
    assert inner.data == DataConfig(domain="law", test_size=0.1)


def test_its_rows(tmp_path: Path):
    rows = rows_of(200)
    drawn = pilot_rows(rows, parse_recipe("auto: {pilot_rows: 60}").auto, seed=1)
    assert len(drawn) == 60 and drawn == pilot_rows(rows, parse_recipe("auto: {pilot_rows: 60}").auto, seed=1)
    assert drawn != pilot_rows(rows, parse_recipe("auto: {pilot_rows: 60}").auto, seed=2)
    assert len(pilot_rows(rows, parse_recipe("auto: {pilot_rows: 900}").auto, seed=1)) == 100  # half of all
    with pytest.raises(DataError, match="a pilot needs 40 rows"):
        pilot_rows(rows_of(79), parse_recipe("auto: {pilot_rows: 60}").auto, seed=1)


def test_recipes_that_ask_for_both():
    with pytest.raises(RecipeError, match=r"leave auto\.pilot_rows out"):
        parse_recipe("sweep: {replay_ratios: [0, 0.2]}\nauto: {pilot_rows: 50}")
    with pytest.raises(RecipeError, match="0, the plain model"):
        parse_recipe("auto: {replay_ratios: [0.2, 0.4]}")
    with pytest.raises(RecipeError, match="auto chooses the replay ratio"):
        regrow.tune("smollm2", "demo", auto=True, replay_ratio=0.1)
    refused = CliRunner().invoke(build_app(), ["tune", "smollm2", "demo", "--auto", "--replay-ratio", "0.1"])
    assert isinstance(refused.exception, RecipeError) and refused.exception.where == "--replay-ratio"


def test_auto_takes_the_recipes_number_or_its_own():
    assert with_pilot(parse_recipe("")).auto.pilot_rows == PILOT_ROWS
    assert with_pilot(parse_recipe("auto: {pilot_rows: 77}")).auto.pilot_rows == 77


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pilot")
    rows = [
        {
            "prompt": f"What does function {i} of calendar return?",
            "completion": f"A list of {i} weeks, and each of them is a list of the seven days that it has.",
        }
        for i in range(120)
    ]
    (made / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (made / "small.yaml").write_text(SMALL.format(rows=48, watch=1))
    return made


def command(folder: Path, model: Path, out: Path) -> list[str]:
    mine = str(folder / "mine.jsonl")
    return ["tune", str(model), mine, "--auto", "--recipe", str(folder / "small.yaml"), "-o", str(out)]


@pytest.fixture(scope="module")
def finished(folder: Path, tiny_model_dir: Path) -> tuple[Path, str]:
    done = CliRunner().invoke(build_app(), command(folder, tiny_model_dir, folder / "run"))
    assert done.exit_code == 0, done.exception
    return folder / "run", done.stdout


def ids(path: Path) -> set[str]:
    return {json.loads(line)["id"] for line in path.read_text().splitlines()}


def test_the_run_uses_what_the_pilot_chose(finished):
    out, said = finished
    stages = read_manifest(out)["stages"]
    chosen = stages["pilot"]["facts"]
    assert list(stages)[:3] == ["data", "pilot", "suites"]
    assert set(chosen["quota"]) == {"rivers", "birds"} == set(chosen["forgotten"])
    assert chosen["decided"] and chosen["ratio"] == 0.4  # not the recipe's 0.2
    assert json.loads((out / "mix/regrow/mix.json").read_text())["asked"]["replay_ratio"] == chosen["ratio"]
    assert {t: stages["grow"]["inputs"][f"grow.quota.{t}"] for t in chosen["quota"]} == chosen["quota"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'id="pilot"' in page and all(escape(reason) in page for reason in chosen["why"])
    for reason in chosen["why"]:
        assert reason in said
    assert not list((out / "pilot").glob("**/*.safetensors"))
    assert load_recipe(out / "recipe.yaml").auto.pilot_rows == 48  # what was asked for, so that it can be made again


def test_the_pilot_sees_no_row_that_the_run_is_judged_by(finished):
    out, _ = finished
    drawn = ids(out / "pilot/rows.jsonl")
    assert len(drawn) == 48
    assert drawn <= ids(out / "data/train.jsonl") and not drawn & ids(out / "data/heldout.jsonl")


def test_again_it_is_not_run_again(finished, folder: Path, tiny_model_dir: Path):
    out, _ = finished
    before = (out / "pilot/run/manifest.json").stat().st_mtime_ns
    done = CliRunner().invoke(build_app(), command(folder, tiny_model_dir, out))
    assert done.exit_code == 0 and (out / "pilot/run/manifest.json").stat().st_mtime_ns == before
    assert "pilot: unchanged, not run again" in done.output


def test_its_cost_is_told_before(folder: Path, tiny_model_dir: Path):
    sets = [f"model.model_name_or_path={tiny_model_dir}", f"data.path={folder / 'mine.jsonl'}"]
    recipe = load_recipe(folder / "small.yaml", sets)
    cost, without = estimate(recipe), estimate(load_recipe(folder / "small.yaml", [*sets, "auto.pilot_rows=0"]))
    assert cost.pilot_rows == 48 and cost.pilot_trainings == 2 and without.pilot_rows == 0
    assert cost.train_tokens["pilot"] > 0 and "pilot" not in without.train_tokens
    assert cost.grown_tokens > without.grown_tokens and cost.disk_bytes > without.disk_bytes
    assert "of it the pilot     48 rows" in cost.text() and "pilot" not in without.text()
