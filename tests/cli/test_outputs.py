"""Where commands write: never over files that are not theirs, never two at once."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import regrow
from regrow.errors import RegrowError, RunError
from regrow.outputs import own_folder

SMALL = {"grow.encoder": "none", "grow.turns": 1}
CURATE = {"curate.embedding_threshold": None, "curate.dedup_method": "minhash"}
TRAIN = {"train.num_train_epochs": 1, "train.save_steps": 100}


def grow(model: Path, out: Path, seed: int = 0, dialogues: int = 6) -> object:
    return regrow.grow(
        str(model), out, dialogues=dialogues, engine="dummy", topics=["rivers"], seed=seed, settings=SMALL
    )


@pytest.fixture(scope="module")
def made(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, items, a corpus and a mix."""
    folder = tmp_path_factory.mktemp("made")
    rows = [{"question": f"What is number {i}?", "answer": f"It is {i}."} for i in range(16)]
    (folder / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    items = [{"question": f"{i}?", "choices": ["yes", "no"], "answer_index": i % 2} for i in range(4)]
    (folder / "q.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    grow(tiny_model_dir, folder / "corpus")
    regrow.mix(str(tiny_model_dir), folder / "d.jsonl", folder / "mix")
    return folder


def commands(model: Path, made: Path) -> dict[str, Callable[[Path], object]]:
    m = str(model)
    return {
        "grow": lambda out: grow(model, out),
        "curate": lambda out: regrow.curate(made / "corpus", out, settings={**SMALL, **CURATE}),
        "mix": lambda out: regrow.mix(m, made / "d.jsonl", out),
        "train": lambda out: regrow.train(m, made / "mix", out, settings=TRAIN),
        "eval": lambda out: regrow.evaluate([m, m], out, suites=[f"file:{made / 'q.jsonl'}"],
                                            settings={"evaluate.bootstrap": 200}),
        "merge": lambda out: regrow.merge([m, m], out),
        "export": lambda out: regrow.export(model, out, to="merged"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["grow", "curate", "mix", "train", "eval", "merge", "export"])
def test_a_folder_with_other_files_stays_as_it_is(name, tiny_model_dir, made, tmp_path):
    mine = {"README.md": "mine", "mix.json": "{}", "log.jsonl": "1\n", "checkpoints/precious": "x", "model/w": "y"}
    for place, text in mine.items():
        (tmp_path / "out" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / place).write_text(text)
    with pytest.raises(RunError, match=r"not empty|already"):
        commands(tiny_model_dir, made)[name](tmp_path / "out")
    there = {str(p.relative_to(tmp_path / "out")): p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert there == mine
    with pytest.raises(RunError, match=r"a file|already"):
        commands(tiny_model_dir, made)[name](tmp_path / "out/README.md")


@pytest.mark.parametrize("name", ["grow", "curate", "mix", "train", "eval"])
def test_a_command_comes_back_to_its_own_folder_and_to_no_others(name, tiny_model_dir, made, tmp_path):
    call = commands(tiny_model_dir, made)
    (tmp_path / "out").mkdir()
    call[name](tmp_path / "out")
    call[name](tmp_path / "out")
    other = "mix" if name != "mix" else "train"
    with pytest.raises(RunError, match="not made by" if name == "curate" else f"holds the output of `regrow {name}`"):
        call[other](tmp_path / "out")


def test_train_leaves_a_model_of_other_settings_alone(tiny_model_dir, made, tmp_path):
    def call(rate: float) -> object:
        return regrow.train(str(tiny_model_dir), made / "mix", tmp_path / "t", learning_rate=rate, settings=TRAIN)

    call(1e-4)
    before = (tmp_path / "t/model/model.safetensors").read_bytes()
    with pytest.raises(RunError, match="other settings"):
        call(2e-4)
    assert (tmp_path / "t/model/model.safetensors").read_bytes() == before
    call(1e-4)


def test_one_process_at_a_time_and_an_error_leaves_no_folder(tmp_path):
    with own_folder(tmp_path / "x", "train"):
        with (
            pytest.raises(RunError, match="another process works in this folder"),
            own_folder(tmp_path / "x", "train"),
        ):
            raise AssertionError("two at once")
        with pytest.raises(RegrowError), own_folder(tmp_path / "y", "train"):
            raise RegrowError("no model")
    assert (tmp_path / "x").is_dir() and not (tmp_path / "y").exists()
    (tmp_path / "z").mkdir()
    with pytest.raises(RegrowError), own_folder(tmp_path / "z", "train"):
        raise RegrowError("no model")
    assert list((tmp_path / "z").iterdir()) == []


def test_two_curations_do_not_write_one_folder(made, tmp_path, monkeypatch):
    def curate() -> object:
        return regrow.curate(made / "corpus", tmp_path / "out", settings={**SMALL, **CURATE})

    stage = importlib.import_module("regrow.curate.stage")
    once = stage.curate

    def meanwhile(*args, **kwargs):
        with pytest.raises(RunError, match="another process works in this folder"):
            curate()
        return once(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "curate", meanwhile)
        curate()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="not empty"):
        regrow.curate(made / "corpus", ".", settings={**SMALL, **CURATE})
    with pytest.raises(RegrowError):
        regrow.curate(tmp_path / "nowhere", "new/out", settings={**SMALL, **CURATE})
    assert not (tmp_path / "new").exists()


def test_folders_of_one_name_are_not_taken_for_each_other(tiny_model_dir, tmp_path):
    """`datasets` caches by the folder's name and its card."""
    from datasets import load_dataset

    for name, n in (("a", 4), ("b", 7)):
        grow(tiny_model_dir, tmp_path / name / "corpus", dialogues=n)
    cache = str(tmp_path / "cache")
    counts = [load_dataset(str(tmp_path / name / "corpus"), cache_dir=cache)["train"].num_rows for name in "abab"]
    assert counts == [4, 7, 4, 7]


def test_facts_are_told_in_words(tiny_model_dir, made):
    done = regrow.mix(str(tiny_model_dir), made / "d.jsonl", made / "mix")
    said = done.text()
    assert said.startswith("mix: ") and "{" not in said and "None" not in said and len(said.splitlines()) > 3, said
