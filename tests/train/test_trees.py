"""Tree packing: one sequence a tree has the gradient of its paths one by one, and leaves everything else as it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.errors import RecipeError, RunError
from regrow.mix.config import MixConfig
from regrow.mix.stage import mix
from regrow.train.batches import Collator, Document, TokenRows
from regrow.train.config import TrainConfig
from regrow.train.objectives.replay import soft_loss
from regrow.train.stage import train
from regrow.train.tree_attention import TreeAttention, block_mask, tree_mask, why_not
from regrow.train.trees import merge
from tests.mix.test_stage import domain_rows, grow_corpus
from tests.train.helpers import largest_difference, log_lines, random_rows, tree_rows, weights_of, write_mix
from tests.train.test_resume import FULL, kill

WINDOW = 16
ONE_STEP: dict[str, Any] = {
    # A large rate: the change of a weight is then all gradient, not what float32 leaves of a sum with the weight.
    "learning_rate": 1e3,
    "max_steps": 1,
    "per_device_train_batch_size": 64,
    "warmup_ratio": 0.0,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "trainer_args": {"optim": "sgd"},
}
_SMALL = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0,
          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip


def make(kind: str) -> Any:
    """LLaMA-shaped, Gemma-shaped (windows in some layers), Mistral-shaped (in all), and one without attention."""
    import transformers as t

    torch.manual_seed(0)
    if kind == "mamba":
        return t.MambaForCausalLM(t.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4))
    if kind == "llama":
        model = t.LlamaForCausalLM(t.LlamaConfig(**_SMALL))
    elif kind == "gemma3":
        types = ["sliding_attention", "full_attention"]
        model = t.Gemma3ForCausalLM(t.Gemma3TextConfig(**_SMALL, sliding_window=WINDOW, layer_types=types))
    elif kind == "mistral":
        model = t.MistralForCausalLM(t.MistralConfig(**_SMALL, sliding_window=WINDOW))
    elif kind == "mixtral":
        config = t.MixtralConfig(**_SMALL, num_local_experts=4, router_aux_loss_coef=0.5)
        config.output_router_logits = True
        return t.MixtralForCausalLM(config)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.15)  # wide, so that what a window hides would matter
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Any:
    folder = tmp_path_factory.mktemp("models")

    def get(kind: str) -> Path:
        if not (folder / kind).is_dir():
            make(kind).save_pretrained(folder / kind)
            for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                shutil.copyfile(tiny_model_dir / name, folder / kind / name)
        return folder / kind

    return get


def without_trees(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "n_shared": 0} for row in rows]


def gradient(done: Any, model: Path) -> dict[str, torch.Tensor]:
    after, before = weights_of(done.model_path), weights_of(model)
    return {name: (before[name].double() - after[name].double()) / ONE_STEP["learning_rate"] for name in after}


def by_hand(model_dir: Path, rows: list[dict[str, Any]], loss: str) -> dict[str, torch.Tensor]:
    """The gradient of ``sum(w * loss) / sum(w)``, every row by itself through plain transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    total, weight = torch.zeros(()), 0.0
    for row in rows:
        ids, w = torch.tensor([row["input_ids"]]), torch.tensor(row["loss_weights"])
        logits = model(ids, use_cache=False).logits[0, :-1].float()
        losses = -logits.log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
        if loss == "soft" and row["topk_k"]:
            at = (w > 0).nonzero().squeeze(-1)
            top = (torch.tensor(row[c]).reshape(-1, row["topk_k"]) for c in ("topk_ids", "topk_logprobs"))
            losses = losses.index_put((at - 1,), soft_loss(logits[at - 1], ids[0, at], *top)[0])
        total = total + (w[1:] * losses).sum()
        weight += float(w[1:].sum())
    (total / weight).backward()
    return {name: p.grad.double() for name, p in model.named_parameters()}


