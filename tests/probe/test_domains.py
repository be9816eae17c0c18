"""Domain shares: planted shares come back, the judge is fitted exactly and measured on what it has not seen."""

from __future__ import annotations

import json

import numpy as np
import pytest

from regrow.errors import DataError, ModelError
from regrow.probe.config import DomainsConfig
from regrow.probe.domains import find_start, probe_domains, read_labelled, shares_of
from regrow.probe.judge import fit_softmax, softmax, train_judge
from tests.fixtures.fact_bank import WORDS, FactBank, FactBankEngine, labelled_texts
from tests.fixtures.tiny import tiny_tokenizer
from tests.grow.helpers import HashEncoder

PATTERN = ["law", "law", "law", "law", "law", "medicine", "medicine", "medicine", "code", None]
"""Of the nine texts that are not empty: five, three, one."""


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def _probe(tokenizer, out, engine=None, **settings):
    cfg = DomainsConfig(**({"samples": 100, "repeats": 2, "start": "<|endoftext|>", "bootstrap": 500} | settings))
    engine = engine or FactBankEngine(FactBank(), tokenizer, PATTERN)
    labelled = labelled_texts(20)
    return probe_domains(labelled, cfg, out, engine=engine, tokenizer=tokenizer, encoder=HashEncoder()), engine


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_planted_shares_come_back(tokenizer, tmp_path, labels):
    got, engine = _probe(tokenizer, tmp_path, labels=labels)
    assert got.judge.accuracy == 1.0 and (got.judge.trained, got.judge.tested) == (45, 15)
    planted = {"law": 5 / 9, "medicine": 3 / 9, "code": 1 / 9}
    tolerance = 1e-12 if labels == "hard" else 0.05
    for domain, share in planted.items():
        s = got.shares[domain]
        assert s.share == (s.hard if labels == "hard" else s.soft)
        assert s.share == pytest.approx(share, abs=tolerance)
        assert s.hard == pytest.approx(share, abs=1e-12)
        assert s.low < s.share < s.high and s.high - s.low < 0.2
        assert all(r[domain] == pytest.approx(share, abs=tolerance) for r in got.repeats)
    assert sum(s.share for s in got.shares.values()) == pytest.approx(1)
    assert (got.texts, got.empty, len(got.repeats)) == (180, 20, 2)
    assert sum(r.n for r in engine.requests) == 200
    lines = [json.loads(x) for x in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 180 and sum(lines[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_sampling_settings_reach_the_engine(tokenizer, tmp_path):
    _, engine = _probe(tokenizer, tmp_path, temperature=0.7, top_p=0.5, max_new_tokens=9)
    params = {r.params for r in engine.requests}
    assert {(p.temperature, p.top_p, p.top_k, p.max_new_tokens) for p in params} == {(0.7, 0.5, 0, 9)}
    assert {r.prompt_ids for r in engine.requests} == {(0,)}
    assert len({r.seed for r in engine.requests}) == len(engine.requests)


def test_a_killed_probe_continues(tokenizer, tmp_path):
    whole, asked = _probe(tokenizer, tmp_path / "whole")
    dying = FactBankEngine(FactBank(), tokenizer, PATTERN, stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        _probe(tokenizer, tmp_path / "cut", dying)
    got, rest = _probe(tokenizer, tmp_path / "cut")
    assert got == whole and len(rest.requests) == len(asked.requests) - 2
    assert (tmp_path / "cut/samples.jsonl").read_bytes() == (tmp_path / "whole/samples.jsonl").read_bytes()


def test_nothing_said_is_an_error(tokenizer, tmp_path):
    with pytest.raises(DataError, match="every sampled text is empty"):
        _probe(tokenizer, tmp_path, FactBankEngine(FactBank(), tokenizer, [None]))


def test_the_regression_is_at_its_minimum():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)), rng.integers(0, 3, 60)
    w = fit_softmax(x, y, 3, 0.03)
    p = softmax(x, w)
    wrong = (p - np.eye(3)[y]) / len(y)
    assert np.abs(x.T @ wrong + 0.03 * w[:-1]).max() < 1e-7
    assert np.abs(wrong.sum(0)).max() < 1e-7


def test_the_judge_never_sees_what_it_is_measured_on():
    texts, labels = labelled_texts(20)
    rng = np.random.default_rng(0)
    shuffled = [labels[i] for i in rng.permutation(len(labels))]
    _, quality = train_judge(texts, shuffled, HashEncoder(), test_size=0.25, folds=5, seed=0)
    assert quality.accuracy < 0.7  # labels mean nothing, so a judge that had seen them would be caught
    assert quality.loss > 0.8
    judge, quality = train_judge(texts, labels, HashEncoder(), test_size=0.25, folds=5, seed=0)
    assert quality.accuracy == 1.0 and quality.majority == pytest.approx(1 / 3)
    assert judge.classes == sorted(WORDS) and all(v == {c: 5 if c == k else 0 for c in judge.classes}
                                                  for k, v in quality.confusion.items())  # fmt: skip
    again, _ = train_judge(texts, labels, HashEncoder(), test_size=0.25, folds=5, seed=0)
    assert np.array_equal(judge.probabilities(texts), again.probabilities(texts))


def test_labels_that_cannot_train_a_judge():
    with pytest.raises(DataError, match="at least two domains"):
        train_judge(["a", "b"], ["x", "x"], HashEncoder(), test_size=0.25, folds=2, seed=0)
    with pytest.raises(DataError, match="the domain 'y' has 1 text"):
        train_judge([*"abcdefg"], [*"xxxxx", "y", "y"], HashEncoder(), test_size=0.25, folds=2, seed=0)


def test_labelled_rows(tmp_path):
    file = tmp_path / "l.jsonl"
    file.write_text('{"text": "one", "domain": "a"}\n{"question": "q", "answer": "r", "domain": "b"}\n')
    with pytest.raises(DataError):  # formats are not mixed in one file
        read_labelled(file)
    file.write_text('{"text": "one", "domain": "a"}\n{"text": "two", "domain": "b"}\n')
    assert read_labelled(file) == (["one", "two"], ["a", "b"])
    file.write_text('{"text": "one", "domain": "a"}\n{"text": "two"}\n')
    with pytest.raises(DataError, match="no label"):
        read_labelled(file)
    file.write_text('{"text": "one", "domain": "a", "id": 1}\n{"text": "one", "domain": "b", "id": 2}\n')
    assert read_labelled(file) == (["one"], ["a"])  # the reader takes the second for a duplicate
    other = tmp_path / "m.jsonl"
    other.write_text(
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}], "domain": "a"}\n'
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "s"}], "domain": "a"}\n'
    )
    assert read_labelled(other)[0] == ["q\n\nr", "q\n\ns"]


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        y = (rng.random(80) < 0.3).astype(int)
        s = shares_of(np.eye(2)[1 - y], ["in", "out"], "soft", confidence=0.9, resamples=300, seed=trial)
        hits += s["in"].low <= 0.3 <= s["in"].high
    assert 165 <= hits <= 195


def test_where_texts_start(tokenizer):
    # ChatML's <|im_start|> is this tokenizer's BOS, but it opens turns; the end-of-text token does not
    assert find_start(tokenizer, "auto").ids == (0,)
    assert 2 in find_start(tokenizer, "auto").stop_ids
    user = find_start(tokenizer, "user")
    assert tokenizer.decode(list(user.ids)).endswith("<|im_start|>user\n") and 2 in user.stop_ids
    assert tokenizer.decode(list(find_start(tokenizer, "Once upon").ids)) == "Once upon"
    with pytest.raises(ModelError, match="no tokens"):
        find_start(tokenizer, "")
    plain = tiny_tokenizer()
    plain.chat_template = None
    assert find_start(plain, "auto").text == "<|im_start|>"
