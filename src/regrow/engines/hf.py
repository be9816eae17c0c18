"""The transformers engine: batched sampling and scoring in this process, on CPU or CUDA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from regrow.engines.base import Completion, EngineInfo, EngineStats, Request, Score, ScoreRow
from regrow.engines.decoding import Decoding, Room
from regrow.engines.kv import BatchCache
from regrow.engines.memory import GIB, default_budget
from regrow.engines.network import Network
from regrow.engines.prefixes import PrefixStore
from regrow.engines.scoring import score_rows
from regrow.engines.stopping import check_request
from regrow.errors import EngineError

if TYPE_CHECKING:
    from regrow.models.config import Dtype
    from regrow.models.load import ResolvedModel

_WAVE_SHARE, _PREFIX_SHARE = 1 / 8, 1 / 4
"""Of the memory: for the caches of prompts on their way into the batch, and what kept prefixes have for certain."""
_CROWDED = 0.75
"""Filled so far, the kept prefixes leave too little for a whole batch more."""


class TransformersEngine:
    """Samples and scores with a causal language model of transformers.

    Sampling. Requests are sorted by length. A prompt is prefilled once, whatever ``n``, and its cache copied to the
    siblings; what several prompts of a wave begin with is prefilled once for all. All sequences decode as one batch; a
    finished one leaves at once and the batch shrinks. When a quarter of the places is free (or the batch is empty) the
    next prompts are prefilled and enter, so a long answer never holds the others up. A request whose ``n`` exceeds the
    batch is admitted in parts.

    Prefixes. The caches of prompts and completions that a request says may come again (`Request.keep`) stay, and a
    prompt that begins with them is run from there on: a tree's paths are prefilled once, in the tokens that were not
    sampled (markers) alone. Whoever grows says what goes on (`retain`). They share the memory with the batch, which
    leaves them at least a quarter; what does not fit is thrown away, the least recently used first, and run again.

    Randomness. Each continuation owns a stream keyed with ``(request.seed, index)`` and consumes one uniform a token,
    so the draws do not depend on the batch. The probabilities do, by rounding: matrix kernels sum in another order for
    another batch shape (about 1e-6 in float32, 1e-2 in bfloat16), and a uniform that falls that close to the edge
    between two tokens picks the other one. In float32 that is rare; in bfloat16 expect it in a long text.

    Args:
        model: What to load.
        dtype: ``float32``, ``bfloat16`` or ``auto`` (bfloat16 on CUDA, else float32).
        device: ``cpu``, ``cuda``, ``cuda:1`` ... or ``auto``.
        batch_size: Most sequences at once; None picks 128 on CPU, 256 on CUDA. Memory can make it fewer.
        memory_gib: For caches and logits, beside the weights; None takes a quarter of the free memory and at most
            4 GiB on CPU, half of the free memory on CUDA.
        reuse: Keep prefixes. Off, every prompt is run whole; the answers are the same up to rounding.

    Raises:
        ModelError: The model cannot be loaded.
        EngineError: Its architecture keeps a state that is not a key-value cache.
    """

    info: EngineInfo

    def __init__(
        self,
        model: ResolvedModel,
        *,
        dtype: Dtype = "auto",
        device: str = "auto",
        batch_size: int | None = None,
        memory_gib: float | None = None,
        reuse: bool = True,
    ) -> None:
        from regrow.models.load import load_model, load_tokenizer

        trust = model.trust_remote_code
        loaded = load_model(model.path, dtype=dtype, device=device, trust_remote_code=trust)
        tokenizer = load_tokenizer(model.path, trust_remote_code=trust)
        self._open(loaded, tokenizer, model.name, model.revision, batch_size, memory_gib, reuse)

    @classmethod
    def from_model(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "in-memory",
        revision: str = "",
        batch_size: int | None = None,
        memory_gib: float | None = None,
        reuse: bool = True,
    ) -> TransformersEngine:
        """An engine on a loaded ``PreTrainedModel`` (a model in training, a test's toy)."""
        engine = cls.__new__(cls)
        engine._open(model, tokenizer, name, revision, batch_size, memory_gib, reuse)
        return engine

    def _open(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        revision: str,
        batch_size: int | None,
        memory_gib: float | None,
        reuse: bool,
    ) -> None:
        self._model, self._tokenizer = model.eval(), tokenizer
        self._network = Network(model)
        device = self._network.device
        self._context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._batch_size = batch_size or (256 if device.type == "cuda" else 128)
        self._memory = int(memory_gib * GIB) if memory_gib else default_budget(device)
        self._reuse, self._prefixes, self.stats = reuse, PrefixStore(), EngineStats()
        self.info = EngineInfo(
            name="transformers",
            version=transformers.__version__,
            model=name,
            revision=revision,
            dtype=str(model.dtype).removeprefix("torch."),
            gives_logprobs=True,
            can_score=True,
        )

    # -- sampling ------------------------------------------------------------------------------------------------

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        """See `regrow.engines.base.Engine.sample`."""
        for request in requests:
            check_request(request, self._context)
        self._require_open()
        return self._sample(requests)

    def _sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        work: list[int] = []
        for i, r in enumerate(requests):
            if r.n == 0 or r.params.max_new_tokens == 0:
                yield i, [Completion([], "", "length", np.zeros(0, np.float32)) for _ in range(r.n)]
            else:
                work.append(i)
        if not work:
            return
        work.sort(key=lambda i: (-len(requests[i].prompt_ids), requests[i].prompt_ids, requests[i].key, i))
        asked = [requests[i] if self._reuse else replace(requests[i], keep="nothing") for i in work]
        decoding = Decoding(self._network, self._tokenizer, asked, self._prefixes, self.stats, self._room(asked))
        for index, completions in decoding.run():
            yield work[index], completions

    def _room(self, requests: Sequence[Request]) -> Room:
        """Share the memory out: the batch, a wave of prompts, and what is left for prefixes."""
        longest = max(len(r.prompt_ids) for r in requests)
        width = max(len(r.prompt_ids) + r.params.max_new_tokens for r in requests)
        kept = any(r.keep != "nothing" for r in requests)
        places = min(self._places(width, _PREFIX_SHARE if kept else 0.0), sum(r.n for r in requests))
        wave = int(self._memory * _WAVE_SHARE)
        self._prefixes.resize(self._memory - wave - places * self._place_bytes(width))
        return Room(places, longest, width, wave // self._network.layout.bytes_per_token)

    def _place_bytes(self, width: int) -> int:
        """A sequence's columns in the cache, and a few float32 copies of its logits."""
        columns = BatchCache.columns_for(width)
        return columns * self._network.layout.bytes_per_token + 6 * 4 * self._network.vocabulary

    def _places(self, width: int, prefix_share: float = 0.0) -> int:
        """Sequences of ``width`` tokens that fit the memory."""
        memory = self._memory * (1 - _WAVE_SHARE - prefix_share)
        return max(1, min(self._batch_size, int(memory / self._place_bytes(width))))

    # -- prefixes ------------------------------------------------------------------------------------------------

    def retain(self, key: str, prompt_ids: Sequence[int], continued: Sequence[Sequence[int]]) -> None:
        """See `regrow.engines.base.KeepsPrefixes.retain`."""
        self._prefixes.retain(key, prompt_ids, continued)

    def crowded(self) -> bool:
        """See `regrow.engines.base.KeepsPrefixes.crowded`."""
        return self._prefixes.bytes > _CROWDED * self._prefixes.limit

    def forget(self) -> None:
        """See `regrow.engines.base.KeepsPrefixes.forget`."""
        self._prefixes.clear()

    # -- scoring -------------------------------------------------------------------------------------------------

    def score(self, rows: Sequence[ScoreRow], top_k: int = 0) -> Iterator[Score]:
        """See `regrow.engines.base.Engine.score`."""
        self._require_open()
        return score_rows(
            self._model,
            rows,
            top_k,
            head=self._network.head if self._network.direct else None,
            context=self._context,
            vocabulary=self._network.vocabulary,
            memory=max(0, self._memory - self._prefixes.bytes),
        )

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._prefixes.clear()
        self._model = self._network = None  # type: ignore[assignment]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _require_open(self) -> None:
        if self._model is None:
            raise EngineError("the transformers engine is closed")
