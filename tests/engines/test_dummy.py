from __future__ import annotations

import numpy as np
import pytest

from regrow.engines.base import Engine, Request, SampleParams, ScoreRow
from regrow.engines.dummy import ByteTokenizer, DummyEngine, Faults
from regrow.errors import EngineError
from tests.fixtures.tiny import tiny_tokenizer

CLEAN = Faults(0, 0, 0, 0, 0, 0)


def ask(engine, n=40, limit=400, seeds=range(10), **params):
    asked = [Request(f"t/{s}", (1, 2, 3), n, s, SampleParams(limit, **params)) for s in seeds]
    return [c for _, cs in sorted(dict(engine.sample(asked)).items()) for c in cs]


@pytest.fixture(params=["bytes", "bpe"])
def tok(request):
    return ByteTokenizer() if request.param == "bytes" else tiny_tokenizer()


def test_same_seed_same_text_in_any_order(tok):
    engine = DummyEngine(tok)
    assert isinstance(engine, Engine)
    forwards, backwards = ask(engine, n=2), ask(engine, n=2, seeds=range(9, -1, -1))
    assert [c.text for c in forwards] == [c.text for i in range(9, -1, -1) for c in backwards[2 * i : 2 * i + 2]]
    assert [c.text for c in ask(DummyEngine(tok, seed=1), n=2)] != [c.text for c in forwards]


def test_clean_text_is_varied_ends_and_round_trips(tok):
    found = ask(DummyEngine(tok, faults=CLEAN))
    assert {c.finish for c in found} == {"stop"}
    assert len({c.text for c in found}) > 0.98 * len(found)
    assert all(c.text[-1] in ".?" and tok.decode(c.token_ids) == c.text for c in found)


@pytest.mark.parametrize(
    ("fault", "shows"),
    [
        ("empty", lambda c: c.text == ""),
        ("role_leak", lambda c: "\nUser:" in c.text),
        ("refusal", lambda c: c.text.startswith("I'm sorry")),
        ("repeat", lambda c: c.text.count("again") == 12),
        ("run_on", lambda c: c.finish == "length" and len(c.token_ids) == 1500),
    ],
)
def test_faults_come_at_their_rate(fault, shows):
    found = ask(DummyEngine(faults=Faults(**{**dict.fromkeys(Faults.__slots__, 0.0), fault: 0.25})), limit=1500)
    assert 0.18 < np.mean([shows(c) for c in found]) < 0.32
    assert not any(shows(c) for c in ask(DummyEngine(faults=CLEAN), limit=1500))


def test_duplicates_repeat_the_first_completion():
    found = ask(DummyEngine(faults=Faults(0, 0.5, 0, 0, 0, 0)), n=2000, seeds=[3])
    assert 0.46 < np.mean([c.text == found[0].text for c in found[1:]]) < 0.54


def test_impossible_faults():
    with pytest.raises(EngineError, match="at most 1"):
        Faults(empty=0.9, run_on=0.2)


def test_limits_stop_tokens_and_stop_strings_are_honoured():
    engine = DummyEngine(faults=CLEAN)
    assert all(len(c.token_ids) == 9 and c.finish == "length" for c in ask(engine, limit=9))
    assert all(ord("e") not in c.token_ids for c in ask(engine, stop_token_ids=(ord("e"),)))
    assert all("the " not in c.text and c.finish == "stop" for c in ask(engine, stop_strings=("the ", ".", "?")))


def test_scores_are_one_distribution(tok):
    engine = DummyEngine(tok, seed=5)
    done = next(c for c in ask(engine) if len(c.token_ids) > 5)
    (score,) = engine.score([ScoreRow([3, *done.token_ids])], top_k=len(tok))
    assert np.allclose(score.logprobs, done.logprobs)
    p = np.exp(score.top_logprobs.astype(np.float64))
    assert np.allclose(p.sum(1), 1, atol=2e-3)
    assert all(len(set(row)) == len(tok) for row in score.top_ids.tolist())
    where = score.top_ids == np.array(done.token_ids)[:, None]
    assert np.allclose(score.top_logprobs[where], score.logprobs, atol=1e-2)
    assert np.array_equal(score.greedy, where[:, 0])
    assert score.entropy[0] == pytest.approx(-(p * np.log(p)).sum(1)[0], rel=1e-2)


def test_impossible_score_rows():
    with pytest.raises(EngineError, match="score row 0"):
        DummyEngine().score([ScoreRow([3], start=2)])
    with pytest.raises(EngineError, match="top_k"):
        DummyEngine().score([ScoreRow([3, 4])], top_k=300)
