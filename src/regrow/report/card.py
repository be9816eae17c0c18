"""Facts of a run for a model card: the replay corpus, the measured gain and forgetting, how it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regrow.arms import INTERPOLATE, is_general, is_grown, is_regrown
from regrow.report import sections
from regrow.report.corpus_view import load_corpus
from regrow.report.load import arm_name, load_run
from regrow.report.numbers import is_number, metric_name


def model_facts(run_dir: str | Path, arm: str) -> dict[str, Any]:
    """What the card of a trained model should say, from the run's files.

    Args:
        run_dir: The run directory.
        arm: ``sft``, ``regrow``, or any other arm of the run.

    Returns:
        A mapping with ``base_model``, ``arm``, ``summary``, ``replay``, ``gain``, ``forgetting``, ``training``,
        ``versions`` and ``recipe``, as `regrow.models.card.write_model_card` takes it; what the run does not know is
        left out.

    Raises:
        RunError: The folder holds nothing of a run, or a file in it is damaged.
    """
    run = load_run(run_dir)
    facts: dict[str, Any] = {"arm": arm_name(arm)}
    model = run.manifest.get("model") or {}
    if model.get("name"):
        facts["base_model"] = str(model["name"])
        facts["origin"] = str(model.get("origin"))
    if run.results is not None:
        told = run.results.get("verdict") or {}
        if told.get("arm") == arm and told.get("sentence"):
            facts["summary"] = str(told["sentence"])
        for key in ("gain", "forgetting"):
            rows = _effect(run.results.get(key) or {}, arm)
            if rows:
                facts[key] = rows
    if (is_grown(arm) or is_regrown(arm)) and (corpus := load_corpus(run)) is not None:
        facts["replay"] = {
            "grown from": str(model.get("name") or "the base model"),
            "engine": str((run.stage("grow").get("facts") or {}).get("engine") or "unknown"),
            "revision": str(model.get("revision") or "unknown"),
            "topics": len(corpus.trees),
            "turns kept": corpus.n_kept,
            "turns grown": corpus.n_nodes,
            **({"dialogues": corpus.n_dialogues} if corpus.n_dialogues is not None else {}),
        }
        regrown = (run.stage(f"train/{arm}").get("facts") or {}).get("regrown_tokens")
        if is_number(regrown):
            facts["replay"]["tokens regrown while it trained"] = regrown
    if is_general(arm):
        made = run.stage("general").get("facts") or {}
        facts["replay"] = {"general data": f"{made.get('kept', 'unknown')} dialogues to draw from"}
    if arm == INTERPOLATE:
        weight = (run.stage("merge/interpolate").get("facts") or {}).get("weight")
        facts["training"] = {"none of its own": f"weights of base and plain SFT averaged, {weight} of the latter"}
    done = run.stage(f"train/{arm}").get("facts") or {}
    training = {k: done[k] for k in ("steps", "tokens", "train_tokens") if is_number(done.get(k))}
    if is_number(run.stage(f"train/{arm}").get("seconds")):
        training["seconds"] = run.stage(f"train/{arm}")["seconds"]
    if training:
        facts["training"] = training
    versions = {**(run.manifest.get("versions") or {}), **((run.results or {}).get("versions") or {})}
    if versions:
        facts["versions"] = versions
    if run.recipe:
        facts["recipe"] = run.recipe
    return facts


def _effect(effects: dict[str, Any], arm: str) -> dict[str, Any]:
    found = effects.get(arm)
    if not isinstance(found, dict) or not is_number(found.get("value")):
        return {}
    value: Any = found["value"]
    pair = sections.numeric_pair(found.get("ci"))
    if pair is not None:
        value = {"value": value, "low": pair[0], "high": pair[1]}
    out = {f"{found.get('suite')} ({metric_name(str(found.get('metric')))})": value}
    if found.get("significant") is not None:
        out["significant"] = "yes" if found["significant"] else "no"
    return out
