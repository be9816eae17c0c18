"""Models behind servers: what a folder and a server of the same model give is the same; what a server cannot do is
refused before anything is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from regrow.compare import compare
from regrow.engines.hf import TransformersEngine
from regrow.errors import DataError, EngineError
from regrow.models.load import load_model, load_tokenizer
from regrow.recipe import parse_recipe
from tests.evaluate.models import perturbed
from tests.fixtures.completions_server import CompletionsServer

SETTINGS = [
    "evaluate.bootstrap=200", "evaluate.generate_samples=3", "evaluate.max_new_tokens=5", "grow.encoder=none",
    "grow.server.retries=0", "grow.server.max_concurrency=4",
]  # fmt: skip


@contextmanager
def serving(folder: Path, **keys) -> Iterator[CompletionsServer]:
    tokenizer = load_tokenizer(folder)
    engine = TransformersEngine.from_model(load_model(folder), tokenizer)
    with CompletionsServer(engine, tokenizer, **keys) as server:
        yield server


def run(models: list, out: Path, *suites: str, more=(), tokenizer: str | None = None, reuse=()) -> tuple[dict, list]:
    recipe = parse_recipe("", overrides=[*SETTINGS, *more, f"evaluate.suites={json.dumps(list(suites))}"])
    results = compare(recipe, [str(m) for m in models], out, tokenizer=tokenizer, reuse=reuse)
    return results, [json.loads(line) for line in (out / "eval/records.jsonl").read_text().splitlines()]


@pytest.fixture
def suites(tmp_path: Path) -> list[str]:
    asked = [{"question": f"Which colour has {k}?", "choices": ["red", "green", "blue"], "answer": k % 3}
             for k in range(7)]  # fmt: skip
    short = [{"question": f"What is {k}?", "answers": ["data", "the mean"]} for k in range(5)]
    for name, rows in (("picked", asked), ("short", short)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "wrote.yaml").write_text("scenario: short.jsonl\ninferencer: generate\nmetric: contains\n")
    return [
        f"file:{tmp_path / 'picked.jsonl'}",
        f"file:{tmp_path / 'short.jsonl'}",
        f"recipe:{tmp_path / 'wrote.yaml'}",
    ]


@pytest.mark.parametrize("keys", [{"owner": "vllm"}, {"owner": "somebody", "echo": True}, {"owner": "llamacpp"}],
                         ids=["vllm", "echo", "llama.cpp"])  # fmt: skip
def test_a_server_gives_what_the_folder_gives(tiny_model_dir: Path, tmp_path: Path, suites: list[str], keys) -> None:
    other = perturbed(tiny_model_dir, tmp_path / "other")
    with serving(other, **keys) as server:
        results, records = run([tiny_model_dir, other, server.url], tmp_path / "out", *suites)
        asked = len(server.bodies)
        assert run([tiny_model_dir, other, server.url], tmp_path / "out", *suites)[0] == results
        assert len(server.sampled()) and len(server.bodies) <= asked + 30, "only what it can do is tried again"
    by = {(r["suite"], r["item_id"], r["arm"]): r for r in records}
    for (suite, name, arm), theirs in by.items():
        if arm != "after-2":
            continue
        ours = by[suite, name, "after"]
        assert set(theirs["metrics"]) == set(ours["metrics"]), suite
        for metric in ("acc", "contains", "tokens", "nll", "margin", "confidence", "rouge_l"):
            if metric in ours["metrics"]:
                assert theirs["metrics"][metric] == pytest.approx(ours["metrics"][metric], abs=2e-4), (suite, metric)
        if suite != "short" or keys["owner"] != "somebody":  # echo names tokens by text
            assert theirs["output"] == ours["output"]
    assert {r["suite"] for r in records} == {"picked", "short", "wrote"}
    assert results["models"]["after-2"]["path"] == server.url
    assert results["models"]["after-2"]["revision"].startswith("served-")


def test_a_server_may_be_the_base_and_choose_the_facts(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regrow.evaluate import stage
    from tests.evaluate.models import small_pool

    monkeypatch.setitem(stage.build_suites.__kwdefaults__, "pool", small_pool)
    few = ["evaluate.n_facts=24", "evaluate.pool_sample=10"]
    with serving(tiny_model_dir) as server:
        results, _ = run([server.url, tiny_model_dir], tmp_path / "a", "facts", more=few)
    local, _ = run([tiny_model_dir, tiny_model_dir], tmp_path / "c", "facts", more=few)
    assert results["suites"]["facts"]["arms"]["base"] == local["suites"]["facts"]["arms"]["base"]
    asked = [json.loads((tmp_path / n / "suites/pool.json").read_text()) for n in "ac"]
    assert asked[0] == asked[1], "the same candidates were asked and known"
    assert results["suites"]["facts"]["noise_floor"] is not None


@pytest.mark.parametrize("keys", [{"owner": "somebody"}, {"owner": "vllm", "scaled": True}], ids=["none", "scaled"])
def test_without_log_probabilities_only_what_is_written_can_be_asked(
    tiny_model_dir: Path, tmp_path: Path, suites: list[str], keys
) -> None:
    with serving(tiny_model_dir, **keys) as server:
        with pytest.raises(EngineError, match=r"picked, short: .* gives no log-probabilities of a prompt") as error:
            run([tiny_model_dir, server.url], tmp_path / "out", *suites)
        assert "instructions, refusals, recipe:" in str(error.value)
        assert not (tmp_path / "out/eval").exists(), "nothing was scored before it was refused"
        results, records = run([tiny_model_dir, server.url], tmp_path / "out", suites[2])
    assert results["suites"]["wrote"]["metric"] == "contains"
    outputs = {r["arm"]: r["output"] for r in records if r["item_id"] == records[0]["item_id"]}
    assert outputs["base"] == outputs["after"]
    assert results["suites"]["wrote"]["differences"]["after"]["vs_base"]["diff"] == 0
    assert all("nll" not in r["metrics"] for r in records if r["arm"] == "after"), "nothing is made up"


def test_dialogues_have_a_loss_and_no_kl(tiny_model_dir: Path, tmp_path: Path) -> None:
    long = "It is the sum of all of the data, over their number, and so on and so forth until it ends."
    rows = [{"question": f"Tell me of {k}.", "answer": long} for k in range(8)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    more = [f"data.path={tmp_path / 'mine.jsonl'}", "evaluate.generate_samples=0"]
    with serving(tiny_model_dir) as server:
        results, _ = run([tiny_model_dir, server.url], tmp_path / "out", "heldout", more=more)
    suite = results["suites"]["heldout"]
    assert suite["metric"] == "nll" and "kl" not in suite["secondary"]
    values = [v["value"] for v in suite["arms"].values()]
    assert values[1] == pytest.approx(values[0], abs=1e-4)


def test_what_a_server_is_refused_for(tiny_model_dir: Path, tmp_path: Path, suites: list[str], monkeypatch) -> None:
    with serving(tiny_model_dir, key="secret") as server:
        with pytest.raises(EngineError, match="the server refused: 401"):
            run([tiny_model_dir, server.url], tmp_path / "a", suites[2])
        with pytest.raises(DataError, match="nothing says how text becomes tokens"):
            run([server.url, server.url], tmp_path / "b", suites[2])
        with pytest.raises(DataError, match="no model is behind a server"):
            run([tiny_model_dir, tiny_model_dir], tmp_path / "c", suites[2], tokenizer=str(tiny_model_dir))
        monkeypatch.setenv("MY_KEY", "secret")
        keyed = ["grow.server.api_key_env=MY_KEY"]
        with pytest.raises(EngineError, match="does not serve 'large'"):
            run([tiny_model_dir, f"{server.url}#large"], tmp_path / "d", suites[2], more=keyed)
        served = [f"{server.url}/v1#tiny", server.url]
        run(served, tmp_path / "e", suites[2], more=keyed, tokenizer=str(tiny_model_dir))
    assert "secret" not in "".join(p.read_text() for p in (tmp_path / "e").rglob("*.json*"))
    with pytest.raises(EngineError, match="holds no user, password or query") as error:
        run([tiny_model_dir, "http://me:secret@127.0.0.1:1"], tmp_path / "f", suites[2])
    assert "secret" not in str(error.value)


def test_lm_eval_tasks_are_refused_for_a_server(tiny_model_dir: Path, tmp_path: Path) -> None:
    from regrow.evaluate.config import EvalConfig
    from regrow.evaluate.served import served_model
    from regrow.evaluate.stage import evaluate
    from regrow.models.load import ResolvedModel

    with serving(tiny_model_dir) as server:
        model = served_model(server.url, ResolvedModel(tiny_model_dir, "tiny", "abc"), parse_recipe("").grow.server)
        with pytest.raises(EngineError, match="lm-eval tasks are not run on a server"):
            evaluate({"base": tiny_model_dir, "after": model}, [], EvalConfig(suites=["lm-eval:x"]), tmp_path, seed=0)
