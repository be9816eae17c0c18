"""What would stop a run late stops it, and `regrow validate`, before anything is spent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from regrow.cost import estimate
from regrow.errors import DataError, ModelError, RecipeError, RegrowError, RunError
from regrow.pipeline import run
from regrow.plan import grow_budget
from regrow.recipe import Recipe, parse_recipe
from regrow.runs import read_manifest

RECIPE = """
model: {{ model_name_or_path: "{model}" }}
data: {{ path: "{data}" }}
grow: {{ engine: dummy, encoder: none }}
curate: {{ dedup_method: minhash, embedding_threshold: null }}
evaluate: {{ suites: [own-dialogues, heldout], generate_samples: 0, bootstrap: 200 }}
"""


@pytest.fixture
def recipe_of(tiny_model_dir: Path, tmp_path: Path):
    data = tmp_path / "mine.jsonl"
    rows = [{"question": f"What is number {i}?", "answer": f"It is {i}."} for i in range(60)]
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))

    def make(*overrides: str, model: Path = tiny_model_dir, data: Path = data) -> Recipe:
        return parse_recipe(RECIPE.format(model=model, data=data), overrides=overrides)

    return make


@pytest.mark.parametrize(
    ("override", "error", "said"),
    [
        ("train.trainer_args={optimm: adamw_torch}", RecipeError, "trainer_args.optimm"),
        ("train.lr_scheduler_type=cosin", RecipeError, "cosin"),
        ("train.report_to=nobody", RecipeError, "train.report_to"),
        ("evaluate.suites=[file:nosuch.jsonl]", DataError, "nosuch.jsonl"),
        ("evaluate.suites=[recipe:nosuch.yaml]", RegrowError, "nosuch.yaml"),
    ],
)
def test_settings(recipe_of, tmp_path, override, error, said):
    with pytest.raises(error, match=said):
        estimate(recipe_of(override))
    with pytest.raises(error, match=said):
        run(recipe_of(override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_that_the_model_cannot_be_trained_on(recipe_of, tmp_path):
    said = [("user", "Look"), ("assistant", "I ask."), ("tool", "x"), ("assistant", "ok")]
    rows = [{"messages": [{"role": r, "content": f"{c} {i}"} for r, c in said]} for i in range(20)]
    (tmp_path / "tools.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(RegrowError, match="have to alternate"):
        run(recipe_of(data=tmp_path / "tools.jsonl"), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "before the suites and the corpus"


def test_a_model_that_lacks_weights(recipe_of, tiny_model_dir, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    from regrow.models.load import load_model, resolve_model
    from tests.fixtures.tiny import tiny_vocabulary_gguf

    cut = shutil.copytree(tiny_model_dir, tmp_path / "cut")
    weights = load_file(cut / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, cut / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack weights of the model: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(cut)
    with pytest.raises(ModelError, match="lack weights"):
        run(recipe_of("evaluate.suites=[heldout]", model=cut), tmp_path / "run")
    monkeypatch.setenv("REGROW_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="lack weights"):
        resolve_model(str(tiny_vocabulary_gguf(tiny_model_dir, tmp_path / "words.gguf")))


def test_a_chat_template_that_cannot_be_split(recipe_of, tiny_model_dir, tmp_path):
    odd = shutil.copytree(tiny_model_dir, tmp_path / "odd")
    for file in odd.glob("chat_template*"):
        file.unlink()
    config = json.loads((odd / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages | reverse %}{{ m.content | upper }}{% endfor %}"
    (odd / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="chat template"):  # and not DataError: the data come after
        estimate(recipe_of(model=odd, data=tmp_path / "there is no such data"))


def test_a_model_that_is_code(recipe_of, tiny_model_dir, tmp_path):
    own = shutil.copytree(tiny_model_dir, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}
    (own / "config.json").write_text(json.dumps(config))
    (own / "modeling.py").write_text("raise SystemExit('this must not run')\n")
    with pytest.raises(ModelError, match="code in the model's folder"):
        estimate(recipe_of(model=own))
    with pytest.raises(ModelError, match="which training and evaluation do not run"):
        estimate(recipe_of("model.trust_remote_code=true", model=own))


def test_the_estimate_is_of_the_run_and_few_rows_hold_out_enough(recipe_of, tiny_model_dir):
    cost = estimate(recipe_of("curate.holdout_dialogues=200"))
    assert (cost.rows, cost.heldout) == (50, 10), "a tenth would be six, with which nothing can be significant"
    without = estimate(recipe_of("curate.holdout_dialogues=0"))
    assert cost.grown_tokens - without.grown_tokens > 10_000
    recipe = recipe_of("grow.tokens=5000")
    assert grow_budget(recipe, tiny_model_dir, []).top_logprobs == 32, "soft replay is the default"
    hard = recipe_of("train.replay_loss=hard", "grow.tokens=5000")
    assert grow_budget(hard, tiny_model_dir, []).top_logprobs == 0
    soft, plain = estimate(recipe), estimate(hard)
    assert soft.grown_tokens == plain.grown_tokens
    top_k = 3 * 6 * 32 * soft.grown_tokens  # three copies of 32 times an id and half-precision number
    assert soft.disk_bytes - plain.disk_bytes == pytest.approx(top_k, rel=0.01)


def test_the_time_to_grow_has_the_scoring_for_soft_replay_in_it(recipe_of, monkeypatch):
    import regrow.cost as cost

    monkeypatch.setattr(cost, "_train_speed", lambda model: 100.0)
    monkeypatch.setattr(cost, "_score_speed", lambda model: 50.0)
    monkeypatch.setattr(cost, "_grow_speed", lambda recipe, model: (200.0, "dummy"))
    for loss, scored in (("auto", 1), ("soft", 1), ("hard", 0)):
        recipe = recipe_of(f"train.replay_loss={loss}", "grow.tokens=5000")
        found = estimate(recipe)
        cost.measure(recipe, found)
        expected = found.sampled_tokens / 200 + scored * found.grown_tokens / 50
        assert found.seconds["grow"] == pytest.approx(expected) and found.grown_tokens > 1000


def test_a_refused_resume_changes_no_recipe(recipe_of, tmp_path, monkeypatch):
    import regrow.pipeline as pipeline

    monkeypatch.setattr(pipeline._Chain, "suites", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(recipe_of(), tmp_path / "run")
    before = (tmp_path / "run/recipe.yaml").read_text()
    with pytest.raises(RunError, match="test_size"):
        run(recipe_of("data.test_size=20"), tmp_path / "run", resume="always")
    assert (tmp_path / "run/recipe.yaml").read_text() == before
    assert read_manifest(tmp_path / "run")["stages"]["data"]["status"] == "done"


def test_a_number_of_steps_decides_what_is_trained(recipe_of):
    batch = ["train.per_device_train_batch_size=3", "train.gradient_accumulation_steps=2"]
    cost = estimate(recipe_of(*batch, "train.max_steps=7"))
    wanted = int(7 * 3 * 2 * cost.domain_tokens / cost.rows)
    assert cost.train_tokens == {"sft": wanted, "regrow": wanted}
    packed = estimate(recipe_of(*batch, "train.max_steps=7", "train.packing=true", "train.max_length=64"))
    assert packed.train_tokens["sft"] == 7 * 3 * 2 * 64
