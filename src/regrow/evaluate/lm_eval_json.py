"""Results in the files that EleutherAI's lm-evaluation-harness writes, for tools that read those."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from regrow.evaluate.items import Item, Record
from regrow.evaluate.stats import mean_stderr
from regrow.evaluate.suites.lm_eval import PARTS, PREFIX
from regrow.rows.writers import atomic_write_text, write_json_lines

FOLDER = "lm-eval"
NOT_METRICS = ("tokens",)


def write_lm_eval(
    folder: Path,
    results: Mapping[str, Any],
    records: Sequence[Record],
    items: Iterable[Item],
    theirs: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    seed: int,
) -> list[Path]:
    """Write ``folder/<arm>/results_<date>.json`` and ``samples_<suite>_<date>.jsonl``; what was there is replaced.

    Suites of our own become tasks with one filter, ``none``: metrics that every item has, each with the standard error
    of its mean (sample standard deviation over the root of n, as lm-eval takes it for means). Tasks of lm-eval are as
    lm-eval gave them.

    Args:
        folder: Where.
        results: ``results.json``.
        records: All records.
        items: Of our own suites.
        theirs: Arm -> task or group as it was asked for -> what `regrow.evaluate.suites.lm_eval.run_task` kept.
        seed: Of the evaluation.

    Returns:
        The results files, one an arm.
    """
    shutil.rmtree(folder, ignore_errors=True)
    now = time.time()
    date = datetime.fromtimestamp(now).isoformat().replace(":", "-")
    by_key = {(i.suite, i.id): i for i in items}
    out = []
    for arm in results["arms"]:
        model, place = results["models"][arm], folder / arm
        whole: dict[str, Any] = {name: {} for name in PARTS}
        samples: dict[str, list[dict[str, Any]]] = {}
        for suite, found in results["suites"].items():
            if not suite.startswith(PREFIX):
                mine = [r for r in records if r.arm == arm and r.suite == suite]
                _add_suite(whole, suite, found, mine, by_key)
                samples[suite] = [_sample(k, r, by_key[r.suite, r.item_id]) for k, r in enumerate(mine)]
        for given in theirs.get(arm, {}).values():
            for name in PARTS:
                whole[name].update(given[name])
            samples.update(given["samples"])
        whole |= {
            "config": {
                "model": "regrow",
                "model_args": {"pretrained": model["path"]},
                "model_revision": model["revision"],
                "model_dtype": results["settings"]["dtype"],
                "device": results["settings"]["device"],
                "limit": results["settings"]["lm_eval_limit"],
                "random_seed": seed,
            },
            "date": now,
            "regrow_version": version("regrow"),
            "transformers_version": results["versions"].get("transformers"),
            "lm_eval_version": results["versions"].get("lm_eval"),
            "task_hashes": {name: _task_hash(rows) for name, rows in samples.items()},
            "model_source": "regrow",
            "model_name": model["path"],
            "model_name_sanitized": arm,
        }
        for name, rows in samples.items():
            plain = re.sub(r"[^\w.-]", "_", name)
            write_json_lines(rows, place / f"samples_{plain}_{date}.jsonl")
        text = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)
        out.append(atomic_write_text(place / f"results_{date}.json", text + "\n"))
    return out


def _add_suite(
    whole: dict[str, Any],
    suite: str,
    found: Mapping[str, Any],
    records: Sequence[Record],
    items: Mapping[tuple[str, str], Item],
) -> None:
    names = [m for m in records[0].metrics if m not in NOT_METRICS and all(m in r.metrics for r in records)]
    names.sort(key=lambda m: m != found["metric"])
    higher = {m: found["higher_is_better"] if m == found["metric"] else m not in ("nll", "kl") for m in names}
    kinds = {items[r.suite, r.item_id].kind for r in records}
    if kinds == {"choice"}:
        output = "multiple_choice"
    else:
        output = "generate_until" if kinds == {"written"} else "loglikelihood"
    table: dict[str, Any] = {"name": suite, "alias": suite, "sample_len": len(records)}
    for m in names:
        values = [r.metrics[m] for r in records]
        table[f"{m},none"] = float(np.mean(values))
        table[f"{m}_stderr,none"] = mean_stderr(values) if len(values) > 1 else "N/A"
    whole["results"][suite] = table
    whole["group_subtasks"][suite] = []
    whole["configs"][suite] = {
        "task": suite,
        "output_type": output,
        "num_fewshot": 0,
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": higher[m]} for m in names],
        "metadata": {"version": version("regrow"), "kind": found["kind"], "selected": found["selected"]},
    }
    whole["versions"][suite] = version("regrow")
    whole["n-shot"][suite] = 0
    whole["higher_is_better"][suite] = higher
    whole["n-samples"][suite] = {"original": len(records), "effective": len(records)}


def _sample(k: int, record: Record, item: Item) -> dict[str, Any]:
    prompt = "\n".join(f"{m['role']}: {m['content']}" for m in item.messages)
    doc = {
        "id": item.id,
        "domain": item.domain,
        "messages": item.messages,
        "choices": item.choices,
        "answers": item.answers,
        **({"constraints": item.meta["constraints"]} if "constraints" in item.meta else {}),
    }
    target = item.choices[item.answer_index] if item.choices else (item.answers[0] if item.answers else "")
    return {
        "doc_id": k,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": target}},
        "resps": [[record.output]],
        "filtered_resps": [record.output],
        "filter": "none",
        "metrics": list(record.metrics),
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(target),
        **record.metrics,
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _task_hash(samples: Sequence[Mapping[str, Any]]) -> str:
    return _hash("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples))
