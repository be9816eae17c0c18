"""Skill-It's graph, learned on a tiny model whose skills are planted to share their words."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from regrow.errors import DataError
from regrow.loops.skills import graph_of, learn_graph
from regrow.mix.config import MixConfig
from regrow.mix.skill_it import SkillIt
from regrow.probe.config import SkillsConfig
from regrow.probing import skills_with
from regrow.recipe import load_recipe, parse_recipe
from regrow.rows.row import Row
from regrow.train.config import TrainConfig

WORDS = {
    "river": "water bank stream flood delta bridge",
    "boat": "water bank stream flood delta bridge",
    "oven": "bread flour crust yeast dough heat",
    "baker": "bread flour crust yeast dough heat",
}
PLANTED = {("river", "boat"), ("boat", "river"), ("oven", "baker"), ("baker", "oven")}
CFG = SkillsConfig(steps=8, holdout_rows=6, min_drop=0.0)
TRAIN = TrainConfig(learning_rate=3e-3, per_device_train_batch_size=8, warmup_ratio=0.0)


def rows() -> list[Row]:
    rng = random.Random(0)
    out = []
    for skill, words in WORDS.items():
        for i in range(32):
            said = " ".join(rng.choices(words.split(), k=12))
            messages = [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": said}]
            out.append(Row(f"{skill}{i}", messages, domain=skill))
    return out


def test_drops_are_relative_and_small_or_negative_ones_are_no_edges() -> None:
    before = {"a": 2.0, "b": 4.0, "c": 1.0}
    after = {
        "a": {"a": 1.0, "b": 3.0, "c": 1.2},
        "b": {"a": 1.99, "b": 2.0, "c": 1.0},
        "c": {"a": 1.9, "b": 4.1, "c": 0.5},
    }
    assert graph_of(before, after, 0.01) == {
        "a": {"a": 0.5, "b": 0.25, "c": 0.0},
        "b": {"a": 0.0, "b": 0.5, "c": 0.0},
        "c": {"a": pytest.approx(0.05), "b": 0.0, "c": 0.5},
    }


def test_a_planted_graph_is_recovered_and_an_interrupted_call_goes_on(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import regrow.train.stage as stage

    real, trained = stage.train, []

    def counted(*args, label: str, **more):
        if label == "oven" and "oven" not in trained:
            trained.append("oven")
            raise KeyboardInterrupt
        trained.append(label)
        return real(*args, label=label, **more)

    monkeypatch.setattr(stage, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        learn_graph(rows(), tiny_model_dir, CFG, MixConfig(), TRAIN, tmp_path, seed=0)
    found = learn_graph(rows(), tiny_model_dir, CFG, MixConfig(), TRAIN, tmp_path, seed=0)
    assert trained == ["river", "boat", "oven", "oven", "baker"], "what was measured is not trained again"
    assert not list(tmp_path.rglob("*.safetensors")), "the models are gone"
    assert found.rows["river"] == {"rows": 26, "heldout": 6}

    pairs = list(itertools.permutations(WORDS, 2))
    yes = [found.graph[i][j] for i, j in pairs if (i, j) in PLANTED]
    no = [found.graph[i][j] for i, j in pairs if (i, j) not in PLANTED]
    auc = sum((a > b) + 0.5 * (a == b) for a in yes for b in no) / (len(yes) * len(no))
    assert auc == 1.0
    recipe = load_recipe(tmp_path / "graph.yaml")
    assert recipe.train.mixture.controller == "skill-it" and list(recipe.arm_ratios()) == ["sft"]
    assert SkillIt(recipe.train.mixture.graph).weights().keys() == WORDS.keys()
    assert json.loads((tmp_path / "skills.json").read_text()) == found.to_dict()


@pytest.mark.parametrize(("keep", "message"), [(["river"], "only one skill"), (["river", "boat1"], "has 1 rows")])
def test_skills_that_cannot_be_told_apart_are_refused(tiny_model_dir, tmp_path, keep, message) -> None:
    few = [r for r in rows() if r.domain == "river" or r.id in keep]
    with pytest.raises(DataError, match=message):
        learn_graph(few, tiny_model_dir, CFG, MixConfig(), TRAIN, tmp_path, seed=0)


def test_the_probe_writes_its_part_and_its_page(tiny_model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    kept = [r for r in rows() if r.domain in ("river", "oven")]
    data.write_text("".join(json.dumps({"messages": r.messages, "domain": r.domain}) + "\n" for r in kept))
    recipe = parse_recipe("train: {learning_rate: 3.0e-3}", overrides=[
        f"model.model_name_or_path={tiny_model_dir}", f"data.path={data}", "probe.skills.steps=2"])  # fmt: skip
    done = skills_with(recipe, tmp_path / "run")
    assert set(done.facts["graph"]) == {"river", "oven"} and done.facts["steps"] == 2
    assert "after river" in done.text() and "edges between different skills" in done.page.read_text()
    assert skills_with(recipe, tmp_path / "run").facts == done.facts
