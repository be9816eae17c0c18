"""The page is whole, self-contained, safe and honest."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from regrow.errors import RunError
from regrow.report import sections
from regrow.report.build import build_report, load_report
from regrow.report.load import load_run
from tests.report.fixture_run import make_run
from tests.report.pages import Page, parse

HOSTILE = (
    "</script><script>alert(1)</script><!--<script>\" onmouseover=\"alert(2)\" ' onfocus='alert(3)' "
    "<img src=x onerror=alert(4)> javascript:alert(5) {{7*7}} </style></title>]]> \u2028\u2029 \ud800 \u202e"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def html(run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_report(run, tmp_path_factory.mktemp("page") / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return parse(html)


def assert_contained(html: str) -> None:
    """Nothing is loaded, nothing runs but our own script, and the policy says so."""
    page = parse(html)
    assert page.unclosed == [] and page.comments == []
    scripts = page.all("script")
    assert [s.attrs.get("type", "code") for s in scripts] == ["application/json", "code"]
    digest = base64.b64encode(hashlib.sha256(scripts[1].text.encode()).digest()).decode()
    policy = next(
        m.attrs["content"] for m in page.all("meta") if m.attrs.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"
    assert set(rules) == {"default-src", "style-src", "script-src", "img-src", "base-uri", "form-action"}
    assert {e.tag for e in page.elements}.isdisjoint({"iframe", "img", "object", "embed", "form", "base", "video"})
    for element in page.elements:
        assert not [a for a in element.attrs if a.startswith("on")], element
        for name in ("src", "href", "action", "data", "srcset", "xlink:href"):
            value = element.attrs.get(name, "#")
            assert value.startswith("#") or (element.tag == "link" and value.startswith("data:image/svg+xml")), element
    for style in page.all("style"):
        assert not re.search(r"url\(|@import|https?:", style.text)
    assert not re.search(
        r"https?:|fetch\(|XMLHttp|import\(|innerHTML|insertAdjacent|document\.write|eval\(", scripts[1].text
    )


def test_the_page_is_self_contained(html: str) -> None:
    assert_contained(html)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", hostile=HOSTILE, n_items=30)
    assert HOSTILE.encode("unicode_escape")[:9] in (run / "eval" / "records.jsonl").read_bytes()
    html = build_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert_contained(html)
    page = parse(html)
    as_written = HOSTILE.encode("utf-8", "replace").decode()
    data = page.data()
    assert data["items"][0][5][0][0].endswith(as_written), "model output travels whole, as data"
    assert data["items"][0][0].endswith(as_written)
    assert any(node[1].endswith(as_written) for node in data["tree"][0][3])
    assert "{{7*7}}" in page.text(), "text is never taken for a template"
    assert sum(as_written.split(" \u2028")[0] in e.text for e in page.elements) > 20, "and is shown as it was written"


def test_hostile_arm_names_and_metrics_are_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n_items=12)
    for name in ("results.json", "records.jsonl"):
        file = run / "eval" / name
        file.write_text(file.read_text().replace('"sft"', json.dumps('"><script>x</script>')))
    html = build_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert_contained(html)
    assert '"><script>x</script>' in parse(html).text()
    assert "<script>x" not in load_report(run)._repr_html_()


def test_links_ids_and_labels_fit(page: Page) -> None:
    ids = [e.attrs["id"] for e in page.elements if "id" in e.attrs]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link.attrs["href"][1:] in ids
    for element in page.elements:
        if "aria-labelledby" in element.attrs:
            assert element.attrs["aria-labelledby"] in ids
    assert len(page.all("h1")) == 1 and len(page.all("main")) == 1
    assert all(svg.attrs.get("aria-hidden") or svg.attrs.get("aria-label") for svg in page.all("svg"))
    levels = [int(e.tag[1]) for e in page.elements if re.fullmatch(r"h[1-6]", e.tag)]
    assert all(b - a <= 1 for a, b in pairwise(levels)), "no heading level is skipped"


def test_every_row_of_a_table_has_its_columns(run: Path, page: Page, tmp_path: Path) -> None:
    assert len(page.tables()) >= 5 and all(len(set(columns)) == 1 for columns in page.tables())
    copy = shutil.copytree(run, tmp_path / "run")
    results = json.loads((copy / "eval" / "results.json").read_text())
    for told in results["forgetting"].values():
        told["suite"] = "own-dialogues"  # as where no facts were asked: its own words are the headline
    (copy / "eval" / "results.json").write_text(json.dumps(results))
    other = parse(build_report(copy, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Moved from its own words" not in [e.text for e in other.all("th")]
    assert all(len(set(columns)) == 1 for columns in other.tables()), other.tables()


def test_the_order_of_the_page(page: Page) -> None:
    sections = [e.attrs["id"] for e in page.elements if e.tag == "section"]
    assert sections == ["result", "suites", "domains", "items", "corpus", "mixture", "training", "cost", "again"]


def test_the_numbers_on_the_page_are_those_of_the_results(run: Path, page: Page) -> None:
    results = json.loads((run / "eval" / "results.json").read_text())
    text = page.text()
    assert next(e.text for e in page.all("h1")) == results["verdict"]["sentence"]
    loss = results["forgetting"]["sft"]["value"]
    assert f"−{loss * 100:.1f}" in text and f"{results['forgetting']['regrow']['retention'] * 100:.1f} %" in text
    assert f"+{results['gain']['regrow']['value']:.2f}" in text
    recovery = results["suites"]["facts"]["differences"]["regrow"]["recovery"]["value"]
    assert f"{recovery * 100:.0f} %" in text
    assert "(facts)" not in text and "7e27bd9f95328f0f" in text and "replay_ratio: 0.2" in text


def test_the_headline_has_its_own_words_and_marks_the_selected_suite(run: Path, page: Page, tmp_path: Path) -> None:
    results = json.loads((run / "eval" / "results.json").read_text())
    titles = [e.text for e in page.all("th")]
    assert "Moved from its own words" in titles and "Of the facts it knew, remain" in titles
    moved = results["suites"]["own-dialogues"]["differences"]["regrow"]["vs_base"]["diff"]
    assert f"+{moved:.3f}" in page.text() and "any change reads as a loss" in page.text()
    assert page.text().count("what it knew, chosen because the base gets it right") == 1
    copy = shutil.copytree(run, tmp_path / "run")
    del results["remaining"]
    results["verdict"]["notes"] = ["first number", "second number"]
    (copy / "eval" / "results.json").write_text(json.dumps(results))
    older = parse(build_report(copy, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Kept of the base’s score" in [e.text for e in older.all("th")], "results of an earlier version"
    assert "first number" in [e.text for e in older.all("li")]


def test_won_back_is_read_where_plain_sft_lost_something(run: Path) -> None:
    """The headline suite shows no loss of plain SFT; on its own dialogues there was one."""
    found = load_run(run)
    assert found.results is not None
    none = {"value": None, "ci": None, "defined": False, "reason": "nothing to win back"}
    found.results["suites"]["facts"]["differences"]["regrow"]["recovery"] = none
    row = next(r for r in sections.headline(found) if r["arm"] == "regrow")
    expected = found.results["suites"]["own-dialogues"]["differences"]["regrow"]["recovery"]["value"]
    assert (row["recovery_on"], row["recovery"]) == ("own-dialogues", f"{expected * 100:.0f}\N{NO-BREAK SPACE}%")
    found.results["suites"]["own-dialogues"]["differences"]["regrow"]["recovery"] = none
    row = next(r for r in sections.headline(found) if r["arm"] == "regrow")
    assert (row["recovery"], row["recovery_on"], row["recovery_why"]) == ("–", "", "nothing to win back")


def test_items_are_counted_as_in_the_results(run: Path, page: Page) -> None:
    flips = json.loads((run / "eval" / "results.json").read_text())["flips"]
    items = page.data()["items"]
    assert len(items) == 640
    for arm in ("sft", "regrow"):
        assert sum(i[6][arm] == "lost" for i in items) == flips[arm]["lost"]
        assert sum(i[6][arm] in ("kept", "saved") for i in items) == flips[arm]["kept"]
    for item in items:
        base, sft, regrow = (answer[1] for answer in item[5])
        assert (item[6]["regrow"] == "saved") == (base == 1 and sft == 0 and regrow == 1)


def test_items_can_be_read_without_javascript(page: Page) -> None:
    cards = [e for e in page.all("li") if e.attrs.get("class") == "item"]
    assert len(cards) == 60
    assert [e.text for e in page.all("dt")].count("Plain SFT") == 60
    assert "The first 60 of 640 items" in page.text()


def test_drops_are_counted_by_stage(page: Page, run: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(run / "grow" / "nodes.parquet").to_pylist()
    refusals = sum(r["reason"] == "refusal" for r in table)
    text = page.text()
    assert "While growing" in text and "like an evaluation item" in text and " 31 " in text
    assert str(refusals) in [e.text for e in page.all("dd")]


def test_a_choice_is_shown_with_what_it_was_chosen_from(page: Page) -> None:
    assert "Pick one: something else / " in page.text(), "nobody wrote the answer: it was the likeliest of these"


def test_size_is_bounded_with_many_items(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n_items=10_000, children=(20, 6, 4, 3))
    records = (run / "eval" / "records.jsonl").read_text().replace("see help()", "see help() " + "long answer " * 60)
    (run / "eval" / "records.jsonl").write_text(records)
    out = build_report(run, tmp_path / "report.html")
    assert out.stat().st_size < 5_000_000
    page = parse(out.read_text(encoding="utf-8"))
    carried = len(page.data()["items"])
    assert 1000 < carried < 10_000
    assert f"{carried:,} of 10,000 items" in page.text()
    outcomes = [i[6]["regrow"] for i in page.data()["items"]]
    lost = json.loads((run / "eval" / "results.json").read_text())["flips"]["regrow"]["lost"]
    assert outcomes.count("lost") == lost, "what was lost is never what is left out"


def test_a_large_tree_is_sampled_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n_items=12, children=(20, 8, 6, 4))
    page = parse(build_report(run, tmp_path / "report.html").read_text(encoding="utf-8"))

    def count(nodes: list) -> tuple[int, int]:
        inner = [count(n[3]) for n in nodes]
        return len(nodes) + sum(a for a, _ in inner), sum(n[4] for n in nodes) + sum(b for _, b in inner)

    shown = sum(count(t[3])[0] for t in page.data()["tree"])
    assert 1000 < shown <= 3000
    assert f"a sample of {shown:,} turns" in page.text()
    assert sum(count(t[3])[1] + t[4] for t in page.data()["tree"]) > 0, "what is hidden is counted where it is hidden"


def test_the_same_run_gives_the_same_page(run: Path, tmp_path: Path) -> None:
    one, two = build_report(run, tmp_path / "1.html"), build_report(run, tmp_path / "2.html")
    assert one.read_bytes() == two.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.html", "2.html"], "no temporary file is left"


@pytest.mark.parametrize(
    ("options", "gone", "note"),
    [
        ({"compare": False}, None, "no plain SFT arm"),
        ({"corpus": False}, "corpus", "no grown corpus"),
        ({"evaluated": False}, "items", "not been evaluated yet"),
    ],
)
def test_partial_runs_say_what_is_missing(tmp_path: Path, options: dict, gone: str | None, note: str) -> None:
    run = make_run(tmp_path / "run", n_items=60, **options)
    html = build_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert_contained(html)
    page = parse(html)
    sections = [e.attrs["id"] for e in page.all("section")]
    assert gone not in sections and "again" in sections
    assert note in page.text()
    assert note in load_report(run)._repr_html_()
    for link in page.all("a"):
        assert link.attrs["href"][1:] in [e.attrs.get("id") for e in page.elements]


@pytest.mark.parametrize("left", ["recipe.yaml", "manifest.json", "eval", "train", "mix", "grow", "corpus", "suites"])
def test_any_single_part_gives_a_page(run: Path, tmp_path: Path, left: str) -> None:
    (tmp_path / "run").mkdir()
    copy = shutil.copytree if (run / left).is_dir() else shutil.copy
    copy(run / left, tmp_path / "run" / left)
    html = build_report(tmp_path / "run", tmp_path / "report.html").read_text(encoding="utf-8")
    assert_contained(html)
    load_report(tmp_path / "run").text_table()


def test_a_running_stage_is_named(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["stages"]["train/regrow"] = {"status": "running", "inputs": {}, "seconds": 3.0}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with (copy / "train" / "regrow" / "log.jsonl").open("a") as f:
        f.write('{"step": 121, "lo')
    page = parse(build_report(copy, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Not finished: train/regrow" in page.text()


@pytest.mark.parametrize(
    ("file", "content", "where"),
    [
        ("manifest.json", "{", "manifest.json"),
        ("eval/results.json", "[]", "results.json"),
        ("eval/results.json", '{"arms": ["base"]}', "results.json"),
        ("eval/records.jsonl", '{"suite": "a", "item_id": "b", "arm": "base"}\n{oops}\n', "records.jsonl:2"),
        ("eval/records.jsonl", '{"suite": "a"}\n', "records.jsonl:1"),
        ("suites/items.jsonl", '{"id": "a"}\n', "items.jsonl:1"),
        ("train/sft/log.jsonl", '{oops}\n{"step": 1}\n', "log.jsonl:1"),
        ("corpus/nodes.parquet", "not parquet", "nodes.parquet"),
        ("mix/sft/mix.json", "nope", "mix.json"),
    ],
)
def test_damaged_files_are_named(run: Path, tmp_path: Path, file: str, content: str, where: str) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / file).write_text(content)
    with pytest.raises(RunError) as caught:
        build_report(copy, tmp_path / "report.html")
    assert str(caught.value.where).endswith(where)
    assert caught.value.hint
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing of a run"):
        load_report(tmp_path)
    with pytest.raises(RunError, match="no such run folder"):
        load_report(tmp_path / "nowhere")


def test_table_for_the_terminal(run: Path) -> None:
    table = load_report(run).text_table()
    results = json.loads((run / "eval" / "results.json").read_text())
    lines = table.splitlines()
    assert lines[0] == f"Partly kept: {results['verdict']['sentence']}"
    sft, regrow = (next(line for line in lines if line.startswith(name)) for name in ("Plain SFT", "Regrow"))
    assert f"−{results['forgetting']['sft']['value'] * 100:.1f} points [" in sft
    assert f"+{results['gain']['regrow']['value']:.2f} nats/token [" in regrow
    assert "\x1b" not in table and max(map(len, lines)) <= 150


def test_view_for_a_notebook(run: Path) -> None:
    page = parse(load_report(run)._repr_html_())
    assert page.unclosed == [] and len(page.all("tr")) == 3
    assert "Partly kept:" in page.text()


def test_the_growing_stage_s_own_count_of_drops_wins(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["stages"]["grow"]["facts"]["dropped"] = {"too few tokens": 4321}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    text = parse(build_report(copy, tmp_path / "report.html").read_text(encoding="utf-8")).text()
    assert "too few tokens" in text and "4,321" in text


def topics_of(run: Path, text: str = "capital") -> dict:
    """Lost items of a synthetic run as two topics, written into its results."""
    file = run / "eval" / "results.json"
    results = json.loads(file.read_text())
    lost = results["lost"]["sft"]
    near = [{"branch": "t00/0", "topic": text, "text": f"Tell me of {text}", "similarity": 0.61}]
    results["lost_topics"] = {
        "encoder": "minilm", "together": 0.35, "near": 0.45, "branches": 5000, "searched": 1000,
        "arms": {
            "sft": {"n": 12, "scattered": 1, "topics": [
                {"terms": [text, "land"], "n": 8, "of": 40, "items": lost[:8],
                 "corpus": {"covered": 6, "similarity": 0.5, "nearest": near}},
                {"terms": ["metal"], "n": 3, "of": 3, "items": lost[8:11],
                 "corpus": {"covered": 0, "similarity": 0.2, "nearest": []}},
            ]},
            "regrow": {"n": 1, "scattered": 1, "topics": []},
        },
    }  # fmt: skip
    file.write_text(json.dumps(results))
    return results["lost_topics"]


def test_what_was_lost_is_told_in_words(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n_items=120)
    assert "What was lost, in words" not in build_report(run, tmp_path / "a.html").read_text()
    topics_of(run)
    page = parse(build_report(run, tmp_path / "b.html").read_text(encoding="utf-8"))
    text = page.text()
    assert "What was lost, in words" in text and "capital, land" in text
    assert "8 lost of 40 near ones that the base knew (20 %)" in text
    assert "6 of 8 covered" in text and "covered by no grown branch" in text
    assert "0.61" in text and "Tell me of capital" in text and "1,000 of 5,000 were looked at" in text
    assert "1 lost question stands alone" in text
    first = json.loads((run / "eval/results.json").read_text())["lost"]["sft"][0]
    items = [json.loads(line) for line in (run / "suites/items.jsonl").read_text().splitlines()]
    [question] = [i for i in items if f"{i['suite']}:{i['id']}" == first]
    assert question["messages"][0]["content"] in text, "examples are shown"


def test_what_was_lost_is_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n_items=60)
    topics_of(run, HOSTILE.encode("utf-8", "replace").decode())
    html = build_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert_contained(html)
    assert "<script>alert(1)" not in html and "{{7*7}}" in parse(html).text()


def test_an_arm_that_the_recipe_no_longer_has_is_not_shown(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run", n_items=40)
    whole = load_run(out)
    for kind in ("mix", "train"):
        shutil.copytree(out / kind / "regrow", out / kind / "general")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["stages"]["train/general"] = {"status": "running"}
    (out / "manifest.json").write_text(json.dumps(manifest))
    run = load_run(out)
    assert list(run.mixes) == list(whole.mixes) and list(run.logs) == list(whole.logs)
    assert run.trainings.keys() == whole.trainings.keys()
    assert [n for n in run.notes if n not in whole.notes] == [
        "Not shown: general, which the recipe of this run no longer has."
    ]
    (out / "recipe.yaml").write_text("keys: of another version\n")
    assert "general" in load_run(out).logs, "nothing can be told apart"
