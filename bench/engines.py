"""New tokens per second of each engine beside plain ``model.generate``, on the same prompts.

    python bench/engines.py --model smollm2 --batch 128 --tokens 64 --repeats 5

The arms take turns, so that a drifting clock hits all of them; the table has medians and ratios to ``generate``. All
arms sample at temperature 1. Without ``--stops`` every completion has exactly ``--tokens`` tokens; with it completions
end at the model's end token, and only tokens before it count.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

ASKS = ("rivers", "bread", "the moon", "taxes", "bees", "music", "an old bridge", "prime numbers")


def make_prompts(tokenizer, count: int) -> list[tuple[int, ...]]:
    """Ragged chat prompts that open alike, as in a tree."""
    found = []
    for i in range(count):
        ask = f"Tell me about {ASKS[i % len(ASKS)]}" + ", please" * (i // len(ASKS))
        chat = [{"role": "user", "content": ask}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        found.append(tuple(tokenizer.encode(text, add_special_tokens=False)))
    return found


def generate_arm(
    model, tokenizer, prompts, siblings: int, tokens: int, stops: tuple[int, ...]
) -> Callable[[int], int]:
    import torch

    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    ends = {"eos_token_id": list(stops)} if stops else {"min_new_tokens": tokens}

    def run(seed: int) -> int:
        torch.manual_seed(seed)
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            num_return_sequences=siblings, max_new_tokens=tokens, pad_token_id=pad, **ends,
        )  # fmt: skip
        made = 0
        for row in out[:, longest:].tolist():
            made += next((i for i, t in enumerate(row) if t in stops), len(row))
        return made

    return run


def engine_arm(engine, prompts, siblings: int, tokens: int, stops: tuple[int, ...]) -> Callable[[int], int]:
    from regrow.engines.base import Request, SampleParams

    params = SampleParams(tokens, stop_token_ids=stops)

    def run(seed: int) -> int:
        asked = [Request(f"{i}", p, siblings, 1000 * seed + i, params) for i, p in enumerate(prompts)]
        return sum(len(c.token_ids) for _, found in engine.sample(asked) for c in found)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch", type=int, default=128, help="sequences decoded at once")
    parser.add_argument("--sequences", type=int, help="sequences in all (default: one batch)")
    parser.add_argument("--siblings", type=int, default=8, help="continuations of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="most new tokens of a completion")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch; default: as torch chooses")
    parser.add_argument("--stops", action="store_true", help="end at the model's end token")
    args = parser.parse_args()

    import torch
    import transformers

    from regrow.engines.hf import TransformersEngine
    from regrow.engines.openvino import OpenVinoEngine, can_read
    from regrow.models.load import load_model, load_tokenizer, resolve_model

    if args.threads:
        torch.set_num_threads(args.threads)
    resolved = resolve_model(args.model)
    tokenizer, model = load_tokenizer(resolved.path), load_model(resolved.path)
    sequences = args.sequences or args.batch
    prompts = make_prompts(tokenizer, max(1, sequences // args.siblings))
    stops = (int(tokenizer.eos_token_id),) if args.stops else ()
    shape = (args.siblings, args.tokens, stops)
    per_call = max(1, args.batch // args.siblings)
    parts = [prompts[i : i + per_call] for i in range(0, len(prompts), per_call)]
    plain = [generate_arm(model, tokenizer, part, *shape) for part in parts]
    arms: dict[str, Callable[[int], int]] = {"model.generate": lambda seed: sum(run(seed) for run in plain)}
    ours = TransformersEngine.from_model(model, tokenizer, batch_size=args.batch)
    arms["regrow transformers"] = engine_arm(ours, prompts, *shape)
    if can_read(resolved):
        for dtype in ("float32", "auto"):
            engine = OpenVinoEngine(resolved, dtype=dtype, batch_size=args.batch)
            arms[f"regrow openvino {engine.info.dtype}"] = engine_arm(engine, prompts, *shape)
            version = engine.info.version

    speeds: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(-1, args.repeats):  # the first round warms up
        for name, run in arms.items():
            started = time.perf_counter()
            made = run(repeat + 1)
            if repeat >= 0:
                speeds[name].append(made / (time.perf_counter() - started))

    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__} on")
    print(f"{model.device} in {model.dtype} with {torch.get_num_threads()} threads, transformers", end=" ")
    print(transformers.__version__ + (f", openvino-genai {version}" if can_read(resolved) else ""))
    print(
        f"{args.model}: {len(prompts)} prompts x {args.siblings}, batch {args.batch}, {args.tokens} new tokens", end=""
    )
    print(", ending at the end token" if stops else "", f"; load {os.getloadavg()[0]:.1f}\n")
    print("| arm | tokens/s (median) | min | max | against generate |\n| --- | ---: | ---: | ---: | ---: |")
    base = statistics.median(speeds["model.generate"])
    for name, s in speeds.items():
        middle = statistics.median(s)
        print(f"| {name} | {middle:.0f} | {min(s):.0f} | {max(s):.0f} | {middle / base:.2f} |")


if __name__ == "__main__":
    main()
