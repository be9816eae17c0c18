"""Who may ask: the token, the machine's own name, the page's own origin. Stands in front of everything."""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MAX_BODY = 2**20
HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::\d+)?")


def new_token() -> str:
    """256 random bits for the address."""
    return secrets.token_urlsafe(32)


class Guard:
    """Lets a request through to ``app`` only when

    * its path begins with the token (compared in constant time): the address is the key, so that it works for
      scripts, styles and server-sent events alike, and no cookie is there for other servers of this machine to read;
    * its ``Host`` is an address, or a name of this machine: a page that rebinds its own name to 127.0.0.1 sends its
      own name;
    * it comes from the page itself (``Origin``, ``Sec-Fetch-Site``), or opens the page;
    * a body that it sends is JSON and small.

    Args:
        app: What is guarded; it sees paths without the token.
        token: See `new_token`.
        loopback: The server listens on this machine only.
    """

    def __init__(self, app: ASGIApp, token: str, *, loopback: bool) -> None:
        self.app, self.token, self.loopback = app, token, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no WebSocket here
            return
        headers = Headers(scope=scope)
        _, _, rest = scope["path"].partition("/")
        given, slash, rest = rest.partition("/")
        refusal = self._refusal(scope["method"], headers, given, bool(slash))
        if refusal is not None:
            await PlainTextResponse(refusal[1] + "\n", refusal[0], HEADERS)(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    out.setdefault(name, value)
            await send(message)

        inner = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode("utf-8", "replace"), "root_path": ""}
        await self.app(inner, receive, with_headers)

    def _refusal(self, method: str, headers: Headers, given: str, slash: bool) -> tuple[int, str] | None:
        if not self._known_host(headers.get("host", "")):
            return 421, "This server does not go by that name."
        if not secrets.compare_digest(given.encode("utf-8", "replace"), self.token.encode()) or not slash:
            return 403, "The address needs the token that `regrow ui` printed."
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers.get("host"):
            return 403, "Only the page itself may ask."
        opens = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not opens:
            return 403, "Only the page itself may ask."
        if method in ("GET", "HEAD"):
            return None
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return 415, "A body of JSON is expected."
        length = headers.get("content-length", "")
        if not length.isdigit():
            return 411, "The length of the body is needed."
        return (413, "The body is too large.") if int(length) > MAX_BODY else None

    def _known_host(self, host: str) -> bool:
        found = HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1] or found[2]
        if name.lower() == "localhost":
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return not self.loopback and name.lower() == socket.gethostname().lower()
        return address.is_loopback or not self.loopback
