"""The page in a real headless Chromium."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from regrow.grow.records import Expansion
from regrow.grow.store import Store
from regrow.runs import owner
from tests.grow.test_store import ME, node, tree
from tests.report.fixture_run import make_run
from tests.report.test_browser import CHROMIUM, FLAGS
from tests.report.test_page import HOSTILE
from tests.ui.conftest import wait_for
from tests.ui.helpers import server

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]

COLLECT_CONTROLS = """() => {
    const all = document.querySelectorAll(
        "a[href], button:not([disabled]), input:not([disabled]), select, textarea, summary, [tabindex='0']");
    window.left = new Set([...all].filter((e) => e.checkVisibility() && (e.type !== "radio" || e.checked)));
    return left.size;
}"""
"""Of a group of radio buttons, Tab reaches the chosen one."""
FOCUSED_BUT_UNSEEN = """() => {
    const e = document.activeElement;
    left.delete(e);
    if (e === document.body) return [];
    const style = getComputedStyle(e.type === "radio" ? e.nextElementSibling : e);
    return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1 ? [] : [e.outerHTML.slice(0, 120)];
}"""
MANY_LEAVES = """
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 98999)
INSERT INTO nodes SELECT printf('t00/%04d/%03d', 8 + i / 100, i % 100), printf('t00/%04d', 8 + i / 100), tree, layer,
    role, token_ids, n_tokens, text, logprob, token_logprobs, finish, kept, reason, seed, leaf, want
FROM nodes, n WHERE id = 't00/0007/0'
"""

TABS = ("progress", "training", "results", "items", "corpus", "recipe")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "good")
    make_run(folder / "other", seed=1)
    make_run(folder / "hostile", hostile=HOSTILE.replace("\ud800", ""), n_items=24)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with server(folder) as (url, _):
        yield url


@pytest.fixture
def open_page(chromium: Any, url: str) -> Iterator[Any]:
    """Open the page at an address; fails at the end on any console message, error, or request to elsewhere."""
    trouble: list[str] = []
    contexts = []

    def open_(at: str = "", base: str = url, **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(120_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: trouble.append(f"console {m.type}: {m.text}"))
        page.on("pageerror", lambda e: trouble.append(f"error: {e}"))
        page.on("dialog", lambda d: (trouble.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("request", lambda r: r.url.startswith((base, "data:")) or trouble.append(f"request: {r.url}"))
        page.goto(base + at)
        page.locator("h1").wait_for()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert trouble == []


def run_at(name: str, tab: str = "progress") -> str:
    return f"#/run?name={name}&tab={tab}"


def until(page: Any, true: str) -> None:
    """Wait for a JavaScript expression; Playwright's own way of waiting needs `eval`, which the page forbids."""
    wait_for(lambda: page.evaluate(true))


def ready(page: Any, tab: str) -> None:
    shown = {"progress": ".stages li", "training": "canvas", "results": ".headline", "items": "#item-list li",
             "corpus": "#tree li", "recipe": "pre"}  # fmt: skip
    page.locator(f".tab {shown[tab]}").first.wait_for()


def test_a_lost_item_is_found(open_page: Any) -> None:
    page = open_page()
    page.get_by_role("link", name="good", exact=True).click()
    page.locator(".tabs").get_by_role("link", name="Items").click()
    ready(page, "items")
    status = page.locator("#item-status")
    assert status.inner_text() == "640 items, 40 shown"
    page.locator(".chips span", has_text="Lost").click()
    until(page, "document.querySelector('#item-status').textContent.split(' ')[0] < 100")
    assert set(page.locator("#item-list .badge").all_inner_texts()) == {"Lost"}
    question = page.locator("#item-list .q").first.inner_text()
    page.locator("#item-search").fill(question)
    until(
        page, f"[...document.querySelectorAll('#item-list .q')].every(e => e.textContent === {json.dumps(question)})"
    )
    first = page.locator("#item-list > li").first
    assert "✓ right" in first.inner_text() and "✕ wrong" in first.inner_text()
    page.locator("#item-search").fill("no such words anywhere")
    page.get_by_text("No item fits this choice.").wait_for()
    page.locator("#item-search").fill("")
    page.locator(".chips span", has_text="All").click()
    page.get_by_role("button", name="Show more").click()
    page.get_by_text("640 items, 80 shown").wait_for()
    until(page, "document.activeElement.matches('#item-list > li:nth-child(41)')")


def test_what_is_written_while_one_looks_appears(open_page: Any, folder: Path) -> None:
    run = make_run(folder / "growing", evaluated=False)
    page = open_page(run_at("growing", "training"))
    ready(page, "training")
    figure = page.locator("figure", has_text="Loss on your data")
    assert "step 120" in figure.inner_text()
    with (run / "train/regrow/log.jsonl").open("a") as f:
        f.write(json.dumps({"step": 150, "loss/domain": 0.125, "mix/cooking": 0.4, "mix/law": 0.6}) + "\n")
    figure.get_by_text("step 150").wait_for()
    figure.get_by_text("0.125").wait_for()
    weights = page.locator("figure", has_text="Share of the tokens drawn")
    assert set(weights.locator("bdi").all_inner_texts()) == {"cooking", "law"}


