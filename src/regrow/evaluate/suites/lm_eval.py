"""Tasks of EleutherAI's lm-evaluation-harness, item by item so that arms can be compared paired."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from regrow.errors import DataError, MissingExtra
from regrow.evaluate.config import EvalConfig
from regrow.evaluate.items import Item
from regrow.evaluate.stats import mean_stderr

PREFIX = "lm-eval:"
PARTS = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
"""What stands in lm-eval's results by task."""


def tasks_of(cfg: EvalConfig) -> list[str]:
    """The lm-eval tasks among the suites."""
    return [s.removeprefix(PREFIX) for s in cfg.suites if s.startswith(PREFIX)]


def task_items(name: str, cfg: EvalConfig) -> list[Item]:
    """A task's documents as items, so that the grown corpus can be cleaned of them. They are scored by `run_task`.

    Raises:
        MissingExtra: lm-eval is not installed.
        DataError: No such task, or its data cannot be had.
    """
    out = []
    for task_name, task in _load(name, cfg).items():
        for k, doc in enumerate(task.eval_docs):
            if cfg.lm_eval_limit is not None and k >= cfg.lm_eval_limit:
                break
            text = str(task.doc_to_text(doc))
            choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None
            target = task.doc_to_target(doc)
            right = choices[target] if choices and isinstance(target, int) else target
            answers = [str(a) for a in (right if isinstance(right, list) else [right])]
            out.append(
                Item(
                    f"{task_name}/{k}", PREFIX + name, task_name, "answer", [{"role": "user", "content": text}],
                    answers=answers, meta={"lm_eval": name},
                )
            )  # fmt: skip
    return out


def run_task(name: str, model: Any, tokenizer: Any, cfg: EvalConfig, seed: int) -> dict[str, Any]:
    """Score a task or group with lm-eval.

    Returns:
        ``rows``: a list of ``{"id": "task/doc", "domain": task, "metrics": {...}, "output": text}``; ``higher``:
        metric -> whether higher is better; and ``theirs``: the parts of lm-eval's own results that are by task, and
        its samples, as JSON. Metrics are lm-eval's own by its names; those that exist only for a whole task
        (perplexity of a corpus) are not among those of ``rows``.

    Raises:
        MissingExtra: lm-eval is not installed.
        DataError: No such task, its data cannot be had, or it has no metric of single items.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "lm-eval", "eval", f"suite '{PREFIX}{name}'") from error
    manager = _manager(cfg.lm_eval_include_path)
    _load(name, cfg)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=cfg.lm_eval_batch_size)
    results = simple_evaluate(
        model=lm, tasks=[name], num_fewshot=cfg.lm_eval_num_fewshot, limit=cfg.lm_eval_limit, log_samples=True,
        bootstrap_iters=0, task_manager=manager, apply_chat_template=cfg.lm_eval_chat_template, random_seed=seed,
        numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
    )  # fmt: skip
    if results is None:
        raise DataError("lm-eval gave no result", where=f"{PREFIX}{name}")
    rows = [row for task_name, samples in results["samples"].items() for row in _rows(task_name, samples)]
    if not rows or not any(row["metrics"] for row in rows):
        raise DataError("the task has no metric of single items, so it cannot be compared item by item",
                        where=f"{PREFIX}{name}", hint="Choose a task with acc or exact_match.")  # fmt: skip
    higher = {
        m: bool(v) for table in results.get("higher_is_better", {}).values() for m, v in table.items() if v is not None
    }
    return {"rows": rows, "higher": higher, "theirs": _theirs(results)}


def _theirs(results: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's results by task and its samples, in the form in which it writes them to files.

    Standard errors of means are filled in: lm-eval leaves them out where no bootstrap was asked for.
    """
    from lm_eval.utils import handle_non_serializable, sanitize_list

    parts = {name: results.get(name, {}) for name in PARTS}
    samples = {}
    for task, rows in results["samples"].items():
        samples[task] = [
            {
                **row,
                "arguments": {f"gen_args_{i}": {f"arg_{j}": v for j, v in enumerate(arguments)}
                              for i, arguments in enumerate(row["arguments"])},
                "resps": sanitize_list(row["resps"]),
                "filtered_resps": sanitize_list(row["filtered_resps"]),
                "target": str(row["target"]),
            }
            for row in rows
        ]  # fmt: skip
        table = parts["results"][task]
        for name in [n for n in table if "_stderr," in n]:
            metric, kept = name.replace("_stderr,", ",").split(",", 1)
            values = [row[metric] for row in rows if row["filter"] == kept and metric in row]
            if all(isinstance(v, (int, float)) for v in values) and len(values) > 1:
                mean = sum(values) / len(values)
                if abs(mean - table[f"{metric},{kept}"]) < 1e-9:  # else it is no mean, and this is not its error
                    table[name] = mean_stderr(values)
    whole = {**parts, "samples": samples}
    found: dict[str, Any] = json.loads(json.dumps(whole, default=handle_non_serializable, ensure_ascii=False))
    return found


def _rows(task_name: str, samples: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    first = samples[0]["filter"] if samples else None
    for s in samples:
        if s["filter"] != first:  # a second answer extraction of the same items would count them twice
            continue
        metrics = {m: float(s[m]) for m in s["metrics"] if isinstance(s[m], (int, float))}
        yield {"id": f"{task_name}/{s['doc_id']}", "domain": task_name, "metrics": metrics, "output": _output(s)}


def _output(sample: dict[str, Any]) -> str:
    """The generated text, or the continuation with the highest log-likelihood."""
    answers = sample["filtered_resps"]
    if answers and isinstance(answers[0], str):
        return str(answers[0]).strip()
    if len(answers) > 1 and all(isinstance(a, (tuple, list)) for a in answers):
        best = max(range(len(answers)), key=lambda k: float(answers[k][0]))
        return str(sample["arguments"][best][1]).strip()
    return ""


@lru_cache(maxsize=4)
def _manager(include_path: str | None) -> Any:
    """lm-eval's index of tasks; reading its thousands of files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def _load(name: str, cfg: EvalConfig) -> dict[str, Any]:
    """Task name -> task, of a task or a group."""
    try:
        manager = _manager(cfg.lm_eval_include_path)
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "lm-eval", "eval", f"suite '{PREFIX}{name}'") from error
    if name not in manager.all_tasks:
        raise DataError(
            f"lm-eval has no task '{name}'",
            where="evaluate.suites",
            hint="`lm_eval ls tasks` lists them; your own need evaluate.lm_eval_include_path.",
        )
    try:
        tasks: dict[str, Any] = manager.load([name])["tasks"]
        for task in tasks.values():
            next(iter(task.eval_docs), None)
    except Exception as error:  # datasets, hub and network each raise their own kinds
        raise DataError(
            f"the data of the task cannot be had: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
            if str(error).strip() else f"the data of the task cannot be had: {type(error).__name__}",
            where=f"{PREFIX}{name}",
            hint="lm-eval downloads it from the hub; go online once (HF_HUB_OFFLINE unset), or use a task with local "
            "data files.",
        ) from error  # fmt: skip
    return tasks
