"""The page in a real headless Chromium."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from regrow.grow.records import Expansion
from regrow.grow.store import Store
from regrow.rows.writers import atomic_write_text
from regrow.runs import owner
from tests.grow.test_store import ME, node, tree
from tests.report.fixture_run import make_run
from tests.report.test_page import HOSTILE
from tests.ui.conftest import wait_for
from tests.ui.helpers import server

pytestmark = pytest.mark.browser

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
def open_page(watched_page: Callable[..., Any], url: str) -> Callable[..., Any]:
    """Open the page at an address behind ``base``, the server's; it may ask that server only."""

    def open_(at: str = "", base: str = url, **options: Any) -> Any:
        page = watched_page(base + at, base, **options)
        page.locator("h1").wait_for()
        return page

    return open_


def run_at(name: str, tab: str = "progress") -> str:
    return f"#/run?name={name}&tab={tab}"


def parent_in(url: str) -> str:
    return parse_qs(urlsplit(url).query, keep_blank_values=True)["parent"][0]


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
    for file in run.glob("train/*/monitor.jsonl"):
        file.unlink()  # the shares of a mixture stand in its log, too
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


def test_the_forgetting_monitor_is_followed(open_page: Any, folder: Path) -> None:
    run = make_run(folder / "watched", evaluated=False)
    page = open_page(run_at("watched", "training"))
    kl = page.locator("figure", has_text="KL from the model before its first step, Regrow")
    loss = page.locator("figure", has_text="Change of the held-out loss, Regrow")
    kl.get_by_text("step 120").wait_for()
    rows = page.get_by_role("region", name="Forgetting monitor of Regrow").locator("tbody tr")
    assert rows.count() == 6 and "demo" in rows.last.inner_text(), "what is learned comes last"
    assert "Cooking at home" not in rows.first.inner_text()
    page.evaluate("window.stayed = true")
    file = run / "train/regrow/monitor.jsonl"
    first = json.loads(file.read_text().splitlines()[0])
    line = {k: v + 0.1 for k, v in first.items()} | {"step": 130, "heldout/Cooking at home": 7.5}
    line |= {"heldout_kl/Cooking at home": 4.25, "asked/Cooking at home": 0.875}
    atomic_write_text(file, file.read_text() + json.dumps(line) + "\n")
    kl.get_by_text("step 130").wait_for()
    kl.get_by_text("4.25").wait_for()
    loss.get_by_text("step 130").wait_for()
    page.locator("figure", has_text="Mixture weights by domain, Regrow").get_by_text("0.875").wait_for()
    worst = rows.first.inner_text()
    assert "Cooking at home" in worst and "7.500" in worst and "130" in worst and "4.250" in worst
    assert page.get_by_role("region", name="Forgetting monitor of Plain SFT").count() == 1, "one for each arm"
    assert page.evaluate("window.stayed"), "the page was not loaded again"


