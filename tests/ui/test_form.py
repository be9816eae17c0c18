"""The recipe as a form, and back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from regrow.recipe import Recipe, parse_recipe
from regrow.ui.form import FIRST, TERMINAL_ONLY, check, form, typed
from tests.ui.conftest import RECIPE

FIELDS = {f["key"]: f for s in form()["sections"] for f in s["fields"]}
NEEDED = {"data.path": "demo"}


def test_every_key_of_the_recipe_is_a_field_with_help() -> None:
    def keys(section: dict, prefix: str = "") -> set[str]:
        out = set()
        for name, value in section.items():
            inner = isinstance(value, dict) and value and f"{prefix}{name}" not in FIELDS
            out |= keys(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}"}
        return out

    assert set(FIELDS) == keys(Recipe().model_dump())
    assert [k for k, f in FIELDS.items() if not f["help"]] == []
    assert set(FIRST) | set(TERMINAL_ONLY) <= set(FIELDS)
    ratio = FIELDS["mix.replay_ratio"]
    assert (ratio["kind"], ratio["default"], ratio["least"], ratio["most"]) == ("float", "0.2", "≥ 0", "< 1")
    assert FIELDS["train.method"]["choices"] == ["full", "lora"] and FIELDS["compare"]["kind"] == "bool"
    assert FIELDS["train.learning_rate"]["kind"] == "float", "nullable"
    assert FIELDS["grow.shape"]["kind"] == "yaml"


def test_a_default_typed_out_is_the_default() -> None:
    values = {k: f["default"] for k, f in FIELDS.items() if k not in TERMINAL_ONLY}
    recipe, problems = check({**values, **NEEDED})
    assert problems == {} and recipe == parse_recipe("data: {path: demo}")
    assert check(NEEDED)[0] == recipe, "and so is an empty field"


def test_a_recipe_goes_through_the_form_unchanged(tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE.format(model=tmp_path, data="mine.jsonl"))
    values = typed(recipe)
    assert values["grow.topics"] == "[rivers, birds]" and values["curate.embedding_threshold"] == ""
    values["curate.embedding_threshold"] = "null"
    assert check(values) == (recipe, {})


@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        ({"mix.replay_ratio": "1.5"}, "mix.replay_ratio", "less than 1"),
        ({"train.learning_rate": "fast"}, "train.learning_rate", "number"),
        ({"train.method": "both"}, "train.method", "full"),
        ({"grow.shape": "3,x"}, "grow.shape", "a shape is one of"),
        ({"evaluate.suites": "[facts, nonsense]"}, "evaluate.suites", "nonsense"),
        ({"grow.topics": "[a"}, "grow.topics", "YAML"),
        ({"grow.no_such": "1"}, "grow.no_such", "no such key"),
        ({"data.path": " "}, "data.path", "say which data"),
        ({"grow.engine": "openai"}, "", "server.url"),
        ({"arms": "[interpolate]"}, "", "name both"),
    ],
)
def test_what_is_wrong_stands_beside_its_field(values: dict[str, str], key: str, message: str) -> None:
    recipe, problems = check({**NEEDED, **values})
    assert recipe is None and list(problems) == [key] and message in problems[key]


def test_every_problem_is_told_at_once() -> None:
    _, problems = check({"mix.replay_ratio": "2", "train.num_train_epochs": "-1", "seed": "x"})
    assert set(problems) == {"mix.replay_ratio", "train.num_train_epochs", "seed", "data.path"}


OTHER = {
    "model.trust_remote_code": "true",
    "grow.serve.python": "/bin/sh",
    "grow.serve.binary": "/bin/sh",
    "grow.serve.arguments": "[--api-key, x]",
    "evaluate.lm_eval_include_path": "/tmp",
    "train.launch.config_file": "/tmp/x.yaml",
    "train.launch.accelerate": "{main_process_port: 1}",
    "train.trainer_args": "{output_dir: /etc}",
    "train.report_to": "[tensorboard]",
}


@pytest.mark.parametrize("key", sorted(TERMINAL_ONLY))
def test_a_page_cannot_name_code_or_places_to_write_to(key: str) -> None:
    recipe, problems = check({**NEEDED, key: OTHER[key]})
    assert recipe is None and "command line" in problems[key]
    assert FIELDS[key]["locked"]


def test_attention_is_a_plain_name() -> None:
    assert check({**NEEDED, "train.attn_implementation": "sdpa"})[1] == {}
    for hub in ("someone/kernel", "someone/kernel:function", "paged|someone/kernel"):
        recipe, problems = check({**NEEDED, "train.attn_implementation": hub})
        assert recipe is None and "plain name" in problems["train.attn_implementation"]


READ_ONLY = {
    "data.path", "model.model_name_or_path", "grow.topics_file", "grow.encoder", "probe.domains.encoder",
}  # fmt: skip


def test_no_key_that_sounds_like_code_or_a_place_was_overlooked() -> None:
    """A new key with such a name has to be put into one of the two lists by whoever adds it."""
    sounds = re.compile(r"path|file|dir|folder|python|binary|command|args|argument|code|exec|report_to")
    found = {k for k in FIELDS if sounds.search(k.rpartition(".")[2])}
    assert found - set(TERMINAL_ONLY) <= READ_ONLY, found - set(TERMINAL_ONLY) - READ_ONLY


def test_yaml_cannot_expand_without_bound() -> None:
    laughs = "[&a [x,x,x,x,x,x,x,x,x], &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b,*b,*b], " + ", ".join(
        f"&{chr(100 + i)} [{','.join([f'*{chr(99 + i)}'] * 9)}]" for i in range(8)
    )
    _, problems = check({**NEEDED, "grow.topics": laughs + "]"})
    assert "100,000" in problems["grow.topics"]
    assert "YAML" in check({**NEEDED, "grow.topics": "!!python/object/apply:os.system [ls]"})[1]["grow.topics"]
