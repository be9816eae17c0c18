"""The n-gram model against values by hand, and what is kept by it."""

from __future__ import annotations

import math

import pytest

from regrow.errors import DataError, RecipeError
from regrow.recipe import parse_recipe
from regrow.rows.quality import END, START, NGramModel, best, words
from regrow.rows.row import Row


def test_probabilities_by_hand():
    model = NGramModel(["a b", "a c"])
    # Words a, b, c, the end, and one for unknown: 5. Unigrams: a 2, b 1, c 1, end 2 of 6, four different.
    assert model.vocabulary == 5
    unigram_a = (2 + 4 / 5) / (6 + 4)
    assert model.probability("a", []) == pytest.approx(unigram_a)
    # After <s>: a twice, one word.
    after_start = (2 + 1 * unigram_a) / (2 + 1)
    assert model.probability("a", [START]) == pytest.approx(after_start)
    assert model.probability("a", [START, START]) == pytest.approx((2 + after_start) / 3)
    unigram_b = (1 + 4 / 5) / 10
    after_a = (1 + 2 * unigram_b) / (2 + 2)
    assert model.probability("b", ["a"]) == pytest.approx(after_a)
    assert model.probability("b", [START, "a"]) == pytest.approx((1 + 2 * after_a) / 4)
    assert model.probability("b", ["never", "seen"]) == pytest.approx(unigram_b)


@pytest.mark.parametrize("history", [[], [START, START], ["the", "cat"], ["never", "cat"], ["never", "seen"]])
def test_probabilities_add_up_to_one(history):
    texts = ["The cat sat on the mat.", "The cat ran; the dog sat."]
    model = NGramModel(texts)
    known = {w for t in texts for w in words(t)} | {END}
    assert math.fsum(model.probability(w, history) for w in [*known, "unknown"]) == pytest.approx(1)


def test_loss_is_the_mean_over_words_and_the_end():
    model = NGramModel(["a b", "a c"])
    p = [
        model.probability("a", [START, START]),
        model.probability("b", [START, "a"]),
        model.probability(END, ["a", "b"]),
    ]
    assert model.loss("A b") == pytest.approx(-sum(map(math.log, p)) / 3)


def rows(*answers: str) -> list[Row]:
    return [
        Row(id=str(i), messages=[{"role": "user", "content": "zzz?"}, {"role": "assistant", "content": a}])
        for i, a in enumerate(answers)
    ]


def test_what_reads_like_the_reference_is_kept_in_its_order():
    model = NGramModel(["The river carries sand to the sea.", "The sea carries ships."])
    mine = rows("BUY NOW!!! click", "The river carries ships.", "lorem ipsum dolor", "The sea carries sand.")
    assert [r.id for r in best(mine, model, 0.5)] == ["1", "3"]
    assert [r.id for r in best(mine, model, 0.01)] == ["1"] and len(best(mine, model, 1.0)) == 4


def test_an_empty_reference_is_refused():
    with pytest.raises(DataError, match="no words"):
        NGramModel(["", "  "])


def test_keep_needs_a_reference():
    with pytest.raises(RecipeError, match="needs a reference"):
        parse_recipe("data: {quality: {keep: 0.3}}")
