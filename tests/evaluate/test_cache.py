"""The cache of scores survives a kill at any byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from regrow.errors import RunError
from regrow.evaluate.cache import ScoreCache, item_hash, pass_key
from tests.evaluate.models import choice, dialogues


def test_values_come_back_bit_for_bit_and_the_first_one_stays(tmp_path: Path) -> None:
    value = {"metrics": {"nll": 0.1 + 0.2, "acc": 1.0}, "output": "é\u2028x"}
    with ScoreCache(tmp_path / "c.jsonl") as cache:
        cache.add("p", [("a", value)])
        cache.add("p", [("a", {"metrics": {}}), ("b", value)])
    with ScoreCache(tmp_path / "c.jsonl") as cache:
        assert cache.get("p", "a") == cache.get("p", "b") == value
        assert cache.get("q", "a") is None
        assert len(cache) == 2
    assert len((tmp_path / "c.jsonl").read_bytes().splitlines()) == 2


def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with ScoreCache(path) as cache:
        cache.add("p", [("a", {"v": 1})])
        whole = path.stat().st_size
        cache.add("p", [("b", {"v": 2})])
    raw = path.read_bytes()
    for size in range(whole, len(raw)):
        path.write_bytes(raw[:size])
        with ScoreCache(path) as cache:
            assert cache.get("p", "a") == {"v": 1}
            assert cache.get("p", "b") is None
            cache.add("p", [("b", {"v": 2})])
        assert path.read_bytes() == raw


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"pass": "p", "item": "a", "value": {}}\n{"pass": \n{"pass": "p", "item": "b", "value": {}}\n')
    with pytest.raises(RunError, match=r"c\.jsonl:2"):
        ScoreCache(path)


def test_the_hash_is_of_what_is_asked() -> None:
    a = choice("x", suite="facts")
    assert item_hash(a) == item_hash(choice("x", suite="facts-pool"))
    assert item_hash(a) != item_hash(choice("x", right=1))
    d, e = dialogues(1)[0], dialogues(1)[0]
    e.meta["token_ids"] = [1, 2]
    assert item_hash(d) != item_hash(e)


def test_a_pass_is_named_after_model_and_settings() -> None:
    key = pass_key("score", "r", {"dtype": "float32"})
    others = [pass_key("generate", "r", {"dtype": "float32"}), pass_key("score", "s", {"dtype": "float32"}),
              pass_key("score", "r", {"dtype": "bfloat16"})]  # fmt: skip
    assert len({key, *others}) == 4
