"""The sentence encoder, on the real all-MiniLM-L6-v2 out of its package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regrow.errors import ModelError
from regrow.models.embed import Encoder, load_encoder

TEXTS = [
    "How do I bake bread?",
    "What is a good recipe for a loaf?",
    "Who won the football match last night?",
    "The derivative of x squared is two x.",
    "",
    "word " * 600,
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder()


def test_shape_and_length(encoder: Encoder) -> None:
    out = encoder.encode(TEXTS)
    assert out.shape == (len(TEXTS), 384) == (len(TEXTS), encoder.dimension)
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-5)
    assert encoder.encode([]).shape == (0, 384)


def test_like_is_near_like(encoder: Encoder) -> None:
    a, b, c, *_ = encoder.encode(TEXTS)
    assert a @ b > 0.6 > a @ c


def test_against_the_published_recipe(encoder: Encoder) -> None:
    """The usage code of the model's own card, one text at a time: mean over tokens, then normalised."""
    import torch

    for text, row in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        batch = encoder._tokenizer([text], truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            states = encoder._model(**batch)[0][0]
        mean = states.mean(0)
        np.testing.assert_allclose(row, (mean / mean.norm()).numpy(), atol=1e-5)


def test_order_and_batch_size_do_not_matter(encoder: Encoder) -> None:
    whole = encoder.encode(TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1])[::-1], whole, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=1), whole, atol=1e-5)
    assert np.array_equal(encoder.encode(TEXTS), whole), "and twice the same is bit-equal"


def test_progress_counts_texts(encoder: Encoder) -> None:
    seen: list[int] = []
    encoder.encode(TEXTS, batch_size=4, progress=seen.append)
    assert seen == [4, 2]


def test_loading_an_encoder_draws_no_bar_of_another_library(
    tiny_model_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    load_encoder(tiny_model_dir)
    assert "Loading weights" not in capfd.readouterr().err


def test_any_folder(tiny_model_dir: Path) -> None:
    out = load_encoder(tiny_model_dir).encode(["a", "bb", "a"])
    assert out.shape == (3, 64)
    np.testing.assert_allclose(out[0], out[2], atol=1e-6)


def test_no_encoder() -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        load_encoder("./nothing")
