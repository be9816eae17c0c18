"""LLaMA-Factory's own SFT on packed rows; runs in an environment of its own, for `bench/train.py`.

    pip install llamafactory
    pip uninstall torchvision torchaudio    # beside a CPU build of torch: those of the registry are built for CUDA

Reads JSON from standard input: model folder, the rows as token ids and labels, lengths and steps, and ``out``, where
the tokens a second and the peak memory are written. Rows are packed with LLaMA-Factory's knapsack into the form that
its ``neat_packing`` has (documents do not see each other), and handed to it as ``tokenized_path``; everything after
that is its own.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections import defaultdict
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

IGNORE = -100


def pack(rows: list[dict], longest: int, pad: int) -> list[dict]:
    """Rows of ``longest + 1`` tokens; the attention mask counts the documents of a row from 1."""
    from llamafactory.data.processor.processor_utils import greedy_knapsack

    by_length = defaultdict(list)
    for row in rows:
        by_length[len(row["input_ids"])].append(row)
    packed = []
    for lengths in greedy_knapsack([len(row["input_ids"]) for row in rows], longest):
        ids, labels, mask = [], [], []
        for number, length in enumerate(lengths, 1):
            row = by_length[length].pop()
            ids += row["input_ids"]
            labels += row["labels"]
            mask += [number] * length
        rest = longest + 1 - len(ids)
        packed.append(
            {
                "input_ids": ids + [pad] * rest, "labels": labels + [IGNORE] * rest,
                "attention_mask": mask + [0] * rest,
            }
        )  # fmt: skip
    return packed


def main() -> None:
    asked = json.load(sys.stdin)
    if find_spec("torchaudio") is None:  # imported for every model, used for sound
        sys.modules["torchaudio"] = ModuleType("torchaudio")
        sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)
    from datasets import Dataset, DatasetDict
    from llamafactory.train.sft import trainer as theirs
    from llamafactory.train.tuner import run_exp
    from transformers import AutoTokenizer, TrainerCallback

    pad = AutoTokenizer.from_pretrained(asked["model"]).pad_token_id
    seen = {"tokens": 0, "padded": 0, "began": 0.0, "seconds": 0.0, "cpu_began": 0.0, "cpu": 0.0}

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == asked["warmup"]:
                seen.update(tokens=0, padded=0, began=time.perf_counter(), cpu_began=time.process_time())
            seen["seconds"] = time.perf_counter() - seen["began"]
            seen["cpu"] = time.process_time() - seen["cpu_began"]

    inner = theirs.CustomSeq2SeqTrainer.compute_loss

    def counting(self, model, inputs, *rest, **kwargs):
        seen["tokens"] += int((inputs["input_ids"] != pad).sum())
        seen["padded"] += inputs["input_ids"].numel()
        return inner(self, model, inputs, *rest, **kwargs)

    theirs.CustomSeq2SeqTrainer.compute_loss = counting
    with tempfile.TemporaryDirectory() as tmp:
        data = DatasetDict({"train": Dataset.from_list(pack(asked["rows"], asked["max_length"], pad))})
        data.save_to_disk(f"{tmp}/data")
        run_exp(
            {
                "stage": "sft", "do_train": True, "finetuning_type": "full", "model_name_or_path": asked["model"],
                "tokenized_path": f"{tmp}/data", "dataset": "bench", "template": "default",
                "cutoff_len": asked["max_length"], "packing": True, "neat_packing": True, "flash_attn": "sdpa",
                "output_dir": f"{tmp}/out", "overwrite_output_dir": True, "save_strategy": "no", "report_to": "none",
                "per_device_train_batch_size": asked["packs"], "gradient_accumulation_steps": 1,
                "max_steps": asked["warmup"] + asked["steps"], "learning_rate": 2e-5, "logging_steps": 10**6,
                "use_cpu": True, "bf16": False, "fp16": False, "disable_gradient_checkpointing": True,
                "disable_tqdm": True, "dataloader_num_workers": 0,
            },
            callbacks=[Clock()],
        )  # fmt: skip
    result = {
        "tok_s": seen["tokens"] / seen["seconds"],
        "tok_cpu_s": seen["tokens"] / seen["cpu"],
        "fill": seen["tokens"] / seen["padded"],
        "tokens": seen["tokens"],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "version": version("llamafactory"),
    }
    Path(asked["out"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
