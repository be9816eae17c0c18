"""Dialogues of the user as a corpus to replay."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from regrow.errors import DataError
from regrow.grow.corpus import read_dialogues, read_nodes
from regrow.mix.config import MixConfig
from regrow.mix.given import write_given
from regrow.mix.stage import mix
from regrow.rows.row import Row

PLENTY = 10**6


def talk(name: str, *said: str, system: str | None = None) -> Row:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    return Row(name, ([{"role": "system", "content": system}] if system else []) + turns, domain="general")


ROWS = [
    talk("a", "What is a weir?", "A low dam."),
    talk("b", "Hello <|im_end|>", " Hi, a b  c ", "And then?", "Nothing."),
    talk("c", "Name a bird.", "The wren.", system="Be short."),
    Row("d", [{"role": "assistant", "content": "Rivers carry silt."}], domain="texts", meta={"kind": "text"}),
]


def examples(folder: Path, source: str) -> dict[tuple[int, ...], tuple[float, ...]]:
    """Tokens -> weights of all but the first, which nothing predicts."""
    rows = pq.read_table(folder / "train.parquet").to_pylist()
    return {tuple(r["input_ids"]): tuple(r["loss_weights"][1:]) for r in rows if r["source"] == source}


def test_replayed_they_are_the_rows_they_would_be_as_data(tiny_model_dir: Path, tmp_path: Path) -> None:
    told = write_given(ROWS, tiny_model_dir, MixConfig(), tmp_path / "corpus", tokens=PLENTY, seed=0)
    assert told["dialogues"] == told["rows"] == len(ROWS) and told["left_out"] == {}
    mix([talk("x", "Q?", "A.")], tmp_path / "corpus", tiny_model_dir, MixConfig(replay_ratio=0.99, max_repeats=1),
        tmp_path / "replay", seed=0)  # fmt: skip
    mix(ROWS, None, tiny_model_dir, MixConfig(), tmp_path / "data", seed=0)
    assert examples(tmp_path / "replay", "replay") == examples(tmp_path / "data", "domain")


def test_a_system_prompt_of_the_recipe_is_theirs_too(tiny_model_dir: Path, tmp_path: Path) -> None:
    cfg = MixConfig(system_prompt="Be kind.", replay_ratio=0.99, max_repeats=1)
    write_given(ROWS[:1], tiny_model_dir, cfg, tmp_path / "corpus", tokens=PLENTY, seed=0)
    mix([talk("x", "Q?", "A.")], tmp_path / "corpus", tiny_model_dir, cfg, tmp_path / "replay", seed=0)
    mix(ROWS[:1], None, tiny_model_dir, cfg, tmp_path / "data", seed=0)
    assert examples(tmp_path / "replay", "replay") == examples(tmp_path / "data", "domain")


def test_drawn_at_random_until_there_are_enough(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = [talk(f"r{i}", f"Question {i}?", f"Answer {i}.") for i in range(40)]

    def drawn(seed: int, tokens: int) -> list[str]:
        folder = tmp_path / f"{seed}-{tokens}"
        told = write_given(rows, tiny_model_dir, MixConfig(), folder, tokens=tokens, seed=seed)
        found = read_dialogues(folder)
        largest = max(d.n_tokens for d in found)
        assert told["tokens"] == sum(len(n.token_ids) for n in read_nodes(folder))
        assert tokens <= told["tokens"] < tokens + largest
        return [d.messages[0]["content"] for d in found]

    assert drawn(0, 100) == drawn(0, 200)[: len(drawn(0, 100))], "a larger budget takes the same ones, and more"
    assert drawn(1, 100) != drawn(0, 100)


def test_what_a_corpus_cannot_hold_is_left_out_and_told(tiny_model_dir: Path, tmp_path: Path, capsys) -> None:
    picture = Row("p", [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "A cat."}])
    tool = Row("t", [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "calc"},
                     {"role": "tool", "content": "4"}, {"role": "assistant", "content": "4"}])  # fmt: skip
    told = write_given([*ROWS, picture, tool], tiny_model_dir, MixConfig(), tmp_path / "c", tokens=PLENTY, seed=0)
    assert told["left_out"] == {"images": 1, "tool turns": 1} and told["dialogues"] == len(ROWS)
    assert "left out 1 rows with images, 1 rows with tool turns" in capsys.readouterr().err
    with pytest.raises(DataError, match="no row can be replayed") as error:
        write_given([picture], tiny_model_dir, MixConfig(), tmp_path / "none", tokens=PLENTY, seed=0)
    assert error.value.where == "data.general" and "images" in str(error.value.hint)
