"""The page in a real headless Chromium: no errors, filters, tree, themes, phone width, keyboard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regrow.report.build import build_report
from tests.report.fixture_run import make_run
from tests.report.test_page import HOSTILE

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    return build_report(make_run(folder / "run"), folder / "report.html").as_uri()


@pytest.fixture
def open_page(watched_page: Callable[..., Any]) -> Callable[..., Any]:
    """Open a page that asks for nothing but itself."""
    return lambda url, **options: watched_page(url, url, **options)


def test_items_can_be_filtered_and_searched(open_page: Any, url: str) -> None:
    page = open_page(url)
    items = page.locator("#item-list > li")
    assert items.count() == 40
    assert page.locator("#item-status").inner_text() == "640 items, 40 shown"
    page.locator("#item-more").click()
    assert items.count() == 80
    assert page.evaluate("document.activeElement.matches('#item-list > li:nth-child(41)')"), (
        "focus goes to the new ones"
    )
    page.get_by_text("Lost", exact=False).locator("visible=true").and_(page.locator(".chips span")).click()
    lost = int(page.locator("#item-status").inner_text().split()[0])
    assert 0 < lost < 100
    assert set(page.locator("#item-list .badge").all_inner_texts()) == {"Lost"}
    page.select_option("#item-arm", "sft")
    assert int(page.locator("#item-status").inner_text().split()[0]) > lost
    page.select_option("#item-domain", "elements")
    domains = set(page.locator("#item-list .meta .said:nth-of-type(2)").all_inner_texts())
    assert domains == {"elements"}
    page.fill("#item-search", "HELIUM symbol")
    assert all("helium" in q for q in page.locator("#item-list .q").all_inner_texts())
    page.fill("#item-search", "no such words anywhere")
    assert page.locator("#item-status").inner_text() == "No item fits this choice."
    assert items.count() == 0


def test_the_tree_unfolds_lazily(open_page: Any, url: str) -> None:
    page = open_page(url)
    page.locator("#tree > li").first.locator("ul > li").first.wait_for()
    built = page.locator("#tree li").count()
    assert built < 40, "only what is open is built"
    page.locator("#tree > li").nth(1).locator("summary").first.click()
    page.locator("#tree > li").nth(1).locator("ul > li").first.wait_for()
    child = page.locator("#tree > li").nth(1).locator("ul > li summary").first
    child.focus()
    page.keyboard.press("Enter")
    page.locator("#tree > li").nth(1).locator("ul ul > li").first.wait_for()
    assert "Everyday chemistry".lower() in child.inner_text().lower()


def test_dark_toggle(open_page: Any, url: str) -> None:
    page = open_page(url, color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    button = page.locator("#theme")
    assert button.inner_text() == "Dark"
    button.click()
    dark = page.evaluate(ground)
    assert dark != light and button.get_attribute("aria-label") == "Switch to light colours"
    page.reload()
    assert page.evaluate(ground) == dark, "the choice is kept"
    page.locator("#theme").click()
    assert page.evaluate(ground) == light
    system = open_page(url, color_scheme="dark")
    assert system.evaluate(ground) == dark
    assert system.locator("#theme").inner_text() == "Light"


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_no_sideways_scroll(open_page: Any, url: str, width: int) -> None:
    page = open_page(url, viewport={"width": width, "height": 844})
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    page.wait_for_timeout(50)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    page.wait_for_timeout(50)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    charts = page.locator("#result svg.chart").locator("visible=true")
    assert charts.count() == 1, "one of the two drawings is shown"


def test_on_a_phone_the_table_of_every_suite_is_seen_whole(open_page: Any, url: str) -> None:
    page = open_page(url, viewport={"width": 390, "height": 844})
    tables = page.locator("#suites .scroll")
    assert tables.count() == 3
    assert tables.evaluate_all("all => all.filter(e => e.scrollWidth > e.clientWidth).length") == 0
    cells = page.locator("#suites td:visible")
    assert cells.evaluate_all("all => all.filter(e => e.getBoundingClientRect().right > innerWidth).length") == 0
    score = page.locator("#suites tbody tr").nth(1).locator("td").first
    assert score.evaluate("e => getComputedStyle(e, '::before').content") == '"Score"', "its column has a name still"


def test_without_javascript(open_page: Any, url: str) -> None:
    page = open_page(url, java_script_enabled=False)
    assert page.locator("#item-list > li").count() == 60
    assert page.locator("#item-search").is_hidden() and page.locator("#theme").is_hidden()
    assert page.get_by_text("World geography").first.is_visible()
    assert page.get_by_text("The first 60 of 640 items").is_visible()


def test_the_keyboard_reaches_the_controls(open_page: Any, url: str) -> None:
    page = open_page(url)
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name || ''"))
    assert reached[0] == "" and page.evaluate("document.querySelector('.skip') !== null")
    assert {"theme", "item-arm", "item-domain", "item-search", "outcome"} <= set(reached)


def test_hostile_text_does_nothing(open_page: Any, tmp_path: Path) -> None:
    url = build_report(make_run(tmp_path / "run", hostile=HOSTILE, n_items=24), tmp_path / "report.html").as_uri()
    page = open_page(url, viewport={"width": 390, "height": 844})
    for _ in range(4):
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        page.wait_for_timeout(60)
    page.locator("#item-search").fill("</script>")
    assert page.locator("#item-list > li").count() == 24
    assert page.locator("img, iframe").count() == 0 and page.locator("script").count() == 2
    assert page.evaluate(
        "[...document.querySelectorAll('*')].every(e => [...e.attributes].every(a => !/^on/.test(a.name)))"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_paper_has_no_controls(open_page: Any, url: str) -> None:
    page = open_page(url)
    page.emulate_media(media="print")
    assert page.locator("#theme").is_hidden() and page.locator(".toc").is_hidden()
    assert page.locator("h1").is_visible()
    assert page.pdf()[:5] == b"%PDF-"
