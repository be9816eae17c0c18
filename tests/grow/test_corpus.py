from __future__ import annotations

from pathlib import Path

import pytest

from regrow.errors import RunError
from regrow.grow.corpus import DIALOGUES, Dialogue, read_dialogues, read_nodes, write_dialogues
from tests.grow.helpers import ScriptedEngine, run, settings, tokenizer_of


def test_datasets_loads_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    out = tmp_path / "corpus"
    engine = ScriptedEngine(tokenizer_of(tiny_model_dir), can_score=True)
    run(tiny_model_dir, out, settings(dialogues=8, top_logprobs=3), engine)
    dialogues = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]
    nodes = load_dataset(str(out), "nodes", cache_dir=str(tmp_path / "cache"))["train"]
    assert dialogues.num_rows == 8 and nodes.num_rows == len(list(read_nodes(out)))
    assert dialogues[0]["messages"][0]["role"] == "user"
    kept = next(n for n in nodes if n["kept"] and n["role"] == "assistant")
    assert len(kept["top_ids"]) == 3 * (len(kept["token_ids"]) + 1)
    assert [d.id for d in read_dialogues(out)] == dialogues["id"]


def test_card(tiny_model_dir: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(
        tokenizer_of(tiny_model_dir), lambda r, i: "" if i % 2 else f"{r.seed} rivers bend here | always <b>"
    )
    run(tiny_model_dir, tmp_path, settings(dialogues=8), engine, seed=5)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    facts = ("| seed | 5 |", "| empty |", "scripted 1", "| shape | auto |", "temperature 0.7", "revision")
    for said in ("config_name: nodes", "licence of that model", *facts):
        assert said in card, said


def test_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no corpus is here"):
        list(read_nodes(tmp_path))
    (tmp_path / "nodes.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(RunError, match="damaged"):
        list(read_nodes(tmp_path))


def test_columns(tiny_model_dir: Path, tmp_path: Path) -> None:
    run(tiny_model_dir, tmp_path, settings(dialogues=4))
    node = next(read_nodes(tmp_path, ["id", "text"]))
    assert node.text and node.token_ids is None


@pytest.mark.parametrize("damage", [b"role", b"content", b"topic"])
def test_a_renamed_column_is_damage_and_no_key_error(tmp_path: Path, damage: bytes) -> None:
    """Found by damaging files at random: one letter of a name inside the messages gave a KeyError later on."""
    said = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    write_dialogues(tmp_path / DIALOGUES, [Dialogue("t/0/0", said, ["t/0"], "t", 0, 9)])
    path = tmp_path / DIALOGUES
    path.write_bytes(path.read_bytes().replace(damage, damage[:-1] + b"_"))
    with pytest.raises(RunError, match="the file is damaged"):
        read_dialogues(tmp_path)
