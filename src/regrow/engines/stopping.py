"""Where a completion ends: stop tokens, stop strings, length; shared by the engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regrow.engines.base import Completion, Finish, Request
from regrow.errors import EngineError


def check_request(request: Request, context: int | None) -> None:
    """Refuse a request that cannot be answered.

    Args:
        request: The request.
        context: The longest sequence the model takes, in tokens; None when unknown.

    Raises:
        EngineError: Empty prompt, a parameter out of range, or prompt and completion beyond the context.
    """
    p = request.params
    where = f"request {request.key}"
    if not request.prompt_ids:
        raise EngineError("the prompt has no tokens", where=where, hint="begin it with the model's opening (BOS)")
    if request.n < 0 or p.max_new_tokens < 0 or p.temperature < 0 or p.top_k < 0 or not 0 < p.top_p <= 1:
        raise EngineError(f"sampling parameters out of range: n={request.n}, {p}", where=where)
    if "" in p.stop_strings:
        raise EngineError("a stop string is empty", where=where)
    length = len(request.prompt_ids) + p.max_new_tokens
    if context is not None and length > context:
        raise EngineError(
            f"{len(request.prompt_ids)} prompt tokens and {p.max_new_tokens} new ones exceed the context of {context}",
            where=where,
            hint="fewer layers or smaller max_new_tokens",
        )


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens shown, spaces as they are."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def ends_with_stop(tokenizer: Any, ids: Sequence[int], stop_strings: Sequence[str]) -> bool:
    """Whether the newest token completed a stop string.

    Only the tail is decoded: a token stands for at least a byte, so a stop string of b bytes lies in the last b + 1
    tokens; eight more are for decoders that trim the first space.
    """
    if not stop_strings:
        return False
    reach = max(len(s.encode()) for s in stop_strings) + 9
    tail = decode(tokenizer, ids[-reach:])
    return any(s in tail for s in stop_strings)


def completion(
    tokenizer: Any,
    ids: list[int],
    finish: Finish,
    logprobs: Sequence[float] | None = None,
    stop_strings: Sequence[str] = (),
) -> Completion:
    """Build a completion; cut it at the first stop string in its text.

    A stop string may begin inside a token. The text is cut exactly there, the whole tokens before are kept, and the
    beginning of the cut token is encoded anew: ``token_ids`` always decode to ``text``. The first of these new tokens
    carries the log-probability of the token that was cut and the others 0, so the sum over the completion stays
    the log-probability of what was sampled, a lower bound on that of the text.

    Args:
        tokenizer: A Hugging Face tokenizer.
        ids: Sampled tokens without the stop token.
        finish: Why sampling ended, unless a stop string is found.
        logprobs: One for each of ``ids``, or None.
        stop_strings: Strings that end the completion and are not part of it.
    """
    text = decode(tokenizer, ids)
    at = min((i for i in (text.find(s) for s in stop_strings) if i >= 0), default=-1)
    values = None if logprobs is None else np.asarray(logprobs, dtype=np.float32)
    if at < 0:
        return Completion(ids, text, finish, values)
    text = text[:at]
    whole = len(ids)
    while whole and not text.startswith(decode(tokenizer, ids[:whole])):
        whole -= 1
    rest = text[len(decode(tokenizer, ids[:whole])) :]
    extra = list(tokenizer.encode(rest, add_special_tokens=False)) if rest else []
    kept = ids[:whole] + extra
    if values is not None:
        values = np.concatenate([values[:whole], values[whole : whole + 1][: len(extra)]])
        values = np.pad(values, (0, len(kept) - len(values)))
    return Completion(kept, decode(tokenizer, kept), "stop", values)
