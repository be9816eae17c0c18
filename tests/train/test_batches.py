"""Packs, their order, layouts, and reading the mix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.errors import RunError
from regrow.train.batches import Collator, TokenRows
from regrow.train.packs import BlockSampler, best_fit_decreasing, make_packs
from tests.train.helpers import random_rows, token_row, write_mix


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=80), st.integers(20, 100))
def test_every_item_is_in_one_bin_that_holds_it(lengths, capacity):
    bins = best_fit_decreasing(lengths, capacity)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    for b in bins:
        assert sum(lengths[i] for i in b) <= capacity or (len(b) == 1 and lengths[b[0]] > capacity)
    fitting = [n for n in lengths if n <= capacity]
    # Two bins of items that fit never have room for each other's content.
    assert len(bins) - (len(lengths) - len(fitting)) <= 2 * sum(fitting) / capacity + 1


def test_packing_fills_packs_and_keeps_each_document_once():
    lengths = np.random.default_rng(0).integers(5, 60, 3000).tolist()
    packs = make_packs(lengths, packing=True, max_length=64, seed=3)
    assert sorted(i for p in packs for i in p) == list(range(3000))
    assert sum(lengths) / (64 * len(packs)) > 0.95
    # Documents stay in their block of the mix, so the mixture holds locally.
    starts = [p[0] // 1024 for p in packs]
    assert starts == sorted(starts) and all(i // 1024 == s for p, s in zip(packs, starts, strict=True) for i in p)
    assert packs == make_packs(lengths, packing=True, max_length=64, seed=3)
    assert packs != make_packs(lengths, packing=True, max_length=64, seed=4)
    assert make_packs(lengths, packing=False, max_length=64, seed=3) == [[i] for i in range(3000)]


def test_sampler_keeps_the_mix_in_the_first_epoch_and_shuffles_later_ones_within_blocks():
    sampler = BlockSampler(100, seed=5, block=10)
    assert list(sampler) == list(range(100)) and len(sampler) == 100
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(second) == list(range(100)) and second != list(range(100)) and second == list(sampler)
    for at in range(0, 100, 10):
        assert len({i // 10 for i in second[at : at + 10]}) == 1
    sampler.set_epoch(2)
    assert list(sampler) != second
    other = BlockSampler(100, seed=6, block=10)
    other.set_epoch(1)
    assert list(other) != second


def test_processes_get_equal_parts_of_an_epoch_and_no_pack_twice():
    """Through accelerate's own sharding, which would fill the last part with the first packs again."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    sampler = BlockSampler(22, seed=5, multiple=6)
    assert len(sampler) == 24
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        parts = [list(BatchSamplerShard(BatchSampler(sampler, 2, False), 3, rank)) for rank in range(3)]
        assert [len(part) for part in parts] == [4, 4, 4]
        seen = sorted(i for part in parts for batch in part for i in batch)
        assert seen == [*range(22), 22, 22]
        # What one process would take in a step of six is what the three take together.
        steps = [sorted(i for part in parts for i in part[k]) for k in range(4)]
        order = list(sampler)
        assert steps == [sorted(order[k : k + 6]) for k in range(0, 24, 6)]
    assert BlockSampler(24, seed=5, multiple=6).padding == BlockSampler(22, seed=5).padding == 0


@pytest.mark.parametrize("layout", ["single", "rows", "separate"])
def test_a_micro_batch_without_documents_is_padding_without_loss(tmp_path, layout):
    rows = TokenRows(
        write_mix(tmp_path, random_rows(3)) / "train.parquet", max_length=64, topk=False, cache_dir=tmp_path
    )
    batch = Collator(rows, pad_token_id=0, layout=layout)([{"documents": []}, {"documents": []}])
    assert batch["input_ids"].tolist() == [[0, 0]] and batch["position_ids"].tolist() == [[0, 1]]
    assert not batch["predict"].any() and len(batch["targets"]) == len(batch["weights"]) == 0
    assert int(batch["n_tokens"]) == 0


