"""What was lost, in words: groups, their terms, what was kept beside them, and the branches of the corpus."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import Item
from regrow.evaluate.lost import NEAR, TOGETHER, Branch, group, lost_topics, read_branches, telling_terms
from regrow.evaluate.stage import evaluate
from regrow.grow.corpus import Dialogue, write_corpus
from tests.evaluate.models import choice, perturbed

KINDS = ("capital", "metal", "verb", "tide")


class KeywordEncoder:
    """Texts with one of `KINDS` in them lie together, at a cosine of 0.8 and more."""

    name = "keywords"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts, *, progress=None):
        self.seen += texts
        out = np.zeros((len(texts), 64), np.float32)
        for row, text in zip(out, texts, strict=True):
            for k, kind in enumerate(KINDS):
                row[k] = 2.0 * (kind in text)
            noise = np.random.default_rng(zlib.crc32(text.encode())).normal(size=60)
            row[4:] = noise / np.linalg.norm(noise)
            row /= np.linalg.norm(row)
        return out


def item(k: int, kind: str) -> Item:
    text = {"capital": f"What is the capital of land {k}?", "metal": f"Which metal has number {k}?"}.get(
        kind, f"Question {k} about a {kind}?"
    )
    return Item(f"i{k}", "news", kind, "answer", [{"role": "user", "content": text}], answers=["Rome"])


@pytest.fixture
def items() -> list[Item]:
    return [item(k, KINDS[k % 3]) for k in range(60)] + [item(k, "tide") for k in (90, 91)]


def test_groups_join_by_the_mean_cosine_until_it_is_too_small() -> None:
    x = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], np.float32)
    assert group(x, 0.99) == [[0], [1], [2], [3]]
    assert group(x, 0.9) == [[1, 3], [0], [2]]
    # {1, 3} at 0.96; 0 to {1, 3}: (0.8 + 0.6) / 2; 2 to {1, 3}: (0.6 + 0.8) / 2; then 0.7, 0.7 and 0 average to 0.466.
    assert group(x, 0.69) == group(x, 0.47) == [[0, 1, 3], [2]]
    assert group(x, 0.46) == [[0, 1, 2, 3]]
    assert group(x[:1]) == [[0]]


def test_groups_are_those_of_scipy() -> None:
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    linked = hierarchy.linkage(x.astype(float), "average", metric="cosine")
    labels = hierarchy.fcluster(linked, 1 - 0.3, "distance")
    theirs = {tuple(np.flatnonzero(labels == k)) for k in set(labels)}
    assert {tuple(g) for g in group(x, 0.3)} == theirs


def test_terms_are_weighted_by_how_far_they_belong_to_one_class() -> None:
    terms = telling_terms([["the cat and the cat", "cat food"], ["the dog"], ["the the the and"]], 2)
    assert [t[0] for t in terms] == ["cat", "dog", "the"]
    # By hand: 13 words in 3 classes, A = 13/3; cat is 3 of 7 words, food 1 of 7, the 2 of 7 and 6 in all.
    assert terms[0] == ["cat", "food"] or 2 / 7 * np.log1p(13 / 3 / 6) > 1 / 7 * np.log1p(13 / 3)


def test_topics_say_what_was_lost_of_how_much_and_what_covers_it(items: list[Item]) -> None:
    named = {i.domain: [f"news:{x.id}" for x in items if x.domain == i.domain] for i in items}
    lost = [*named["capital"][:12], *named["metal"][:4], *named["tide"]]
    right = [n for kind in KINDS for n in named[kind] if n not in lost]
    results = {"lost": {"sft": lost, "regrow": named["verb"][:2]}}
    branches = [Branch("b0", "Places", "Tell me about a capital"), Branch("b1", "Sea", "Where do ships go?")]
    encoder = KeywordEncoder()
    found = lost_topics(results, items, {"sft": right, "regrow": []}, encoder, branches, seed=0)
    assert {k: v for k, v in found.items() if k != "arms"} == {
        "encoder": "keywords", "together": TOGETHER, "near": NEAR, "branches": 2, "searched": 2,
    }  # fmt: skip
    sft = found["arms"]["sft"]
    assert (sft["n"], sft["scattered"]) == (18, 2), "two items make no topic"
    capital, metal = sft["topics"]
    assert "capital" in capital["terms"] and "metal" in metal["terms"]
    assert "capital" not in metal["terms"]
    assert (capital["n"], metal["n"]) == (12, 4) and capital["items"] == named["capital"][:12]
    assert (capital["of"], metal["of"]) == (20, 20), "those kept beside them are counted"
    assert capital["corpus"]["covered"] == 12 and metal["corpus"]["covered"] == 0
    assert capital["corpus"]["nearest"][0]["branch"] == "b0"
    assert capital["corpus"]["similarity"] > NEAR > metal["corpus"]["similarity"]
    assert found["arms"]["regrow"] == {"n": 2, "scattered": 2, "topics": []}
    alone = lost_topics(results, items, {"sft": right, "regrow": []}, encoder, None, seed=0)
    assert alone["branches"] is None and alone["arms"]["sft"]["topics"][0]["corpus"] is None
    assert json.loads(json.dumps(found)) == found


def test_branches_are_first_questions(tmp_path: Path) -> None:
    def dialogue(name: str, bush: str, question: str) -> Dialogue:
        said = [{"role": "user", "content": question}, {"role": "assistant", "content": "a"}]
        return Dialogue(name, said, [bush, name], "t", 0, 3)

    write_corpus(tmp_path, [], [dialogue("0/0/0", "0/0", "Why?"), dialogue("0/0/1", "0/0", "Why?"),
                                dialogue("0/1/0", "0/1", "How?")], {})  # fmt: skip
    assert read_branches(tmp_path) == [Branch("0/0", "t", "Why?"), Branch("0/1", "t", "How?")]


def test_the_stage_asks_the_encoder_only_when_something_was_lost(tiny_model_dir: Path, tmp_path: Path) -> None:
    asked = [choice(f"c{k}", "news", right=k % 4, question=f"Which colour has capital {k}?") for k in range(60)]
    cfg = EvalConfig(suites=["facts"], bootstrap=200, generate_samples=0)
    loaded = []

    def load():
        loaded.append(1)
        return KeywordEncoder()

    def results(other: Path, out: str, **more) -> dict:
        return evaluate({"base": tiny_model_dir, "after": other}, asked, cfg, tmp_path / out, seed=0, **more).results

    assert results(tiny_model_dir, "same", encoder=load)["lost_topics"] is None and not loaded
    other = perturbed(tiny_model_dir, tmp_path / "other")
    r = results(other, "other", encoder=load)
    n = len(r["lost"]["after"])
    assert n >= 3 and len(loaded) == 1
    [topic] = r["lost_topics"]["arms"]["after"]["topics"]
    assert topic["n"] == n and "capital" in topic["terms"] and topic["corpus"] is None
    assert topic["items"] == r["lost"]["after"]
    assert topic["n"] <= topic["of"] <= r["flips"]["after"]["lost"] + r["flips"]["after"]["kept"]
    assert results(other, "other", encoder=lambda: None)["lost_topics"] is None
    assert results(other, "other")["lost_topics"] is None


def test_the_thresholds_fit_the_embedded_encoder() -> None:
    """Questions of one relation are one topic for all-MiniLM-L6-v2, those of two are not, and a question for many
    capitals covers most questions for one."""
    from regrow.models.embed import load_encoder

    lands = (("France", "Paris"), ("Peru", "Lima"), ("Japan", "Tokyo"), ("Kenya", "Nairobi"), ("Norway", "Oslo"))
    pairs = {
        "capital": lands,
        "chemical symbol": (("sodium", "Na"), ("iron", "Fe"), ("gold", "Au"), ("tin", "Sn")),
        "past tense": (("go", "went"), ("see", "saw"), ("take", "took")),
    }
    asked = [f"What is the {kind} of {of}? {answer}" for kind, found in pairs.items() for of, answer in found]
    grown = ["What are the capitals of the countries of Africa?", "How do I bake bread?"]
    x = load_encoder().encode([*asked, *grown])
    assert group(x[:12]) == [[0, 1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]]
    covered = x[:12] @ x[12:].T >= NEAR
    assert covered[:5, 0].sum() >= 4 and not covered[5:].any() and not covered[:, 1].any()
