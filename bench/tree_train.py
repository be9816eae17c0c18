"""Training on trees: what packing saves in tokens, and what of that is left in speed and memory.

    python bench/tree_train.py --savings
    python bench/tree_train.py --model smollm2 --shape 1/4/2/4 --question 16 --answer 48 --repeats 3

``--savings`` counts with the mixer's own bundling, on full trees with fixed lengths of questions and answers; nothing
is trained. Without it, the same dialogues are trained on tree-packed and path by path. Every measurement is a process
of its own (so that peak memory is its own), arms take turns (so that a drifting clock hits all of them), and warm-up
steps are not timed. Speed is in path tokens a second: the tokens of the dialogues one by one, computed or shared; on a
CPU also a second of CPU time, which other work on the machine disturbs less. All arms put up to ``--max-length``
computed tokens into a step, so that memory is compared at the same size of a batch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train import clock_callback
from train import resolve as resolve_model

ARMS = {
    "tree": "tree-packed, one sequence of up to max_length a step",
    "paths": "the same dialogues one by one, as many as max_length holds a step",
    "paths-packed": "the same with train.packing",
}
OPENING, MARKERS = 20, 8
"""Tokens of the system prompt and of the markers around a question and its answer; only ``--savings`` uses them."""


def full_tree(shape: tuple[int, ...], question: int, answer: int) -> list:
    """Every path of a tree as the mixer sees it: nodes, and sizes in tokens."""
    from regrow.mix.grown import GrownPath

    starts, at = [], OPENING
    for layer in range(len(shape)):
        starts.append(at)
        at += (question if layer % 2 == 0 else answer) + MARKERS // 2
    paths: list[tuple[str, ...]] = [()]
    for children in shape:
        paths = [(*p, f"{p[-1] if p else 't'}/{c:03}") for p in paths for c in range(children)]
    return [GrownPath(p[-1], "", p, False, None, False, tuple(starts), at) for p in paths]


def savings(args: argparse.Namespace) -> None:
    """Path tokens per unique token: the table of docs/systems/mixing.md."""
    import numpy as np

    from regrow.mix.trees import bundle

    limits = [1024, 2048, 4096, float("inf")]
    print(f"questions {args.question} tokens, answers {args.answer}, markers {MARKERS} a turn, opening {OPENING}")
    print(
        "| tree | dialogues drawn | "
        + " | ".join("whole tree" if n == float("inf") else f"{n:,}" for n in limits)
        + " |"
    )
    print("| --- | ---: |" + " ---: |" * len(limits))
    for shape in ((32, 16), (32, 16, 8, 8), (32, 8, 8, 8), (32, 16, 8, 4)):
        paths = full_tree(shape, args.question, args.answer)
        for share in (1.0, 0.1, 0.01):
            n = max(1, round(share * len(paths)))
            chosen = np.random.default_rng(0).permutation(len(paths))[:n].tolist()
            ratios = []
            for limit in limits:
                bundles = bundle(paths, chosen, limit)
                ratios.append(sum(b.tokens for b in bundles) / sum(b.unique_tokens for b in bundles))
            drawn = f"{n:,} of {len(paths):,}"
            print(f"| {'/'.join(map(str, shape))} | {drawn} | " + " | ".join(f"{r:.2f}×" for r in ratios) + " |")


def tree_rows(shape: tuple[int, ...], question: int, answer: int, trees: int, vocab: int) -> list[dict]:
    """Rows of ``train.parquet``, depth first, random tokens; loss on the answers."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows: list[dict] = []

    def visit(path: list[tuple[list[int], float]], shared: int, layer: int, tree: int) -> None:
        if layer == len(shape):
            ids = [t for node, _ in path for t in node]
            weights = [w for node, w in path for _ in node]
            rows.append(
                {
                    "id": str(len(rows)), "source": "replay", "domain": "bench", "input_ids": ids,
                    "loss_weights": weights, "topk_ids": [], "topk_logprobs": [], "topk_k": 0, "n_tokens": len(ids),
                    "n_train_tokens": sum(w > 0 for w in weights), "n_shared": shared,
                }
            )  # fmt: skip
            return
        before = sum(len(node) for node, _ in path)
        for child in range(shape[layer]):
            n = question if layer % 2 == 0 else answer
            node = rng.integers(10, vocab, n).tolist(), float(layer % 2)
            # The first child goes on with the path its parent began; every other one shares what is above it.
            visit([*path, node], shared if child == 0 else before, layer + 1, tree)

    for tree in range(trees):
        visit([], 0, 0, tree)
    return rows


def resolve(model: str) -> Path:
    """As in ``bench/train.py``, and ``small``: 8 layers of width 256 with 8,192 tokens, random weights."""
    if model != "small":
        return resolve_model(model)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.fixtures.tiny import tiny_llama, tiny_tokenizer

    folder = Path(tempfile.mkdtemp())
    tiny_llama(layers=8, hidden=256, vocab_size=8192).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def cpu_clock(warmup: int):
    from transformers import TrainerCallback

    class CpuClock(TrainerCallback):
        """CPU seconds of this process after the warm-up steps."""

        started = seconds = 0.0

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == warmup:
                self.started = time.process_time()
            self.seconds = time.process_time() - self.started

    return CpuClock()


