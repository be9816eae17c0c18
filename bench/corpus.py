"""Corpus tokens a second: Regrow's engines beside other ways to have the same model make the same dialogues.

    python bench/corpus.py --model smollm2 --shape 8,4,2,2 --repeats 5 --threads 2 --log corpus.jsonl

Every arm makes as many whole dialogues as the tree has paths, from the same root prompt, with the same sampling
parameters and caps (but see distilabel), and keeps every turn as it was sampled:

- ``regrow ...``: an engine of Regrow on the tree. ``vllm`` and ``llama.cpp`` are real servers, started once; vLLM is
  asked in the order of the tree and in random order.
- ``generate, tree``: `model.generate` in batches, level by level, siblings by ``num_return_sequences``.
- ``generate, Magpie``: independent dialogues, turn by turn in batches, as Magpie (arXiv 2406.08464) samples.
- ``distilabel, Magpie``: distilabel's own MagpieGenerator over its TransformersLLM, as it comes (it gives the pipeline
  no batch size, so prompts run one by one; ``--peer-dialogues`` of them), and with a batch size set from outside. Its
  one cap is that of answers, for questions too.
- ``openvino, ...``: OpenVINO GenAI's LLMPipeline on Regrow's own Q8_0 file with the library's default arithmetic, on
  the tree: a call a turn, and a call a level.
- ``regrow grow``: the whole stage with the default engine: twice the candidates, screens, encoder, disk. Shown beside,
  because every other arm keeps what comes.

A corpus token is a token of a dialogue: a turn counts in each dialogue it is part of, as it does in training. Tokens
sampled are those of distinct turns. The arms take turns; ratios are within a repeat, by the clock and by processor
time (servers included). ``--log`` keeps every measurement: what is there is not run again, so repeats can be run one
by one, and ``--table`` prints what is there. What is not installed is named as left out.

The floor of an arm is the time that the machine's memory bandwidth (all weights once a step and the live caches of
each sequence, no fewer steps than the longest sequence of a level) or its arithmetic (two operations a weight and
token, each distinct prompt token once) would need at the least, whichever is longer; what is compared with it is
processor seconds a thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from grow import generate_level, machine, settings

BASE = "generate, tree"
PEERS = Path(__file__).with_name("peers")
DISTILABEL = "REGROW_DISTILABEL_PYTHON"

Ids = list[int]
Asked = list[tuple[str, tuple[int, ...]]]
"""Keys and prompts of one level."""
Sample = Callable[[int, int, int, bool, Asked], list[list[Ids]]]
"""(seed, layer, siblings, whether it goes on, prompts) -> the turns sampled for each prompt."""


@dataclass
class Measured:
    """One run of one arm."""

    seconds: float
    cpu: float
    """Processor seconds of all threads, of servers too."""
    dialogues: int
    corpus_tokens: int
    sampled: int
    steps: int = 0
    """Fewest passes of a batch that the sampled lengths allow."""
    read: int = 0
    """Cached tokens that attention reads: for each sampled token all before it."""
    prompt: int = 0
    """Distinct prompt tokens."""


@dataclass
class Arm:
    """A way to make the corpus. ``weights`` in bytes and ``cache`` in bytes a token make its floor."""

    run: Callable[[int], Measured]
    weights: float = 0.0
    cache: float = 0.0
    note: str = ""
    warm: Callable[[], object] | None = None


@dataclass
class Clock:
    """Wall and processor seconds since it was made; of this process and of ``others`` with their children."""

    others: Sequence[int] = ()
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.cpu = self._cpu()

    def _cpu(self) -> float:
        import psutil

        total = time.process_time()
        for pid in self.others:
            process = psutil.Process(pid)
            for p in (process, *process.children(recursive=True)):
                used = p.cpu_times()
                total += used.user + used.system
        return total

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.began, self._cpu() - self.cpu


# -- the work ---------------------------------------------------------------------------------------------------


def tree_arm(
    cfg: Any, tokenizer: Any, shape: Sequence[int], batch: int, sample: Sample, pids: Sequence[int] = ()
) -> Callable[[int], Measured]:
    """A tree of ``shape`` for each topic, level by level; independent dialogues when only the first layer is wide."""
    from regrow.grow.script import ChatScript, prompt_ids, root_prompt

    script = ChatScript(cfg, tokenizer)

    def run(seed: int) -> Measured:
        clock = Clock(pids)
        done = Measured(0, 0, 0, 0, 0)
        paths: list[tuple[str, str, list[Ids]]] = [
            (f"t{i}", root_prompt(cfg, topic), []) for i, topic in enumerate(cfg.topics)
        ]
        for layer, siblings in enumerate(shape, 1):
            asked = [(key, prompt_ids(script, root, above)) for key, root, above in paths]
            found = sample(seed, layer, siblings, layer < len(shape), asked)
            lengths = [len(ids) for turns in found for ids in turns]
            done.sampled += sum(lengths)
            done.steps += max(max(lengths), math.ceil(sum(lengths) / batch))
            for (_, prompt), (_, _, above), turns in zip(asked, paths, found, strict=True):
                done.prompt += len(prompt) - sum(map(len, above)) if layer == 1 else len(script.joint(layer))
                done.read += sum(len(ids) * (len(prompt) + len(ids) / 2) for ids in turns)
            paths = [
                (f"{key}/{k}", root, [*above, ids])
                for (key, root, above), turns in zip(paths, found, strict=True)
                for k, ids in enumerate(turns)
            ]
        done.seconds, done.cpu = clock.read()
        done.dialogues = len(paths)
        done.corpus_tokens = sum(len(ids) for _, _, turns in paths for ids in turns)
        done.read = round(done.read)
        return done

    return run


def by_engine(engine: Any, cfg: Any, tokenizer: Any, *, shuffled: bool = False) -> Sample:
    """An engine of Regrow. Engines sort by the key, so other keys are another order."""
    from regrow.engines.base import KeepsPrefixes, Request
    from regrow.grow.plan import node_seed
    from regrow.grow.script import ChatScript

    script = ChatScript(cfg, tokenizer)
    keeps = isinstance(engine, KeepsPrefixes)

    def sample(seed: int, layer: int, siblings: int, goes_on: bool, asked: Asked) -> list[list[Ids]]:
        keep = "completions" if goes_on else "nothing"
        requests = [
            Request(
                hashlib.sha256(key.encode()).hexdigest() if shuffled else key,
                prompt, siblings, node_seed(seed, key), script.params(layer), keep,
            )
            for key, prompt in asked
        ]  # fmt: skip
        found: list[list[Ids]] = [[] for _ in asked]
        for i, completions in engine.sample(requests):
            found[i] = [c.token_ids for c in completions]
            if keeps and goes_on:
                engine.retain(requests[i].key, asked[i][1], [(*asked[i][1], *ids) for ids in found[i]])
        if keeps and not goes_on:
            engine.forget()
        return found

    return sample


def by_generate(model: Any, cfg: Any, tokenizer: Any, batch: int) -> Sample:
    import torch

    from regrow.grow.script import ChatScript

    script = ChatScript(cfg, tokenizer)

    def sample(seed: int, layer: int, siblings: int, goes_on: bool, asked: Asked) -> list[list[Ids]]:
        torch.manual_seed(1000 * seed + layer)
        prompts = [prompt for _, prompt in asked]
        rows = generate_level(model, tokenizer, prompts, siblings, script.params(layer), batch)
        return [rows[i : i + siblings] for i in range(0, len(rows), siblings)]

    return sample


def by_openvino(weights: Path, cfg: Any, tokenizer: Any, batch: int, *, one_by_one: bool) -> Sample:
    """LLMPipeline as its manual shows it: texts in, texts out, no settings but those of sampling."""
    import openvino_genai as genai

    from regrow.grow.script import ChatScript

    script = ChatScript(cfg, tokenizer)
    pipeline = genai.LLMPipeline(str(weights), "CPU")

    def sample(seed: int, layer: int, siblings: int, goes_on: bool, asked: Asked) -> list[list[Ids]]:
        params = script.params(layer)
        config = genai.GenerationConfig()
        config.apply_chat_template = False
        config.do_sample = True
        config.max_new_tokens, config.temperature, config.top_p = (
            params.max_new_tokens, params.temperature, params.top_p,
        )  # fmt: skip
        if params.top_k:
            config.top_k = params.top_k
        config.eos_token_id, config.stop_token_ids = params.stop_token_ids[0], set(params.stop_token_ids)
        config.num_return_sequences = 1 if one_by_one else siblings
        per_call = 1 if one_by_one else max(1, batch // siblings)
        prompts = [tokenizer.decode(prompt) for _, prompt in asked]
        if one_by_one:
            prompts = [p for p in prompts for _ in range(siblings)]
        texts: list[str] = []
        for first in range(0, len(prompts), per_call):
            config.rng_seed = (1000 * seed + 100 * layer + first) & 0xFFFF_FFFF
            texts += pipeline.generate(prompts[first : first + per_call], config).texts
        rows = [list(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        return [rows[i : i + siblings] for i in range(0, len(rows), siblings)]

    return sample


def distilabel_arm(
    python: str, folder: Path, cfg: Any, tokenizer: Any, dialogues: int, batch: int, threads: int
) -> Callable[[int], Measured]:
    from regrow.grow.script import root_prompt
    from regrow.models.turns import derive_turns

    def run(seed: int) -> Measured:
        with tempfile.TemporaryDirectory() as tmp:
            asked = {
                "model": str(folder), "seed": seed, "rows": dialogues, "batch": batch, "threads": threads,
                "turns": len(cfg.shape) // 2, "system": root_prompt(cfg, cfg.topics[0]),
                "pre_query": derive_turns(tokenizer).user_open.lstrip(), "out": f"{tmp}/out.json",
                "sampling": {
                    "max_new_tokens": cfg.answer.max_new_tokens[0], "temperature": cfg.answer.temperature,
                    "top_p": cfg.answer.top_p, "top_k": 0, "repetition_penalty": 1.0,
                },
            }  # fmt: skip
            script = PEERS / "distilabel_magpie.py"
            done = subprocess.run([python, str(script)], input=json.dumps(asked), capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"distilabel failed:\n{done.stderr[-3000:]}")
            said = json.loads(Path(f"{tmp}/out.json").read_text())
        tokens = sum(len(tokenizer.encode(t, add_special_tokens=False)) for turns in said["dialogues"] for t in turns)
        return Measured(said["seconds"], said["cpu"], len(said["dialogues"]), tokens, tokens)

    return run


def stage_arm(cfg: Any, resolved: Any, engine: Any) -> Callable[[int], Measured]:
    from regrow.grow.corpus import read_dialogues, read_nodes
    from regrow.grow.stage import grow
    from regrow.models.embed import load_encoder

    encoder = load_encoder(cfg.encoder)

    def run(seed: int) -> Measured:
        with tempfile.TemporaryDirectory() as tmp:
            clock = Clock()
            done = grow(cfg, resolved, Path(tmp), seed=seed, engine=engine, encoder=encoder)
            seconds, cpu = clock.read()
            tokens = {n.id: len(n.token_ids) for n in read_nodes(Path(tmp)) if n.kept}
            corpus = sum(tokens[i] for d in read_dialogues(Path(tmp)) for i in d.node_ids)
        return Measured(seconds, cpu, done.dialogues, corpus, done.sampled_tokens)

    return run


# -- the arms ---------------------------------------------------------------------------------------------------


def make_arms(args: argparse.Namespace, stack: ExitStack) -> Iterator[tuple[str, Callable[[], Arm] | str]]:
    """Name, and what makes the arm or why it is left out. Models load and servers start when first needed."""
    from functools import cache
    from importlib.util import find_spec

    from regrow.engines.config import ServeConfig, ServerConfig
    from regrow.models.load import load_model, load_tokenizer, resolve_model

    resolved = resolve_model(args.model)
    tokenizer = load_tokenizer(resolved.path)
    cfg = settings(args)
    shape, wide = cfg.shape, [math.prod(cfg.shape), *[1] * (len(cfg.shape) - 1)]

    @cache
    def model() -> Any:
        return load_model(resolved.path, dtype="float32", device="cpu").eval()

    @cache
    def facts() -> tuple[int, int]:
        """Weights, and numbers in the caches of a token."""
        c = model().config
        head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return sum(p.numel() for p in model().parameters()), 2 * c.num_hidden_layers * c.num_key_value_heads * head

    def arm(
        layers: Sequence[int], batch: int, sample: Sample, weight: float, cached: float, note: str = "", pid: int = 0
    ) -> Arm:
        weights, numbers = facts()
        pids = [pid] if pid else []
        warm = tree_arm(cfg, tokenizer, [1, 1], batch, sample)
        run = tree_arm(cfg, tokenizer, layers, batch, sample, pids)
        return Arm(run, weights * weight, numbers * cached, note, lambda: warm(0))

    @cache
    def openvino(dtype: str) -> Any:
        from regrow.engines.openvino import OpenVinoEngine

        engine = OpenVinoEngine(resolved, dtype=dtype, batch_size=args.batch)
        stack.callback(engine.close)
        return engine

    def ours(engine: Any, weight: float, cached: float, **how: Any) -> Arm:
        return arm(shape, args.batch, by_engine(engine, cfg, tokenizer, **how), weight, cached)

    def hf(reuse: bool) -> Arm:
        from regrow.engines.hf import TransformersEngine

        engine = TransformersEngine.from_model(model(), tokenizer, batch_size=args.batch, reuse=reuse)
        return ours(engine, 4, 4)

    @cache
    def server(kind: str) -> tuple[Any, int]:
        from regrow.engines.openai import OpenAIEngine
        from regrow.engines.serve import start

        arguments = [] if kind == "vllm" else ["--threads", str(args.threads)]
        serve = ServeConfig(slots=args.slots, context=1024, arguments=arguments)
        started = start(kind, resolved, serve)
        stack.callback(started.close)
        engine = OpenAIEngine(resolved, ServerConfig(url=started.url, cache=False), key=started.key, name=kind)
        stack.callback(engine.close)
        return engine, started._guard.pid

    def served(kind: str, weight: float, cached: float, shuffled: bool = False) -> Arm:
        engine, pid = server(kind)
        sample = by_engine(engine, cfg, tokenizer, shuffled=shuffled)
        most = args.slots if kind == "llama.cpp" else args.batch
        return arm(shape, most, sample, weight, cached, f"{engine.info.version} {engine.info.dtype}", pid)

    def naive(one_by_one: bool) -> Arm:
        from regrow.engines.openvino import model_file

        weights = model_file(resolved, "q8_0")[0]
        sample = by_openvino(weights, cfg, tokenizer, args.batch, one_by_one=one_by_one)
        return arm(shape, 1 if one_by_one else args.batch, sample, 8.5 / 8, 1)

    def generate(layers: Sequence[int]) -> Arm:
        sample = by_generate(model(), cfg, tokenizer, args.batch)
        return arm(layers, args.batch, sample, 4, 4)

    def peer(batch: int, dialogues: int) -> Arm:
        run = distilabel_arm(os.environ[DISTILABEL], resolved.path, cfg, tokenizer, dialogues, batch, args.threads)
        return Arm(run)

    def stage() -> Arm:
        whole = type(cfg)(**{**cfg.model_dump(), "dialogues": "all"})
        return Arm(stage_arm(whole, resolved, openvino("auto")))

    has_openvino = None if find_spec("openvino_genai") else "openvino-genai is not installed"
    has_vllm = None if os.environ.get("REGROW_VLLM_PYTHON") else "no vLLM: REGROW_VLLM_PYTHON is not set"
    has_llama = None if os.environ.get("REGROW_LLAMA_SERVER") else "no llama.cpp: REGROW_LLAMA_SERVER is not set"
    has_peer = None if os.environ.get(DISTILABEL) else f"no distilabel: {DISTILABEL} is not set"
    q8 = 8.5 / 8
    yield "regrow openvino q8_0", has_openvino or (lambda: ours(openvino("auto"), q8, 4))
    yield "regrow openvino f16", has_openvino or (lambda: ours(openvino("float32"), 2, 4))
    yield "regrow transformers", lambda: hf(True)
    yield "regrow transformers, prompts whole", lambda: hf(False)
    yield BASE, lambda: generate(shape)
    yield "generate, Magpie", lambda: generate(wide)
    yield "distilabel, Magpie", has_peer or (lambda: peer(1, args.peer_dialogues))
    yield "distilabel, Magpie, batched", has_peer or (lambda: peer(args.batch, math.prod(shape)))
    yield "regrow vllm, sorted", has_vllm or (lambda: served("vllm", 2, 2))
    yield "regrow vllm, shuffled", has_vllm or (lambda: served("vllm", 2, 2, True))
    yield "regrow llama.cpp q8_0", has_llama or (lambda: served("llama.cpp", q8, 2))
    yield "openvino, turn by turn", has_openvino or (lambda: naive(True))
    yield "openvino, batches", has_openvino or (lambda: naive(False))
    yield "regrow grow", has_openvino or stage


def versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("torch", "transformers", "openvino-genai"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def read_log(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--shape", default="8,4,2,2")
    parser.add_argument("--topics", default="rivers and seas", help="one tree each, comma between them")
    parser.add_argument("--question-tokens", type=int, default=32)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128, help="sequences at once, in every arm that has batches")
    parser.add_argument("--slots", type=int, default=32, help="sequences at once of llama.cpp")
    parser.add_argument("--peer-dialogues", type=int, default=8, help="of the arm that runs prompts one by one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--arms", nargs="+", help="only those whose names begin so")
    parser.add_argument("--without", nargs="+", help="all but these")
    parser.add_argument("--log", type=Path, help="a JSONL file of measurements to go on with")
    parser.add_argument("--table", action="store_true", help="print what is in --log and run nothing")
    args = parser.parse_args()
    shape = {k: getattr(args, k) for k in ("model", "shape", "topics", "question_tokens", "answer_tokens", "batch",
                                           "slots", "threads")}  # fmt: skip
    log = read_log(args.log)
    if any(entry["settings"] != shape for entry in log):
        sys.exit(f"{args.log} was measured with other settings: {log[0]['settings']}")
    if not args.table:
        measure(args, shape, log)
    print_table(args, read_log(args.log) if args.log else log)


def measure(args: argparse.Namespace, shape: dict[str, Any], log: list[dict[str, Any]]) -> None:
    """Run what the log lacks, and append it."""
    import torch

    torch.set_num_threads(args.threads)
    done = {(entry["arm"], entry["repeat"]) for entry in log if "left_out" not in entry}
    with ExitStack() as stack:
        makers = dict(make_arms(args, stack))
        arms: dict[str, Arm] = {}
        for repeat in range(args.repeats):
            for name, make in makers.items():
                chosen = not args.arms or any(name.startswith(start) for start in args.arms)
                if not chosen or (name, repeat) in done:
                    continue
                entry: dict[str, Any] = {"settings": shape, "arm": name, "repeat": repeat, "versions": versions()}
                if name in (args.without or ()):
                    make = "not asked for"
                if isinstance(make, str):
                    entry["left_out"] = make
                else:
                    if name not in arms:
                        arms[name] = make()
                        if arms[name].warm is not None:
                            arms[name].warm()
                    entry |= {"measured": asdict(arms[name].run(repeat)), "load": os.getloadavg()[0]}
                    entry |= {k: getattr(arms[name], k) for k in ("weights", "cache", "note")}
                log.append(entry)
                print(f"repeat {repeat + 1}: {name}: {entry.get('measured') or make}", file=sys.stderr, flush=True)
                if args.log:
                    with args.log.open("a") as out:
                        out.write(json.dumps(entry) + "\n")
        if ("machine", 0) not in done:
            from regrow.models.load import load_model, resolve_model

            model = load_model(resolve_model(args.model).path, dtype="float32", device="cpu")
            bandwidth, arithmetic = machine(model)
            # `machine` counts by processor time a thread: what all threads together can have.
            entry = {"settings": shape, "arm": "machine", "repeat": 0, "bandwidth": bandwidth, "flops": arithmetic}
            entry |= {"numbers": sum(p.numel() for p in model.parameters()), "versions": versions()}
            log.append(entry)
            if args.log:
                with args.log.open("a") as out:
                    out.write(json.dumps(entry) + "\n")


def print_table(args: argparse.Namespace, log: list[dict[str, Any]]) -> None:
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    left: dict[str, str] = {}
    for entry in log:
        if "measured" in entry:
            runs.setdefault(entry["arm"], {})[entry["repeat"]] = entry
        elif "left_out" in entry:
            left[entry["arm"]] = entry["left_out"]
    limits = next((entry for entry in log if entry["arm"] == "machine"), None)
    settings_, loads = log[0]["settings"], [e["load"] for e in log if "load" in e]
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs; {log[0]['versions']};")
    print("; ".join(f"{name}: {next(iter(by.values()))['note']}" for name, by in runs.items()
                    if next(iter(by.values()))["note"]))  # fmt: skip
    print(f"{settings_}; repeats {max(map(len, runs.values()))}, seeds 0 to {max(map(len, runs.values())) - 1};")
    print(f"load {min(loads):.1f} to {max(loads):.1f}\n")
    print(
        "| arm | dialogues | corpus tokens | sampled | s | CPU s | corpus tokens a CPU s | relative, clock "
        "| relative, CPU | sampled a CPU s | times its floor |"
    )
    print("| --- |" + " ---: |" * 10)
    for name, by in runs.items():
        shared = [r for r in by if r in runs.get(BASE, {})]
        relative = {unit: _span([_rate(by[r], unit) / _rate(runs[BASE][r], unit) for r in shared])
                    for unit in ("seconds", "cpu")}  # fmt: skip
        m = {k: statistics.median(e["measured"][k] for e in by.values()) for k in next(iter(by.values()))["measured"]}
        floor = _floor(next(iter(by.values())), m, limits)
        # As in grow.py: processor seconds a thread, which other work disturbs less than the clock.
        times = format(m["cpu"] / settings_["threads"] / floor, ".1f") if floor else ""
        print(
            f"| {name} | {m['dialogues']:.0f} | {m['corpus_tokens']:,.0f} | {m['sampled']:,.0f} | {m['seconds']:.1f} "
            f"| {m['cpu']:.1f} | {statistics.median(_rate(e, 'cpu') for e in by.values()):.0f} "
            f"| {relative['seconds']} | {relative['cpu']} "
            f"| {statistics.median(e['measured']['sampled'] / e['measured']['cpu'] for e in by.values()):.0f} "
            f"| {times} |"
        )
    if limits:
        print(
            f"\nMemory {limits['bandwidth'] / 1e9:.1f} GB/s, products {limits['flops'] / 1e9:.0f} GFLOP/s (float32)."
        )
    for name, why in left.items():
        if name not in runs:
            print(f"Left out: {name} ({why}).")


def _rate(entry: dict[str, Any], unit: str) -> float:
    """Corpus tokens a second, of the clock or of the processor."""
    return float(entry["measured"]["corpus_tokens"] / entry["measured"][unit])


def _floor(entry: dict[str, Any], m: dict[str, float], limits: dict[str, Any] | None) -> float:
    """Seconds; 0 where it is not known."""
    if limits is None or not entry["weights"]:
        return 0.0
    moved = m["steps"] * entry["weights"] + m["read"] * entry["cache"]
    products = 2 * limits["numbers"] * (m["sampled"] + m["prompt"])
    return max(moved / limits["bandwidth"], products / limits["flops"])


def _span(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "".join(f"{value:.2f}" for value in values)
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