def assert_equal_gradients(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    names = one.keys() & two.keys()
    assert len(names) > 10
    assert max(float(one[n].abs().max()) for n in names) > 1e-3
    for name in names:
        assert float((one[name] - two[name]).norm()) <= 1e-5 * float(two[name].norm()), name


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral"])
@pytest.mark.parametrize(("loss", "once"), [("hard", False), ("hard", True), ("soft", False)],
                         ids=["hard-paths", "hard-once", "soft-paths"])  # fmt: skip
def test_a_tree_has_the_gradient_of_its_paths_one_by_one(kind, loss, once, models, tmp_path):
    """Two trees among ordinary rows; paths are longer than the window of those models that have one."""
    trees = tree_rows((1, 2, 1, 3), k=8, once=once), tree_rows((2, 2, 2, 1), seed=1, k=8, once=once, name="u")
    plain = random_rows(5, k=8, vocab=290)
    rows = [*plain[:2], *trees[0], *plain[2:], *trees[1]]
    assert min(len(r["input_ids"]) for t in trees for r in t) > WINDOW
    folder = write_mix(tmp_path / "mix", rows)
    done = train(models(kind), folder, TrainConfig(**ONE_STEP, replay_loss=loss), tmp_path / "out", seed=0)
    assert (done.trees, done.tree_documents, done.unpacked) == (3, 14, {})  # two first questions are two trees
    assert done.tokens == sum(r["n_tokens"] for r in rows)
    assert done.computed_tokens == done.tokens - sum(r["n_shared"] for r in rows) < 0.75 * done.tokens
    assert done.train_tokens == sum(r["n_train_tokens"] for r in rows)
    assert_equal_gradients(gradient(done, models(kind)), by_hand(models(kind), rows, loss))


@pytest.mark.parametrize(
    "more",
    [
        {"attn_implementation": "eager"},
        {"gradient_checkpointing": True},
        {"packing": True, "max_length": 256},
        {"max_length": 128},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 40},
    ],
    ids=["eager", "gradient-checkpointing", "packed", "trees-cut-in-two", "accumulated"],
)
def test_other_settings_leave_the_gradient_alone(more, models, tmp_path):
    rows = [*random_rows(3, vocab=290), *tree_rows((1, 2, 2, 3)), *random_rows(2, seed=5, vocab=290)]
    folder = write_mix(tmp_path / "mix", rows)
    for kind in ("llama", "gemma3"):
        done = train(models(kind), folder, TrainConfig(**ONE_STEP | more), tmp_path / kind, seed=0)
        assert done.trees == (2 if more.get("max_length") == 128 else 1)
        assert_equal_gradients(gradient(done, models(kind)), by_hand(models(kind), rows, "hard"))


def test_lora_and_the_numbers_of_the_log(models, tmp_path):
    rows = [*random_rows(4, k=8, vocab=290), *tree_rows((1, 2, 1, 4), k=8)]
    cfg = TrainConfig(**ONE_STEP, method="lora", lora={"r": 4}, replay_loss="soft")
    done = {}
    for name, mixed in (("tree", rows), ("paths", without_trees(rows))):
        done[name] = train(models("llama"), write_mix(tmp_path / f"{name}-mix", mixed), cfg, tmp_path / name, seed=0)
    assert (done["tree"].trees, done["paths"].trees) == (1, 0)
    one, two = (weights_of(done[name].adapter_path) for name in ("tree", "paths"))
    for name in one:
        assert float((one[name] - two[name]).norm()) <= 1e-5 * float(two[name].norm()), name
    assert max(float(t.abs().max()) for n, t in one.items() if "lora_B" in n) > 0.1
    (tree,), (paths,) = log_lines(tmp_path / "tree"), log_lines(tmp_path / "paths")
    assert tree["computed_tokens"] < tree["tokens"] == paths["tokens"] == paths["computed_tokens"]
    same = [k for k in paths if k not in ("tok_s", "computed_tokens", "grad_norm")]
    assert {k: tree[k] for k in same} == pytest.approx({k: paths[k] for k in same}, rel=1e-5)
    assert {"loss/replay", "kl/replay", "soft_tokens", "train_tokens"} <= set(same)


