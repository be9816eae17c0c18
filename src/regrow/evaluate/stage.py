"""The evaluation stage: items before growing, scores and results after training."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.arms import BASE
from regrow.errors import DataError, EngineError
from regrow.evaluate.cache import ScoreCache, pass_key
from regrow.evaluate.config import EMBEDDED_SUITES, EvalConfig
from regrow.evaluate.generate import add_generated, generated_items
from regrow.evaluate.items import Item, Record
from regrow.evaluate.lm_eval_json import FOLDER, write_lm_eval
from regrow.evaluate.lost import LEAST_ITEMS, Encodes, lost_topics, read_branches
from regrow.evaluate.measure import Arm, Loaded, load_arm, measure
from regrow.evaluate.ratios import Sweep, compare_ratios
from regrow.evaluate.served import Served, ServedModel, connect
from regrow.evaluate.sources import Pair, compare_sources
from regrow.evaluate.stats import POWER
from regrow.evaluate.suites import facts, instructions, lm_eval, refusals
from regrow.evaluate.suites.heldout import heldout_items
from regrow.evaluate.suites.known import accuracy, interleave, known, one_item_a_fact, select_known
from regrow.evaluate.suites.local import read_local
from regrow.evaluate.suites.own import SUITE as OWN
from regrow.evaluate.suites.own import sample
from regrow.evaluate.suites.recipe import read_recipe
from regrow.evaluate.summary import FACTS_POOL, planned, summarise
from regrow.evaluate.tables import tables
from regrow.evaluate.verdict import verdict
from regrow.progress import note
from regrow.rows.row import Row
from regrow.rows.writers import atomic_write_text, write_json_lines

if TYPE_CHECKING:
    from regrow.models.load import ResolvedModel

NOISE_BATCH = 0.6
"""Size of the second pass's batches against the first's: other shapes, other rounding."""
CACHE = "scores.jsonl"

FAMILIES = {FACTS_POOL: facts.SUITE, refusals.HARMLESS: refusals.SUITE, refusals.HARMFUL: refusals.SUITE}
"""Suite of items -> the entry of ``evaluate.suites`` that they come from, where that has another name."""

PoolBuilder = Callable[[int], list[Item]]


@dataclass(frozen=True, slots=True)
class EvalSummary:
    """What an evaluation found.

    Attributes:
        results: What stands in ``results.json``.
        path: That file.
    """

    results: dict[str, Any]
    path: Path


def build_suites(
    cfg: EvalConfig,
    model: ResolvedModel | ServedModel,
    heldout_rows: Sequence[Row],
    out: Path,
    *,
    seed: int,
    pool: PoolBuilder = facts.build_pool,
    reuse: Sequence[Path] = (),
) -> Path:
    """Collect the items of all suites but ``own-dialogues`` (out of the grown corpus) in ``out/items.jsonl``.

    For suite ``facts`` the base answers candidates until ``cfg.n_facts`` known ones are found over all domains;
    ``out/pool.json`` says how many were asked and how many were right. An interrupted call goes on where it was.

    Args:
        cfg: Which suites, how many items.
        model: The base.
        heldout_rows: The user's rows that are kept out of training.
        out: A folder.
        seed: Chooses items.
        pool: Makes the candidates of suite ``facts`` from a seed.
        reuse: See `evaluate`.

    Raises:
        DataError: A suite cannot be read, is named like another, or the base knows no fact.
        MissingExtra: A suite needs a package that is not installed.
    """
    out.mkdir(parents=True, exist_ok=True)
    items: list[Item] = []
    for name in cfg.suites:  # what can fail for want of a file or a network comes before what takes time
        kind, _, rest = name.partition(":")
        if kind == "file":
            items += read_local(rest)
        elif kind == "recipe":
            items += read_recipe(rest)
        elif kind == "lm-eval":
            items += lm_eval.task_items(rest, cfg)
    if instructions.SUITE in cfg.suites:
        items += instructions.instruction_items(cfg.n_instructions, seed)
    if refusals.SUITE in cfg.suites:
        items += refusals.refusal_items()
    if "heldout" in cfg.suites:
        items = heldout_items(heldout_rows, cfg, seed) + items
    if "facts" in cfg.suites:
        items = _facts(cfg, model, out, seed, pool, reuse) + items
    _check_ids(items)
    return write_json_lines((asdict(i) for i in items), out / "items.jsonl")


def _facts(
    cfg: EvalConfig, model: ResolvedModel | ServedModel, out: Path, seed: int, pool: PoolBuilder, reuse: Sequence[Path]
) -> list[Item]:
    deck = interleave(one_item_a_fact(pool(seed), seed), seed)
    arm = load_arm(BASE, model if isinstance(model, ServedModel) else model.path, cfg)
    if isinstance(arm, Served):
        arm.check(deck)
    asked: list[Item] = []
    records: list[Record] = []
    with ScoreCache(out / CACHE, reuse) as cache:
        while len(asked) < len(deck) and not _enough(known(asked, records), deck[len(asked) :], cfg.n_facts):
            more = deck[len(asked) : len(asked) + cfg.n_facts]
            found = len(known(asked, records))
            told = f" (knows {found} so far)" if asked else ""
            records += measure(arm, more, cfg, cache, label=f"asking the base what it knows{told}")
            asked += more
    arm.close()
    chosen = select_known(asked, records, cfg.n_facts, seed=seed)
    if not chosen:
        raise DataError("the base gets none of the facts right", where="evaluate.suites",
                        hint="Leave suite 'facts' out and use own-dialogues or your own items.")  # fmt: skip
    if len(chosen) < cfg.n_facts:
        note(f"the base knows {len(chosen)} facts of {len(asked)} asked; {cfg.n_facts} were wanted")
    by_domain = accuracy(records)
    whole = by_domain.pop("all")
    stats = {"n": len(asked), "accuracy": whole["accuracy"], "selected": len(chosen)}
    known_in = {d: sum(i.domain == d for i in chosen) for d in by_domain}
    table = {d: {**v, "selected": known_in[d]} for d, v in by_domain.items()}
    atomic_write_text(out / "pool.json", json.dumps({**stats, "candidates": len(deck), "domains": table}, indent=1))
    for item in chosen:
        item.meta["pool"] = stats
    drawn = sample(deck, cfg.pool_sample, seed) if cfg.pool_sample else []
    return chosen + [replace(i, suite=FACTS_POOL, meta={"fact": i.meta["fact"]}) for i in drawn]


def _enough(right: Sequence[Item], left: Sequence[Item], n: int) -> bool:
    """Whether ``n`` items are known, with no domain that has candidates left below half its share."""
    domains = {i.domain for i in left}
    share = n / (2 * max(1, len(domains | {i.domain for i in right})))
    return len(right) >= n and all(sum(i.domain == d for i in right) >= share for d in domains)


def _check_ids(items: Sequence[Item]) -> None:
    seen: set[tuple[str, str]] = set()
    for item in items:
        if (item.suite, item.id) in seen:
            raise DataError(f"two items have the id '{item.id}'", where=item.suite,
                            hint="Give items different ids, and files of items different names.")  # fmt: skip
        seen.add((item.suite, item.id))


def evaluate(
    models: Mapping[str, Path | ServedModel],
    items: Sequence[Item],
    cfg: EvalConfig,
    out: Path,
    *,
    seed: int,
    reuse: Sequence[Path] = (),
    encoder: Callable[[], Encodes | None] | None = None,
    corpus: Path | None = None,
    sweep: Sweep | None = None,
    sources: Sequence[Pair] = (),
) -> EvalSummary:
    """Score all arms on the same items and write ``out/records.jsonl`` and ``out/results.json``.

    Scores are kept in ``out/scores.jsonl`` as they are made: a call that was interrupted goes on where it was, and
    nothing is scored twice. Before anything is scored, the user is told how small a difference so many items can find.
    The base is loaded first and stays only while dialogues need it for KL.

    Args:
        models: Arm -> model or adapter folder, or a model behind a server; the first is ``base``. There is no KL
            from or to a model behind a server.
        items: Of any suites. Items of an embedded suite that ``cfg.suites`` does not name are left out;
            ``own-dialogues`` are sampled down to ``cfg.max_dialogues``.
        cfg: What is measured and how; its lm-eval tasks are run too.
        out: A folder.
        seed: Samples and resampling.
        reuse: Score files of earlier evaluations; what they hold of these models and items is not scored again.
        encoder: Loads the sentence encoder that sorts lost items by topic; asked only when some were lost. None, or
            one that gives None, leaves that out.
        corpus: The corpus that was replayed; then each topic is laid beside its branches.
        sweep: The arms differ in their replay ratio; one is recommended.
        sources: Arms with grown replay and with general data, to be compared.

    Raises:
        DataError: There is nothing to evaluate, or an item cannot be put before a model.
        ModelError: A model cannot be used.
        MissingExtra: An lm-eval task without lm-eval.
        EngineError: A server cannot be reached, or a suite needs what it cannot do.
    """
    from regrow.models.load import resolve_model

    if next(iter(models), None) != BASE:
        raise ValueError("the first model must be the base")
    wanted = _wanted(items, cfg, seed)
    tasks = lm_eval.tasks_of(cfg)
    if not wanted and not tasks:
        raise DataError("there is nothing to evaluate", where="evaluate.suites", hint="Name a suite that has items.")
    paths = {
        arm: path if isinstance(path, ServedModel) else resolve_model(str(path)).path for arm, path in models.items()
    }
    _check_servers(paths, wanted, tasks, cfg)
    announce(wanted, cfg)
    talks = any(i.kind == "dialogue" for i in wanted)
    to_write = generated_items(wanted, cfg, seed)
    judged_by = {i.suite: i.meta["generate"]["metric"] for i in wanted if "generate" in i.meta}
    records: dict[str, list[Record]] = {}
    noise: list[Record] = []
    higher: dict[str, dict[str, bool]] = {}
    facts_of: dict[str, dict[str, str]] = {}
    theirs: dict[str, dict[str, Any]] = {arm: {} for arm in paths}
    base: Loaded | None = None
    with ScoreCache(out / CACHE, reuse) as cache:
        for arm, path in paths.items():
            loaded = load_arm(arm, path, cfg)
            reference = _reference(base, loaded)
            mine = _own_tokens(wanted, loaded, reference)
            records[arm] = measure(loaded, mine, cfg, cache, reference=reference, label=f"scoring {arm}")
            if arm == BASE and cfg.noise_floor:
                budget = max(32, int(cfg.batch_tokens * NOISE_BATCH))
                noise = measure(loaded, mine, cfg, cache, batch_tokens=budget, label="noise floor")
            add_generated(loaded, records[arm], to_write, cfg, cache)
            for name in tasks:
                found = _lm_eval(name, loaded, cfg, cache, seed)
                higher[lm_eval.PREFIX + name], theirs[arm][name] = found["higher"], found["theirs"]
                records[arm] += [
                    Record(r["id"], lm_eval.PREFIX + name, r["domain"], arm, dict(r["metrics"]), r["output"])
                    for r in found["rows"]
                ]
            facts_of[arm] = {"path": str(models[arm]), "revision": loaded.revision}
            if arm == BASE and talks and len(paths) > 1 and isinstance(loaded, Loaded):
                base = loaded
            loaded.close()
            del loaded, reference
            _free()
    flat = [r for rows in zip(*records.values(), strict=True) for r in rows]
    pool = next((i.meta["pool"] for i in wanted if "pool" in i.meta), None)
    results = summarise(flat, list(paths), cfg, seed=seed, noise=noise, pool=pool, higher=higher, judged_by=judged_by)
    by_suite = tables(flat, list(paths), higher, judged_by) if sweep is not None or sources else []
    if sources:
        results["sources"] = compare_sources(by_suite, results, sources, cfg, seed=seed)
    if sweep is not None:
        results["sweep"] = compare_ratios(by_suite, results, sweep, cfg, seed=seed)
    results["verdict"] = verdict(results, cfg.confidence)
    results["lost_topics"] = _lost_topics(results, flat, wanted, encoder, corpus, seed)
    results["settings"] = {**cfg.model_dump(mode="json"), "seed": seed}
    results["versions"] = _versions()
    results["models"] = facts_of
    write_json_lines((asdict(r) for r in flat), out / "records.jsonl")
    write_lm_eval(out / FOLDER, results, flat, wanted, theirs, seed=seed)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    return EvalSummary(results, atomic_write_text(out / "results.json", text + "\n"))


def _lost_topics(
    results: dict[str, Any],
    records: Sequence[Record],
    items: Sequence[Item],
    load: Callable[[], Encodes | None] | None,
    corpus: Path | None,
    seed: int,
) -> dict[str, Any] | None:
    if load is None or all(len(names) < LEAST_ITEMS for names in results["lost"].values()):
        return None
    encoder = load()
    if encoder is None:
        return None
    branches = read_branches(corpus) if corpus is not None else None
    lost = {arm: set(names) for arm, names in results["lost"].items()}
    base = {(r.suite, r.item_id) for r in records if r.arm == BASE and _right(r, results)}
    right = {
        arm: [name for r in records if r.arm == arm and (r.suite, r.item_id) in base and r.suite != FACTS_POOL
              if (name := f"{r.suite}:{r.item_id}") not in lost[arm]]
        for arm in lost
    }  # fmt: skip
    return lost_topics(results, items, right, encoder, branches, seed=seed)


def _right(record: Record, results: dict[str, Any]) -> bool:
    """Whether a 0/1 item of a retention suite was got right."""
    suite = results["suites"][record.suite]
    return suite["kind"] == "retention" and suite["flips"] is not None and record.metrics[suite["metric"]] > 0.5


def announce(items: Sequence[Item], cfg: EvalConfig) -> None:
    """Say what each suite of 0/1 items can see, before it is scored, and how much is written for it."""
    tokens: Counter[str] = Counter()
    for item in items:
        tokens[item.suite] += int(item.meta.get("generate", {}).get("max_new_tokens", 0))
    counts = Counter(i.suite for i in items if i.kind != "dialogue")
    for suite, n in counts.items():
        size = planned(n, cfg)["difference"]
        seen = f"can see a difference of {100 * size:.1f} points" if size else "are too few to see any difference"
        note(
            f"{suite}: {n} items {seen} ({POWER:.0%} power, {cfg.confidence:.0%} confidence, "
            f"if {cfg.assumed_discordance:.0%} of the results change)"
        )
        if tokens[suite]:
            note(f"{suite}: every model writes up to {tokens[suite]:,} tokens")


def _wanted(items: Sequence[Item], cfg: EvalConfig, seed: int) -> list[Item]:
    """The items that we score ourselves, as the settings want them."""
    own = {i.id for i in sample([i for i in items if i.suite == OWN], cfg.max_dialogues, seed)}
    out = []
    for item in items:
        family = FAMILIES.get(item.suite, item.suite)
        left_out = family in EMBEDDED_SUITES and family not in cfg.suites
        if left_out or "lm_eval" in item.meta or (item.suite == OWN and item.id not in own):
            continue
        out.append(item)
    _check_ids(out)
    return out


def _check_servers(
    models: Mapping[str, Path | ServedModel], items: Sequence[Item], tasks: Sequence[str], cfg: EvalConfig
) -> None:
    """Refuse what a server cannot do, before anything is scored."""
    for arm, model in models.items():
        if not isinstance(model, ServedModel):
            continue
        if tasks:
            raise EngineError(
                "lm-eval tasks are not run on a server", where=str(model),
                hint="Give a folder, or use lm-eval's own local-completions.",
            )  # fmt: skip
        served = connect(arm, model)
        try:
            served.check(items)
        finally:
            served.close()


def _reference(base: Loaded | None, arm: Arm) -> Loaded | None:
    """What the KL of dialogues is against: the base, also for itself; None where there is no KL."""
    if not isinstance(arm, Loaded):
        return None
    return arm if base is None and arm.arm == BASE else _comparable(base, arm)


def _comparable(base: Loaded | None, arm: Loaded) -> Loaded | None:
    if base is not None and not base.same_tokens(arm):
        note(f"{arm.arm} has another vocabulary than the base, so there is no KL between them")
        return None
    return base


def _own_tokens(items: Sequence[Item], arm: Arm, reference: Loaded | None) -> list[Item]:
    """Items as this model can read them: token ids of the base's dialogues only mean something in its vocabulary."""
    if reference is not None or arm.arm == BASE:
        return list(items)
    return [replace(i, meta={k: v for k, v in i.meta.items() if k not in ("token_ids", "spans")}) for i in items]


def _lm_eval(name: str, arm: Arm, cfg: EvalConfig, cache: ScoreCache, seed: int) -> dict[str, Any]:
    """What `lm_eval.run_task` gives, from the cache or now."""
    if not isinstance(arm, Loaded):
        raise TypeError("lm-eval runs on a model in memory")
    settings = {k: v for k, v in cfg.model_dump(mode="json").items() if k.startswith("lm_eval") or k == "dtype"}
    key = pass_key(
        "lm-eval", arm.revision, {**settings, "seed": seed, "device": arm.model.device.type, "keeps": "samples"}
    )
    value = cache.get(key, name)
    if value is None:
        value = lm_eval.run_task(name, arm.model, arm.tokenizer, cfg, seed)
        cache.add(key, [(name, value)])
    return value


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    out = {}
    for name in ("regrow", "torch", "transformers", "tokenizers", "numpy", "lm_eval"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out
