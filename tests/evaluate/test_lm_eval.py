"""lm-eval tasks: the same numbers as lm-eval itself, item by item."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regrow.errors import DataError
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.stage import build_suites, evaluate
from regrow.evaluate.suites.lm_eval import run_task, task_items
from regrow.models.load import load_model, load_tokenizer, resolve_model

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
