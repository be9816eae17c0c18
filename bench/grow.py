"""Seconds for a whole corpus: Regrow's transformers engine beside plain ``model.generate`` on the same tree.

    python bench/grow.py --model smollm2 --shape 8,4,2,2 --repeats 5 --threads 2

Arms, on one model in memory, with the same sampling parameters and caps:

- ``regrow``: the transformers engine, caches of prefixes kept; and the same engine without them.
- ``generate, level by level``: the same tree by ``model.generate`` in batches, siblings by ``num_return_sequences``.
- ``generate, independent``: as Magpie (arXiv 2406.08464) samples: open the user turn, let the model ask, close it, let
  it answer, and so on; as many independent dialogues as the tree has paths.

Every turn is kept as it was sampled: nothing is oversampled, screened, compared by an encoder or written to disk in
any arm. The arms take turns, so that a drifting clock hits all of them; the table has medians, and ratios within a
repeat, by the clock and by processor time, which a busy machine disturbs less. The floor is what the machine's memory
bandwidth and arithmetic, measured before, would need for the bytes and products of ``regrow``: all weights and live
caches read once for each pass, and two floating-point operations a weight and token.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Path = tuple[str, str, list[list[int]]]
"""Key, root prompt, and the token ids of the turns so far."""


@dataclass
class Result:
    seconds: float
    cpu: float
    """Processor seconds of all threads."""
    dialogues: int
    nodes: int
    tokens: int
    """Of distinct turns."""
    prefill: int = 0


@dataclass
class Work:
    """What went through the network."""

    steps: int = 0
    passes: int = 0
    tokens: int = 0
    cached_tokens: int = 0

    def watch(self, network: Any) -> None:
        plain = network.logits

        def logits(ids: Any, positions: Any, cache: Any, mask: Any, last: Any) -> Any:
            self.passes += 1
            self.tokens += ids.numel()
            if ids.shape[1] == 1:
                self.steps += 1
                self.cached_tokens += ids.shape[0] * (cache.window.high + 1) - sum(getattr(cache, "starts", [0]))
            return plain(ids, positions, cache, mask, last)

        network.logits = logits


def clocks(since: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
    """Wall and processor seconds since."""
    return time.perf_counter() - since[0], time.process_time() - since[1]


def settings(args: argparse.Namespace) -> Any:
    from regrow.grow.config import GrowConfig

    return GrowConfig(
        shape=args.shape, topics=args.topics.split(","),
        question={"max_new_tokens": args.question_tokens, "stop": []},
        answer={"max_new_tokens": args.answer_tokens},
    )  # fmt: skip


def regrow_arm(cfg: Any, engine: Any, tokenizer: Any, shape: Sequence[int]) -> Callable[[int], Result]:
    from regrow.engines.base import Request
    from regrow.grow.plan import node_seed
    from regrow.grow.script import ChatScript, prompt_ids, root_prompt

    script = ChatScript(cfg, tokenizer)

    def run(seed: int) -> Result:
        started = clocks()
        nodes = tokens = 0
        prefill = engine.stats.prefill_tokens
        paths: list[Path] = [(f"t{i}", root_prompt(cfg, topic), []) for i, topic in enumerate(cfg.topics)]
        for layer, siblings in enumerate(shape, 1):
            keep = "completions" if layer < len(shape) else "nothing"
            asked = [
                Request(
                    key, prompt_ids(script, root, above), siblings, node_seed(seed, key), script.params(layer), keep
                )
                for key, root, above in paths
            ]
            below: list[Path] = []
            for i, found in engine.sample(asked):
                key, root, above = paths[i]
                prompt = asked[i].prompt_ids
                if keep == "completions":
                    engine.retain(key, prompt, [(*prompt, *c.token_ids) for c in found])
                below += [(f"{key}/{k}", root, [*above, c.token_ids]) for k, c in enumerate(found)]
                tokens += sum(len(c.token_ids) for c in found)
            paths = sorted(below, key=lambda path: path[0])
            nodes += len(paths)
        engine.forget()
        return Result(*clocks(started), len(paths), nodes, tokens, engine.stats.prefill_tokens - prefill)

    return run


def generate_level(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], siblings: int, params: Any, batch: int
) -> list[list[int]]:
    """`model.generate` in batches; ``siblings`` turns for each prompt, one prompt's after another's, each up to where
    it ends."""
    import torch

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    found: list[list[int]] = []
    per_call = max(1, batch // siblings)
    for first in range(0, len(prompts), per_call):
        part = prompts[first : first + per_call]
        longest = max(map(len, part))
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in part], device=model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in part], device=model.device)
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=params.temperature,
            top_p=params.top_p, top_k=params.top_k, num_return_sequences=siblings,
            max_new_tokens=params.max_new_tokens, pad_token_id=pad, eos_token_id=list(params.stop_token_ids),
        )  # fmt: skip
        found += [until(row, params.stop_token_ids) for row in out[:, longest:].tolist()]
    return found


def until(ids: list[int], stops: Sequence[int]) -> list[int]:
    """The tokens before the first one that ends a turn."""
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]


def generate_arm(cfg: Any, model: Any, tokenizer: Any, shape: Sequence[int], batch: int) -> Callable[[int], Result]:
    import torch

    from regrow.grow.script import ChatScript, prompt_ids, root_prompt

    script = ChatScript(cfg, tokenizer)

    def run(seed: int) -> Result:
        torch.manual_seed(seed)
        started = clocks()
        nodes = tokens = prefill = 0
        paths = [(root_prompt(cfg, topic), []) for topic in cfg.topics]
        for layer, siblings in enumerate(shape, 1):
            prompts = [prompt_ids(script, root, contents) for root, contents in paths]
            contents = generate_level(model, tokenizer, prompts, siblings, script.params(layer), batch)
            prefill += siblings * sum(map(len, prompts))
            paths = [
                (root, [*above, contents[i * siblings + k]])
                for i, (root, above) in enumerate(paths)
                for k in range(siblings)
            ]
            nodes += len(contents)
            tokens += sum(map(len, contents))
        return Result(*clocks(started), len(paths), nodes, tokens, prefill)

    return run


def machine(model: Any) -> tuple[float, float]:
    """Bytes a second read from memory, and floating-point operations a second of a matrix product in the model's
    dtype; the best of five, by the clock on a GPU and by processor time a thread otherwise."""
    import torch

    cuda = model.device.type == "cuda"

    def clock() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() if cuda else time.process_time() / torch.get_num_threads()

    big = torch.ones(2**26, dtype=torch.float32, device=model.device)
    a = torch.randn(2048, 2048, device=model.device).to(model.dtype)
    read = product = float("inf")
    for _ in range(5):
        started = clock()
        big.sum()
        read = min(read, clock() - started)
        started = clock()
        a @ a
        product = min(product, clock() - started)
    return big.numel() * 4 / read, 2 * 2048**3 / product


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--shape", default="8,4,2,2")
    parser.add_argument("--topics", default="rivers and seas", help="one tree each, comma between them")
    parser.add_argument("--question-tokens", type=int, default=64)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=128, help="sequences decoded at once, in every arm")
    parser.add_argument("--memory-gib", type=float, help="of the regrow arms; default: as Regrow chooses")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; default: as torch chooses")
    args = parser.parse_args()

    import torch
    import transformers

    from regrow.engines.hf import TransformersEngine
    from regrow.models.load import load_model, load_tokenizer, resolve_model

    if args.threads:
        torch.set_num_threads(args.threads)
    resolved = resolve_model(args.model)
    tokenizer = load_tokenizer(resolved.path)
    model = load_model(resolved.path, dtype=args.dtype, device=args.device).eval()
    cfg = settings(args)
    options = {"batch_size": args.batch, "memory_gib": args.memory_gib}
    engines = [TransformersEngine.from_model(model, tokenizer, reuse=on, **options) for on in (True, False)]
    work = Work()
    work.watch(engines[0]._network)
    shape = cfg.shape
    paths = 1
    for n in shape:
        paths *= n
    arms = {
        "regrow": regrow_arm(cfg, engines[0], tokenizer, shape),
        "regrow, every prompt whole": regrow_arm(cfg, engines[1], tokenizer, shape),
        "generate, level by level": generate_arm(cfg, model, tokenizer, shape, args.batch),
        "generate, independent": generate_arm(cfg, model, tokenizer, [paths, *[1] * (len(shape) - 1)], args.batch),
    }
    results: dict[str, list[Result]] = {name: [] for name in arms}
    floors = []
    bandwidth, arithmetic = machine(model)
    short = {"question": {"max_new_tokens": 4, "stop": []}, "answer": {"max_new_tokens": 4}}
    warm = type(cfg)(**{**cfg.model_dump(), **short, "shape": [1] * len(shape)})
    for engine in engines:
        regrow_arm(warm, engine, tokenizer, warm.shape)(0)
    generate_arm(warm, model, tokenizer, warm.shape, args.batch)(0)
    for repeat in range(args.repeats):
        for name, run in arms.items():
            before = Work(**vars(work))
            results[name].append(run(repeat))
            print(f"repeat {repeat + 1}: {name}: {results[name][-1]}", flush=True)
            if name == "regrow":
                floors.append(Work(**{k: v - getattr(before, k) for k, v in vars(work).items()}))

    layout = engines[0]._network.layout
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    numbers = sum(p.numel() for p in model.parameters())
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f},")
    print(f"torch {torch.__version__} on {model.device} in {model.dtype} with {torch.get_num_threads()} threads,")
    print(f"transformers {transformers.__version__}; {args.model}, shape {args.shape}, {len(cfg.topics)} trees, caps")
    print(f"{args.question_tokens} and {args.answer_tokens}, batch {args.batch}, {args.repeats} repeats\n")
    print("| arm | dialogues | turns | tokens | prompt tokens run | s | CPU s | s, relative | CPU s, relative |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    base = results["generate, level by level"]
    for name, rs in results.items():
        wall = [r.seconds / r.tokens / (b.seconds / b.tokens) for r, b in zip(rs, base, strict=True)]
        cpu = [r.cpu / r.tokens / (b.cpu / b.tokens) for r, b in zip(rs, base, strict=True)]
        print(
            f"| {name} | {_middle(r.dialogues for r in rs):.0f} | {_middle(r.nodes for r in rs):.0f} "
            f"| {_middle(r.tokens for r in rs):,.0f} | {_middle(r.prefill for r in rs):,.0f} "
            f"| {_middle(r.seconds for r in rs):.1f} | {_middle(r.cpu for r in rs):.1f} "
            f"| {statistics.median(wall):.2f} ({min(wall):.2f} to {max(wall):.2f}) "
            f"| {statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f}) |"
        )
    read = _middle(w.passes * weights + w.cached_tokens * layout.bytes_per_token for w in floors)
    flops = _middle(2 * numbers * w.tokens for w in floors)
    spent = _middle((r.seconds if model.device.type == "cuda" else r.cpu) for r in results["regrow"])
    if model.device.type != "cuda":
        spent /= torch.get_num_threads()
    floor = max(read / bandwidth, flops / arithmetic)
    print(
        "\nThe last columns are time a token of distinct turns, `generate` on the tree being 1. Floor of `regrow`: "
        f"{read / 1e9:.0f} GB at {bandwidth / 1e9:.1f} GB/s are {read / bandwidth:.1f} s, {flops / 1e12:.2f} TFLOP at "
        f"{arithmetic / 1e9:.0f} GFLOP/s {flops / arithmetic:.1f} s; it took {spent / floor:.1f} times the larger "
        "(processor seconds a thread)."
    )


def _middle(values: Any) -> float:
    return float(statistics.median(values))


if __name__ == "__main__":
    main()
