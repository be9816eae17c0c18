"""The OpenVINO GenAI engine: continuous batching with paged attention on a CPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from regrow.engines.base import Completion, EngineInfo, Finish, Request, Score, ScoreRow
from regrow.engines.memory import GIB, default_budget
from regrow.engines.stopping import check_request, completion
from regrow.engines.weights import gguf_file
from regrow.errors import EngineError, MissingExtra

if TYPE_CHECKING:
    from regrow.models.config import Dtype
    from regrow.models.load import ResolvedModel

IR_FILE = "openvino_model.xml"
_BATCH = 128
_STEP_TOKENS = 4096
"""Prompt and new tokens in one step of the scheduler."""
_FAITHFUL = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
}
"""Arithmetic in float32, activations and caches not quantised to 8 bits. With the plugin's defaults (bfloat16 where
the CPU has it, 8-bit activations and caches) the error of the log-probabilities is more than twice that of Q8_0
weights alone, and with 8-bit caches the other requests in the batch change what is sampled."""


def can_read(model: ResolvedModel) -> bool:
    """Whether there is something OpenVINO could read: an OpenVINO folder, or a GGUF to take the vocabulary from."""
    return (model.path / IR_FILE).is_file() or model.gguf is not None


class OpenVinoEngine:
    """Samples with OpenVINO GenAI's ``ContinuousBatchingPipeline``; raw token ids in, sampled token ids out.

    Weights. What OpenVINO makes of a 4-bit GGUF is another model: for SmolLM2 in Q4_1 its log-probabilities were off
    by 0.9 nats (root mean square over sampled tokens) from the same file read by transformers. So the engine never
    runs such a file. It writes the model folder's weights anew as Q8_0 (off by 0.05 to 0.07 nats) or F16 (0.002 nats)
    and keeps that file in the cache. A folder that holds ``openvino_model.xml`` is used as it is.

    Randomness. Each request has a generator of its own (Mersenne twister, 32-bit seed) seeded from ``request.seed``;
    its ``n`` continuations take turns drawing from it. What else is in the batch does not enter, except by rounding
    (see `regrow.engines.hf.TransformersEngine`). With both ``top_p`` and ``top_k`` OpenVINO applies ``top_p`` first;
    the transformers engine applies ``top_k`` first.

    Scheduling. At most ``batch_size`` sequences are in flight; a request enters as soon as its continuations fit.
    Blocks of the key-value cache are shared by requests with a common beginning.

    Args:
        model: What to run.
        dtype: ``auto`` is Q8_0 weights, ``float32`` (and ``bfloat16``) F16 weights, which is slower. Arithmetic is in
            float32 in both.
        batch_size: Most sequences at once; default 128.
        memory_gib: For the key-value cache; default a quarter of the free memory, at most 4.

    Raises:
        MissingExtra: openvino-genai is not installed.
        EngineError: OpenVINO cannot read the model.
    """

    info: EngineInfo

    def __init__(
        self,
        model: ResolvedModel,
        *,
        dtype: Dtype = "auto",
        batch_size: int | None = None,
        memory_gib: float | None = None,
    ) -> None:
        try:
            import openvino_genai as genai
        except ImportError as error:
            raise MissingExtra("openvino-genai", "demo", "the openvino engine") from error
        import torch
        from transformers import AutoConfig

        from regrow.models.load import load_tokenizer

        config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        self._context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
        self._tokenizer = load_tokenizer(model.path, trust_remote_code=model.trust_remote_code)
        self._batch_size = batch_size or _BATCH
        source, form = model_file(model, "q8_0" if dtype == "auto" else "f16")
        scheduler = genai.SchedulerConfig()
        memory = memory_gib * GIB if memory_gib else default_budget(torch.device("cpu"))
        scheduler.cache_size = max(1, int(memory // GIB))
        scheduler.max_num_seqs = self._batch_size
        scheduler.max_num_batched_tokens = _STEP_TOKENS
        scheduler.enable_prefix_caching = True
        self._genai = genai
        try:
            self._pipeline: Any = genai.ContinuousBatchingPipeline(str(source), scheduler, "CPU", dict(_FAITHFUL))
        except RuntimeError as error:
            kind = " ".join(config.architectures or [config.model_type])
            last = str(error).strip().splitlines()[-1]
            raise EngineError(
                f"OpenVINO cannot read this {kind}: {last}", where=str(source), hint="engine: transformers"
            ) from error
        self._next_id = 0
        version = str(genai.__version__).split("-", 1)[0]
        self.info = EngineInfo("openvino", version, model.name, model.revision, form, True, False)

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        """See `regrow.engines.base.Engine.sample`."""
        if self._pipeline is None:
            raise EngineError("the openvino engine is closed")
        for request in requests:
            check_request(request, self._context)
        return self._sample(requests)

    def _sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        order = sorted(range(len(requests)), key=lambda i: (requests[i].key, i))
        queue = deque(order)
        flying: dict[int, Any] = {}
        try:
            while queue or flying:
                busy = sum(requests[i].n for i in flying)
                while queue and (not flying or busy + requests[queue[0]].n <= self._batch_size):
                    i = queue.popleft()
                    r = requests[i]
                    if r.n == 0 or r.params.max_new_tokens == 0:
                        yield i, [Completion([], "", "length", np.zeros(0, np.float32)) for _ in range(r.n)]
                        continue
                    flying[i] = self._send(r)
                    busy += r.n
                if flying:
                    self._pipeline.step()
                for i, handle in list(flying.items()):
                    if handle.get_status() != self._genai.GenerationStatus.RUNNING:
                        del flying[i]
                        yield i, self._read(requests[i], handle)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed: {str(error).strip().splitlines()[-1]}") from error
        finally:
            self._drop(flying)

    def _drop(self, flying: dict[int, Any]) -> None:
        """Take unfinished requests out of the pipeline, so that the next call starts with an empty batch."""
        if not flying or self._pipeline is None:
            return
        for handle in flying.values():
            handle.cancel()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()

    def _send(self, request: Request) -> Any:
        import openvino

        p = request.params
        g = self._genai.GenerationConfig()
        g.apply_chat_template = False
        g.max_new_tokens = p.max_new_tokens
        if p.stop_token_ids:
            g.stop_token_ids = set(p.stop_token_ids)
            g.eos_token_id = p.stop_token_ids[0]  # left open, it becomes the model's own end token
        else:
            g.ignore_eos = True  # this would switch stop_token_ids off as well
        g.stop_strings = set(p.stop_strings)
        g.include_stop_str_in_output = True
        g.logprobs = 1
        g.do_sample = p.temperature > 0
        if g.do_sample:
            g.num_return_sequences = request.n
            g.temperature = p.temperature
            g.top_p = p.top_p
            if p.top_k:
                g.top_k = p.top_k
            g.rng_seed = (request.seed ^ (request.seed >> 32)) & 0xFFFF_FFFF
        self._next_id += 1
        ids = openvino.Tensor(np.array([request.prompt_ids], dtype=np.int64))
        return self._pipeline.add_request(self._next_id, ids, g)

    def _read(self, request: Request, handle: Any) -> list[Completion]:
        if handle.get_status() != self._genai.GenerationStatus.FINISHED:
            raise EngineError(
                "OpenVINO gave the request up: its sequences do not fit the key-value cache",
                where=f"request {request.key}",
                hint="more memory_gib, or fewer siblings at once",
            )
        found = [self._one(request, output) for output in handle.read_all()]
        if request.params.temperature == 0:
            found = [Completion(list(c.token_ids), c.text, c.finish, c.logprobs) for c in found * request.n]
        if len(found) != request.n:
            raise EngineError(
                f"OpenVINO returned {len(found)} of {request.n} sequences", where=f"request {request.key}"
            )
        return found

    def _one(self, request: Request, output: Any) -> Completion:
        ids, logprobs = list(output.generated_ids), list(output.generated_log_probs)
        stopped = output.finish_reason == self._genai.GenerationFinishReason.STOP
        finish: Finish = "stop" if stopped else "length"
        if ids and ids[-1] in request.params.stop_token_ids:
            ids, logprobs, finish = ids[:-1], logprobs[:-1], "stop"
        return completion(self._tokenizer, ids, finish, logprobs, stop_strings=request.params.stop_strings)

    def score(self, rows: Sequence[ScoreRow], top_k: int = 0) -> Iterator[Score]:
        """Always refused: the pipeline returns no probabilities of given tokens.

        Raises:
            EngineError: Score with the transformers engine.
        """
        raise EngineError("the openvino engine cannot score given tokens", hint="score with engine: transformers")

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._pipeline = None


def model_file(model: ResolvedModel, quant: Literal["f16", "q8_0"]) -> tuple[Path, str]:
    """The file or folder OpenVINO is to read, written into the cache when it is not there yet.

    Args:
        model: The resolved model.
        quant: ``q8_0`` or ``f16``, when a GGUF is written.

    Returns:
        The path, and what its weights are: ``q8_0``, ``f16`` or ``openvino``.

    Raises:
        EngineError: The model can be written neither way.
    """
    if (model.path / IR_FILE).is_file():
        return model.path, "openvino"
    return gguf_file(model, quant, "OpenVINO"), quant
