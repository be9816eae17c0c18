# ruff: noqa: E501 - tables of made-up facts read better whole
"""A run directory as the chain leaves it, seeded and synthetic, for tests of the page."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

TOPICS = ["World geography", "Everyday chemistry", "Python programming", "Cooking at home", "Stories for children"]
DOMAINS = {
    "countries": [("What is the capital of {}?", [("France", "Paris"), ("Peru", "Lima"), ("Kenya", "Nairobi"), ("Norway", "Oslo"), ("Japan", "Tokyo"), ("Chile", "Santiago")])],
    "elements": [("What is the chemical symbol of {}?", [("sodium", "Na"), ("iron", "Fe"), ("gold", "Au"), ("tin", "Sn"), ("helium", "He"), ("lead", "Pb")])],
    "units": [("How many {}?", [("metres are in a kilometre", "1000"), ("minutes are in an hour", "60"), ("grams are in a kilogram", "1000"), ("inches are in a foot", "12")])],
    "words": [("What is the plural of “{}”?", [("mouse", "mice"), ("leaf", "leaves"), ("city", "cities"), ("child", "children"), ("ox", "oxen")])],
    "dates": [("Which day comes {}?", [("after Monday", "Tuesday"), ("before Friday", "Thursday"), ("after Saturday", "Sunday")])],
    "numbers": [("Write {} in words.", [("14", "fourteen"), ("90", "ninety"), ("21", "twenty-one"), ("305", "three hundred and five")])],
}  # fmt: skip
LOSS_RATE = {"sft": {"countries": 0.4, "elements": 0.34, "units": 0.22, "words": 0.3, "dates": 0.12, "numbers": 0.26},
             "regrow": {"countries": 0.06, "elements": 0.07, "units": 0.02, "words": 0.05, "dates": 0.0, "numbers": 0.04}}  # fmt: skip


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=True) + "\n" for r in rows), encoding="utf-8")


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=True), encoding="utf-8")


def make_run(
    out: Path,
    *,
    seed: int = 0,
    n_items: int = 640,
    compare: bool = True,
    corpus: bool = True,
    evaluated: bool = True,
    children: tuple[int, ...] = (8, 4, 3, 2),
    hostile: str | None = None,
) -> Path:
    """Write the files of a synthetic run.

    Args:
        out: The run folder to write.
        seed: Everything random follows from it.
        n_items: Items of the retention suite.
        compare: With the plain SFT arm.
        corpus: With a grown and curated corpus.
        evaluated: With ``eval/``.
        children: Children a node by layer.
        hostile: A string to plant wherever text of a user or a model appears.
    """
    rng = random.Random(seed)
    bad = hostile or ""
    arms = ["base", *(["sft"] if compare else []), "regrow"]
    out.mkdir(parents=True, exist_ok=True)
    recipe = f"# {bad}\nseed: {seed}\nmodel:\n  model_name_or_path: smollm2\ndata:\n  path: demo\n"
    recipe += "grow:\n  shape: [32, 16, 8, 8]\nmix:\n  replay_ratio: 0.2\ntrain:\n  learning_rate: 3.0e-4\n"
    (out / "recipe.yaml").write_text(recipe, encoding="utf-8", errors="replace")
    _jsonl(
        out / "data" / "heldout.jsonl",
        [{"id": "h1", "messages": [{"role": "user", "content": "?"}], "source": "domain"}],
    )
    for arm in arms[1:]:
        _train(out, arm, random.Random(f"{seed}/{arm}"))
        _monitor(out, arm, random.Random(f"{seed}/{arm}/monitor"), bad)
    if corpus:
        _corpus(out, rng, children, bad.encode("utf-8", "replace").decode())  # Parquet cannot hold surrogates
    if evaluated:
        _evaluation(out, rng, arms, n_items, bad)
    _manifest(out, arms, seed, corpus, evaluated, bad)
    return out


def _train(out: Path, arm: str, rng: random.Random) -> None:
    log = []
    for step in range(1, 121):
        fade = 1.0 / (1 + step / 18)
        row = {"step": step, "loss": 0.9 + 1.4 * fade, "lr": 3e-4 * (1 - step / 121), "tokens": step * 2048,
               "train_tokens": step * 1400, "tok_s": 205.0 + rng.random() * 20,
               "loss/domain": 0.85 + 1.5 * fade + rng.gauss(0, 0.06)}  # fmt: skip
        if arm == "regrow":
            row["loss/replay"] = 1.31 + 0.12 * (1 - fade) + rng.gauss(0, 0.05)
        log.append(row)
    _jsonl(out / "train" / arm / "log.jsonl", log)
    domain, replay = 196_400, 49_210 if arm == "regrow" else 0
    _json(
        out / "mix" / arm / "mix.json",
        {
            "asked": {"replay_ratio": 0.2 if arm == "regrow" else 0.0, "unit": "tokens"},
            "realised": {"tokens": replay / (domain + replay)},
            "domain": {"rows": 1204, "tokens": domain, "train_tokens": 121_000, "distinct": 1204},
            "replay": {"rows": 312, "tokens": replay, "train_tokens": 40_300, "distinct": 298} if replay else {},
            "epochs": 1.0,
            "tree_loss": "paths",
            "topk": 32 if replay else 0,
            "dropped": {"your rows longer than max_length": 3},
        },
    )


def _monitor(out: Path, arm: str, rng: random.Random, bad: str) -> None:
    """Losses and KL on held-out rows of five topics, which go and come back, and of the data, which is learned."""
    lines = []
    for step in range(0, 121, 10):
        gone = step / 30 * math.exp(1 - step / 30) * (0.12 if arm == "regrow" else 0.9) + step / 120 * (
            0.02 if arm == "regrow" else 0.6
        )
        line = {
            "step": step,
            "heldout/demo": 2.2 - 1.1 * (1 - math.exp(-step / 25)),
            "heldout_kl/demo": 1.3 * (1 - math.exp(-step / 25)),
        }
        for t, topic in enumerate(TOPICS):
            much = gone * (1.3 - 0.2 * t) + (rng.gauss(0, 0.004) if step else 0)
            line |= {f"heldout/{topic}{bad}": 1.5 + 0.1 * t + much, f"heldout_kl/{topic}{bad}": abs(much) * 0.8}
            if arm == "regrow":
                line |= {
                    f"asked/{topic}{bad}": 0.2 + (2 - t) * gone / 8,
                    f"mix/{topic}{bad}": 0.2 + (2 - t) * gone / 8 + rng.gauss(0, 0.01),
                }
        lines.append(line)
    _jsonl(out / "train" / arm / "monitor.jsonl", lines)


def _corpus(out: Path, rng: random.Random, children: tuple[int, ...], bad: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    asks = ["How would you explain {} to a friend?", "What is the most common mistake in {}?", "Can you give an example of {}?", "Why does {} matter?"]  # fmt: skip
    tells = ["Think of {} as a set of small habits. You start with what you can see, and then ask what would have to be true for it to be so.",
             "A good way into {} is to take one case apart slowly. Most people skip a step, and it is nearly always the second one.",
             "There are three parts to {}: knowing the names, knowing how they fit, and knowing when the rule does not hold."]  # fmt: skip
    reasons = ["near-duplicate among siblings", "truncated", "refusal", "role leak", "repeats itself"]
    nodes: list[dict[str, Any]] = []
    dialogues: list[dict[str, Any]] = []
    for t, topic in enumerate(TOPICS):
        name = topic + bad
        level = [(f"t{t:02d}", [])]  # type: ignore[var-annotated]
        for layer, width in enumerate(children, 1):
            role = "user" if layer % 2 else "assistant"
            grown = []
            for parent, said in level:
                for c in range(width):
                    node = f"{parent}/{c}"
                    text = rng.choice(asks if role == "user" else tells).format(topic.lower()) + bad
                    kept = rng.random() > 0.18
                    nodes.append({"id": node, "parent": parent, "topic": name, "tree": t, "layer": layer, "role": role,
                                  "text": text, "kept": kept, "reason": None if kept else rng.choice(reasons) + bad})  # fmt: skip
                    if kept:
                        grown.append((node, [*said, {"role": role, "content": text}]))
            level = grown
        for node, said in level:
            dialogues.append({"id": node, "messages": said, "topic": name, "tree": t, "n_tokens": 90 * len(said)})
    for folder in ("grow", "corpus"):
        (out / folder).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(nodes), out / folder / "nodes.parquet")
        pq.write_table(pa.Table.from_pylist(dialogues), out / folder / "dialogues.parquet")
    dropped = [{"id": "t00/0/0", "reason": r, "evidence": bad} for r, n in
               (("near-duplicate", 31), ("like an evaluation item", 4), ("too short" + bad, 9)) for _ in range(n)]  # fmt: skip
    _jsonl(out / "corpus" / "dropped.jsonl", dropped)
    _json(out / "corpus" / "curate.json", {"kept": len(nodes) - len(dropped)})


def _evaluation(out: Path, rng: random.Random, arms: list[str], n_items: int, bad: str) -> None:
    items, records = [], []
    right: dict[str, dict[str, list[int]]] = {arm: {d: [] for d in DOMAINS} for arm in arms}
    flips = {arm: {"lost": 0, "kept": 0, "won": 0} for arm in arms[1:]}
    lost: dict[str, list[str]] = {arm: [] for arm in arms[1:]}
    names = list(DOMAINS)
    for i in range(n_items):
        domain = names[i % len(names)]
        question, facts = DOMAINS[domain][0]
        what, answer = facts[i // len(names) % len(facts)]
        item = f"{domain}/{i}{bad}"
        items.append({"id": item, "suite": "facts", "domain": domain + bad, "kind": "choice", "answer_index": 1,
                      "messages": [{"role": "user", "content": question.format(what) + bad}],
                      "choices": ["something else", answer + bad], "answers": [], "meta": {}})  # fmt: skip
        for arm in arms:
            ok = arm == "base" or rng.random() > LOSS_RATE[arm][domain]
            right[arm][domain].append(int(ok))
            if arm != "base":
                flips[arm]["kept" if ok else "lost"] += 1
                if not ok:
                    lost[arm].append(f"facts:{item}")
            records.append({"item_id": item, "suite": "facts", "domain": domain + bad, "arm": arm,
                            "metrics": {"acc": float(ok), "nll": 0.5, "tokens": 1.0},
                            "output": (answer if ok else "def capital(): return None  # see help()") + bad})  # fmt: skip
    _jsonl(out / "suites" / "items.jsonl", items)
    _jsonl(out / "eval" / "records.jsonl", records)
    _json(out / "eval" / "results.json", _results(arms, right, flips, lost, n_items, bad))


def _results(
    arms: list[str],
    right: dict[str, dict[str, list[int]]],
    flips: dict[str, Any],
    lost: dict[str, Any],
    n: int,
    bad: str,
) -> dict[str, Any]:
    def mean(values: list[int]) -> float:
        return sum(values) / len(values) if values else 0.0

    acc = {a: mean([v for d in right[a].values() for v in d]) for a in arms}
    half = {"base": 0.0, "sft": 0.034, "regrow": 0.017}
    held = {"base": 2.214, "sft": 1.121, "regrow": 1.158}
    kl = {"base": 0.0, "sft": 0.612, "regrow": 0.094}

    def differences(values: dict[str, float], width: float, higher: bool) -> dict[str, Any]:
        out = {}
        for a in arms[1:]:
            d = values[a] - values["base"]
            vs = None
            if "sft" in arms and a != "sft":
                e = values[a] - values["sft"]
                vs = {
                    "diff": e,
                    "ci": [e - width, e + width],
                    "p": 1e-6,
                    "significant": True,
                    "better": (e > 0) == higher,
                }
            back = None
            if "sft" in arms and a != "sft" and values["base"] != values["sft"]:
                r = (values[a] - values["sft"]) / (values["base"] - values["sft"])
                back = {"value": r, "ci": [r - 0.07, r + 0.06], "defined": True, "reason": None}
            out[a] = {"vs_base": {"diff": d, "ci": [d - width, d + width], "p": 1e-6, "significant": True, "better": (d > 0) == higher},
                      "vs_sft": vs, "recovery": back}  # fmt: skip
        return out

    def suite(
        kind: str, metric: str, unit: str, higher: bool, values: dict[str, float], width: float, count: int
    ) -> dict[str, Any]:
        return {"kind": kind, "selected": metric == "acc", "n": count, "metric": metric, "higher_is_better": higher, "unit": unit, "secondary": {},
                "arms": {a: {"value": values[a], "ci": [values[a] - width, values[a] + width]} for a in arms},
                "differences": differences(values, width, higher), "domains": {}, "mdd": width * 1.4, "pool": None,
                "noise_floor": {"n": count, "mean_abs": 0.0, "max_abs": 1e-6, "flips": 0, "diff": 2e-7}}  # fmt: skip

    facts = suite("retention", "acc", "share", True, acc, 0.03, n)
    facts["domains"] = {
        d + bad: {"n": len(right["base"][d]), "arms": {a: mean(right[a][d]) for a in arms}} for d in DOMAINS
    }
    facts["pool"] = {"n": n * 3, "accuracy": 0.55, "selected": n}
    own = suite("retention", "kl", "nats", False, kl, 0.02, 180)
    own["domains"] = {
        t + bad: {"n": 36, "arms": {a: kl[a] * (0.6 + 0.2 * i) for a in arms}} for i, t in enumerate(TOPICS)
    }
    forgetting = {
        a: {"suite": "facts", "metric": "acc", "value": acc["base"] - acc[a], "significant": True,
            "ci": [acc["base"] - acc[a] - half[a], acc["base"] - acc[a] + half[a]], "retention": acc[a] / acc["base"],
            "retention_ci": [acc[a] - half[a], acc[a] + half[a]], "backward_transfer": acc[a] - acc["base"]}
        for a in arms[1:]
    }  # fmt: skip
    gain = {a: {"suite": "heldout", "metric": "nll", "value": held["base"] - held[a], "significant": True,
                "ci": [held["base"] - held[a] - 0.07, held["base"] - held[a] + 0.07]} for a in arms[1:]}  # fmt: skip
    sentence = "Regrow learned your data and lost a little of what the model knew"
    if "sft" in arms:
        sentence += f": {forgetting['regrow']['value'] * 100:.1f} points on facts, where plain SFT lost {forgetting['sft']['value'] * 100:.1f}"
    return {
        "format": 1, "arms": arms,
        "suites": {"heldout": suite("gain", "nll", "nats", False, held, 0.07, 134), "facts": facts, "own-dialogues": own},
        "gain": gain, "forgetting": forgetting, "remaining": forgetting, "flips": flips, "lost": lost,
        "verdict": {"sentence": sentence + "." + bad, "level": "partly", "arm": "regrow", "notes": [bad] if bad else []},
        "settings": {"confidence": 0.95}, "versions": {"regrow": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "models": {"base": {"path": "smollm2", "revision": "7e27bd9f95328f0f"}},
    }  # fmt: skip


def _manifest(out: Path, arms: list[str], seed: int, corpus: bool, evaluated: bool, bad: str) -> None:
    def stage(seconds: float, size: int, facts: dict[str, Any]) -> dict[str, Any]:
        return {"status": "done", "inputs": {}, "seconds": seconds, "facts": facts,
                "outputs": {"file": {"bytes": size, "sha256": "0" * 64}}, "output_hash": "0" * 16}  # fmt: skip

    stages = {
        "data": stage(1.2, 410_000, {"train": 1204, "heldout": 134}),
        "suites": stage(41.0, 290_000, {"items": 774}),
    }
    if corpus:
        stages["grow"] = stage(212.0, 3_100_000, {"tokens": 71_300})
        stages["corpus"] = stage(19.5, 1_900_000, {})
    for arm in arms[1:]:
        stages[f"mix/{arm}"] = stage(4.1, 830_000, {})
        stages[f"train/{arm}"] = stage(1180.0, 540_000_000, {"tokens": 245_760})
    if evaluated:
        stages["eval"] = stage(126.0, 900_000, {})
    _json(
        out / "manifest.json",
        {"format": "regrow-run/1", "created": "2026-11-21 07:00:00", "seed": seed, "stages": stages,
         "versions": {"regrow": "0.1.0", "python": "3.12.4", "platform": "Linux-6.8-x86_64" + bad, "torch": "2.13.0"},
         "model": {"name": "smollm2" + bad, "revision": "7e27bd9f95328f0f", "origin": "embedded"}},
    )  # fmt: skip
