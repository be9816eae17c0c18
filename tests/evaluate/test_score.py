"""The token tree gives what scoring every row alone gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from regrow.evaluate.render import TokenRow
from regrow.evaluate.score import Scorer, TokenTree, plan, score_groups
from tests.fixtures.tiny import tiny_llama


@pytest.fixture(scope="module")
def model():
    return tiny_llama(vocab_size=300)


def rows(seed: int, n: int = 5) -> list[TokenRow]:
    """Rows that share beginnings of several lengths."""
    rng = np.random.default_rng(seed)
    stem = rng.integers(0, 300, 12).tolist()
    out = []
    for k in range(n):
        cut = int(rng.integers(4, 13))
        ids = stem[:cut] + rng.integers(0, 300, int(rng.integers(2, 7))).tolist()
        out.append(TokenRow(ids, [(2, 3), (cut, len(ids))] if k % 2 else [(cut, len(ids))]))
    return out


def naive(model, row: TokenRow) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        logp = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
    picked = [logp[t - 1] for t in row.targets]
    own = np.array([float(p[row.ids[t]]) for p, t in zip(picked, row.targets, strict=True)])
    other = np.array(
        [float(p[torch.arange(300) != row.ids[t]].max()) for p, t in zip(picked, row.targets, strict=True)]
    )
    return own, own - other


def test_packed_scores_are_those_of_each_row_alone(model) -> None:
    packed = Scorer(model)
    assert packed.tree
    for seed in range(5):
        for row, score in zip(rows(seed), packed.score(rows(seed)), strict=True):
            own, margin = naive(model, row)
            assert score.logprobs == pytest.approx(own, abs=2e-5)
            assert score.margins == pytest.approx(margin, abs=4e-5)
            assert score.nll == pytest.approx(-own.mean(), abs=2e-5)


def test_the_tree_computes_a_common_beginning_once() -> None:
    tree = TokenTree()
    tree.insert([1, 2, 3, 4])
    assert tree.cost([1, 2, 9]) == 1
    tree.insert([1, 2, 9])
    tree.insert([1, 2, 3, 4])
    assert len(tree) == 5
    seen = tree.visible()
    assert seen[4].tolist() == [True, True, False, False, True]


def test_greedy_reading_and_margins_agree(model) -> None:
    with torch.no_grad():
        ids = [5, 6, 7]
        for _ in range(3):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    right, wrong = Scorer(model).score([TokenRow(ids, [(3, 6)]), TokenRow([5, 6, 7, (ids[3] + 1) % 300], [(3, 4)])])
    assert right.greedy
    assert right.greedy_ids.tolist() == ids[3:]
    assert not wrong.greedy
    assert wrong.margins[0] < 0


def test_kl_is_exact_over_the_whole_vocabulary_and_zero_to_itself(model) -> None:
    other = tiny_llama(seed=1, vocab_size=300)
    row = rows(0)[1]
    score = Scorer(other, model).score([row], kl=True)[0]
    with torch.no_grad():
        p, q = (m(torch.tensor([row.ids])).logits[0].log_softmax(-1) for m in (model, other))
    expected = [float((p[t - 1].exp() * (p[t - 1] - q[t - 1])).sum()) for t in row.targets]
    assert score.kl == pytest.approx(expected, abs=1e-5)
    assert Scorer(model, model).score([row], kl=True)[0].kl.max() == 0


def test_a_model_without_tree_attention_is_scored_row_by_row(model, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = model.forward

    def ignores_mask(input_ids, use_cache=False, logits_to_keep=0, **_):
        return forward(input_ids=input_ids, use_cache=False, logits_to_keep=logits_to_keep)

    monkeypatch.setattr(model, "forward", ignores_mask)
    scorer = Scorer(model)
    assert not scorer.tree
    scores = scorer.score(rows(1))
    monkeypatch.undo()
    for row, score in zip(rows(1), scores, strict=True):
        assert score.logprobs == pytest.approx(naive(model, row)[0], abs=2e-5)


def test_plan_keeps_to_the_budget_and_has_every_group_once() -> None:
    groups = [rows(k, 3) for k in range(20)]
    batches = plan(groups, 60)
    assert sorted(i for b in batches for i in b) == list(range(20))
    for batch in batches:
        tree = TokenTree()
        for i in batch:
            for row in groups[i]:
                tree.insert(row.ids)
        assert len(tree) <= 60 or len(batch) == 1
    assert plan(groups, 60) == batches
    assert len(plan(groups, 600)) < len(batches)


def test_skipping_leaves_the_other_batches_as_they_were(model) -> None:
    groups = [rows(k, 2) for k in range(8)]
    scorer = Scorer(model)
    whole = dict(x for b, s in score_groups(scorer, groups, 60) for x in zip(b, s, strict=True))
    first = plan(groups, 60)[0]
    rest = dict(x for b, s in score_groups(scorer, groups, 60, skip=set(first)) for x in zip(b, s, strict=True))
    assert set(rest) == set(range(8)) - set(first)
    for i, scores in rest.items():
        for a, b in zip(scores, whole[i], strict=True):
            assert np.array_equal(a.logprobs, b.logprobs)


def test_a_tokenizer_without_borders_at_the_answer_scores_from_the_common_border(tiny_model_dir: Path) -> None:
    from regrow.evaluate.render import encode_item
    from regrow.models.load import load_tokenizer
    from tests.evaluate.models import choice

    tokenizer = load_tokenizer(tiny_model_dir)
    found = encode_item(tokenizer, choice("a hat"))
    assert len({tuple(r.ids[: r.spans[0][0]]) for r in found}) == 1
    assert [tokenizer.decode(r.ids).rsplit(" ", 1)[1] for r in found] == ["red", "green", "blue", "black"]
