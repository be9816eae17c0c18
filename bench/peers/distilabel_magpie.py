"""distilabel's MagpieGenerator over its TransformersLLM; runs in an environment of its own, for `bench/corpus.py`.

    pip install 'distilabel[hf-transformers]'

Reads JSON from standard input: the model folder, system prompt, pre-query template, turns, rows, batch size,
sampling parameters, seed, threads, and ``out``, where the dialogues and the seconds they took are written. Loading is
not timed.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    asked = json.load(sys.stdin)
    import torch
    from distilabel.models import TransformersLLM
    from distilabel.steps.tasks import MagpieGenerator
    from transformers import set_seed

    torch.set_num_threads(asked["threads"])
    set_seed(asked["seed"])
    llm = TransformersLLM(
        model=asked["model"],
        torch_dtype="float32",
        magpie_pre_query_template=asked["pre_query"],
        generation_kwargs=asked["sampling"],
    )
    task = MagpieGenerator(
        llm=llm,
        system_prompt=asked["system"],
        n_turns=asked["turns"],
        num_rows=asked["rows"],
        batch_size=asked["rows"],
    )
    task.load()
    if asked["batch"] > 1:  # its LLM has no setting for this
        llm._pipeline._batch_size = asked["batch"]
        llm._pipeline.tokenizer.padding_side = "left"
    began, cpu = time.perf_counter(), time.process_time()
    rows, _ = next(task.process())
    result = {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "dialogues": [[message["content"] for message in row["conversation"]] for row in rows],
        "version": version("distilabel"),
    }
    Path(asked["out"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