@pytest.mark.parametrize("once", [False, True], ids=["paths", "once"])
def test_a_mix_of_a_corpus_trains_alike_packed_and_not(once, tiny_model_dir, tmp_path):
    """Through the mixer: stored top-k, end tokens, dialogues used twice, both ways in one step."""
    done = {}
    corpus = grow_corpus(tmp_path / "corpus", (2, 2, 1, 3), trees=2, top_k=4)
    for packed in (False, True):
        cfg = MixConfig(
            replay_ratio=0.8, max_repeats=2, tree_loss="once" if once else "paths", tree_packing=packed, max_length=256
        )
        mixed = mix(domain_rows(20), corpus, tiny_model_dir, cfg, tmp_path / f"mix{packed}", seed=0)
        settings = TrainConfig(
            **ONE_STEP | {"per_device_train_batch_size": 128, "max_length": 256}, replay_loss="soft"
        )
        done[packed] = train(tiny_model_dir, tmp_path / f"mix{packed}", settings, tmp_path / f"{packed}", seed=0)
    assert mixed.replay["rows"] > mixed.replay["distinct"]
    assert (done[False].trees, done[True].trees) == (0, mixed.trees["bundles"])
    assert done[True].tree_documents == mixed.trees["bundled"] > 20
    assert done[True].tokens == done[False].tokens == mixed.replay["tokens"] + mixed.domain["tokens"]
    assert done[True].computed_tokens == mixed.trees["unique_tokens"] + mixed.domain["tokens"] < done[True].tokens
    assert_equal_gradients(gradient(done[True], tiny_model_dir), gradient(done[False], tiny_model_dir))


def test_a_killed_run_continues_to_the_same_weights(tiny_model_dir, tmp_path):
    rows = [r for i in range(12) for r in (*random_rows(1, seed=i), *tree_rows((1, 2, 1, 2), seed=i, name=f"t{i}."))]
    folder = write_mix(tmp_path / "mix", rows)
    cfg = TrainConfig(**FULL)
    whole = train(tiny_model_dir, folder, cfg, tmp_path / "whole", seed=3)
    assert whole.trees == 12
    kill("before checkpoint 15", tiny_model_dir, folder, tmp_path / "killed", FULL)
    continued = train(tiny_model_dir, folder, cfg, tmp_path / "killed", seed=3)
    assert continued.resumed_from == 12
    assert largest_difference(whole.model_path, continued.model_path) == 0
    for name in ("tokens", "computed_tokens", "train_tokens", "trees"):
        assert getattr(whole, name) == getattr(continued, name), name
    timeless = [
        [{k: v for k, v in line.items() if k not in ("tok_s", "loss")} for line in log_lines(tmp_path / name)]
        for name in ("whole", "killed")
    ]
    for one, two in zip(*timeless, strict=True):
        assert one == pytest.approx(two, rel=1e-6)


@pytest.mark.parametrize(("kind", "reason"), [("mamba", "layers of linear_attention"), ("mixtral", "balancing loss")])
def test_models_that_cannot_train_the_paths_one_by_one_and_say_so(kind, reason, models, tmp_path, capfd):
    rows = [*random_rows(2, vocab=290), *tree_rows()]
    cfg = TrainConfig(max_steps=1, per_device_train_batch_size=4)
    done = train(models(kind), write_mix(tmp_path / "mix", rows), cfg, tmp_path / "out", seed=0)
    ((why, n),) = done.unpacked.items()
    assert n == 6 and (done.trees, done.tree_documents) == (0, 0)
    assert done.computed_tokens == done.tokens == sum(r["n_tokens"] for r in rows[:4])  # four documents a step again
    assert reason in why
    assert f"6 dialogues of 1 trees are trained one by one: {why}" in capfd.readouterr().err


def test_the_probe_sees_a_wrong_window_and_an_ignored_mask():
    model = make("gemma3").eval()
    assert why_not(model, TreeAttention(model.config, 40)) is None
    narrow = TreeAttention(model.config, WINDOW)
    assert narrow.windows == {"full_attention": None}, "paths within the window need one mask for all layers"
    assert why_not(model, narrow) is None
    wrong = TreeAttention(model.config, 40)
    wrong.windows = dict(wrong.windows, full_attention=WINDOW + 1)
    assert why_not(model, wrong) == "the model does not compute a tree as it computes its paths"
    blind = TreeAttention(model.config, 40)
    blind.mask = lambda ends, positions: None
    assert why_not(model, blind) == "the model does not compute a tree as it computes its paths"
    flash = TreeAttention(model.config, 40)
    flash.kind = "flash_attention_2"
    assert "takes no tree mask" in why_not(model, flash)
    chunked = TreeAttention(model.config, 40)
    chunked.unknown = ["chunked_attention"]
    assert "layers of chunked_attention" in why_not(model, chunked)
    mamba = make("mamba").eval()
    whole = TreeAttention(mamba.config, 40)
    whole.unknown = []  # as a model that does not say what its layers are
    assert "tree" in why_not(mamba, whole)


