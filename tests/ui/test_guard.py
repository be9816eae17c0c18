"""Who may ask, and what every answer carries."""

from __future__ import annotations

import os
import secrets
from itertools import product
from pathlib import Path

import pytest

from regrow.ui import guard
from regrow.ui.server import api, is_loopback
from tests.ui.helpers import HOST, TOKEN, client

PATHS = sorted({route.path for route in api.routes} | {"/static/app.js", "/static/vendor/uplot.js", "/nothing"})  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("prefix", ["", "/", f"/{TOKEN}x", f"/{TOKEN[:-1]}", f"//{TOKEN}", "/%00", "/é"])
def test_nothing_is_there_without_the_token(root: Path, prefix: str) -> None:
    asks = client(root)
    for path, method in product(PATHS, ("GET", "POST", "OPTIONS", "HEAD")):
        reply = asks.request(method, f"{HOST}{prefix}{path}", headers={"Content-Type": "application/json"})
        assert reply.status_code == 403, (method, path)
        assert TOKEN not in reply.text


def test_the_token_is_compared_in_constant_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    compare = secrets.compare_digest
    monkeypatch.setattr(guard.secrets, "compare_digest", lambda a, b: (asked.append((a, b)), compare(a, b))[1])
    client(root).get(f"{HOST}/guess/api/runs")
    assert asked == [(b"guess", TOKEN.encode())]
    assert len({guard.new_token() for _ in range(50)}) == 50 and len(guard.new_token()) >= 43


@pytest.mark.parametrize(
    ("host", "loopback", "status"),
    [
        ("127.0.0.1:8321", True, 200),
        ("localhost", True, 200),
        ("localhost:9999", True, 200),
        ("[::1]:8321", True, 200),
        ("evil.example", True, 421),
        ("evil.example:8321", True, 421),
        ("127.0.0.1.evil.example", True, 421),
        ("localhost.evil.example", True, 421),
        ("", True, 421),
        ("[::1].evil.example", True, 421),
        ("10.0.0.5:8321", True, 421),
        ("10.0.0.5:8321", False, 200),
        ("evil.example", False, 421),
        (os.uname().nodename, False, 200),
    ],
)
def test_a_name_that_is_not_ours_is_refused(root: Path, host: str, loopback: bool, status: int) -> None:
    assert client(root, loopback=loopback).get("api/runs", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": HOST}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
def test_other_pages_may_not_ask(root: Path, headers: dict[str, str], status: int) -> None:
    asks = client(root)
    assert asks.get("api/runs", headers=headers).status_code == status
    if status == 403:
        assert asks.post("api/stop", json={"run": "good"}, headers=headers).status_code == 403


def test_a_form_of_another_page_cannot_post(root: Path) -> None:
    asks = client(root)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        reply = asks.post("api/stop", content=b'{"run": "good"}', headers={"Content-Type": kind})
        assert reply.status_code == 415, kind
    json = {"Content-Type": "application/json"}
    assert asks.post("api/check", content=b"x" * (guard.MAX_BODY + 1), headers=json).status_code == 413
    assert asks.post("api/check", content=iter([b"{}"]), headers=json).status_code == 411


@pytest.mark.parametrize("path", ["", "api/runs", "static/app.js", "nothing", "api/run?run=nope"])
def test_every_answer_carries_the_policy(root: Path, path: str) -> None:
    headers = client(root).get(path).headers
    policy = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer" and headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert not [name for name in headers if name.startswith("access-control")] and "set-cookie" not in headers


def test_no_description_of_the_server_is_served(root: Path) -> None:
    for path in ("docs", "redoc", "openapi.json"):
        assert client(root).get(path).status_code == 404


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.5", "example.org")))
