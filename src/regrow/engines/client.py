"""Requests to a server: many at once, patient with a busy one, and silent about the key.

The client is httpx2, which huggingface_hub (and so transformers) and OpenAI's own package build on; the retries are
tenacity's. OpenAI's package would add its types, and take away the limit of requests a minute for retried ones.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar
from urllib.parse import urlsplit

from regrow.engines.config import ServerConfig
from regrow.errors import EngineError, MissingExtra
from regrow.progress import note

T = TypeVar("T")

_BUSY = frozenset({408, 409, 425, 429})
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 60.0
_LONGEST_AFTER_S = 3600.0
_SAY_AFTER_S = 20.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Transient(Exception):
    """A failure that may pass. ``after`` is how long the server asked to be left alone, in seconds."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        self.after = after
        super().__init__(reason)


class Client:
    """One server. Coroutines run on a thread of its own, so that a synchronous caller can take results as they come.

    Args:
        url: The server's address without ``/v1``.
        key: Sent as a bearer token; never shown.
        config: Time-outs, retries and limits.

    Raises:
        MissingExtra: httpx2 or tenacity is not installed.
    """

    def __init__(self, url: str, key: str | None, config: ServerConfig) -> None:
        try:
            import httpx2
            import tenacity
        except ImportError as error:
            raise MissingExtra(str(error.name), "server", "asking a server") from error
        self.url, self._key, self._config = url, key, config
        self._httpx, self._tenacity = httpx2, tenacity
        # A daemon, so that an engine nobody closed does not keep the process alive.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="regrow-client", daemon=True)
        self._thread.start()
        self._http = httpx2.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(config.timeout, connect=min(30.0, config.timeout), pool=None),
            limits=httpx2.Limits(
                max_connections=config.max_concurrency, max_keepalive_connections=config.max_concurrency
            ),
            trust_env=urlsplit(url).hostname not in _LOOPBACK,  # no proxy between us and this machine
        )
        self._next_slot = 0.0
        self._said_waiting = 0.0

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the client's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for it."""
        return self.start(work).result()

    async def get(self, path: str) -> Any:
        """``GET`` as JSON; raises as `post` does."""
        return await self._patiently("GET", path, None, lambda data: data)

    async def post(self, path: str, body: Any, read: Callable[[Any], T]) -> T:
        """``POST`` JSON and read the JSON that comes back.

        Args:
            read: Turns the reply into what is wanted; a ValueError of it counts as a failure that may pass.

        Raises:
            EngineError: The server refused for good, or retries are used up.
        """
        return await self._patiently("POST", path, body, read)

    async def _patiently(self, method: str, path: str, body: Any, read: Callable[[Any], T]) -> T:
        t = self._tenacity
        backoff = t.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)

        def wait(state: Any) -> float:
            error = state.outcome.exception()
            seconds = max(float(backoff(state)), error.after + random.uniform(0, 1) if error.after else 0.0)
            self._say(error, seconds)
            return seconds

        try:
            async for attempt in t.AsyncRetrying(
                stop=t.stop_after_attempt(self._config.retries + 1),
                wait=wait,
                retry=t.retry_if_exception_type(Transient),
                reraise=True,
            ):
                with attempt:
                    return await self._once(method, path, body, read)
        except Transient as error:
            tries = self._config.retries + 1
            raise EngineError(
                f"no usable answer after {tries} {'try' if tries == 1 else 'tries'}: {error}",
                where=self.url + path,
                hint="Look at the server. What was grown is kept; the same command goes on.",
            ) from None
        raise AssertionError("the loop returns or raises")

    async def _once(self, method: str, path: str, body: Any, read: Callable[[Any], T]) -> T:
        await self._pace()
        try:
            async with asyncio.timeout(self._config.timeout):
                response = await self._http.request(method, path, json=body)
        except (TimeoutError, self._httpx.TimeoutException) as error:
            raise Transient(f"nothing within {self._config.timeout:g} s") from error
        except self._httpx.TransportError as error:
            raise Transient(self._clean(str(error) or type(error).__name__)) from error
        status = response.status_code
        if status in _BUSY or status >= 500:
            raise Transient(f"{status} {self._message(response)}", _retry_after(response.headers.get("retry-after")))
        if not 200 <= status < 300:
            raise Refused(status, self._message(response), self.url + path)
        try:
            return read(json.loads(response.content))
        except ValueError as error:
            raise Transient(self._clean(f"garbage: {error}")) from error

    async def _pace(self) -> None:
        if self._config.requests_per_minute is None:
            return
        now = time.monotonic()
        at = max(now, self._next_slot)
        self._next_slot = at + 60.0 / self._config.requests_per_minute
        await asyncio.sleep(at - now)

    def _say(self, error: Exception, seconds: float) -> None:
        now = time.monotonic()
        if seconds >= _SAY_AFTER_S and now - self._said_waiting >= _SAY_AFTER_S:
            self._said_waiting = now
            note(f"server: {error}; trying again in {seconds:.0f} s")

    def _message(self, response: Any) -> str:
        """What the server says is wrong, in one line."""
        try:
            data = json.loads(response.content)
            for name in ("error", "message", "detail"):
                if isinstance(data, dict) and data.get(name):
                    data = data[name]
            text = data if isinstance(data, str) else json.dumps(data)
        except ValueError:
            text = response.text
        return self._clean(" ".join(text.split())[:300] or response.reason_phrase)

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def close(self) -> None:
        """Drop what is in flight. Idempotent."""
        if self._loop.is_closed():
            return
        self.call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()


class Refused(EngineError):
    """The server will not answer this request, however often it is sent."""

    def __init__(self, status: int, message: str, where: str) -> None:
        self.status = status
        hints = {
            401: "The environment variable that grow.server.api_key_env names must hold the server's key.",
            403: "The environment variable that grow.server.api_key_env names must hold the server's key.",
            404: "Check grow.server.url and grow.server.model.",
        }
        super().__init__(f"the server refused: {status} {message}", where=where, hint=hints.get(status))


def _retry_after(value: str | None) -> float:
    """Seconds of a ``Retry-After`` header (RFC 9110, 10.2.3): a whole number, or a date. At most an hour."""
    if not value:
        return 0.0
    if value.isdecimal():
        return min(float(value), _LONGEST_AFTER_S)
    try:
        seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return 0.0
    return min(max(0.0, seconds), _LONGEST_AFTER_S)
