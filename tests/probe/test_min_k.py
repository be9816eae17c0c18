"""Min-K% and Min-K%++: golden numbers, definitions against a plain forward pass, and texts that were injected."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest

from regrow.engines.base import Score, ScoreRow
from regrow.engines.dummy import DummyEngine
from regrow.errors import EngineError
from regrow.probe.config import MinKConfig
from regrow.probe.min_k import BATCH, longest_run, min_k, min_k_plus, probe_texts, text_scores
from regrow.probe.roc import auc, best_accuracy, threshold, tpr_at
from regrow.probe.texts import Text, read_texts
from tests.fixtures.tiny import tiny_llama, tiny_tokenizer

GOLDEN = [-0.1, -0.2, -5, -0.3, -2.5, -0.05, -1.2, -0.4, -3.3, -0.6]


@pytest.mark.parametrize(("k", "score"), [(0.1, -5), (0.2, -4.15), (0.3, -3.6), (0.5, -2.52)])
def test_the_golden_vector(k, score):
    assert min_k(GOLDEN, k) == pytest.approx(score, abs=1e-12)


def test_the_number_of_tokens_is_floored_and_at_least_one():
    assert min_k([-3.0, -1.0], 0.2) == -3.0
    # 0.29 * 100 is 28.999999999999996: rounding must not lose a token
    assert min_k(-np.arange(1, 101.0), 0.29) == pytest.approx(-np.arange(72, 101).mean())


def test_min_k_plus_standardises_within_each_position():
    logprobs, means, stds = [-5.0, -1.0, -3.0, -2.0], [-4.0, -2.0, -2.0, -2.0], [0.5, 1.0, 2.0, 1.0]
    # -2, 1, -0.5, 0: the lowest half is (-2 - 0.5) / 2
    assert min_k_plus(logprobs, means, stds, 0.5) == pytest.approx(-1.25)
    assert np.isfinite(min_k_plus([0.0], [0.0], [0.0]))


def test_roc_numbers():
    a, b = [3.0, 2.0, 1.0], [2.0, 0.0]
    assert auc(a, b) == pytest.approx((2 + 1.5 + 1) / 6)
    assert auc(b, a) == pytest.approx(1 - auc(a, b))
    assert best_accuracy(a, b) == pytest.approx((1.0 + 0.5) / 2)
    assert tpr_at(a, b, 0.0) == pytest.approx(1 / 3)
    assert tpr_at(a, b, 0.5) == 1.0
    values = np.arange(100.0)
    assert (values > threshold(values, 0.05)).mean() == 0.05
    assert (values > threshold(values, 0.001)).mean() == 0.0


def test_auc_is_the_mann_whitney_statistic():
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40), rng.integers(2, 11, 31)
    assert auc(a, b) == pytest.approx(mannwhitneyu(a, b).statistic / (40 * 31))


def test_the_engine_gives_mean_and_spread_of_the_log_probability():
    import torch

    from regrow.engines.hf import TransformersEngine

    tokenizer = tiny_tokenizer()
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(6)  # neither flat nor certain
    engine = TransformersEngine.from_model(model, tokenizer)
    ids = tokenizer("The mean of the data is the middle of it.")["input_ids"]
    (score,) = engine.score([ScoreRow(ids, 1)])
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    mean = (logp.exp() * logp).sum(-1)
    std = ((logp.exp() * logp**2).sum(-1) - mean**2).sqrt()
    assert np.allclose(-score.entropy, mean.numpy(), atol=1e-4)
    assert np.allclose(score.logprob_std, std.numpy(), atol=1e-4)
    assert std.max() > 0.3


def test_the_dummys_moments_are_those_of_its_distribution():
    engine = DummyEngine()
    (score,) = engine.score([ScoreRow([1, 2, 3])], top_k=256)
    p = np.exp(engine._by_rank)
    mean = (p * engine._by_rank).sum()
    assert score.entropy[0] == pytest.approx(-mean, rel=1e-5)
    assert score.logprob_std[0] == pytest.approx(np.sqrt((p * engine._by_rank**2).sum() - mean**2), rel=1e-5)


def test_scores_of_a_text():
    logprobs = np.array(GOLDEN, dtype=np.float32)
    greedy = np.array([1, 1, 0, 1, 0, 1, 1, 1, 0, 1], dtype=bool)
    flat = np.ones(10, dtype=np.float32)
    score = Score(logprobs, greedy, 2 * flat, logprob_std=flat)
    lower = Score(2 * logprobs, greedy, flat)
    got = text_scores("abc", score, 0.2, lower, Score(3 * logprobs, greedy, flat))
    loss = -logprobs.mean()
    assert got["tokens"] == 10 and got["run"] == 3 and got["greedy"] == pytest.approx(0.7)
    assert got["loss"] == pytest.approx(-loss)
    assert got["min_k_plus"] == pytest.approx(-4.15 + 2, abs=1e-6)
    assert got["zlib"] == pytest.approx(-loss / len(zlib.compress(b"abc")))
    assert got["lowercase"] == pytest.approx(2.0) and got["reference"] == pytest.approx(2 * loss)
    assert longest_run(np.zeros(3, dtype=bool)) == 0
    with pytest.raises(EngineError, match="spread"):
        text_scores("abc", lower, 0.2, None, None)


def _texts(n, start):
    from tests.grow.helpers import sentence

    return [Text(f"t{i}", sentence(start + i, 14)) for i in range(n)]


def _trained(texts, epochs=60):
    """A tiny model that has read ``texts``."""
    import torch

    tokenizer, model = tiny_tokenizer(), tiny_llama(seed=1)
    rows = tokenizer([t.text for t in texts], padding=True, return_tensors="pt")
    labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
    solver = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(epochs):
        model(**rows, labels=labels).loss.backward()
        solver.step()
        solver.zero_grad()
    return model.eval(), tokenizer


def test_injected_texts_are_found_and_were_not_before(tmp_path):
    from regrow.engines.hf import TransformersEngine

    inside, outside = _texts(24, 0), _texts(24, 1000)
    seen, tokenizer = _trained(inside)
    engine = TransformersEngine.from_model(seen, tokenizer, revision="seen")
    fresh = TransformersEngine.from_model(tiny_llama(seed=1), tokenizer, revision="fresh")
    before = probe_texts(inside, outside, MinKConfig(), tmp_path / "a", engine=fresh, tokenizer=tokenizer)
    after = probe_texts(
        inside, outside, MinKConfig(), tmp_path / "b", engine=engine, tokenizer=tokenizer, reference=(fresh, tokenizer)
    )
    for name in ("min_k", "min_k_plus", "loss"):
        assert 0.3 < before.separation[name]["auc"] < 0.7
        assert after.separation[name]["auc"] > 0.95 and after.separation[name]["low"] > 0.9
    assert after.separation["reference"]["auc"] > 0.9
    assert before.flagged <= 6 and after.flagged >= 22
    assert after.recited > before.recited
    lines = [json.loads(x) for x in (tmp_path / "b/scores.jsonl").read_text().splitlines()]
    assert [x["id"] for x in lines] == [t.id for t in (*inside, *outside)]
    assert sum(x.get("flagged", False) for x in lines) == after.flagged
    assert json.loads((tmp_path / "b/min_k.json").read_text())["texts"] == 24


def test_no_control_no_claim(tmp_path):
    engine = DummyEngine()
    got = probe_texts(_texts(3, 0), [], MinKConfig(lowercase=False), tmp_path, engine=engine, tokenizer=_Bytes())
    assert got.separation == {} and got.threshold is None and got.flagged is None
    assert set(got.means) == {"min_k", "min_k_plus", "loss", "zlib"}


class _Bytes:
    """One token a byte, called as a Hugging Face tokenizer is."""

    def __call__(self, text):
        return {"input_ids": list(text.encode())}


def test_short_texts_are_counted_not_scored_and_long_ones_cut(tmp_path):
    texts = [Text("empty", ""), Text("one", "x"), Text("long", "y" * 50), Text("good", "hello there")]
    cfg = MinKConfig(max_tokens=20)
    got = probe_texts(texts, [], cfg, tmp_path, engine=DummyEngine(), tokenizer=_Bytes())
    assert (got.texts, got.skipped, got.cut) == (2, 2, 1)
    lines = [json.loads(x) for x in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [x.get("tokens") for x in lines] == [None, None, 19, 10]


def test_a_killed_probe_continues(tmp_path):
    class Dying(DummyEngine):
        calls = 0

        def score(self, rows, top_k=0):
            Dying.calls += 1
            if Dying.calls == 3:
                raise KeyboardInterrupt
            return super().score(rows, top_k)

    texts = _texts(3 * BATCH, 0)
    cfg = MinKConfig(lowercase=False)
    with pytest.raises(KeyboardInterrupt):
        probe_texts(texts, [], cfg, tmp_path, engine=Dying(), tokenizer=_Bytes())
    assert not (tmp_path / "scores.jsonl").exists()
    got = probe_texts(texts, [], cfg, tmp_path, engine=Dying(), tokenizer=_Bytes())
    assert Dying.calls == 4  # two batches were kept
    whole = probe_texts(texts, [], cfg, tmp_path / "w", engine=DummyEngine(), tokenizer=_Bytes())
    assert got == whole
    assert (tmp_path / "scores.jsonl").read_bytes() == (tmp_path / "w/scores.jsonl").read_bytes()


def test_chat_form_scores_answers_only(tmp_path):
    from regrow.engines.hf import TransformersEngine

    tokenizer = tiny_tokenizer()
    engine = TransformersEngine.from_model(tiny_llama(), tokenizer)
    said = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "The mean."}]
    cfg = MinKConfig(form="chat")
    probe_texts([Text("d", "What is it?\n\nThe mean.", said)], [], cfg, tmp_path, engine=engine, tokenizer=tokenizer)
    (line,) = (json.loads(x) for x in (tmp_path / "scores.jsonl").read_text().splitlines())
    assert line["tokens"] == len(tokenizer("The mean.")["input_ids"]) + 1  # and the end of the turn


def test_texts_of_rows_questions_and_plain_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    assert [t.text for t in read_texts(tmp_path / "a.txt")] == ["one\ntwo", "three"]
    (tmp_path / "q.jsonl").write_text('{"question": "Q?", "choices": ["a", "b"], "answer_index": 1}\n')
    assert [t.text for t in read_texts(tmp_path / "q.jsonl")] == ["Q?\nb"]
    (tmp_path / "m.jsonl").write_text('{"instruction": "Do.", "output": "Done."}\n')
    (row,) = read_texts(tmp_path / "m.jsonl")
    assert row.text == "Do.\n\nDone." and [m["role"] for m in row.messages] == ["user", "assistant"]


def test_a_grown_corpus_gives_each_kept_turn_once(tmp_path, tiny_model_dir):
    from tests.grow.helpers import run, settings

    run(tiny_model_dir, tmp_path / "corpus", settings(shape=[3, 2], dialogues=6))
    from regrow.grow.corpus import read_nodes

    texts = read_texts(tmp_path / "corpus")
    kept = [n.id for n in read_nodes(tmp_path / "corpus") if n.kept]
    assert [t.id for t in texts] == kept and len(kept) > 3
