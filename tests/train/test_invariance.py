"""Settings that must not change the mathematics: one plain SGD step of the real trainer, compared weight by weight.

With plain SGD at learning rate 1 and no clipping the weight change of one step *is* minus the gradient.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regrow.train.checkpoints import read_marker
from regrow.train.config import TrainConfig
from regrow.train.stage import train
from tests.train.helpers import largest_difference, log_lines, random_rows, token_row, weights_of, write_mix

ONE_STEP: dict[str, Any] = {
    "learning_rate": 1.0,
    "max_steps": 1,
    "warmup_ratio": 0.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "trainer_args": {"optim": "sgd"},
    "replay_loss": "hard",
}


def step(model: Path, mix: Path, out: Path, **settings: Any) -> Path:
    train(model, mix, TrainConfig(**(ONE_STEP | settings)), out, seed=0)
    return out / "model"


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mix(tmp_path_factory.mktemp("mix"), random_rows(8, k=5))


@pytest.fixture(scope="module")
def reference(mix: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return step(tiny_model_dir, mix, tmp_path_factory.mktemp("ref"), per_device_train_batch_size=8)


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 8, "packing": True, "max_length": 64},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "packing": True, "max_length": 64},
        {"per_device_train_batch_size": 8, "gradient_checkpointing": True},
        {"per_device_train_batch_size": 8, "attn_implementation": "eager"},
    ],
    ids=["1x8", "2x4", "packed", "packed-1x8", "gradient-checkpointing", "eager"],
)
def test_the_gradient_is_the_same(settings, mix, reference, tiny_model_dir, tmp_path):
    other = step(tiny_model_dir, mix, tmp_path, **settings)
    assert largest_difference(reference, other) < 1e-5
    assert largest_difference(reference, tiny_model_dir) > 1e-3  # the step did move the weights


def test_the_gradient_is_that_of_each_document_alone(mix, reference, tiny_model_dir):
    """sum(w * nll) / sum(w), each document by itself through plain transformers: nothing leaks between documents."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    total = torch.zeros(())
    weight = 0.0
    for row in random_rows(8, k=5):
        ids, w = torch.tensor([row["input_ids"]]), torch.tensor(row["loss_weights"])
        log_q = model(ids).logits[0, :-1].log_softmax(-1)
        total = total - (w[1:] * log_q.gather(-1, ids[0, 1:, None]).squeeze(-1)).sum()
        weight += float(w.sum())
    (total / weight).backward()
    saved, before = weights_of(reference), weights_of(tiny_model_dir)
    checked = 0
    for name, parameter in model.named_parameters():
        if name in saved:
            assert torch.allclose(saved[name], before[name] - parameter.grad, atol=1e-5), name
            checked += 1
    assert checked > 10


def test_soft_replay_with_the_whole_vocabulary_is_the_full_kl_step(tiny_model_dir, tmp_path):
    """The stored top-k is the base's full distribution: the step equals one with the KL between full logits."""
    from transformers import AutoModelForCausalLM

    student = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    vocab = student.config.vocab_size
    rows = random_rows(6)
    generator = torch.Generator().manual_seed(0)
    total, weight = torch.zeros(()), 0.0
    for row in rows:
        ids, w = torch.tensor([row["input_ids"]]), torch.tensor(row["loss_weights"])
        log_q = student(ids).logits[0, :-1].log_softmax(-1)
        if row["source"] == "replay":
            base = torch.randn(len(w), vocab, generator=generator).log_softmax(-1)
            kl = (base[1:].exp() * (base[1:] - log_q)).sum(-1)
            total = total + (w[1:] * kl).sum()
            trained = [i for i, x in enumerate(row["loss_weights"]) if x > 0]
            row["topk_ids"] = np.tile(np.arange(vocab), len(trained)).tolist()
            row["topk_logprobs"], row["topk_k"] = base[trained].ravel().tolist(), vocab
        else:
            total = total - (w[1:] * log_q.gather(-1, ids[0, 1:, None]).squeeze(-1)).sum()
        weight += float(w.sum())
    (total / weight).backward()
    done = step(tiny_model_dir, write_mix(tmp_path / "mix", rows), tmp_path / "out", replay_loss="soft")
    saved, before = weights_of(done), weights_of(tiny_model_dir)
    for name, parameter in student.named_parameters():
        if name in saved:
            assert torch.allclose(saved[name], before[name] - parameter.grad, atol=1e-5), name
    hard = step(tiny_model_dir, tmp_path / "mix", tmp_path / "hard", replay_loss="hard")
    assert largest_difference(hard, done) > 1e-4


