"""Drawing general data until enough of it is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regrow.curate.config import CurateConfig
from regrow.errors import DataError
from regrow.evaluate.items import Item
from regrow.grow.corpus import read_dialogues
from regrow.loops.general import CORPUS, draw_general
from regrow.mix.config import MixConfig
from regrow.plan import for_given
from regrow.rows.readers import ReadResult
from regrow.rows.row import Row

CURATE = for_given(CurateConfig(dedup_method="minhash", embedding_threshold=None))


def talk(name: str, question: str, answer: str) -> Row:
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Row(name, said, domain="general")


def drawn(model: Path, out: Path, rows: list[Row], amount: float, **more: Any) -> tuple[dict[str, Any], list[str]]:
    told = draw_general(
        ReadResult(rows, {"exact duplicate": 2}, "messages", []), model, more.pop("mix", MixConfig()), CURATE, out,
        amount=amount, items=more.pop("items", []), domain_rows=more.pop("domain_rows", []), encoder=None,
        seed=more.pop("seed", 0),
    )  # fmt: skip
    return told, [d.messages[0]["content"] for d in read_dialogues(out / CORPUS)]


def test_what_curation_drops_is_drawn_again(tiny_model_dir: Path, tmp_path: Path) -> None:
    copies = [talk(f"c{i}", "How do I learn to swim well?", f"Swim a lot, every day, in the sea, {i}.")
              for i in range(160)]  # fmt: skip
    names = ("weir", "wren", "quartz", "violin", "comet", "treaty", "yeast", "glacier", "sonnet", "turbine")
    others = [talk(f"o{i}", f"What is a {a} to a {b}?", f"A {a} is no {b}.")
              for i, (a, b) in enumerate((a, b) for a in names for b in names if a < b)]  # fmt: skip
    told, kept = drawn(tiny_model_dir, tmp_path / "out", copies + others, 20, mix=MixConfig(replay_unit="rows"))
    assert told["kept"] == len(kept) >= 20 and told["drawn"] < told["rows"] == len(copies) + len(others)
    assert sum("swim" in k for k in kept) == 1
    few, all_of_them = drawn(
        tiny_model_dir, tmp_path / "all", copies + others[:5], 20, mix=MixConfig(replay_unit="rows")
    )
    assert few["drawn"] == few["rows"] and few["kept"] == len(all_of_them) == 6, "there are no more"


def test_evaluation_items_and_held_out_rows_are_not_in_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    asked = ["Which river runs through the old town of Cahors?", "Who painted the ceiling of that small chapel?",
             "What does yeast do to a dough overnight?"]  # fmt: skip
    rows = [talk(f"r{i}", q, f"River {i}.") for i, q in enumerate(asked)]
    item = Item("i", "own-dialogues", "rivers", "dialogue", rows[0].messages)
    told, kept = drawn(tiny_model_dir, tmp_path / "out", rows, 10**6, items=[item], domain_rows=[rows[1]])
    assert kept == [asked[2]] and sum(told["dropped"].values()) == 2
    with pytest.raises(DataError, match="repeats what the evaluation asks") as error:
        drawn(tiny_model_dir, tmp_path / "none", rows[:2], 10**6, items=[item], domain_rows=[rows[1]])
    assert error.value.where == "data.general"


def test_a_first_draw_of_which_nothing_is_left_is_not_the_end(tiny_model_dir: Path, tmp_path: Path) -> None:
    names = ("weir", "wren", "quartz", "violin", "comet", "treaty", "yeast", "glacier", "sonnet", "turbine", "heron")
    rows = [talk(n, f"What is a {n} and where would I find one today?", f"A {n} is a {n}.") for n in names]
    told, kept = drawn(tiny_model_dir, tmp_path / "out", rows, 1, mix=MixConfig(replay_unit="rows"),
                       domain_rows=[r for r in rows if r.id != "quartz"])  # fmt: skip
    assert [k for k in kept if "quartz" in k] == kept and told["drawn"] > 1


def test_nothing_goes_for_its_quality(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = [talk("a", "Say nothing.", "."), talk("b", "Ring the bells.", "ding dong " * 60), talk("c", "???", "!!!")]
    told, kept = drawn(tiny_model_dir, tmp_path / "out", rows, 10**6)
    assert len(kept) == told["kept"] == 3 and told["unread"] == {"exact duplicate": 2}


def test_what_a_killed_draw_left_is_gone(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = [talk(f"r{i}", f"Question {i}?", f"Answer number {i}.") for i in range(5)]
    drawn(tiny_model_dir, tmp_path / "whole", rows, 10**6)
    left = tmp_path / "killed/.scratch/corpus"
    left.mkdir(parents=True)
    (left / "nodes.parquet").write_bytes(b"half")
    drawn(tiny_model_dir, tmp_path / "killed", rows, 10**6)

    def files(folder: str) -> dict[str, bytes]:
        found = sorted(p for p in (tmp_path / folder).rglob("*") if p.is_file())
        return {str(p.relative_to(tmp_path / folder)): p.read_bytes() for p in found}

    assert files("killed") == files("whole")