def test_a_tree_of_a_hundred_thousand_nodes_is_opened_lazily(open_page: Any, folder: Path) -> None:
    run = make_run(folder / "large", corpus=False, evaluated=False)
    with Store.create_or_resume(run / "grow", ME) as store:
        store.plant([tree()])
        firsts = [node(f"t00/{i:04d}") for i in range(1000)]
        store.commit(Expansion("root/t00", firsts, 1000, 1, 5))
        store.commit(Expansion("t00/0007", [node(f"t00/0007/{i}", leaf=True) for i in range(3)], 3, 1, 5))
    with sqlite3.connect(run / "grow/nodes.sqlite") as db:
        db.execute(MANY_LEAVES)
    page = open_page(run_at("large", "corpus"))
    ready(page, "corpus")
    items = page.locator("#tree li")
    assert items.count() == 1
    page.locator("#tree button.branch").first.click()
    page.locator("#tree ul ul li").first.wait_for()
    assert items.count() == 1 + 50 + 1, "a page of children and the button for the next"
    page.get_by_text("text of t00/0007", exact=True).click()
    page.get_by_text("text of t00/0007/2").wait_for()
    assert items.count() == 52 + 3
    page.get_by_role("button", name="Show 50 more of 1,000").click()
    page.get_by_text("text of t00/0099", exact=True).wait_for()
    page.locator("#tree button.branch").first.press("Enter")
    until(page, "document.querySelectorAll('#tree li').length === 1")


def test_runs_side_by_side(open_page: Any) -> None:
    page = open_page()
    page.get_by_label("Compare good").check()
    page.get_by_label("Compare other").check()
    page.get_by_role("link", name="Compare 2 runs").click()
    page.get_by_role("heading", name="Side by side").wait_for()
    page.get_by_text("seed", exact=True).wait_for()
    page.locator("canvas").nth(1).wait_for()
    assert page.locator("table").first.locator("tbody tr").count() >= 3


def test_hostile_text_does_nothing(open_page: Any) -> None:
    page = open_page(viewport={"width": 390, "height": 844})
    page.locator("table.runs tr").nth(2).wait_for()
    for tab in TABS:
        page.goto(page.url.split("#")[0] + run_at("hostile", tab))
        ready(page, tab)
        if tab == "corpus":
            page.locator("#tree button.branch").first.click()
            page.locator("#tree ul ul li").first.wait_for()
        assert page.locator("img, iframe, object, embed").count() == 0 and page.locator("script").count() == 3, tab
        assert page.evaluate(
            "[...document.querySelectorAll('*')].every(e => [...e.attributes].every(a => !/^on/.test(a.name)))"
        ), tab
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
    page.locator(".tabs").get_by_role("link", name="Items").click()
    ready(page, "items")
    assert "<img src=x onerror=alert(4)>" in page.locator("#item-list .q").first.inner_text()


@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scroll(open_page: Any, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 844})
    page.locator("table.runs tr").nth(2).wait_for()
    places = ["", "#/new", "#/compare?run=good&run=other", *(run_at("good", t) for t in TABS)]
    for place in places:
        page.goto(page.url.split("#")[0] + place)
        if "name=good" in place:
            ready(page, place.rpartition("=")[2])
        elif place == "#/new":
            page.locator("#f-seed").wait_for()
            page.locator("#field-search").fill("e")  # opens everything
        elif place:
            page.locator("canvas").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, place


def test_dark_and_light(open_page: Any) -> None:
    page = open_page(run_at("good", "training"), color_scheme="light")
    ready(page, "training")
    ground = "getComputedStyle(document.body).backgroundColor"
    pixels = "document.querySelector('canvas').toDataURL()"
    light, drawn = page.evaluate(ground), page.evaluate(pixels)
    page.locator("#theme").click()
    dark = page.evaluate(ground)
    assert dark != light and page.locator("#theme").get_attribute("aria-label") == "Switch to light colours"
    until(page, f"{pixels} !== {json.dumps(drawn)}")
    page.reload()
    page.locator("h1").wait_for()
    assert page.evaluate(ground) == dark, "the choice is kept"
    system = open_page(color_scheme="dark")
    assert system.evaluate(ground) == dark and system.locator("#theme").inner_text() == "Light"


def test_everything_is_reached_and_seen_by_keyboard(open_page: Any) -> None:
    page = open_page(run_at("good", "items"))
    ready(page, "items")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for place in (run_at("good", "items"), "", "#/new"):
        page.goto(page.url.split("#")[0] + place)
        page.locator("#item-list li, table.runs tr:nth-child(2), #f-seed").first.wait_for()
        page.evaluate("document.activeElement.blur()")
        unseen = []
        for _ in range(page.evaluate(COLLECT_CONTROLS) + 5):
            page.keyboard.press("Tab")
            unseen += page.evaluate(FOCUSED_BUT_UNSEEN)
        assert unseen == [], place
        assert page.evaluate("[...left].map(e => e.outerHTML.slice(0, 120))") == [], place


