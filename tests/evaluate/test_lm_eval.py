"""lm-eval tasks: the same numbers as lm-eval itself, item by item."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from regrow.errors import DataError
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.stage import build_suites, evaluate
from regrow.evaluate.suites.lm_eval import run_task, task_items
from regrow.models.load import load_model, load_tokenizer, resolve_model
from tests.evaluate.models import choice, dialogues, perturbed

pytest.importorskip("lm_eval")

YAML = """task: tiny_mc
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> EvalConfig:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"Which is number {k}?", "choices": ["mean", "the median", "a mode of data"], "answer": k % 3}
            for k in range(12)]  # fmt: skip
    (folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "tiny_mc.yaml").write_text(YAML.format(data=folder / "data.jsonl"))
    return EvalConfig(
        suites=["lm-eval:tiny_mc"], lm_eval_include_path=str(folder), bootstrap=200, lm_eval_batch_size=4
    )


@pytest.mark.slow
def test_item_records_average_to_lm_evals_own_numbers(tiny_model_dir: Path, cfg: EvalConfig) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = load_model(tiny_model_dir), load_tokenizer(tiny_model_dir)
    found = run_task("tiny_mc", model, tokenizer, cfg, seed=0)
    theirs = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1), tasks=["tiny_mc"], bootstrap_iters=0,
        task_manager=TaskManager(include_path=cfg.lm_eval_include_path),
    )["results"]["tiny_mc"]  # fmt: skip
    assert len(found["rows"]) == 12
    for metric in ("acc", "acc_norm"):
        ours = sum(r["metrics"][metric] for r in found["rows"]) / 12
        assert ours == pytest.approx(theirs[f"{metric},none"])
        assert found["higher"][metric] is True
    assert {r["output"] for r in found["rows"]} <= {"mean", "the median", "a mode of data"}


@pytest.mark.slow
def test_a_task_is_a_suite_like_any_other_and_is_run_once(
    tiny_model_dir: Path, cfg: EvalConfig, tmp_path: Path
) -> None:
    path = build_suites(cfg, resolve_model(str(tiny_model_dir)), [], tmp_path, seed=0)
    items = [json.loads(line) for line in path.read_text().splitlines()]
    assert [i["id"] for i in items] == [f"tiny_mc/{k}" for k in range(12)]
    assert items[1]["answers"] == ["the median"]
    assert "Which is number 1?" in items[1]["messages"][0]["content"]
    assert len(task_items("tiny_mc", cfg.model_copy(update={"lm_eval_limit": 5}))) == 5
    models = {"base": tiny_model_dir, "after": tiny_model_dir}
    r = evaluate(models, [], cfg, tmp_path / "eval", seed=0).results
    suite = r["suites"]["lm-eval:tiny_mc"]
    assert (suite["kind"], suite["metric"], suite["n"], suite["higher_is_better"]) == ("retention", "acc", 12, True)
    assert len((tmp_path / "eval/scores.jsonl").read_text().splitlines()) == 1  # one revision, one run
    assert r["verdict"]["level"] == "no-change"