def test_of_many_domains_the_most_forgotten_are_drawn(open_page: Any, folder: Path) -> None:
    run = make_run(folder / "many", evaluated=False, compare=False)
    lines = [{"step": s} | {f"heldout/d{i:02d}": 2 + i * s / 1000 for i in range(40)} for s in range(0, 50, 10)]
    (run / "train/regrow/monitor.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    page = open_page(run_at("many", "training"))
    loss = page.locator("figure", has_text="Change of the held-out loss, Regrow")
    loss.wait_for()
    drawn = loss.locator("bdi").all_inner_texts()
    assert drawn == [f"d{i}" for i in range(39, 31, -1)] + ["mean of all 40"]
    assert "0.78" in loss.locator("li").last.inner_text()  # 19.5 on average, times 0.04
    page.get_by_text("28 more").click()
    assert page.locator("table.monitor tbody tr").count() == 40


def test_without_a_monitor_the_page_says_how_to_have_one(open_page: Any, folder: Path) -> None:
    run = make_run(folder / "unwatched", evaluated=False, compare=False)
    (run / "train/regrow/monitor.jsonl").unlink()
    page = open_page(run_at("unwatched", "training"))
    page.get_by_text("curate.watch_dialogues").wait_for()


def test_the_tree_grows_while_one_looks(open_page: Any, folder: Path) -> None:
    """Only the open levels that a new node concerns are asked for again, and what is open stays open."""
    run = make_run(folder / "alive", corpus=False, evaluated=False)
    with Store.create_or_resume(run / "grow", ME) as store:
        store.plant([tree(), tree(1)])
        store.commit(Expansion("root/t00/0", [node(f"t00/{i}") for i in range(3)], 3, 1, 5))
        store.commit(Expansion("t00/0", [node("t00/0/0", leaf=True)], 1, 1, 5))
        page = open_page(run_at("alive", "corpus"))
        items = page.locator("#tree li")
        page.locator("#tree button.branch").first.click()
        page.get_by_text("text of t00/0", exact=True).click()
        page.get_by_text("text of t00/0/0", exact=True).wait_for()
        page.get_by_text("4 of 4 nodes kept").wait_for()
        shown = page.locator("#tree").element_handle()
        asked: list[str] = []
        page.on("request", lambda r: "api/tree" in r.url and asked.append(parent_in(r.url)))

        store.commit(Expansion("t00/1", [node(f"t00/1/{i}") for i in range(2)], 2, 1, 5))
        branch = page.locator("#tree button.branch", has_text="text of t00/1")
        branch.wait_for()  # until then a leaf, which is no button
        assert "· 2" in branch.inner_text() and asked == ["t00"]
        page.get_by_text("6 of 6 nodes kept").wait_for()
        assert page.get_by_text("text of t00/0/0", exact=True).is_visible()
        assert page.locator("#tree button[aria-expanded=true]").count() == 2

        store.commit(Expansion("t00/1/0", [node("t00/1/0/0", leaf=True)], 1, 1, 5))
        page.get_by_text("7 of 7 nodes kept").wait_for()
        store.commit(Expansion("root/t00/1", [node("t00/3", leaf=True)], 1, 1, 5))
        page.get_by_text("text of t00/3", exact=True).wait_for()
        until(page, "document.querySelector('#tree button.branch').textContent.includes('· 4')")
        assert sorted(asked) == ["", "t00", "t00"], "nothing was asked for what is below a closed branch"
        before = items.count()
        store.plant([tree(2)])
        until(page, f"document.querySelectorAll('#tree li').length === {before + 1}")
    assert page.evaluate("e => e.isConnected", shown), "the tree was not built anew"
    assert page.get_by_text("text of t00/0/0", exact=True).is_visible()


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
    asked: list[str] = []
    page.on("request", lambda r: "api/tree" in r.url and asked.append(r.url))
    with Store.create_or_resume(run / "grow", ME) as store:
        for parent in ("t00/0500", "t00/0050"):  # far below what is shown, and among it
            store.commit(Expansion(parent, [node(f"{parent}/900", leaf=True)], 1, 1, 5))
    page.locator("#tree button.branch", has_text="text of t00/0050").get_by_text("· 101").wait_for()
    assert len(asked) <= 2 and page.get_by_text("text of t00/0007/2").is_visible()
    page.locator("#tree button.branch").first.press("Enter")
    until(page, "document.querySelectorAll('#tree li').length === 1")


def test_a_run_is_found_among_many(open_page: Any, tmp_path: Path) -> None:
    for i in range(120):
        (tmp_path / f"run-{i:03d}").mkdir()
        told = {"format": "regrow-run/1", "created": f"2026-11-21 07:{119 - i:03d}", "stages": {}}
        (tmp_path / f"run-{i:03d}/manifest.json").write_text(json.dumps(told))
    with server(tmp_path) as (url, _):
        page = open_page(base=url)
        page.get_by_text("120 runs, 50 shown").wait_for()
        assert page.locator("table.runs tbody tr").count() == 50
        page.keyboard.press("Tab")
        for _ in range(300):
            if page.evaluate("document.activeElement.textContent") == "Show more":
                break
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        until(page, "document.activeElement.textContent === 'run-050'")
        page.get_by_text("120 runs, 100 shown").wait_for()
        page.get_by_label("Compare run-003").check()
        page.locator("#run-search").fill("EMPTY run-11")
        page.get_by_text("10 runs, 10 shown").wait_for()
        for i in range(110, 115):
            page.get_by_label(f"Compare run-{i}").check()
        assert page.get_by_label("Compare run-115").is_disabled(), "the server compares six at most"
        page.get_by_role("link", name="Compare 6 runs").wait_for()
        (tmp_path / "run-200").mkdir()
        told = {"format": "regrow-run/1", "created": "2026-11-22 07:00", "stages": {}}
        (tmp_path / "run-200/manifest.json").write_text(json.dumps(told))
        page.locator("#run-search").fill("run-200")
        page.get_by_role("link", name="run-200").wait_for()
        page.get_by_role("button", name="Untick all").click()
        page.locator("#run-search").fill("nowhere")
        page.get_by_text("No run fits these words.").wait_for()
        page.context.close()


def test_on_a_phone_tables_are_seen_whole(open_page: Any) -> None:
    page = open_page(run_at("good", "results"), viewport={"width": 390, "height": 844})
    for tab, table in (("results", "table.suite"), ("training", "table.monitor")):
        page.goto(page.url.split("#")[0] + run_at("good", tab))
        page.locator(table).first.wait_for()
        wide = page.locator(f"{table} td:visible").evaluate_all("all => all.map(e => e.getBoundingClientRect().right)")
        assert wide and max(wide) <= 390, table


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
    open_page: Any, tmp_path: Path, tiny_model_dir: Path, data_file: Path
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
