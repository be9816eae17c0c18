"""What the servers that speak the completions API have in common and where they differ: requests and replies.

Every server adds fields of its own to ``POST /v1/completions`` and has defaults of its own that are not the model's
distribution (penalties, ``min_p``, filters in another order). So the kind of server is found out first, by the
``owned_by`` of ``GET /v1/models``, and each kind is told explicitly to sample from the model and nothing else.

What is known of each, and where from:

- vLLM 0.32 (tests against its CPU build, and its source): token ids in and out (``return_token_ids``); ``n`` with
  a seed of its own for each sibling; ``ignore_eos`` leaves the stops to ``stop_token_ids``; log-probabilities are of
  the raw logits unless it was started with another ``--logprobs-mode``.
- llama.cpp (tests against the version in llama-cpp-python 0.3.36, and its source): asked at ``/completion``, its own
  name for raw completions, because ``/v1/completions`` returns neither token ids nor, for characters made of several
  tokens, all log-probabilities. ``n`` is at most its number of slots. Its default order of filters is not ours, so
  ``samplers`` states it. It always stops at every end-of-generation token of its file: ``ignore_eos`` would forbid
  them, which is another distribution. Log-probabilities are of the raw logits.
- SGLang (source): token ids in and out; ``top_k`` off is -1; ``ignore_eos`` would switch ``stop_token_ids`` off too;
  honours ``seed`` with ``--enable-deterministic-inference`` only; divides by the temperature before it takes
  log-probabilities unless ``SGLANG_RETURN_ORIGINAL_LOGPROB=1``.
- Ollama (source): text only, wraps the prompt into its template, and keeps ``top_k``, ``min_p`` and
  ``repeat_penalty`` of the Modelfile; see the docs for a Modelfile that does neither.
- TGI (source): text only, one completion a request, no ``top_k``, ``top_p`` below 1 only.
- anything else gets OpenAI's own fields.

`regrow.engines.asking` does not rely on this for what can be asked: whether token ids are taken and given, whether
``n`` works, and whether log-probabilities are those of temperature 1, is tried on the server itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regrow.engines.base import Finish, SampleParams

_FINISH: dict[str, Finish] = {
    "stop": "stop", "eos": "stop", "eos_token": "stop", "stop_sequence": "stop", "word": "stop",
    "length": "length", "limit": "length", "max_tokens": "length",
}  # fmt: skip


class Malformed(ValueError):
    """A reply that is not what the API promises."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation as the server gave it.

    Attributes:
        text: Without what stopped it.
        token_ids: With the stop token where the server counts it; None when it gives none.
        logprobs: One for each of ``token_ids``; NaN where the server left one out. None when it gives none.
        top: The likeliest first tokens, as the server names them, and their log-probabilities.
    """

    text: str
    finish: Finish
    token_ids: list[int] | None
    logprobs: list[float] | None
    top: dict[str, float]


@dataclass(frozen=True, slots=True)
class Reply:
    """Choices in order, and how many tokens the server counted in the prompt."""

    choices: list[Choice]
    prompt_tokens: int | None


@dataclass(frozen=True, slots=True)
class Dialect:
    """How to ask one kind of server.

    Attributes:
        name: For people.
        path: Below the server's address.
        seed_bits: Seeds are integers of this many bits.
        top_k: Whether ``top_k`` can be asked for, and ``top_k_off`` its value for "no filter".
        stop_ids: Whether stop tokens go by id; otherwise their text is a stop string.
        gives_ids: Whether sampled token ids can be asked for.
        about, version: Where it tells about itself, and the key of its version there.
        extra: Fields that switch its own defaults off.
    """

    name: str
    path: str = "/v1/completions"
    seed_bits: int = 31
    top_k: bool = False
    top_k_off: int = 0
    stop_ids: bool = False
    gives_ids: bool = False
    about: str | None = None
    version: str = "version"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def body(
        self,
        model: str,
        prompt: str | Sequence[int],
        n: int,
        seed: int,
        params: SampleParams,
        stop_texts: Sequence[str],
        logprobs: int,
    ) -> dict[str, Any]:
        """The JSON of one request.

        Args:
            prompt: Text or token ids.
            seed: At most ``seed_bits`` bits.
            stop_texts: The text of each of ``params.stop_token_ids``.
            logprobs: How many of the likeliest tokens to return at each position; 0 for no log-probabilities.
        """
        if self is LLAMA_CPP:
            return self._llama(prompt, n, seed, params, stop_texts, logprobs)
        stops = [*params.stop_strings, *(() if self.stop_ids else stop_texts)]
        body: dict[str, Any] = {
            "model": model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "seed": seed,
            "stream": False,
            **self.extra,
        }
        if params.top_p < 1 or self is not TGI:
            body["top_p"] = params.top_p
        if self.top_k:
            body["top_k"] = params.top_k or self.top_k_off
        if n > 1:
            body["n"] = n
        if stops:
            body["stop"] = stops
        if self.stop_ids and params.stop_token_ids:
            body["stop_token_ids"] = list(params.stop_token_ids)
        elif self is SGLANG:
            body["ignore_eos"] = True
        if logprobs:
            body["logprobs"] = logprobs
        return body

    def _llama(
        self,
        prompt: str | Sequence[int],
        n: int,
        seed: int,
        params: SampleParams,
        stop_texts: Sequence[str],
        logprobs: int,
    ) -> dict[str, Any]:
        return {
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "n_predict": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "seed": seed,
            "n_cmpl": n,
            "n_probs": logprobs,
            # Special tokens have no text unless they are preserved, and a stop must have one.
            "stop": [*params.stop_strings, *stop_texts],
            "preserved_tokens": list(stop_texts),
            **self.extra,
        }

    def read(self, data: Any) -> Reply:
        """A reply's JSON.

        Raises:
            Malformed: It is not one.
        """
        try:
            return _read_llama(data) if self is LLAMA_CPP else _read_openai(data)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise Malformed(f"the reply is not a completion ({type(error).__name__}: {str(error)[:80]})") from error


_PLAIN = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}

VLLM = Dialect(
    "vLLM",
    seed_bits=62,
    top_k=True,
    stop_ids=True,
    gives_ids=True,
    about="/version",
    extra={
        **_PLAIN,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "add_special_tokens": False,
        "return_token_ids": True,
        "watermarking": False,
    },
)
SGLANG = Dialect(
    "SGLang",
    top_k=True,
    top_k_off=-1,
    stop_ids=True,
    gives_ids=True,
    about="/get_server_info",
    extra={**_PLAIN, "skip_special_tokens": False, "no_stop_trim": True, "return_token_ids": True},
)
LLAMA_CPP = Dialect(
    "llama.cpp",
    path="/completion",
    top_k=True,
    gives_ids=True,
    about="/props",
    version="build_info",
    extra={
        "samplers": ["temperature", "top_k", "top_p"],
        "return_tokens": True,
        "cache_prompt": True,
        "response_fields": [
            "index", "content", "tokens", "tokens_evaluated", "stop_type", "completion_probabilities",
        ],
        "stream": False,
    },
)  # fmt: skip
OLLAMA = Dialect("Ollama", about="/api/version")
TGI = Dialect("TGI", about="/info")
OTHER = Dialect("an OpenAI-compatible server")

_BY_OWNER = {"vllm": VLLM, "sglang": SGLANG, "llamacpp": LLAMA_CPP, "library": OLLAMA}


def dialect_of(entry: Mapping[str, Any]) -> Dialect:
    """The kind of server, by its entry of ``GET /v1/models``."""
    owner = str(entry.get("owned_by", ""))
    if owner and owner == entry.get("id"):
        return TGI
    return _BY_OWNER.get(owner, OTHER)


def _finish(reason: Any) -> Finish:
    if reason not in _FINISH:
        raise ValueError(f"finish reason {reason!r}")
    return _FINISH[reason]


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _ids(values: Any) -> list[int]:
    if not all(isinstance(v, int) and v >= 0 for v in values):
        raise ValueError("token ids are not whole numbers")
    return list(values)


def _read_openai(data: Any) -> Reply:
    choices = []
    for choice in sorted(data["choices"], key=lambda c: c.get("index", 0)):
        ids = choice.get("token_ids")
        found = choice.get("logprobs") or {}
        values = found.get("token_logprobs")
        top = next(iter(found.get("top_logprobs") or []), None) or {}
        if not isinstance(choice["text"], str):
            raise ValueError("the text is not text")
        choices.append(
            Choice(
                choice["text"],
                _finish(choice["finish_reason"]),
                None if ids is None else _ids(ids),
                None if values is None else [_number(v) for v in values],
                {str(k): float(v) for k, v in top.items()},
            )
        )
    count = (data.get("usage") or {}).get("prompt_tokens")
    return Reply(choices, None if count is None else int(count))


def _read_llama(data: Any) -> Reply:
    results = sorted(data if isinstance(data, list) else [data], key=lambda r: r.get("index", 0))
    choices = []
    for result in results:
        ids = _ids(result["tokens"])
        found = result.get("completion_probabilities") or []
        top = found[0].get("top_logprobs", []) if found else []
        choices.append(
            Choice(
                str(result["content"]),
                _finish(result["stop_type"]),
                ids,
                _aligned(ids, found) if found else None,
                {str(t["id"]): float(t["logprob"]) for t in top},
            )
        )
    return Reply(choices, int(results[0]["tokens_evaluated"]))


def _aligned(ids: Sequence[int], found: Sequence[Mapping[str, Any]]) -> list[float]:
    """Log-probabilities beside the tokens they belong to.

    llama.cpp leaves out tokens that end inside a character, and as many at the end as the stop string has tokens.
    """
    values: list[float] = []
    entries = iter(found)
    entry = next(entries, None)
    for token in ids:
        if entry is not None and entry["id"] == token:
            values.append(_number(entry["logprob"]))
            entry = next(entries, None)
        else:
            values.append(float("nan"))
    if entry is not None:
        raise ValueError("log-probabilities of other tokens than the sampled ones")
    return values