def document(row: dict[str, Any]) -> Document:
    n = sum(w > 0 for w in row["loss_weights"])
    top = [np.array(row[c]).reshape(n, -1) if row["topk_k"] else None for c in ("topk_ids", "topk_logprobs")]
    ids, weights = np.array(row["input_ids"]), np.array(row["loss_weights"], np.float32)
    return Document(ids, weights, row["source"] == "replay", top[0], top[1], row["n_shared"])


@settings(max_examples=60, deadline=None)
@given(shape=st.sampled_from([(1, 3), (2, 1, 2, 2), (1, 2, 3, 1), (3, 2)]), seed=st.integers(0, 99),
       window=st.sampled_from([None, 3, 9]))  # fmt: skip
def test_merged_trees_against_ancestors_counted_out(shape, seed, window):
    rows = tree_rows(shape, seed=seed, k=3)
    runs = [[r for r in rows if r["input_ids"][0] == 3 + first] for first in range(shape[0])]
    for run in runs:
        merged = merge([document(r) for r in run])
        seen = tree_mask(torch.tensor(merged.ends)[None], torch.tensor(merged.positions)[None], window)[0]
        weights: dict[tuple[int, ...], float] = {}
        for row in run:
            for i, w in enumerate(row["loss_weights"]):
                start = tuple(row["input_ids"][: i + 1])
                weights[start] = weights.get(start, 0.0) + w
        assert len(merged.input_ids) == len(weights), "every distinct beginning once"
        for node in range(len(merged.input_ids)):
            path = [node]
            while merged.before[path[0]] >= 0:
                path.insert(0, int(merged.before[path[0]]))
            assert merged.positions[node] == len(path) - 1
            visible = path if window is None else path[-window:]
            assert seen[node].nonzero().squeeze(-1).tolist() == visible
            start = tuple(merged.input_ids[path].tolist())
            assert merged.weights[node] == pytest.approx(weights[start])
        assert merged.counts.sum() == sum(r["n_train_tokens"] for r in run)
        stored = {}
        for row in run:
            trained = [i for i, w in enumerate(row["loss_weights"]) if w]
            for j, i in enumerate(trained):
                stored[tuple(row["input_ids"][: i + 1])] = row["topk_ids"][3 * j : 3 * j + 3]
        assert merged.top_ids is not None and len(merged.top_ids) == len(stored)


def test_the_block_mask_is_the_dense_one():
    """FlexAttention's mask function, evaluated at every place."""
    from torch.nn.attention.flex_attention import create_mask

    rows = [tree_rows((1, 2, 1, 3), seed=s) for s in range(3)]
    merged = [merge([document(r) for r in run]) for run in rows]
    length = max(len(m.input_ids) for m in merged)
    ends = torch.full((3, length), length)
    positions = torch.zeros((3, length), dtype=torch.long)
    for i, m in enumerate(merged):
        ends[i, : len(m.ends)], positions[i, : len(m.ends)] = torch.tensor(m.ends), torch.tensor(m.positions)
        positions[i, len(m.ends) :] = torch.arange(length - len(m.ends))
    for window in (None, 7):
        block = block_mask(ends, positions, window)
        dense = create_mask(block.mask_mod, 3, 1, length, length, device="cpu")
        assert torch.equal(dense[:, 0], tree_mask(ends, positions, window))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_forward_pass_under_flex_attention_is_that_under_sdpa(kind, monkeypatch):
    """Through transformers' own code, with PyTorch's reference of FlexAttention in place of its compiled kernels,
    which take minutes to build on a CPU and have no backward pass there."""
    from torch.nn.attention.flex_attention import flex_attention
    from transformers.integrations import flex_attention as integration

    monkeypatch.setattr(
        integration, "compile_friendly_flex_attention", lambda q, k, v, training, **kw: flex_attention(q, k, v, **kw)
    )
    model = make(kind).eval()
    merged = merge([document(r) for r in tree_rows((1, 2, 2, 3))])
    ids, positions, ends = (torch.tensor(x)[None] for x in (merged.input_ids, merged.positions, merged.ends))
    logits = {}
    for implementation in ("sdpa", "flex_attention"):
        model.set_attn_implementation(implementation)
        attention = TreeAttention(model.config, int(positions.max()) + 1)
        with torch.no_grad():
            logits[implementation] = model(
                input_ids=ids, position_ids=positions, attention_mask=attention.mask(ends, positions), use_cache=False
            ).logits
    assert attention.kind == "flex_attention"
    assert torch.allclose(logits["sdpa"], logits["flex_attention"], atol=1e-4)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator is there, and FlexAttention trains on it")