def test_once_and_paths_weights_on_a_toy_tree(tiny_model_dir, tmp_path):
    """One question and answer A that branches into two further turns with answers B and C.

    ``paths`` trains on both root-to-leaf dialogues in full: gradient (2 A + B + C) / (2|A| + |B| + |C|).
    ``once`` weights the shared answer 1/2 in each: gradient (A + B + C) / (|A| + |B| + |C|).
    """
    from transformers import AutoModelForCausalLM

    rng = np.random.default_rng(0)
    q, a, q1, b, q2, c = (rng.integers(3, 300, n).tolist() for n in (5, 7, 4, 6, 3, 9))
    path_b, path_c = q + a + q1 + b, q + a + q2 + c

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    before = weights_of(tiny_model_dir)

    def gradients(path: list[int], start: int, stop: int) -> dict[str, torch.Tensor]:
        model.zero_grad()
        ids = torch.tensor([path])
        log_q = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        (-log_q[start - 1 : stop - 1].sum()).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters()}

    g_a, g_b = gradients(path_b, 5, 12), gradients(path_b, 16, 22)
    g_c = gradients(path_c, 15, 24)
    for name, shared, count_a in (("paths", 1.0, 2.0), ("once", 0.5, 1.0)):
        rows = [
            token_row(path_b, [0.0] * 5 + [shared] * 7 + [0.0] * 4 + [1.0] * 6, "replay", "b"),
            token_row(path_c, [0.0] * 5 + [shared] * 7 + [0.0] * 3 + [1.0] * 9, "replay", "c"),
        ]
        saved = weights_of(step(tiny_model_dir, write_mix(tmp_path / name, rows), tmp_path / f"{name}-out"))
        norm = count_a * 7 + 6 + 9
        for key in saved:
            if key in g_a:
                wanted = before[key] - (count_a * g_a[key] + g_b[key] + g_c[key]) / norm
                assert torch.allclose(saved[key], wanted, atol=1e-5), (name, key)


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(mix, reference, tiny_model_dir, tmp_path):
    """Data-parallel training under torchrun (gloo, two CPU processes), replay and top-k on some processes only."""
    settings = ONE_STEP | {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "keep_checkpoints": True,
    }
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\nfrom regrow.train.config import TrainConfig\nfrom regrow.train.stage import train\n"
        "train(sys.argv[1], sys.argv[2], TrainConfig(**json.loads(sys.argv[4])), sys.argv[3], seed=0)\n"
    )
    for name, more in (("hard", {}), ("soft", {"replay_loss": "soft"})):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
        arguments = [str(tiny_model_dir), str(mix), str(tmp_path / name), json.dumps(settings | more)]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
    assert largest_difference(reference, tmp_path / "hard" / "model") < 1e-5
    soft = step(tiny_model_dir, mix, tmp_path / "one", per_device_train_batch_size=8, replay_loss="soft")
    assert largest_difference(soft, tmp_path / "soft" / "model") < 1e-5
    for name, alone in (("hard", reference.parent), ("soft", tmp_path / "one")):
        (two,), (one,) = log_lines(tmp_path / name), log_lines(alone)
        same = [k for k in one if k not in ("tok_s", "grad_norm")]
        assert {k: two[k] for k in same} == pytest.approx({k: one[k] for k in same}, rel=1e-5)
        (checkpoint,) = (tmp_path / name / "checkpoints").glob("checkpoint-*")
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= read_marker(checkpoint)["files"].keys()


def test_lora_leaves_the_base_weights_alone(tiny_model_dir, mix, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    cfg = TrainConfig(method="lora", max_steps=3, learning_rate=1e-2, merge_adapter=True)
    done = train(tiny_model_dir, mix, cfg, tmp_path, seed=0)
    assert done.adapter_path is not None and done.model_path == tmp_path / "model"
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    before = base(ids).logits
    with_adapter = PeftModel.from_pretrained(base, done.adapter_path)
    adapted = with_adapter(ids).logits
    with with_adapter.disable_adapter():
        assert torch.equal(with_adapter(ids).logits, before)
    assert (adapted - before).abs().max() > 1e-4
    merged = AutoModelForCausalLM.from_pretrained(done.model_path, dtype=torch.float32)(ids).logits
    assert torch.allclose(merged, adapted, atol=1e-4)
    names = weights_of(done.adapter_path)
    assert names and all("lora_" in n for n in names)


def test_two_runs_give_identical_weights_and_another_seed_does_not(tiny_model_dir, mix, tmp_path):
    cfg = TrainConfig(
        method="lora",
        lora={"r": 4, "lora_dropout": 0.1},
        max_steps=6,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
    )
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tiny_model_dir, mix, cfg, tmp_path / name, seed=seed)
    assert largest_difference(tmp_path / "a" / "adapter", tmp_path / "b" / "adapter") == 0
    assert largest_difference(tmp_path / "a" / "adapter", tmp_path / "c" / "adapter") > 0
