from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from regrow.errors import RecipeError
from regrow.recipe import MAIN_KEYS, Recipe, commented_recipe, dump_recipe, load_recipe, parse_recipe


def test_a_typo_is_named_with_file_line_and_the_right_word():
    with pytest.raises(RecipeError) as caught:
        parse_recipe("seed: 1\ntrain:\n  learning_rat: 1e-5\n", file="mine.yaml")
    text = str(caught.value)
    assert "mine.yaml:3" in text and "unknown key 'learning_rat'" in text and "did you mean 'learning_rate'" in text


def test_an_unknown_section_lists_what_there_is():
    with pytest.raises(RecipeError) as caught:
        parse_recipe("quux: {}\n", file="mine.yaml")
    assert "mine.yaml:1" in str(caught.value) and "grow" in str(caught.value) and "evaluate" in str(caught.value)


def test_replay_ratio_out_of_range_names_field_and_line():
    with pytest.raises(RecipeError) as caught:
        parse_recipe("mix:\n  # too much\n  replay_ratio: 1.5\n", file="mine.yaml")
    assert "mine.yaml:3: mix.replay_ratio" in str(caught.value) and "1.5" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2", "mine.yaml:1"),
        ("seed: 1\nseed: 2\n", "mine.yaml:2: the key 'seed' stands twice"),
        ("- 1\n- 2\n", "mapping of sections"),
        ("model: !!python/object/apply:os.system ['true']\n", "mine.yaml:1"),
        ("train:\n\tmethod: full\n", "mine.yaml:2"),
    ],
)
def test_broken_yaml(text, expected):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, file="mine.yaml")
    assert expected in str(caught.value)


def test_a_billion_laughs_are_refused_at_once():
    lines = ['a0: &a0 ["lol", "lol"]']
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(RecipeError, match="expands to more than"):
        parse_recipe("\n".join(lines))


def test_overrides_win_and_their_mistakes_are_named():
    recipe = parse_recipe(
        "mix: {replay_ratio: 0.1}\n", overrides=["mix.replay_ratio=0.3", "train.method=lora", "grow.shape=8,4"]
    )
    assert recipe.mix.replay_ratio == 0.3 and recipe.train.method == "lora" and recipe.grow.shape == [8, 4]
    with pytest.raises(RecipeError, match="--set") as caught:
        parse_recipe("", overrides=["mix.replay_ratoi=0.3"])
    assert "replay_ratio" in str(caught.value)
    with pytest.raises(RecipeError, match="not of the form"):
        parse_recipe("", overrides=["mix.replay_ratio"])
    with pytest.raises(RecipeError, match="is a value, not a section"):
        parse_recipe("seed: 1", overrides=["seed.x=2"])


def test_a_whole_section_sets_its_keys_and_leaves_the_others():
    options = {"data.path": "mine.jsonl", "train": {"learning_rate": 1e-4, "mixture": {"controller": "uniform"}},
               "data": {"test_size": 7, "columns": {"instruction": "question"}}}  # fmt: skip
    recipe = parse_recipe("data: {columns: {output: answer}}", options=options, overrides=["train={max_steps: 3}"])
    assert recipe.data.path == "mine.jsonl"
    assert recipe.data.test_size == 7
    assert recipe.data.columns == {"instruction": "question"}, "a value that is a mapping is set as a whole"
    assert (recipe.train.learning_rate, recipe.train.max_steps) == (1e-4, 3)
    assert recipe.train.mixture.controller == "uniform"
    assert parse_recipe("", options={"data.path": "mine.jsonl", "data": {}}).data.path == "mine.jsonl"
    turns = {"opening": "Q: ", "assistant_open": "A: ", "assistant_close": "\n", "user_open": "Q: "}
    assert parse_recipe(dump_recipe(recipe), options={"model.turns": turns}).model.turns.opening == "Q: "
    assert parse_recipe("train:\n", overrides=["train.max_steps=3"]).train.max_steps == 3
    with pytest.raises(RecipeError, match=r"(?s)train\.mixture.*unknown key 'contoller'.*did you mean 'controller'"):
        parse_recipe("", options={"train": {"mixture": {"contoller": "uniform"}}})


def test_dump_and_read_back():
    recipe = parse_recipe("seed: 7\ngrow: {shape: '4,2', dialogues: 9}\ntrain: {method: lora, lora: {r: 4}}\n")
    assert parse_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arms: [interpolate]", "name both"),
        ("arms: [sft, interpolate]\ntrain: {method: lora}", "merge_adapter"),
        ("arms: [sft, average]", "arms"),
    ],
)
def test_arms_that_cannot_be_made(text: str, said: str):
    with pytest.raises(RecipeError, match=said):
        parse_recipe(text)


def test_the_commented_recipe_has_every_key_and_is_valid():
    text = commented_recipe("smollm2", "mine.jsonl", every=True)
    recipe = parse_recipe(text)
    assert recipe.data.path == "mine.jsonl"
    defaults = Recipe().model_dump(mode="json")
    written = yaml.safe_load(text)

    def keys(d: dict, prefix: str = "") -> set[str]:
        return {f"{prefix}{k}" for k in d} | {
            x for k, v in d.items() if isinstance(v, dict) for x in keys(v, f"{prefix}{k}.")
        }

    assert keys(defaults) <= keys(written)
    described = [line for line in text.split("\n") if line.strip().startswith("#")]
    assert len(described) > 60


def test_the_short_recipe_has_the_main_keys_and_changes_nothing():
    text = commented_recipe("smollm2", "mine.jsonl")
    assert parse_recipe(text) == parse_recipe(commented_recipe("smollm2", "mine.jsonl", every=True))
    written = yaml.safe_load(text)
    for key in MAIN_KEYS:
        section, _, name = key.rpartition(".")
        assert name in (written[section] if section else written), key
    assert len(text.splitlines()) < 90 and "probe" not in written


def test_every_recipe_key_has_a_description():
    def walk(model: type, path: str) -> list[str]:
        bare = []
        for name, info in model.model_fields.items():
            kind = info.annotation
            if isinstance(kind, type) and hasattr(kind, "model_fields"):
                bare += walk(kind, f"{path}{name}.")
            elif not info.description:
                bare.append(f"{path}{name}")
        return bare

    assert walk(Recipe, "") == []


def test_missing_and_unreadable_files(tmp_path: Path):
    with pytest.raises(RecipeError, match="regrow init"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("seed: 1 # caf\xe9".encode("latin-1"))
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


@given(st.text(max_size=200))
def test_any_text_gives_a_recipe_or_a_recipe_error(text):
    with contextlib.suppress(RecipeError):
        parse_recipe(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([*Recipe.model_fields, "x", "shape", "replay_ratio", "lora"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_any_yaml_value_gives_a_recipe_or_a_recipe_error(value):
    with contextlib.suppress(RecipeError):
        parse_recipe(yaml.safe_dump(value, allow_unicode=True))
