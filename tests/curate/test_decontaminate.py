from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from regrow.curate.decontaminate import BOILERPLATE_ITEMS, EmbeddingIndex, NgramIndex, probes, row_probes
from regrow.evaluate.items import Item
from regrow.rows.row import Row

LONG = (
    "A farmer in the north of the country keeps nine sheep, four goats and a very old horse that no longer works. "
    "How many of his animals have wool?"
)


def answer(item_id: str, question: str, said: str) -> Item:
    return Item(item_id, "facts", "countries", "answer", [{"role": "user", "content": question}], answers=[said])


ITEMS = [
    answer("capital", "What is the capital of Mongolia?", "Ulaanbaatar"),
    answer("farm", LONG, "Nine"),
    Item("hot", "facts", "science", "choice", [{"role": "user", "content": "Boiling point?"}],
         choices=["90 degrees Celsius", "100 degrees Celsius"], answer_index=1),
]  # fmt: skip


def hit(text: str, items: Sequence[Item] = ITEMS, ngram: int = 13, rows: Sequence[Row] = ()) -> str | None:
    found = NgramIndex([*probes(items), *row_probes(rows)], ngram).find(text)
    return found.item_id if found else None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("What is the capital of Mongolia?", "capital"),
        ("tell me: WHAT is -- the Capital, of   mongolia", "capital"),
        ("What is the capital of Mongolia?\nUlaanbaatar", "capital"),
        ("What is the capital of Mali?", None),
        ("Mongolia is large and its capital is Ulaanbaatar.", None),
        (f"Here is a riddle. {LONG.upper()} Think.", "farm"),
        ("a farmer in the north of the country keeps nine sheep four goats and two dogs", "farm"),
        ("a farmer in the north of the country keeps nine sheep, two dogs and a cat in his old house", None),
        ("Boiling point?", "hot"),
        ("What is meant by boiling point? Explain.", None),
        ("boiling point: 100 degrees celsius", "hot"),
        ("", None),
    ],
)
def test_planted_overlaps_are_found_and_clean_texts_stay(text: str, wanted: str | None) -> None:
    assert hit(text) == wanted


def test_evidence_names_the_words_and_the_share() -> None:
    found = NgramIndex(probes(ITEMS), 13).find(f"Well: {LONG}")
    assert found is not None
    assert found.suite == "facts"
    assert found.evidence["ngram"].startswith("a farmer in the north")
    assert found.evidence["overlap"] == 1.0


def test_ngram_length_is_used() -> None:
    text = "a farmer in the north of the country keeps two dogs"
    assert hit(text, ngram=13) is None
    assert hit(text, ngram=8) == "farm"


def test_a_suites_template_is_no_item() -> None:
    template = (
        "Read the passage below with care and then choose the one letter that is right for the question about {}"
    )
    items = [
        answer(f"q{i}", template.format(f"subject number {i}"), f"letter {i}") for i in range(BOILERPLATE_ITEMS + 5)
    ]
    other = template.format("a wholly different thing")
    assert hit(other, items) is None
    assert hit(other, items[:BOILERPLATE_ITEMS]) is not None
    assert hit(template.format("subject number 3"), items) == "q3"


def test_your_questions_count_as_items() -> None:
    row = Row("mine-7", [{"role": "user", "content": "How do I reset the blue pump?"},
                         {"role": "assistant", "content": "Hold the two upper buttons."}])  # fmt: skip
    assert hit("How do I reset the blue pump", rows=[row]) == "mine-7"
    assert hit("How do I reset the blue pump") is None


class FakeEncoder:
    """Two texts are alike by the share of the same words."""

    def encode(self, texts: Sequence[str], *, batch_size: int = 64, progress: Any = None) -> np.ndarray:
        import zlib

        out = np.zeros((len(texts), 512), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                out[row, zlib.crc32(word.encode()) % 512] += 1
        return out / np.linalg.norm(out, axis=1, keepdims=True)


def test_embedding_compares_questions_with_questions() -> None:
    encoder = FakeEncoder()
    index = EmbeddingIndex(probes(ITEMS), encoder, 0.99)
    same = encoder.encode(["of Mongolia? capital the is What", "something else entirely"])
    question, other = index.find(same, "question")
    assert question is not None and question.item_id == "capital" and question.evidence["similarity"] >= 0.99
    assert other is None
    assert index.find(same, "answered")[0] is None
    assert EmbeddingIndex([], encoder, 0.9).find(same, "question") == [None, None]


@pytest.fixture(scope="module")
def minilm():
    from regrow.models.embed import load_encoder

    return load_encoder("minilm")


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("Which city is the capital of Mongolia?", "capital"),
        ("Can you tell me what Mongolia's capital city is?", "capital"),
        ("What is the capital of Mali?", None),
        ("Which animals live in the steppes of Mongolia?", None),
        ("How do I bake bread without yeast?", None),
    ],
)
def test_the_sentence_encoder_finds_paraphrases(minilm, question: str, wanted: str | None) -> None:
    from regrow.curate.config import CurateConfig

    threshold = CurateConfig().embedding_threshold
    assert threshold is not None
    [found] = EmbeddingIndex(probes(ITEMS), minilm, threshold).find(minilm.encode([question]), "question")
    assert (found.item_id if found else None) == wanted
