"""Training speed and peak memory: Regrow's trainer beside plain ``trl.SFTTrainer`` on the same rows.

    python bench/train.py --model smollm2 --rows 64 --steps 6 --repeats 3

Every measurement is a process of its own (so that peak memory is its own), arms take turns (so that a drifting clock
hits all of them), and warm-up steps are not timed; ``a CPU s`` is tokens a second of processor time, which other work
disturbs less. Rows are synthetic: log-normal lengths, random tokens, the last ``--trained`` share of each row carries
loss. LLaMA-Factory wants an environment of its own: ``pip install
llamafactory`` there, and name its interpreter in ``REGROW_LLAMAFACTORY_PYTHON``; without that it is left out, and said
to be.
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

ARMS = {
    "regrow": "rows of documents, head at trained positions",
    "regrow-packed": "the same with packing",
    "regrow-full-head": "packing, head at all positions",
    "trl": "trl.SFTTrainer, one padded row a document",
    "trl-packed": "trl.SFTTrainer, packing (bfd)",
    "llamafactory": "LLaMA-Factory sft, packing, documents apart (neat_packing)",
}
PEER = "REGROW_LLAMAFACTORY_PYTHON"
"""The environment variable that names the interpreter LLaMA-Factory is installed in."""


def make_rows(n: int, vocab: int, trained: float, longest: int) -> list[dict]:
    import numpy as np

    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        length = int(np.clip(rng.lognormal(4.7, 0.6), 16, longest))
        first = max(1, int(length * (1 - trained)))
        ids = rng.integers(10, vocab, length).tolist()
        rows.append(
            {
                "id": str(i), "source": "domain", "domain": "bench", "input_ids": ids,
                "loss_weights": [0.0] * first + [1.0] * (length - first), "topk_ids": [], "topk_logprobs": [],
                "topk_k": 0, "n_tokens": length, "n_train_tokens": length - first,
            }
        )  # fmt: skip
    return rows


def clock_callback(warmup: int):
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Starts after the warm-up steps; ``tokens`` counts what the model saw since."""

        started = seconds = cpu_started = cpu = 0.0
        tokens = padded = 0

        def on_step_end(self, args, state, control, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if state.global_step == warmup:
                self.started, self.tokens, self.padded = time.perf_counter(), 0, 0
                self.cpu_started = time.process_time()
            self.seconds = time.perf_counter() - self.started
            self.cpu = time.process_time() - self.cpu_started

    return Clock()


def measure(arm: str, model_dir: Path, args: argparse.Namespace) -> dict:
    """One training run; returns tokens a second and peak memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    rows = make_rows(args.rows, AutoConfig.from_pretrained(model_dir).vocab_size, args.trained, args.max_length)
    clock = clock_callback(args.warmup)
    bf16 = torch.cuda.is_available()
    total = args.warmup + args.steps
    packed = arm.endswith(("packed", "full-head"))
    batch = args.packs if packed else args.batch
    with tempfile.TemporaryDirectory() as tmp:
        if arm.startswith("regrow"):
            from regrow.train import trainer as ours
            from regrow.train.arguments import make_arguments
            from regrow.train.batches import TokenRows
            from regrow.train.config import TrainConfig

            if arm == "regrow-full-head":
                ours.head_takes_mask = lambda model: False
            cfg = TrainConfig(max_steps=total, per_device_train_batch_size=batch, packing=packed,
                              max_length=args.max_length, bf16=bf16, save_steps=10**6, num_train_epochs=1)  # fmt: skip
            pq.write_table(pa.Table.from_pylist(rows), f"{tmp}/train.parquet")
            token_rows = TokenRows(
                Path(tmp) / "train.parquet", max_length=args.max_length, topk=False, cache_dir=Path(tmp)
            )
            trainer = ours.RegrowTrainer(
                token_rows, cfg, seed=0, fingerprint="", args=make_arguments(cfg, Path(tmp), 0),
                model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
                processing_class=AutoTokenizer.from_pretrained(model_dir),
            )  # fmt: skip
        else:
            from datasets import Dataset
            from trl import SFTConfig, SFTTrainer

            data = Dataset.from_list(
                [
                    {
                        "input_ids": r["input_ids"],
                        "labels": [t if w else -100 for t, w in zip(r["input_ids"], r["loss_weights"], strict=True)],
                    }
                    for r in rows
                ]
            )
            config = SFTConfig(
                output_dir=tmp, max_steps=total, per_device_train_batch_size=batch, packing=packed,
                max_length=args.max_length, bf16=bf16, gradient_checkpointing=False, save_strategy="no",
                learning_rate=2e-5, report_to="none", disable_tqdm=True, use_cpu=not torch.accelerator.is_available(),
            )  # fmt: skip
            trainer = SFTTrainer(
                model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32), args=config,
                train_dataset=data, processing_class=AutoTokenizer.from_pretrained(model_dir),
            )  # fmt: skip
        inner = trainer.compute_loss

        def counting(model, inputs, *rest, **kwargs):
            clock.padded += inputs["input_ids"].numel()
            if "n_tokens" in inputs:
                clock.tokens += int(inputs["n_tokens"])
            elif "attention_mask" in inputs:
                clock.tokens += int(inputs["attention_mask"].sum())
            else:
                clock.tokens += inputs["input_ids"].numel()
            return inner(model, inputs, *rest, **kwargs)

        trainer.compute_loss = counting
        trainer.add_callback(clock)
        trainer.train()
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "tok_s": clock.tokens / clock.seconds,
        "tok_cpu_s": clock.tokens / clock.cpu,
        "fill": clock.tokens / clock.padded,
        "tokens": clock.tokens,
        "peak_gb": peak / 1e9,
    }


def measure_peer(model_dir: Path, args: argparse.Namespace) -> dict:
    """LLaMA-Factory, in the environment it is installed in."""
    from transformers import AutoConfig

    rows = make_rows(args.rows, AutoConfig.from_pretrained(model_dir).vocab_size, args.trained, args.max_length)
    labels = [[t if w else -100 for t, w in zip(r["input_ids"], r["loss_weights"], strict=True)] for r in rows]
    with tempfile.TemporaryDirectory() as tmp:
        asked = {
            "model": str(model_dir), "max_length": args.max_length, "packs": args.packs, "warmup": args.warmup,
            "steps": args.steps, "out": f"{tmp}/out.json",
            "rows": [{"input_ids": r["input_ids"], "labels": ids} for r, ids in zip(rows, labels, strict=True)],
        }  # fmt: skip
        script = Path(__file__).with_name("peers") / "llamafactory_sft.py"
        done = subprocess.run(
            [os.environ[PEER], str(script)], input=json.dumps(asked), stdout=sys.stderr, stderr=sys.stderr, text=True
        )
        if done.returncode:
            sys.exit("LLaMA-Factory failed")
        return json.loads(Path(f"{tmp}/out.json").read_text())


def resolve(model: str) -> Path:
    if model == "tiny":
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from tests.fixtures.tiny import save_tiny_llama

        return save_tiny_llama(Path(tempfile.mkdtemp()))
    from regrow.models.load import resolve_model

    return resolve_model(model).path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, smollm2, or a folder")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="documents a step, unpacked arms")
    parser.add_argument("--packs", type=int, default=2, help="packs a step, packed arms")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--trained", type=float, default=0.6, help="share of a row's tokens that carry loss")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        found = (
            measure_peer(Path(args.model), args)
            if args.one == "llamafactory"
            else measure(args.one, Path(args.model), args)
        )
        print("RESULT " + json.dumps(found))
        return

    from regrow.train.stage import versions

    model_dir = resolve(args.model)
    if "llamafactory" in args.arms and not os.environ.get(PEER):
        print(f"left out: llamafactory ({PEER} is not set)")
        args.arms.remove("llamafactory")
    results: dict[str, list[dict]] = {arm: [] for arm in args.arms}
    passed = [f"--{k.replace('_', '-')}={v}" for k, v in vars(args).items()
              if k in ("rows", "batch", "packs", "max_length", "trained", "warmup", "steps")]  # fmt: skip
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
    print(f"{'arm':<18}{'tok/s median':>13}{'min':>8}{'max':>8}{'a CPU s':>9}{'fill':>7}{'peak GB':>9}  what")
    for arm, runs in results.items():
        speeds = [r["tok_s"] for r in runs]
        fill, peak = statistics.median(r["fill"] for r in runs), max(r["peak_gb"] for r in runs)
        speed = f"{statistics.median(speeds):>13.0f}{min(speeds):>8.0f}{max(speeds):>8.0f}"
        cpu = statistics.median(r["tok_cpu_s"] for r in runs)
        print(f"{arm:<18}{speed}{cpu:>9.0f}{fill:>7.2f}{peak:>9.2f}  {ARMS[arm]}")


if __name__ == "__main__":
    main()
