"""What one server can do, found out by asking it, and requests that fit it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from regrow.engines.base import SampleParams
from regrow.engines.client import Client, Refused
from regrow.engines.dialects import Dialect, Malformed, Reply
from regrow.engines.stopping import decode
from regrow.errors import EngineError
from regrow.progress import note

PROBE_SEED = 20_240_611
_PROBE_TEXT = "The capital of France is"
_PROBE_TOKENS = 12
_SAME_NATS = 0.02
"""Two log-probabilities of one token at two temperatures agree to this when the temperature does not enter them:
more than the rounding of bfloat16 kernels, far less than what halving the temperature does."""


class Asker:
    """Makes requests for one server; what it can do is tried when this is made.

    Args:
        client: Its connection.
        dialect: Its kind.
        model: The name of the model there.
        tokenizer: Ours.
        most_siblings: Most continuations in one request, if it honours ``n`` at all.

    Attributes:
        siblings: Continuations to ask for at once.
        logprobs: Whether it gives log-probabilities of the model at temperature 1 beside token ids.

    Raises:
        EngineError: It refuses, or counts other tokens in a prompt than our tokenizer.
    """

    def __init__(self, client: Client, dialect: Dialect, model: str, tokenizer: Any, most_siblings: int) -> None:
        self._client, self._dialect, self._model, self._tokenizer = client, dialect, model, tokenizer
        self._stop_text: Callable[[int], str] = lru_cache(maxsize=None)(lambda i: decode(tokenizer, [i]))
        self._as_ids, self._strip = True, ""
        self.siblings, self.logprobs = 1, False
        self._probe(most_siblings)

    # -- requests -----------------------------------------------------------------------------------------------

    def body(self, ids: Sequence[int], n: int, seed: int, params: SampleParams) -> dict[str, Any]:
        """The JSON of a request for ``n`` continuations of ``ids``."""
        return self._body(ids, n, seed, params, int(self.logprobs))

    def _body(self, ids: Sequence[int], n: int, seed: int, params: SampleParams, logprobs: int) -> dict[str, Any]:
        stops = [text for i in params.stop_token_ids if (text := self._stop_text(i))]
        prompt = ids if self._as_ids else decode(self._tokenizer, ids).removeprefix(self._strip)
        return self._dialect.body(self._model, prompt, n, seed, params, stops, logprobs)

    def count(self, ids: Sequence[int]) -> int:
        """Tokens that the server must see in a prompt. Of a text: as our tokenizer cuts it, which need not be how it
        was sampled."""
        if self._as_ids:
            return len(ids)
        return len(self._tokenizer.encode(decode(self._tokenizer, ids), add_special_tokens=False))

    def read(self, data: Any) -> Reply:
        """A reply's JSON.

        Raises:
            Malformed: It is not one, or an empty one.
        """
        reply = self._dialect.read(data)
        if not reply.choices:
            raise Malformed("a reply without choices")
        return reply

    # -- what the server can do ---------------------------------------------------------------------------------

    def _probe(self, most_siblings: int) -> None:
        name = self._dialect.name
        ids = self._probe_ids()
        params = SampleParams(_PROBE_TOKENS, temperature=1.0)
        reply = self._probe_prompt(ids, params)
        first = reply.choices[0]
        if self._dialect.gives_ids and first.token_ids is None:
            note(f"server: {name} returns no token ids; completions are encoded again")
        if first.token_ids is not None and first.logprobs is not None:
            colder = self._try(ids, 1, replace(params, temperature=0.5), 5)
            self.logprobs = colder is not None and _same(first.top, colder.choices[0].top)
        two = self._try(ids, 2, replace(params, temperature=2.0), 0)
        if two is not None and len({(c.text, str(c.token_ids)) for c in two.choices}) == len(two.choices) == 2:
            self.siblings = most_siblings
        else:
            note(f"server: {name} does not give siblings by n; they are asked for one by one")
        again = self._try(ids, 1, params, 0)
        if again is not None and again.choices[0].text != first.text:
            note(f"server: {name} does not draw the same tokens from the same seed")

    def _probe_ids(self) -> tuple[int, ...]:
        """A prompt with the model's special tokens in it, if it has a chat template: they must arrive as such."""
        if self._tokenizer.chat_template:
            message = [{"role": "user", "content": _PROBE_TEXT}]
            text = self._tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        else:
            text = (self._tokenizer.bos_token or "") + _PROBE_TEXT
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _probe_prompt(self, ids: tuple[int, ...], params: SampleParams) -> Reply:
        """Ids if the server takes them, else text, with and without the opening token that it may add itself."""
        reply = self._try(ids, 1, params, 5)
        if reply is not None and reply.prompt_tokens == len(ids):
            return reply
        self._as_ids = False
        counts: list[int | None] = []
        for strip in dict.fromkeys(("", self._tokenizer.bos_token or "")):
            self._strip = strip
            # Refused twice: the third time the error may pass, it says why.
            reply = self._try(ids, 1, params, 5) or self._call(self._body(ids, 1, PROBE_SEED, params, 0))
            if reply.prompt_tokens == self.count(ids):
                return reply
            counts.append(reply.prompt_tokens)
        raise EngineError(
            f"the server counts {counts[0]} tokens in a prompt of {self.count(ids)}: it has another tokenizer, or "
            "puts a template of its own around prompts",
            where=self._client.url,
            hint="Serve the model that is tuned, without a template (docs: how-to, servers).",
        )

    def _try(self, ids: tuple[int, ...], n: int, params: SampleParams, logprobs: int) -> Reply | None:
        """A probe that may be refused; then log-probabilities are left out, then it is given up."""
        for k in dict.fromkeys((logprobs, 0)):
            try:
                return self._call(self._body(ids, n, PROBE_SEED, params, k))
            except Refused as error:
                if error.status in (401, 403, 404):
                    raise
        return None

    def _call(self, body: dict[str, Any]) -> Reply:
        return self._client.call(self._client.post(self._dialect.path, body, self.read))


def _same(warm: dict[str, float], cold: dict[str, float]) -> bool:
    """Whether the first token's log-probabilities are untouched by the temperature; two tokens must be there."""
    both = [(warm[token], cold[token]) for token in warm if token in cold]
    return len(both) > 1 and all(math.isfinite(a) and abs(a - b) < _SAME_NATS for a, b in both)
