"""More branches in a store that is grown: orders, budgets, and no id twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from regrow.errors import RunError
from regrow.grow.corpus import read_dialogues
from regrow.grow.more import fit, grow_more
from regrow.grow.store import STORE_NAME, Store, copy_store
from tests.grow.helpers import ScriptedEngine, run, settings, snapshot, tiny, tokenizer_of

CFG = settings(topics=["rivers", "bees", "law"], shape=[4, 1, 2, 1], dialogues=12)


@pytest.fixture
def grown(tiny_model_dir: Path, tmp_path: Path) -> Path:
    run(tiny_model_dir, tmp_path / "grown", CFG, seed=4)
    return tmp_path / "grown"


def more(model: Path, out: Path, **keys: object):
    order: dict = {"order": "01", "dialogues": {"bees": 6}, "tokens": 10**6, "seed": 4} | keys
    return grow_more(CFG, tiny(model), out, engine=ScriptedEngine(tokenizer_of(model)), **order)


def test_an_order_adds_trees_and_touches_nothing_else(tiny_model_dir, grown, tmp_path):
    before = snapshot(grown)
    copy_store(grown, tmp_path / "copy")
    added = more(tiny_model_dir, tmp_path / "copy", dialogues={"bees": 6, "law": 2})
    after = snapshot(tmp_path / "copy")
    assert {k: v for k, v in after.items() if k in before} == before == snapshot(grown)
    new = [d for d in read_dialogues(tmp_path / "copy") if d.tree >= added.first_tree]
    assert added.dialogues == {"bees": 6, "law": 2} and len(new) == 8
    assert {n.split("/")[0] for d in new for n in d.node_ids}.isdisjoint(k.split("/")[0] for k in before)
    tokens = {n: len(after[n][3]) for d in new for n in d.node_ids}
    assert sum(added.tokens.values()) == sum(tokens.values())
    texts = {v[4] for k, v in before.items()}
    assert not texts & {after[n][4] for d in new for n in d.node_ids}, "other seeds, other words"


def test_the_same_order_again_finds_it_done(tiny_model_dir, grown):
    one = more(tiny_model_dir, grown)
    nodes = snapshot(grown)
    assert more(tiny_model_dir, grown) == one and snapshot(grown) == nodes
    with pytest.raises(RunError, match="was another one"):
        more(tiny_model_dir, grown, dialogues={"bees": 7})
    two = more(tiny_model_dir, grown, order="02")
    assert two.first_tree > one.first_tree and two.dialogues == {"bees": 6}


def test_the_budget_holds(tiny_model_dir, grown):
    with Store.open_reader(grown) as store:
        a_dialogue = store.tokens_on_paths() / sum(store.dialogues_by_tree().values())
    added = more(tiny_model_dir, grown, dialogues={"bees": 40, "law": 40}, tokens=round(10 * a_dialogue))
    assert 0.7 * 10 * a_dialogue <= sum(added.tokens.values()) <= 10 * a_dialogue + 2 * a_dialogue
    assert abs(added.dialogues["bees"] - added.dialogues["law"]) <= 1


def test_a_topic_that_is_not_there_is_named(tiny_model_dir, grown):
    with pytest.raises(RunError, match="no topic 'art'"):
        more(tiny_model_dir, grown, dialogues={"art": 1})


def test_a_copy_is_whole_and_the_first_store_stays(tiny_model_dir, grown, tmp_path):
    copy_store(grown, tmp_path / "copy")
    with Store.open_reader(grown) as one, Store.open_reader(tmp_path / "copy") as two:
        assert one.totals() == two.totals() and list(one.trees()) == list(two.trees())
    assert not list((tmp_path / "copy").glob(".*.tmp")) and (tmp_path / "copy" / STORE_NAME).is_file()
    with pytest.raises(RunError, match="no corpus"):
        copy_store(tmp_path / "nowhere", tmp_path / "copy")


@pytest.mark.parametrize(
    ("tokens", "fits"),
    [
        (1000, {"a": 4, "b": 2}),
        (60, {"a": 4, "b": 2}),
        (30, {"a": 2, "b": 1}),
        (25, {"a": 1, "b": 1}),
        (9, {}),
        (0, {}),
    ],
)
def test_an_order_is_cut_by_the_same_factor(tokens, fits):
    assert fit({"a": 4, "b": 2}, {"a": 10.0, "b": 10.0}, tokens) == fits