@pytest.mark.slow
def test_tasks_that_are_not_there_are_said(cfg: EvalConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no task 'tiny_mcc'"):
        task_items("tiny_mcc", cfg)
    (tmp_path / "gone.yaml").write_text(YAML.format(data=tmp_path / "gone.jsonl").replace("tiny_mc", "gone"))
    with pytest.raises(DataError, match="data of the task cannot be had") as error:
        task_items("gone", cfg.model_copy(update={"lm_eval_include_path": str(tmp_path)}))
    assert "hub" in (error.value.hint or "")


def written(folder: Path, arm: str) -> tuple[dict, dict[str, list[dict]]]:
    """The results and the samples in a folder that lm-eval's own functions sort."""
    from lm_eval.utils import (
        get_file_datetime,
        get_file_task_name,
        get_results_filenames,
        get_sample_results_filenames,
    )

    names = [str(p) for p in (folder / arm).iterdir()]
    [results] = get_results_filenames(names)
    samples = {}
    for name in get_sample_results_filenames(names):
        short = Path(name).name
        assert get_file_datetime(short) in results
        samples[get_file_task_name(short)] = [json.loads(line) for line in Path(name).read_text().splitlines()]
    return json.loads(Path(results).read_text()), samples


def test_own_suites_are_written_in_lm_evals_shape(tiny_model_dir: Path, tmp_path: Path) -> None:
    from lm_eval.result_schema import EvalResults, SampleResult
    from lm_eval.utils import hash_string, make_table

    items = [choice(f"c{k}", "news", right=k % 4) for k in range(10)] + dialogues(3)
    other = perturbed(tiny_model_dir, tmp_path / "other")
    cfg = EvalConfig(bootstrap=200, generate_samples=0)
    r = evaluate({"base": tiny_model_dir, "after": other}, items, cfg, tmp_path / "eval", seed=7).results
    for arm in ("base", "after"):
        found, samples = written(tmp_path / "eval/lm-eval", arm)
        assert set(found) - {"regrow_version"} <= set(EvalResults.__annotations__)
        assert set(found["results"]) == set(found["versions"]) == set(found["n-shot"]) == {"news", "own-dialogues"}
        values = [row["acc"] for row in samples["news"]]
        table = found["results"]["news"]
        assert table["acc,none"] == r["suites"]["news"]["arms"][arm]["value"] == sum(values) / 10
        assert table["acc_stderr,none"] == pytest.approx((table["acc,none"] * (1 - table["acc,none"]) / 9) ** 0.5)
        assert found["results"]["own-dialogues"]["kl,none"] == r["suites"]["own-dialogues"]["arms"][arm]["value"]
        assert found["higher_is_better"]["own-dialogues"]["kl"] is False and found["config"]["random_seed"] == 7
        assert found["n-samples"]["news"] == {"original": 10, "effective": 10}
        assert found["configs"]["news"]["output_type"] == "multiple_choice"
        shown = make_table(found)
        assert re.search(r"\|news .*\|acc .*\|↑ .*\|± ", shown), "lm-eval's own table reads it"
        row = samples["news"][3]
        assert set(SampleResult.__annotations__) <= set(row) and row["doc_id"] == 3 and row["target"] == "black"
        assert row["doc"]["id"] == "c3" and row["filter"] == "none" and row["resps"] == [row["filtered_resps"]]
        assert row["target_hash"] == hash_string("black")
    evaluate({"base": tiny_model_dir, "after": other}, items, cfg, tmp_path / "eval", seed=7)
    written(tmp_path / "eval/lm-eval", "after")  # one results file: what was there is replaced


@pytest.mark.slow
def test_a_task_is_written_as_lm_eval_itself_writes_it(tiny_model_dir: Path, cfg: EvalConfig, tmp_path: Path) -> None:
    """lm-eval's own tracker, with what its own run returned, beside ours."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    model, tokenizer = load_model(tiny_model_dir), load_tokenizer(tiny_model_dir)
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    whole = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), tasks=["tiny_mc"], log_samples=True,
        task_manager=TaskManager(include_path=cfg.lm_eval_include_path), evaluation_tracker=tracker,
    )  # fmt: skip
    samples = whole.pop("samples")
    tracker.save_results_aggregated(results=whole, samples=samples)
    tracker.save_results_samples(task_name="tiny_mc", samples=samples["tiny_mc"])
    [folder] = (tmp_path / "theirs").iterdir()
    theirs, their_samples = written(tmp_path / "theirs", folder.name)
    evaluate({"base": tiny_model_dir, "after": tiny_model_dir}, [], cfg, tmp_path / "eval", seed=0)
    ours, our_samples = written(tmp_path / "eval/lm-eval", "after")
    for part in ("group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples", "task_hashes"):
        assert ours[part] == theirs[part], part
    got, expected = ours["results"]["tiny_mc"], theirs["results"]["tiny_mc"]
    assert list(got) == list(expected)
    assert [v for v in got.values() if isinstance(v, str)] == [v for v in expected.values() if isinstance(v, str)]
    for name in ("acc,none", "acc_stderr,none", "acc_norm,none", "acc_norm_stderr,none"):
        assert got[name] == pytest.approx(expected[name], rel=1e-9)
    assert make_table(ours) == make_table(theirs)
    assert ours["configs"]["tiny_mc"] == theirs["configs"]["tiny_mc"]
    for mine, row in zip(our_samples["tiny_mc"], their_samples["tiny_mc"], strict=True):
        exact = [k for k in row if k not in ("resps", "filtered_resps")]
        assert {k: mine[k] for k in exact} == {k: row[k] for k in exact} and set(mine) == set(row)
        assert [float(a[0]) for a in mine["filtered_resps"]] == pytest.approx(
            [float(a[0]) for a in row["filtered_resps"]], abs=1e-4
        )
