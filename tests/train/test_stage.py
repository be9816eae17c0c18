"""What the stage leaves behind, what it logs, and how it fails."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from regrow import progress
from regrow.errors import ModelError, RecipeError, RunError
from regrow.mix.mixtures import WATCHED
from regrow.train import network
from regrow.train.config import TrainConfig
from regrow.train.save import stored_dtype
from regrow.train.stage import train
from tests.train.helpers import largest_difference, log_lines, random_rows, token_row, weights_of, write_mix

QUICK = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 2}


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mix(tmp_path_factory.mktemp("mix"), random_rows(16))


def test_leaves_a_model_that_plain_transformers_loads_and_nothing_else(tiny_model_dir, mix, tmp_path, capfd):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = train(tiny_model_dir, mix, TrainConfig(**QUICK), tmp_path, seed=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "model", "train.json"]
    assert done.model_path == tmp_path / "model" and done.adapter_path is None and done.resumed_from is None
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "model" / name).read_bytes() == (tiny_model_dir / name).read_bytes()
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == json.loads(
        (tiny_model_dir / "config.json").read_text()
    )
    tokenizer = AutoTokenizer.from_pretrained(done.model_path)
    assert "<|im_start|>user" in tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert AutoModelForCausalLM.from_pretrained(done.model_path)(torch.tensor([[3, 4]])).logits.isfinite().all()
    assert json.loads((tmp_path / "train.json").read_text())["steps"] == 4
    rows = random_rows(16)
    assert (done.documents, done.tokens) == (16, sum(r["n_tokens"] for r in rows))
    assert done.train_tokens == sum(r["n_train_tokens"] for r in rows)
    assert set(done.versions) >= {"torch", "transformers", "trl"}
    said = capfd.readouterr()
    assert "Writing model" not in said.err and "Map:" not in said.err and "{'loss'" not in said.out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_saved_in_the_dtype_of_the_source(dtype, tiny_model_dir, mix, tmp_path):
    from transformers import AutoModelForCausalLM

    source = tmp_path / "source"
    shutil.copytree(tiny_model_dir, source)
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=dtype).save_pretrained(source)
    done = train(source, mix, TrainConfig(**QUICK), tmp_path / "out", seed=0)
    assert {t.dtype for t in weights_of(done.model_path).values()} == {dtype}
    assert weights_of(done.model_path).keys() == weights_of(source).keys()


def test_log_has_a_loss_for_each_source(tiny_model_dir, mix, tmp_path):
    """The first interval's numbers by hand: with learning rate ~0 the model stays what it was."""
    from transformers import AutoModelForCausalLM

    cfg = TrainConfig(**QUICK | {"learning_rate": 1e-12, "logging_steps": 4})
    done = train(tiny_model_dir, mix, cfg, tmp_path, seed=0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    sums = {"domain": [0.0, 0.0], "replay": [0.0, 0.0]}
    for row in random_rows(16):
        ids, w = torch.tensor([row["input_ids"]]), torch.tensor(row["loss_weights"])[1:]
        with torch.no_grad():
            log_q = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        sums[row["source"]][0] -= float((w * log_q).sum())
        sums[row["source"]][1] += float(w.sum())
    (line,) = log_lines(tmp_path)
    for source, (total, weight) in sums.items():
        assert line[f"loss/{source}"] == pytest.approx(total / weight, rel=1e-5)
        assert done.final_losses[f"loss/{source}"] == line[f"loss/{source}"]
    assert line["tokens"] == sum(r["n_tokens"] for r in random_rows(16))
    assert line["step"] == 4 and line["lr"] > 0 and line["tok_s"] > 0 and "kl/replay" not in line


def test_soft_counts_replay_tokens_without_a_top_k(tiny_model_dir, tmp_path):
    rows = random_rows(16, k=6)
    with_topk = [r for r in rows if r["topk_k"]]
    bare = with_topk[0]
    bare.update(topk_ids=[], topk_logprobs=[], topk_k=0)
    half = with_topk[1]
    half["topk_ids"][:12] = [-1] * 12  # two positions
    mix = write_mix(tmp_path / "mix", rows)
    train(tiny_model_dir, mix, TrainConfig(**QUICK, replay_loss="soft"), tmp_path / "out", seed=0)
    lines = log_lines(tmp_path / "out")
    assert sum(line["hard_fallback_tokens"] for line in lines) == bare["n_train_tokens"] + 2
    assert sum(line["soft_tokens"] for line in lines) == sum(r["n_train_tokens"] for r in with_topk[1:]) - 2
    assert any("kl/replay" in line for line in lines)


def test_soft_without_any_top_k_is_refused_but_a_mix_without_replay_is_not(tiny_model_dir, mix, tmp_path):
    cfg = TrainConfig(**QUICK, replay_loss="soft")
    with pytest.raises(RunError, match="no replay row carries the base model's top-k"):
        train(tiny_model_dir, mix, cfg, tmp_path / "a", seed=0)
    domain = [r for r in random_rows(16) if r["source"] == "domain"]
    assert train(tiny_model_dir, write_mix(tmp_path / "m", domain), cfg, tmp_path / "b", seed=0).steps == 4


def test_auto_is_soft_where_replay_carries_a_top_k_and_hard_where_none_does(tiny_model_dir, tmp_path, capfd):
    for k, chosen in ((6, "soft"), (0, "hard")):
        mix = write_mix(tmp_path / f"mix{k}", random_rows(16, k=k))
        done = {
            loss: train(tiny_model_dir, mix, TrainConfig(**QUICK, replay_loss=loss), tmp_path / f"{loss}{k}", seed=0)
            for loss in ("auto", chosen)
        }
        assert done["auto"].replay_loss == chosen
        assert capfd.readouterr().err.count("hard replay, as no replay row carries") == (chosen == "hard")
        assert largest_difference(done["auto"].model_path, done[chosen].model_path) == 0
    assert TrainConfig().replay_loss == "auto"


def test_progress_and_trackers_get_the_numbers(tiny_model_dir, mix, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EVENT_EVERY_S", 0.0)
    events = []
    with progress.event_sink(lambda kind, data: events.append((kind, data))):
        train(tiny_model_dir, mix, TrainConfig(**QUICK), tmp_path, seed=0, label="sft")
    steps = [d for kind, d in events if kind == "progress"]
    assert steps[-1]["task"] == "training sft" and steps[-1]["done"] == steps[-1]["total"] == 4
    assert {"loss", "loss/domain", "loss/replay", "tok_s"} <= steps[-1].keys()


def test_long_examples_are_announced(tiny_model_dir, tmp_path, capfd):
    rows = [token_row(list(range(3, 33)), [0.0] * 5 + [1.0] * 25), token_row(list(range(3, 33)), [0.0] * 29 + [1.0])]
    done = train(
        tiny_model_dir, write_mix(tmp_path / "mix", rows), TrainConfig(max_length=16, max_steps=1), tmp_path, seed=0
    )
    assert (done.documents, done.cut_documents, done.untrained_documents) == (1, 2, 1)
    err = capfd.readouterr().err
    assert "2 examples are longer than train.max_length=16" in err and "1 examples have no trained token" in err


def test_a_full_disk_is_a_clear_error_and_leaves_no_model(tiny_model_dir, mix, tmp_path):
    """The kernel refuses to let any file pass 100 kB, as a full disk or a quota would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RunError, match="could not be written") as caught:
            train(tiny_model_dir, mix, TrainConfig(**QUICK), tmp_path, seed=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free some space" in str(caught.value)
    assert not (tmp_path / "model").exists() and not (tmp_path / "train.json").exists()
    assert train(tiny_model_dir, mix, TrainConfig(**QUICK), tmp_path, seed=0).steps == 4


def test_too_little_room_is_noticed_before_training(tiny_model_dir, mix, tmp_path, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(RunError, match=r"needs about .* GB of disk"):
        train(tiny_model_dir, mix, TrainConfig(**QUICK), tmp_path, seed=0)


def test_the_room_asked_for_is_that_of_checkpoints_epochs_and_the_result(tiny_model_dir):
    cfg = TrainConfig(save_total_limit=2)
    model = network.load_model(tiny_model_dir, cfg, bf16=False)
    n, one = sum(p.numel() for p in model.parameters()), stored_dtype(tiny_model_dir).itemsize
    asked = {
        "full": (cfg, 3 * 12 * n + one * n),
        "lora": (TrainConfig(save_total_limit=2, method="lora"), 3 * n + one * n),
        "sharded": (
            TrainConfig(save_total_limit=1, launch={"strategy": "fsdp", "num_processes": 2}),
            2 * 16 * n + one * n,
        ),
        "epochs": (TrainConfig(save_total_limit=2, save_epochs=True, num_train_epochs=3), 3 * 12 * n + 4 * one * n),
    }
    for name, (settings, expected) in asked.items():
        assert network.disk_bytes(model, settings, tiny_model_dir) == expected, name


def test_missing_mix_and_missing_model_are_named(tiny_model_dir, mix, tmp_path):
    with pytest.raises(RunError, match="no mix here"):
        train(tiny_model_dir, tmp_path, TrainConfig(), tmp_path / "out", seed=0)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError):
        train(tmp_path / "nowhere", mix, TrainConfig(**QUICK), tmp_path / "out", seed=0)


def test_token_ids_beyond_the_vocabulary_are_a_clear_error(tiny_model_dir, tmp_path):
    rows = [token_row([3, 4, 100_000], [0.0, 1.0, 1.0])]
    with pytest.raises(RunError, match="the token id 100000"):
        train(tiny_model_dir, write_mix(tmp_path, rows), TrainConfig(**QUICK), tmp_path / "out", seed=0)


def test_the_head_runs_only_where_loss_is(tiny_model_dir, tmp_path, monkeypatch):
    """Counts the positions that reach the output head in a training step."""
    seen = []
    load = network.load_model

    def counting(*args, **kwargs):
        model = load(*args, **kwargs)
        model.lm_head.register_forward_hook(
            lambda module, inputs, output: (
                seen.append(inputs[0].numel() // inputs[0].shape[-1]) if module.training else None
            )
        )
        return model

    monkeypatch.setattr(network, "load_model", counting)
    rows = random_rows(4)
    train(tiny_model_dir, write_mix(tmp_path, rows), TrainConfig(**QUICK | {"max_steps": 1}), tmp_path / "out", seed=0)
    assert seen == [sum(r["n_train_tokens"] for r in rows)]


def small(kind: str):
    """Other architectures: soft-capped logits (Gemma 2), experts and their balancing loss, state space (Mamba), a
    learned vector for each of few positions (GPT-2)."""
    import transformers

    torch.manual_seed(0)
    shared = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
    attention = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    if kind == "gemma2":
        config = transformers.Gemma2Config(**shared, **attention, head_dim=8, final_logit_softcapping=0.5)
        return transformers.Gemma2ForCausalLM(config)
    if kind == "mixtral":
        config = transformers.MixtralConfig(**shared, **attention, num_local_experts=4, router_aux_loss_coef=0.5)
        config.output_router_logits = True
        return transformers.MixtralForCausalLM(config)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=40, pad_token_id=0,
            bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config)
    return transformers.MambaForCausalLM(transformers.MambaConfig(**shared, state_size=4))


def test_rows_beyond_the_table_of_positions_are_a_clear_error_and_rotary_ones_only_said(
    tiny_model_dir, tmp_path, capfd
):
    mix = write_mix(tmp_path / "mix", [token_row([3] * 1100, [0.0] * 1090 + [1.0] * 10)])
    cfg = TrainConfig(**QUICK | {"max_length": 2000, "max_steps": 1})
    assert train(tiny_model_dir, mix, cfg, tmp_path / "rotary", seed=0).tokens == 1100
    assert "a row of 1100 tokens, the model's context ends at 1024" in capfd.readouterr().err
    small("gpt2").save_pretrained(tmp_path / "gpt2")
    for rows, beside in ((random_rows(4), [token_row([3] * 41, [1.0] * 41)]), ([token_row([3] * 41, [1.0] * 41)], [])):
        folder = write_mix(tmp_path / f"mix{len(rows)}", rows)
        if beside:
            shutil.copyfile(write_mix(tmp_path / "beside", beside) / "train.parquet", folder / WATCHED)
        with pytest.raises(RunError, match=r"(?s)row of 41 tokens, .* ends at 40.*set train.max_length to 40"):
            train(tmp_path / "gpt2", folder, TrainConfig(**QUICK), tmp_path / f"out{len(rows)}", seed=0)


@pytest.mark.parametrize("kind", ["gemma2", "mamba", "gpt2"])
def test_other_architectures_have_the_gradient_of_each_document_alone(kind, tiny_model_dir, tmp_path):
    from transformers import AutoModelForCausalLM

    source = tmp_path / "source"
    small(kind).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_model_dir / name, source / name)
    rows = random_rows(30 if kind == "gpt2" else 5, vocab=290)  # 30: two tensor rows, one of them half empty
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    total, weight = torch.zeros(()), 0.0
    for row in rows:
        ids, w = torch.tensor([row["input_ids"]]), torch.tensor(row["loss_weights"])
        log_q = model(ids).logits[0, :-1].log_softmax(-1)
        total = total - (w[1:] * log_q.gather(-1, ids[0, 1:, None]).squeeze(-1)).sum()
        weight += float(w.sum())
    (total / weight).backward()
    one_step = {"max_steps": 1, "learning_rate": 1.0, "lr_scheduler_type": "constant", "warmup_ratio": 0.0,
                "max_grad_norm": 0.0, "trainer_args": {"optim": "sgd"},
                "per_device_train_batch_size": len(rows)}  # fmt: skip
    mix = write_mix(tmp_path / "mix", rows)
    if kind == "mamba":
        with pytest.raises(RecipeError, match="lets packed documents see each other"):
            train(source, mix, TrainConfig(**one_step, packing=True), tmp_path / "packed", seed=0)
    saved = weights_of(train(source, mix, TrainConfig(**one_step), tmp_path / "out", seed=0).model_path)
    before, checked = weights_of(source), 0
    for name, parameter in model.named_parameters():
        if name in saved:
            assert torch.allclose(saved[name], before[name] - parameter.grad, atol=1e-5), name
            checked += bool(parameter.grad.abs().max() > 1e-6)
    assert checked > 5


def test_experts_are_trained_with_their_balancing_loss(tiny_model_dir, tmp_path):
    source = tmp_path / "source"
    small("mixtral").save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_model_dir / name, source / name)
    mix = write_mix(tmp_path / "mix", random_rows(4, vocab=290))
    settings = QUICK | {"max_steps": 1, "warmup_ratio": 0.0}
    gates = {}
    for coef in (0.0, 5.0):
        cfg = TrainConfig(**settings, trainer_args={"router_aux_loss_coef": coef})
        folder = train(source, mix, cfg, tmp_path / str(coef), seed=0).model_path
        gates[coef] = np.concatenate([t.ravel() for n, t in sorted(weights_of(folder).items()) if "gate" in n])
        line = log_lines(tmp_path / str(coef))[0]
        mean = line["loss/domain"], line["loss/replay"]
        assert (min(mean) <= line["loss"] <= max(mean)) is (coef == 0.0)
    assert np.abs(gates[0.0] - gates[5.0]).max() > 1e-5