def test_flex_attention_on_a_cpu_is_refused_before_training(models, tmp_path):
    cfg = TrainConfig(**ONE_STEP, attn_implementation="flex_attention")
    with pytest.raises(RecipeError, match="no backward pass on a CPU"):
        train(models("llama"), write_mix(tmp_path / "mix", tree_rows()), cfg, tmp_path / "out", seed=0)


def test_reading_trees_back(tmp_path):
    rows = [*random_rows(2), *tree_rows((1, 2, 1, 3)), *tree_rows((1, 1, 1, 2), seed=4, name="u")]
    write_mix(tmp_path, rows)

    def read(max_length: int) -> TokenRows:
        return TokenRows(tmp_path / "train.parquet", max_length=max_length, topk=False, cache_dir=tmp_path / "c")

    whole = read(1024)
    assert [len(u) for u in whole.units] == [1, 1, 6, 2]
    assert sum(whole.unit_lengths) == sum(r["n_tokens"] - r["n_shared"] for r in rows)
    assert [whole[i].shared for i in range(len(whole))] == [r["n_shared"] for r in rows]
    for limit in (80, 48, 20, 12):
        cut = read(limit)
        assert all(n <= limit for n in cut.unit_lengths)
        assert sum(len(u) for u in cut.units) == len(cut)
        for unit in cut.units:  # what is left fits together, whatever was cut or left out
            merged = merge([cut[i] for i in unit])
            assert len(merged.input_ids) == cut.unit_lengths[cut.units.index(unit)]
            assert int(merged.counts.sum()) == sum(int((cut[i].weights > 0).sum()) for i in unit)
    table = pq.read_table(tmp_path / "train.parquet").drop_columns(["n_shared"])
    pq.write_table(table, tmp_path / "train.parquet")
    assert [len(u) for u in read(1024).units] == [1] * len(rows)


def test_rows_that_do_not_share_what_they_say_are_refused(tmp_path):
    rows = tree_rows((1, 3), k=2)
    for name, change in (
        ("more than there is", {"n_shared": 99}),
        ("begin", {"input_ids": [9, *rows[1]["input_ids"][1:]]}),
        ("have the source", {"source": "domain", "topk_k": 0, "topk_ids": [], "topk_logprobs": []}),
        ("carry a top-k", {"topk_k": 0, "topk_ids": [], "topk_logprobs": []}),
    ):
        write_mix(tmp_path / name, [rows[0], rows[1] | change, rows[2]])
        with pytest.raises(RunError, match=r"more shared tokens|do not (begin|have the source|carry a top-k) alike"):
            read = TokenRows(
                tmp_path / name / "train.parquet", max_length=512, topk=True, cache_dir=tmp_path / f"{name}-c"
            )
            Collator(read, pad_token_id=0)([{"documents": [0, 1, 2]}])
    two = tree_rows((1, 1, 1, 2), k=2)
    two[1]["topk_ids"][0] += 1
    write_mix(tmp_path / "topk", two)
    read = TokenRows(tmp_path / "topk" / "train.parquet", max_length=512, topk=True, cache_dir=tmp_path / "k")
    with pytest.raises(RunError, match="do not store the top-k alike"):
        Collator(read, pad_token_id=0)([{"documents": [0, 1]}])
