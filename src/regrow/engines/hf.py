"""The transformers engine: batched sampling and scoring in this process, on CPU or CUDA."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from regrow.engines.base import Completion, EngineInfo, Finish, Request, SampleParams, Score, ScoreRow
from regrow.engines.draws import draw, uniforms
from regrow.engines.kv import BatchCache
from regrow.engines.memory import GIB, default_budget
from regrow.engines.scoring import score_rows
from regrow.engines.stopping import check_request, completion, ends_with_stop
from regrow.errors import EngineError

if TYPE_CHECKING:
    from regrow.models.config import Dtype
    from regrow.models.load import ResolvedModel

_PREFILL_TOKENS = 4096
"""Prompt tokens in one forward pass: enough to fill any arithmetic unit, little memory."""
_SHARED_PREFIX = 16
"""A common beginning of the prompts at least this long is computed once."""


@dataclass(slots=True)
class _Group:
    """Continuations ``first .. first + count`` of one request, admitted together."""

    request: int
    first: int
    count: int


@dataclass(slots=True)
class _Row:
    """A sequence in the decoding batch."""

    request: int
    index: int
    params: SampleParams
    position: int
    """Position id of the newest token."""
    draws: npt.NDArray[np.float64]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class TransformersEngine:
    """Samples and scores with a causal language model of transformers.

    Sampling. Requests are sorted by length. A prompt is prefilled once, whatever ``n``, and its cache copied to the
    siblings; the beginning that a wave's prompts have in common is prefilled once for all. All sequences decode as one
    batch; a finished one leaves at once and the batch shrinks. When a quarter of the places is free (or the batch is
    empty) the next prompts are prefilled and enter, so a long answer never holds the others up. A request whose ``n``
    exceeds the batch is admitted in parts.

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
    ) -> None:
        from regrow.models.load import load_model, load_tokenizer

        trust = model.trust_remote_code
        loaded = load_model(model.path, dtype=dtype, device=device, trust_remote_code=trust)
        tokenizer = load_tokenizer(model.path, trust_remote_code=trust)
        self._open(loaded, tokenizer, model.name, model.revision, batch_size, memory_gib)

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
    ) -> TransformersEngine:
        """An engine on a loaded ``PreTrainedModel`` (a model in training, a test's toy)."""
        engine = cls.__new__(cls)
        engine._open(model, tokenizer, name, revision, batch_size, memory_gib)
        return engine

    def _open(
        self, model: Any, tokenizer: Any, name: str, revision: str, batch_size: int | None, memory_gib: float | None
    ) -> None:
        self._model, self._tokenizer = model.eval(), tokenizer
        self._device: torch.device = model.device
        on_cuda = self._device.type == "cuda"
        text_config = model.config.get_text_config()
        self._context: int | None = getattr(text_config, "max_position_embeddings", None)
        self._vocabulary = int(text_config.vocab_size)
        self._decoder = model.get_decoder()
        self._head = model.get_output_embeddings()
        self._bytes_per_token, self._direct = self._probe()
        self._batch_size = batch_size or (256 if on_cuda else 128)
        self._memory = int(memory_gib * GIB) if memory_gib else default_budget(self._device)
        self.info = EngineInfo(
            name="transformers",
            version=transformers.__version__,
            model=name,
            revision=revision,
            dtype=str(model.dtype).removeprefix("torch."),
            gives_logprobs=True,
            can_score=True,
        )

    def _probe(self) -> tuple[int, bool]:
        """Bytes of cache a token, and whether the head is a plain matrix on the decoder's output.

        Some architectures scale or cap the logits after the head; for those every forward pass goes through the whole
        model.
        """
        ids = torch.tensor([[1, 2, 3]], device=self._device) % self._vocabulary
        with torch.inference_mode():
            typed = DynamicCache(config=self._model.config)
            logits = self._model(input_ids=ids, past_key_values=typed, use_cache=True).logits
            hidden = self._decoder(input_ids=ids, use_cache=False).last_hidden_state
            plain = self._head(hidden)
        if not all(isinstance(x, DynamicLayer) and x.keys is not None and x.keys.ndim == 4 for x in typed.layers):
            kinds = ", ".join(sorted({type(x).__name__ for x in typed.layers}))
            raise EngineError(
                f"{type(self._model).__name__} keeps a state the transformers engine cannot batch ({kinds})",
                hint="use an attention-only model",
            )
        size = sum((x.keys.numel() + x.values.numel()) * x.keys.element_size() for x in typed.layers) // 3
        return size, bool(torch.allclose(plain.float(), logits.float(), atol=1e-4, rtol=1e-4))

    # -- sampling ------------------------------------------------------------------------------------------------

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        """See `regrow.engines.base.Engine.sample`."""
        for request in requests:
            check_request(request, self._context)
        self._require_open()
        return self._sample(requests)

    def _sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        done: list[dict[int, Completion]] = [{} for _ in requests]
        work: list[int] = []
        for i, r in enumerate(requests):
            if r.n == 0 or r.params.max_new_tokens == 0:
                yield i, [Completion([], "", "length", np.zeros(0, np.float32)) for _ in range(r.n)]
            else:
                work.append(i)
        if not work:
            return
        longest = max(len(requests[i].prompt_ids) for i in work)
        width = max(len(requests[i].prompt_ids) + requests[i].params.max_new_tokens for i in work)
        places = self._places(longest, width)
        order = sorted(work, key=lambda i: (-len(requests[i].prompt_ids), requests[i].prompt_ids, requests[i].key, i))
        queue = deque(
            _Group(i, first, min(places, requests[i].n - first))
            for i in order
            for first in range(0, requests[i].n, places)
        )
        rows: list[_Row] = []
        cache: BatchCache | None = None
        prefix = _Prefix()
        while queue or rows:
            finished: list[tuple[_Row, Finish]] = []
            free = places - len(rows)
            if queue and (not rows or (free >= max(1, places // 4) and queue[0].count <= free)):
                cache = self._admit(requests, queue, free, rows, cache, finished, prefix, (places, longest, width))
            elif rows:
                assert cache is not None
                self._decode(rows, cache, finished)
            for row, finish in finished:
                r = requests[row.request]
                mine = done[row.request]
                mine[row.index] = completion(
                    self._tokenizer, row.ids, finish, row.logprobs, stop_strings=r.params.stop_strings
                )
                if len(mine) == r.n:
                    yield row.request, [mine[k] for k in range(r.n)]
                    done[row.request] = {}

    def _places(self, longest: int, width: int) -> int:
        """Sequences that fit the memory: their columns in the cache, and a few float32 copies of their logits."""
        columns = longest + width + width // 2
        one = columns * self._bytes_per_token + 6 * 4 * self._vocabulary
        return max(1, min(self._batch_size, self._memory // one))

    def _admit(
        self,
        requests: Sequence[Request],
        queue: deque[_Group],
        free: int,
        rows: list[_Row],
        cache: BatchCache | None,
        finished: list[tuple[_Row, Finish]],
        prefix: _Prefix,
        shape: tuple[int, int, int],
    ) -> BatchCache | None:
        """Prefill the next prompts, draw their first tokens, and let the sequences that go on enter the batch."""
        groups: list[_Group] = []
        tokens = 0
        while queue and queue[0].count <= free:
            length = len(requests[queue[0].request].prompt_ids)
            uneven = bool(groups) and length != len(requests[groups[0].request].prompt_ids)
            if groups and (tokens + length > _PREFILL_TOKENS or (uneven and not self._direct)):
                break
            free -= queue[0].count
            tokens += length
            groups.append(queue.popleft())
        prompts = [requests[g.request].prompt_ids for g in groups]
        logits, source = self._prefill(prompts, prefix)
        fresh: list[list[_Row]] = []
        for g in groups:
            r = requests[g.request]
            fresh.append(
                [
                    _Row(
                        g.request,
                        k,
                        r.params,
                        len(r.prompt_ids) - 1,
                        uniforms(r.seed, k, r.params.max_new_tokens),
                    )
                    for k in range(g.first, g.first + g.count)
                ]
            )
        counts = torch.tensor([g.count for g in groups], device=logits.device)
        flat = [row for batch in fresh for row in batch]
        ends = self._step(flat, logits.repeat_interleave(counts, dim=0))
        finished += [(row, end) for row, end in zip(flat, ends, strict=True) if end]
        going = {id(row) for row, end in zip(flat, ends, strict=True) if end is None}
        for place, batch in enumerate(fresh):
            stay = [row for row in batch if id(row) in going]
            if not stay:
                continue
            if cache is None:
                cache = BatchCache(source, *shape)
            cache.add(source, place, len(prompts[place]), len(stay))
            rows += stay
        return cache

    def _prefill(self, prompts: list[tuple[int, ...]], prefix: _Prefix) -> tuple[torch.Tensor, Cache]:
        """Run the prompts; right-padded, which a causal model cannot see.

        Returns:
            float32 logits ``(prompts, vocabulary)`` after each one's last token, and their cache.
        """
        shared = _common(prompts)
        cache = DynamicCache()
        with torch.inference_mode():
            if shared:
                if prefix.ids != prompts[0][:shared]:
                    prefix.ids, prefix.cache = prompts[0][:shared], DynamicCache()
                    head = torch.tensor([prefix.ids], device=self._device)
                    self._decoder(input_ids=head, past_key_values=prefix.cache, use_cache=True)
                assert prefix.cache is not None
                for i, layer in enumerate(prefix.cache.layers):
                    many = (len(prompts), -1, -1, -1)
                    cache.update(layer.keys.expand(many), layer.values.expand(many), i)
            longest = max(len(p) for p in prompts) - shared
            ids = np.zeros((len(prompts), longest), dtype=np.int64)
            for i, p in enumerate(prompts):
                ids[i, : len(p) - shared] = p[shared:]
            inputs = {
                "input_ids": torch.from_numpy(ids).to(self._device),
                "past_key_values": cache,
                "use_cache": True,
            }
            if self._direct:
                hidden = self._decoder(**inputs).last_hidden_state
                last = torch.tensor([len(p) - shared - 1 for p in prompts], device=self._device)
                return self._head(hidden[torch.arange(len(prompts), device=self._device), last]).float(), cache
            return self._model(**inputs, logits_to_keep=1).logits[:, -1].float(), cache

    def _decode(self, rows: list[_Row], cache: BatchCache, finished: list[tuple[_Row, Finish]]) -> None:
        """One token for every row; those that end leave the batch."""
        with torch.inference_mode():
            inputs = {
                "input_ids": torch.tensor([[row.ids[-1]] for row in rows], device=self._device),
                "position_ids": torch.tensor([[row.position] for row in rows], device=self._device),
                "attention_mask": cache.mask(),
                "past_key_values": cache,
                "use_cache": True,
            }
            if self._direct:
                logits = self._head(self._decoder(**inputs).last_hidden_state[:, -1]).float()
            else:
                logits = self._model(**inputs).logits[:, -1].float()
        cache.advance()
        ends = self._step(rows, logits)
        for place in range(len(rows) - 1, -1, -1):
            end = ends[place]
            if end:
                finished.append((rows[place], end))
                cache.remove(place)
                rows[place] = rows[-1]
                rows.pop()

    def _step(self, rows: list[_Row], logits: torch.Tensor) -> list[Finish | None]:
        """Draw a token for each row and say which rows end with it."""
        if logits.device.type == "mps":  # has no float64
            logits = logits.cpu()
        tokens = np.zeros(len(rows), dtype=np.int64)
        logprobs = np.zeros(len(rows), dtype=np.float32)
        by_params: dict[SampleParams, list[int]] = {}
        for i, row in enumerate(rows):
            by_params.setdefault(row.params, []).append(i)
        with torch.inference_mode():
            for params, places in by_params.items():
                u = torch.tensor([rows[i].draws[len(rows[i].ids)] for i in places], dtype=torch.float64)
                mine = logits if len(places) == len(rows) else logits[torch.tensor(places, device=logits.device)]
                drawn, lp = draw(mine, u.to(logits.device), params)
                tokens[places] = drawn.cpu().numpy()
                logprobs[places] = lp.cpu().numpy()
        ends: list[Finish | None] = []
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            if token in row.params.stop_token_ids:
                ends.append("stop")
                continue
            row.ids.append(token)
            row.logprobs.append(logprob)
            row.position += 1
            if ends_with_stop(self._tokenizer, row.ids, row.params.stop_strings):
                ends.append("stop")
            else:
                ends.append("length" if len(row.ids) == row.params.max_new_tokens else None)
        return ends

    # -- scoring -------------------------------------------------------------------------------------------------

    def score(self, rows: Sequence[ScoreRow], top_k: int = 0) -> Iterator[Score]:
        """See `regrow.engines.base.Engine.score`."""
        self._require_open()
        return score_rows(
            self._model,
            rows,
            top_k,
            head=self._head if self._direct else None,
            context=self._context,
            vocabulary=self._vocabulary,
            memory=self._memory,
        )

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._model = self._decoder = self._head = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _require_open(self) -> None:
        if self._model is None:
            raise EngineError("the transformers engine is closed")


@dataclass(slots=True)
class _Prefix:
    """The common beginning of the last wave's prompts, and its cache."""

    ids: tuple[int, ...] = ()
    cache: DynamicCache | None = None


def _common(prompts: list[tuple[int, ...]]) -> int:
    """Length of the beginning all prompts share, leaving each at least one token; 0 when not worth it."""
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)
    length = 0
    for a, b in zip(low[:-1], high, strict=False):
        if a != b:
            break
        length += 1
    length = min(length, *(len(p) - 1 for p in prompts))
    return length if length >= _SHARED_PREFIX else 0
