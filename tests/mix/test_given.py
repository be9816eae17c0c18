"""Dialogues of the user as a corpus to replay."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from regrow.errors import DataError
from regrow.grow.corpus import read_dialogues
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
    told = write_given(ROWS, tiny_model_dir, MixConfig(), tmp_path / "corpus", amount=PLENTY, seed=0)
    assert told["dialogues"] == told["rows"] == len(ROWS) and told["left_out"] == {}
    mix([talk("x", "Q?", "A.")], tmp_path / "corpus", tiny_model_dir, MixConfig(replay_ratio=0.99, max_repeats=1),
        tmp_path / "replay", seed=0)  # fmt: skip
    mix(ROWS, None, tiny_model_dir, MixConfig(), tmp_path / "data", seed=0)
    assert examples(tmp_path / "replay", "replay") == examples(tmp_path / "data", "domain")


def test_a_system_prompt_of_the_recipe_is_theirs_too(tiny_model_dir: Path, tmp_path: Path) -> None:
    cfg = MixConfig(system_prompt="Be kind.", replay_ratio=0.99, max_repeats=1)
    told = write_given(ROWS[:1], tiny_model_dir, cfg, tmp_path / "corpus", amount=PLENTY, seed=0)
    mix([talk("x", "Q?", "A.")], tmp_path / "corpus", tiny_model_dir, cfg, tmp_path / "replay", seed=0)
    mix(ROWS[:1], None, tiny_model_dir, cfg, tmp_path / "data", seed=0)
    assert examples(tmp_path / "replay", "replay") == examples(tmp_path / "data", "domain")
    assert told["tokens"] == sum(map(len, examples(tmp_path / "replay", "replay"))), "it is counted"


def test_dialogues_lose_their_last_turns_as_rows_of_the_data_do(tiny_model_dir: Path, tmp_path: Path) -> None:
    cfg = MixConfig(replay_ratio=0.99, max_repeats=1, max_length=96)
    words = " ".join(f"river{i}" for i in range(60))
    rows = [talk("d", "What is it?", "A dam.", "And where?", words), talk("x", words, "Too long a question.")]
    told = write_given(rows, tiny_model_dir, cfg, tmp_path / "corpus", amount=PLENTY, seed=0)
    assert told["left_out"] == {"a first turn longer than mix.max_length": 1} and told["dialogues"] == 1
    mix([talk("y", "Q?", "A.")], tmp_path / "corpus", tiny_model_dir, cfg, tmp_path / "replay", seed=0)
    mix(rows[:1], None, tiny_model_dir, cfg, tmp_path / "data", seed=0)
    (one,), (other,) = (examples(tmp_path / f, s).items() for f, s in (("replay", "replay"), ("data", "domain")))
    assert one[0][: len(other[0])] == other[0] and one[1][: len(other[1])] == other[1]
    assert not any(one[1][len(other[1]) :]), "but for a line break behind it, which is not trained"
    assert told["tokens"] == len(other[0])


def test_long_texts_are_cut_into_pieces_that_hold_every_token(tiny_model_dir: Path, tmp_path: Path) -> None:
    cfg = MixConfig(replay_ratio=0.99, max_repeats=1, max_length=48)
    words = " ".join(f"river{i}" for i in range(60))
    rows = [Row("t", [{"role": "assistant", "content": words}], meta={"kind": "text"})]
    told = write_given(rows, tiny_model_dir, cfg, tmp_path / "corpus", amount=PLENTY, seed=0)
    mix([talk("y", "Q?", "A.")], tmp_path / "corpus", tiny_model_dir, cfg, tmp_path / "replay", seed=0)
    mix(rows, None, tiny_model_dir, cfg, tmp_path / "data", seed=0)
    replay, data = (list(examples(tmp_path / f, s)) for f, s in (("replay", "replay"), ("data", "domain")))
    assert len(replay) == told["dialogues"] > 3 and told["left_out"] == {}
    assert sorted(t for ids in replay for t in ids) == sorted(t for ids in data for t in ids), "one end token, too"
    assert told["tokens"] == sum(map(len, replay)) + len(replay) - 1, "each has room for one"


def test_blocks_of_text_are_text(tiny_model_dir: Path, tmp_path: Path) -> None:
    blocks = [{"type": "text", "text": "What is "}, {"type": "text", "text": "a weir?"}]
    row = Row("a", [{"role": "user", "content": blocks}, {"role": "assistant", "content": "A low dam."}])
    write_given([row], tiny_model_dir, MixConfig(), tmp_path / "corpus", amount=PLENTY, seed=0)
    (found,) = read_dialogues(tmp_path / "corpus")
    assert [m["content"] for m in found.messages] == ["What is a weir?", "A low dam."]


def test_labels_of_rows_do_not_decide_the_draw(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Topics take turns in a mix; nine in ten rows are of one label, and so are nine in ten of the replay."""
    rows = [talk(f"r{i}", f"Question {i}?", f"Answer {i}.") for i in range(100)]
    rows = [Row(r.id, r.messages, domain="code" if i % 10 == 0 else "chat") for i, r in enumerate(rows)]
    write_given(rows, tiny_model_dir, MixConfig(), tmp_path / "corpus", amount=PLENTY, seed=0)
    assert {d.topic for d in read_dialogues(tmp_path / "corpus")} == {"general"}


def test_the_card_does_not_say_that_it_was_grown(tiny_model_dir: Path, tmp_path: Path) -> None:
    write_given(ROWS, tiny_model_dir, MixConfig(), tmp_path / "corpus", amount=PLENTY, seed=0)
    card = (tmp_path / "corpus/README.md").read_text()
    assert "Nothing of it was grown" in card and "grown out of" not in card and "synthetic" not in card


def test_drawn_at_random_until_there_are_enough(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = [talk(f"r{i}", f"Question {i}?", f"Answer {i}.") for i in range(40)]

    def drawn(seed: int, amount: int, unit: str = "tokens") -> list[str]:
        folder = tmp_path / f"{seed}-{amount}"
        told = write_given(rows, tiny_model_dir, MixConfig(), folder, amount=amount, seed=seed, unit=unit)
        found = read_dialogues(folder)
        assert told["drawn"] == told["dialogues"] == len(found) < len(rows)
        if unit == "tokens":
            assert amount <= told["tokens"] <= amount + 40
        return [d.messages[0]["content"] for d in found]

    assert drawn(0, 100) == drawn(0, 200)[: len(drawn(0, 100))], "a larger amount takes the same ones, and more"
    assert drawn(1, 100) != drawn(0, 100)
    assert len(drawn(0, 7, "rows")) == 7


def test_what_a_corpus_cannot_hold_is_left_out_and_counted(tiny_model_dir: Path, tmp_path: Path) -> None:
    picture = Row("p", [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "A cat."}])
    tool = Row("t", [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "calc"},
                     {"role": "tool", "content": "4"}, {"role": "assistant", "content": "4"}])  # fmt: skip
    told = write_given([*ROWS, picture, tool], tiny_model_dir, MixConfig(), tmp_path / "c", amount=PLENTY, seed=0)
    assert told["left_out"] == {"images": 1, "tool turns": 1} and told["dialogues"] == len(ROWS)
    with pytest.raises(DataError, match="no row can be replayed") as error:
        write_given([picture], tiny_model_dir, MixConfig(), tmp_path / "none", amount=PLENTY, seed=0)
    assert error.value.where == "data.general" and "images" in str(error.value.hint)
