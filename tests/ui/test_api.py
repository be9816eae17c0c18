"""What the page is told of runs, real and hostile ones."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from regrow.report.compare import diff_runs, run_line
from regrow.report.items_view import load_items
from regrow.report.load import load_run
from tests.report.fixture_run import make_run
from tests.report.test_page import HOSTILE, assert_contained
from tests.ui.helpers import HOST, TOKEN, client


def test_a_real_run_from_end_to_end(real_runs: Path) -> None:
    asks = client(real_runs)
    (line,) = asks.get("api/runs").json()
    assert line["id"] == "first" and line["state"] == "done" and line["data"].endswith("mine.jsonl")
    told = asks.get("api/run", params={"run": "first"}).json()
    assert [a["arm"] for a in told["arms"]] == ["base", "regrow"] and told["main"] == "regrow"
    assert told["verdict"]["sentence"] and told["headline"][0]["name"] == "Regrow"
    assert "heldout" in [s["name"] for s in told["suites"]]
    assert {row["unit"] for row in told["mixes"][0]["rows"]} >= {"Tokens", "Rows"}
    assert told["recipe"].startswith("seed: 3")
    log = asks.get("api/logs", params={"run": "first"}).json()["regrow"]
    assert log[-1]["step"] >= 1 and log[-1]["loss/domain"] > 0 and log[-1]["loss/replay"] > 0
    items = asks.get("api/items", params={"run": "first"}).json()
    assert items["all"] == len(load_items(load_run(real_runs / "first")).items)
    trees = asks.get("api/tree", params={"run": "first"}).json()
    assert trees["source"] == "corpus" and {b["text"] for b in trees["branches"]} == {"rivers", "birds"}
    first = asks.get("api/tree", params={"run": "first", "parent": trees["branches"][0]["id"]}).json()
    assert first["total"] == trees["branches"][0]["children"] and first["branches"][0]["role"] == "user"
    leaf = asks.get("api/tree", params={"run": "first", "parent": first["branches"][0]["id"]}).json()
    assert leaf["branches"][0]["role"] == "assistant" and leaf["branches"][0]["text"]
    report = asks.get("api/report", params={"run": "first"})
    assert_contained(report.text)
    values = asks.get("api/form/values", params={"run": "first"}).json()
    assert values["seed"] == "3" and values["grow.engine"] == "dummy" and values["mix.replay_ratio"] == "0.3"
    assert asks.post("api/check", json={"values": values}).json() == {"problems": {}}


def test_items_are_filtered_searched_and_paged(runs: Path) -> None:
    asks = client(runs)

    def page(**params: object) -> dict:
        return asks.get("api/items", params={"run": "good", **params}).json()

    everything = page()
    assert everything["total"] == 640 and len(everything["items"]) == 50
    lost = page(outcome="lost", limit=200)
    assert 0 < lost["total"] < 100 and {i["outcome"] for i in lost["items"]} == {"lost"}
    counted = {o["key"]: o["n"] for o in everything["outcomes"]}
    assert counted["lost"] == lost["total"] and counted["kept"] == page(outcome="kept")["total"]
    assert counted["kept"] + counted["lost"] + counted["won"] + counted["never"] == 640, "saved ones are kept ones"
    plain = page(arm="sft", outcome="lost")
    assert plain["total"] > lost["total"]
    assert {i["domain"] for i in page(domain="elements")["items"]} == {"elements"}
    found = page(q="HELIUM  symbol", limit=200)
    assert found["total"] and all("helium" in i["question"] for i in found["items"])
    assert page(q="no such words anywhere")["total"] == 0
    pages = [page(outcome="lost", offset=k, limit=7)["items"] for k in range(0, lost["total"], 7)]
    assert [i["id"] for p in pages for i in p] == [i["id"] for i in lost["items"]]
    for wrong in ({"limit": 0}, {"limit": 10_000}, {"offset": -1}, {"q": "x" * 501}):
        assert asks.get("api/items", params={"run": "good", **wrong}).status_code == 422


def test_the_tree_is_read_level_by_level(runs: Path) -> None:
    asks = client(runs)

    def level(parent: str, **params: int) -> dict:
        return asks.get("api/tree", params={"run": "good", "parent": parent, **params}).json()

    assert level("")["total"] == 5
    first = level("t00", limit=3)
    assert first["total"] == 8 and len(first["branches"]) == 3
    both = level("t00", limit=3) | {"branches": first["branches"] + level("t00", offset=3)["branches"]}
    assert both["branches"] == level("t00")["branches"]
    kept = [b["kept"] for b in level("t00")["branches"]]
    assert kept == sorted(kept, reverse=True), "dropped ones come last"
    assert level("no such node") == {**level(""), "total": 0, "branches": []}


def test_comparing_says_what_regrow_diff_says(runs: Path) -> None:
    make_run(runs / "third", seed=2)
    asks = client(runs)
    found = asks.get("api/compare", params=[("run", "good"), ("run", "third"), ("run", "group/early")]).json()
    told = diff_runs(load_run(runs / "good"), load_run(runs / "third"))
    assert found["runs"] == ["good", "third", "group/early"]
    assert [r["values"] for r in found["recipe"] if r["key"] == "seed"] == [["0", "2", "1"]]
    assert [(r["suite"], r["arm"], *r["values"][:2]) for r in found["numbers"]] == told.numbers
    assert {r["values"][2] for r in found["numbers"]} == {"–"}
    assert any("has not been evaluated" in n for n in found["notes"])
    assert asks.get("api/compare", params=[("run", "good")]).status_code == 422


def test_an_unfinished_run_is_shown_as_far_as_it_is(runs: Path) -> None:
    asks = client(runs)
    told = asks.get("api/run", params={"run": "group/early"}).json()
    assert told["verdict"]["word"] == "Not evaluated" and told["suites"] == []
    assert asks.get("api/items", params={"run": "group/early"}).json()["total"] == 0
    (runs / "bare").mkdir()
    (runs / "bare/manifest.json").write_text('{"format": "regrow-run/1", "stages": {}}')
    assert {r["id"]: r["state"] for r in asks.get("api/runs").json()}["bare"] == "empty"
    assert asks.get("api/run", params={"run": "bare"}).json()["headline"] == []
    assert asks.get("api/tree", params={"run": "bare"}).json()["source"] is None
    (runs / "bare/manifest.json").write_text("{")
    assert {r["id"]: r["state"] for r in asks.get("api/runs").json()}["bare"] == "damaged"
    assert "manifest.json" in asks.get("api/run", params={"run": "bare"}).json()["where"]


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../outside",
        "good/../../outside",
        "good/../../../../../../etc",
        "/etc",
        "outside-link",
        "outside-link/deeper",
        "",
        "\x00",
        "good\x00",
        "a" * 4000,
        "%2e%2e/outside",
        "..%2foutside",
        "..\\outside",
        "loop",
        "good/eval",
        ".started",
    ],
)
def test_no_path_leads_out_of_the_folder(runs: Path, name: str) -> None:
    make_run(runs.parent / "outside", seed=9)
    (runs / "outside-link").symlink_to(runs.parent / "outside")
    (runs / "loop").symlink_to(runs / "loop")
    asks = client(runs)
    assert {r["id"] for r in asks.get("api/runs").json()} == {"good", "group/early"}, "a link outside is not listed"
    for what in ("run", "items", "tree", "logs", "report", "form/values", "events"):
        reply = asks.get(f"api/{what}", params={"run": name})
        assert reply.status_code == 400, (what, reply.text)
        assert "seed: 9" not in reply.text
    assert asks.get("api/compare", params=[("run", "good"), ("run", name)]).status_code == 400
    for what in ("stop", "continue"):
        assert asks.post(f"api/{what}", json={"run": name}).status_code == 400


@pytest.mark.parametrize("file", ["eval/results.json", "train/regrow/train.json", "train/regrow/monitor.jsonl"])
def test_a_run_whose_files_are_links_to_outside_is_refused(runs: Path, file: str) -> None:
    secret = runs.parent / "secret.json"
    secret.write_text('{"arms": ["base"], "suites": {}, "verdict": {"sentence": "the secret"}}')
    (runs / "good" / file).unlink(missing_ok=True)
    (runs / "good" / file).symlink_to(secret)
    for what in ("run", "items", "report", "logs", "events"):
        reply = client(runs).get(f"api/{what}", params={"run": "good"})
        assert reply.status_code == 400 and "link to outside" in reply.text and "the secret" not in reply.text


@pytest.mark.parametrize(
    "path",
    [
        "static/../server.py",
        "static/..%2fserver.py",
        "static//etc/passwd",
        "static/%2e%2e/%2e%2e/runs.py",
        "%2e%2e/runs.py",
    ],
)
def test_static_files_stay_in_their_folder(runs: Path, path: str) -> None:
    reply = client(runs).get(f"{HOST}/{TOKEN}/{path}")
    assert reply.status_code in (403, 404) and "import" not in reply.text


def test_text_of_models_stays_text(runs: Path) -> None:
    make_run(runs / "bad", hostile=HOSTILE, n_items=24)
    asks = client(runs)
    params = {"run": "bad"}
    for path in ("run", "items", "tree", "logs"):
        reply = asks.get(f"api/{path}", params=params)
        assert reply.status_code == 200, path
        assert reply.headers["content-type"] == "application/json"
        assert reply.content.isascii(), "lone surrogates and line separators as escapes"
    items = asks.get("api/items", params={**params, "q": "<img src=x onerror="}).json()
    assert items["total"] == 24 and HOSTILE in items["items"][0]["question"]
    assert_contained(asks.get("api/report", params=params).text)


def test_numbers_that_json_does_not_know_become_null(runs: Path) -> None:
    log = runs / "good/train/regrow/log.jsonl"
    log.write_text('{"step": 1, "loss": NaN, "loss/domain": Infinity, "loss/replay": 1.5}\n')
    told = client(runs).get("api/logs", params={"run": "good"}).json()
    assert told["regrow"] == [{"step": 1, "loss/replay": 1.5}]


def test_a_run_is_read_again_only_when_it_changed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from regrow.ui import folder

    reads = []
    monkeypatch.setattr(folder, "load_run", lambda path: (reads.append(path), load_run(path))[1])
    asks = client(runs)
    for _ in range(3):
        asks.get("api/items", params={"run": "good"})
    assert len(reads) == 1
    results = runs / "good/eval/results.json"
    told = json.loads(results.read_text())
    told["verdict"]["sentence"] = "Another verdict."
    results.write_text(json.dumps(told))
    os.utime(results, (1, 1))
    assert asks.get("api/run", params={"run": "good"}).json()["verdict"]["sentence"] == "Another verdict."
    assert len(reads) == 2


def test_of_the_list_only_what_changed_is_read_again(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from regrow.ui import folder

    reads = []
    monkeypatch.setattr(folder, "run_line", lambda path, root: (reads.append(path.name), run_line(path, root))[1])
    asks = client(runs)
    for _ in range(3):
        assert [r["id"] for r in asks.get("api/runs").json()] == ["good", "group/early"]
    assert sorted(reads) == ["early", "good"]
    make_run(runs / "third", seed=2, evaluated=False)
    recipe = runs / "group/early/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("path: demo", "path: other"))
    told = {r["id"]: r for r in asks.get("api/runs").json()}
    assert sorted(reads[2:]) == ["early", "third"] and told["group/early"]["data"] == "other"
    shutil.rmtree(runs / "good")
    assert {r["id"] for r in asks.get("api/runs").json()} == {"group/early", "third"}


def test_no_markup_is_made_of_data() -> None:
    """The page's own modules never put markup together; their libraries are not asked to."""
    from regrow.ui.server import STATIC

    for module in STATIC.glob("*.js"):
        text = module.read_text(encoding="utf-8")
        for way in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "dangerously",
            "eval(",
            "Function(",
        ):
            assert way not in text, (module.name, way)
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page, "no CDN"