def test_axe_finds_nothing(open_page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    page = open_page()
    page.locator("table.runs tr").nth(2).wait_for()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for place in ["", "#/new", "#/compare?run=good&run=other", *(run_at("good", t) for t in TABS)]:
            page.goto(page.url.split("#")[0] + place)
            if "name=good" in place:
                ready(page, place.rpartition("=")[2])
            page.locator("table.runs, #f-seed, canvas, .tab").first.wait_for()
            found = axe.Axe().run(page).response["violations"]
            told = [(v["id"], v["nodes"][0]["html"][:160], v["nodes"][0].get("failureSummary")) for v in found]
            assert told == [], (scheme, place)


def test_the_form_tells_what_is_wrong_beside_the_field(open_page: Any, folder: Path) -> None:
    page = open_page("#/new")
    page.locator("#run-name").fill("not a name")
    page.locator("#f-mix-replay_ratio").fill("1.5")
    page.locator("#f-mix-replay_ratio-problem").wait_for()
    assert page.locator("#f-data-path-problem").count() == 0, "not touched yet"
    page.get_by_role("button", name="Start the run").click()
    page.locator("#f-data-path-problem").wait_for()
    box = page.get_by_role("alert")
    assert "data.path" in box.inner_text() and "mix.replay_ratio" in box.inner_text()
    box.get_by_role("link", name="mix.replay_ratio").click()
    assert page.evaluate("document.activeElement.id") == "f-mix-replay_ratio"
    assert page.locator("#f-mix-replay_ratio").get_attribute("aria-invalid") == "true"
    page.locator("#f-mix-replay_ratio").fill("0.3")
    page.locator("#f-data-path").fill("demo")
    page.locator("#f-mix-replay_ratio-problem").wait_for(state="detached")
    page.get_by_role("button", name="Start the run").click()
    page.get_by_text("begins with a letter or a digit").first.wait_for()
    assert not (folder / ".started").exists()
    page.locator("#field-search").fill("trust_remote")
    page.get_by_text("Only on the command line").wait_for()


@pytest.mark.slow
def test_a_run_is_started_stopped_continued_and_followed_to_its_end(
    chromium: Any, open_page: Any, tmp_path: Path, tiny_model_dir: Path, data_file: Path
) -> None:
    """From the form to the results, on a tiny model; the server is killed once on the way."""
    root = tmp_path / "runs"
    root.mkdir()
    values = {
        "model.model_name_or_path": str(tiny_model_dir),
        "data.path": str(data_file),
        "mix.replay_ratio": "0.3",
        "train.num_train_epochs": "1",
        "grow.dialogues": "8",
        "grow.turns": "1",
        "grow.topics": "[rivers, birds]",
        "grow.encoder": "none",
        "curate.embedding_threshold": "null",
        "evaluate.suites": "[heldout]",
        "evaluate.generate_samples": "2",
        "evaluate.bootstrap": "100",
    }
    chosen = {"grow.engine": "dummy", "compare": "false", "curate.dedup_method": "minhash"}
    with server(root) as (url, process):
        page = open_page("#/new", base=url)
        page.locator("#run-name").fill("mine")
        page.locator("#field-search").fill(".")
        for key, text in values.items():
            page.locator("#f-" + key.replace(".", "-")).fill(text)
        for key, text in chosen.items():
            page.locator("#f-" + key.replace(".", "-")).select_option(text)
        page.get_by_role("button", name="Start the run").click()
        page.get_by_role("heading", name="mine").wait_for()
        page.locator(".stages li").first.wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Continue").click()
        page.locator(".title .badge", has_text="running").wait_for()
        found = owner(root / "mine")
        assert found is not None
        page.context.close()
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    os.kill(found.pid, 0)  # it goes on without the server
    with server(root) as (url, _):
        page = open_page("#/run?name=mine", base=url)
        page.locator(".title .badge", has_text="done").wait_for(timeout=400_000)
        assert set(page.locator(".stages li").evaluate_all("all => all.map(e => e.className)")) == {"done"}
        page.locator(".tabs").get_by_role("link", name="Results").click()
        ready(page, "results")
        page.locator(".tabs").get_by_role("link", name="Training").click()
        ready(page, "training")
        page.context.close()
    assert (root / "mine/report.html").is_file()


def test_a_killed_run_is_shown_as_interrupted(open_page: Any, folder: Path, holding: Callable[[Path], Any]) -> None:
    child = holding(folder / "held")
    page = open_page(run_at("held"))
    page.locator(".title .badge", has_text="running").wait_for()
    page.get_by_text("3 of 9 hours").wait_for()
    os.kill(child.pid, signal.SIGKILL)
    page.locator(".title .badge", has_text="interrupted").wait_for()
    page.get_by_role("button", name="Continue").wait_for()
    wait_for(lambda: owner(folder / "held") is None)