def measure(arm: str, model_dir: Path, args: argparse.Namespace) -> dict:
    """One training run; returns path tokens a second, peak memory, and the share of tokens computed."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from regrow.train.arguments import make_arguments
    from regrow.train.batches import TokenRows
    from regrow.train.config import TrainConfig
    from regrow.train.trainer import RegrowTrainer

    shape = tuple(int(n) for n in args.shape.split("/"))
    vocab = AutoConfig.from_pretrained(model_dir).vocab_size
    rows = tree_rows(shape, args.question, args.answer, args.trees, vocab)
    if arm != "tree":
        rows = [{**row, "n_shared": 0} for row in rows]
    clock = clock_callback(args.warmup)
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as tmp:
        pq.write_table(pa.Table.from_pylist(rows), f"{tmp}/train.parquet")
        read = TokenRows(Path(tmp) / "train.parquet", max_length=args.max_length, topk=False, cache_dir=Path(tmp))
        batch = max(1, args.max_length // max(read.lengths)) if arm == "paths" else 1
        cfg = TrainConfig(
            max_steps=args.warmup + args.steps, per_device_train_batch_size=batch, packing=arm == "paths-packed",
            max_length=args.max_length, bf16=cuda, save_steps=10**6, num_train_epochs=1,
            attn_implementation=args.attn,
        )  # fmt: skip
        trainer = RegrowTrainer(
            read, cfg, seed=0, fingerprint="", args=make_arguments(cfg, Path(tmp), 0),
            model=AutoModelForCausalLM.from_pretrained(
                model_dir, dtype=torch.float32, attn_implementation=args.attn
            ),
            processing_class=AutoTokenizer.from_pretrained(model_dir),
        )  # fmt: skip
        if trainer.no_trees is not None:
            sys.exit(f"no trees on this model: {trainer.no_trees}")
        inner, computed = trainer.compute_loss, []
        cpu = cpu_clock(args.warmup)

        def counting(model, inputs, *rest, **kwargs):
            clock.tokens += int(inputs["n_tokens"])
            computed.append((int(inputs["n_tokens"]), int(inputs["n_computed"])))
            return inner(model, inputs, *rest, **kwargs)

        trainer.compute_loss = counting
        trainer.add_callback(clock)
        trainer.add_callback(cpu)
        trainer.train()
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    timed = computed[args.warmup :]
    return {
        "tok_s": clock.tokens / clock.seconds,
        "tok_cpu_s": clock.tokens / cpu.seconds,
        "saved": sum(n for n, _ in timed) / sum(m for _, m in timed),
        "a_step": statistics.mean(m for _, m in timed),
        "peak_gb": peak / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--savings", action="store_true", help="count tokens only")
    parser.add_argument("--model", default="tiny", help="tiny, small, smollm2, or a folder")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--shape", default="1/4/2/4", help="children a node, layer by layer")
    parser.add_argument("--trees", type=int, default=8)
    parser.add_argument("--question", type=int, default=60, help="tokens")
    parser.add_argument("--answer", type=int, default=300, help="tokens")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--attn", default="sdpa", help="train.attn_implementation")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.savings:
        savings(args)
        return
    if args.one:
        print("RESULT " + json.dumps(measure(args.one, Path(args.model), args)))
        return

    from regrow.train.stage import versions

    model_dir = resolve(args.model)
    results: dict[str, list[dict]] = {arm: [] for arm in args.arms}
    passed = [f"--{k.replace('_', '-')}={v}" for k, v in vars(args).items()
              if k in ("shape", "trees", "question", "answer", "max_length", "attn", "warmup", "steps")]  # fmt: skip
    for repeat in range(args.repeats):
        for arm in args.arms:
            command = [sys.executable, __file__, "--one", arm, "--model", str(model_dir), *passed]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if done.returncode or not lines:
                sys.exit(f"{arm} failed:\n{done.stderr[-3000:]}")
            results[arm].append(json.loads(lines[0].removeprefix("RESULT ")))
            print(f"{repeat + 1}/{args.repeats} {arm}: {results[arm][-1]}", file=sys.stderr, flush=True)
    import torch

    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.processor() or platform.machine()}"
    )
    print(f"{args.model}, {device}, {torch.get_num_threads()} threads, {versions()}")
    print(f"{args.shape}, questions {args.question}, answers {args.answer} tokens, max_length {args.max_length}")
    print(
        "| arm | path tokens a second, median [min, max] | ratio | a CPU second | ratio | path/computed | "
        "computed a step | peak GB |"
    )
    print("| --- |" + " ---: |" * 7)
    for arm, runs in results.items():
        cells = []
        for unit in ("tok_s", "tok_cpu_s"):
            speeds = [r[unit] for r in runs]
            cells.append(f"{statistics.median(speeds):.0f} [{min(speeds):.0f}, {max(speeds):.0f}]")
            # Arms of one turn share the machine's state: the ratio is the median of the turns' ratios.
            pairs = zip(runs, results["paths"], strict=True) if "paths" in results else []
            ratios = [r[unit] / p[unit] for r, p in pairs]
            cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
        cells += [f"{runs[0]['saved']:.2f}", f"{runs[0]['a_step']:.0f}", f"{max(r['peak_gb'] for r in runs):.2f}"]
        print(f"| {arm} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