@pytest.mark.parametrize("layout", ["single", "rows", "separate"])
def test_layouts_carry_the_same_targets_and_weights(tmp_path, layout):
    data = random_rows(12, k=4)
    rows = TokenRows(write_mix(tmp_path, data) / "train.parquet", max_length=64, topk=True, cache_dir=tmp_path / "c")
    batch = Collator(rows, pad_token_id=0, layout=layout)([{"documents": [0, 1]}, {"documents": list(range(2, 12))}])
    ids, positions, predict = batch["input_ids"], batch["position_ids"], batch["predict"]
    if layout != "rows":
        assert len(ids) == (1 if layout == "single" else 12)
    # Next tokens of the predicting positions are the targets.
    assert torch.equal(ids.roll(-1, 1)[predict], batch["targets"])
    assert int(predict.sum()) == sum(r["n_train_tokens"] for r in data)
    assert float(batch["weights"].sum()) == pytest.approx(sum(sum(r["loss_weights"]) for r in data))
    assert int(batch["n_tokens"]) == sum(r["n_tokens"] for r in data)
    # Every document begins at position 0 and counts up.
    assert int((positions == 0).sum()) >= 12
    step = positions[:, 1:] - positions[:, :-1]
    assert ((step == 1) | (positions[:, 1:] == 0)).all()
    # The top-k of a target is the stored one.
    by_target = {}
    for r in data:
        trained = [t for t, w in zip(r["input_ids"], r["loss_weights"], strict=True) if w > 0]
        for j, t in enumerate(trained):
            stored = tuple(r["topk_ids"][4 * j : 4 * j + 4]) or (-1,) * 4
            by_target.setdefault(t, set()).add((r["source"] == "replay", stored))
    for t, is_replay, top in zip(batch["targets"], batch["replay"], batch["top_ids"], strict=True):
        assert (bool(is_replay), tuple(top.tolist())) in by_target[int(t)]


def test_padding_has_no_position_that_no_document_has(tmp_path):
    """GPT-2 has a vector for each of its positions and for none beyond."""
    data = [token_row(list(range(3, 23)), [0.0] + [1.0] * 19, name=str(i)) for i in range(30)]
    rows = TokenRows(write_mix(tmp_path, data) / "train.parquet", max_length=64, topk=False, cache_dir=tmp_path / "c")
    batch = Collator(rows, pad_token_id=0)([{"documents": list(range(30))}])
    assert (batch["input_ids"] == 0).sum() > 100, "two rows of which one is hardly filled"
    assert int(batch["position_ids"].max()) == 19
    assert torch.equal(batch["position_ids"][batch["input_ids"] == 3], torch.zeros(30, dtype=torch.int64))


def test_long_documents_lose_their_end_with_its_top_k(tmp_path):
    ids, weights = list(range(3, 23)), [1.0] * 4 + [0.0] * 6 + [1.0] * 10
    topk = {"topk_ids": list(range(100, 128)), "topk_logprobs": [-1.0] * 28, "topk_k": 2}
    data = [token_row(ids, weights, "replay", "long", **topk), token_row(ids, [0.0] * 19 + [1.0], name="end")]
    rows = TokenRows(write_mix(tmp_path, data) / "train.parquet", max_length=12, topk=True, cache_dir=tmp_path / "c")
    assert (len(rows), rows.n_cut, rows.n_untrained, rows.n_with_topk, rows.lengths) == (1, 2, 1, 1, [12])
    document = rows[0]
    assert document.input_ids.tolist() == ids[:12]
    assert document.weights.tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    # Stored for tokens 0-3 and 10-19; the first token is never predicted and 12-19 are cut.
    assert document.top_ids.tolist() == [[102, 103], [104, 105], [106, 107], [108, 109], [110, 111]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (token_row([3, 4, 5], [0.0, 1.0]), "as many tokens as loss weights"),
        (token_row([3, 4, 5], [0.0, 1.0, -1.0]), "weights of 0 or more"),
        (token_row([3, 4, 5], [0.0, 1.0, float("nan")]), "weights of 0 or more"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    write_mix(tmp_path, [token_row([3, 4], [0.0, 1.0]), row])
    with pytest.raises(RunError, match=message) as caught:
        TokenRows(tmp_path / "train.parquet", max_length=64, topk=False, cache_dir=tmp_path / "c")
    assert "row 1" in str(caught.value)


def test_top_k_of_the_wrong_size_is_named(tmp_path):
    row = token_row(
        [3, 4, 5], [0.0, 1.0, 1.0], "replay", "odd", topk_ids=[1, 2, 3], topk_logprobs=[-1.0] * 3, topk_k=2
    )
    rows = TokenRows(write_mix(tmp_path, [row]) / "train.parquet", max_length=64, topk=True, cache_dir=tmp_path / "c")
    with pytest.raises(RunError, match="'odd' has 3 top-k entries"):
        rows[0]


def test_nothing_to_train_on_and_foreign_files_are_refused(tmp_path):
    write_mix(tmp_path / "a", [token_row([3, 4, 5], [1.0, 0.0, 0.0])])
    with pytest.raises(RunError, match="no row has a token to train on"):
        TokenRows(tmp_path / "a" / "train.parquet", max_length=64, topk=False, cache_dir=tmp_path / "c")
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "b").mkdir()
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "b" / "train.parquet")
    with pytest.raises(RunError, match="columns are missing: id, input_ids"):
        TokenRows(tmp_path / "b" / "train.parquet", max_length=64, topk=False, cache_dir=tmp_path / "c")
