from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regrow.grow.corpus import read_dialogues, read_nodes
from regrow.grow.script import ChatScript, root_prompt
from regrow.grow.store import Store
from tests.grow.helpers import ScriptedEngine, run, sentence, settings, tokenizer_of


def test_each_node_once_and_at_its_own_tokens(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The scripted scorer gives back the token that stands at each position, so a slip of one would show."""
    tokenizer = tokenizer_of(tiny_model_dir)
    engine = ScriptedEngine(tokenizer, can_score=True)
    cfg = settings(shape=[3, 2, 2, 2], dialogues="all", top_logprobs=4)
    run(tiny_model_dir, tmp_path, cfg, engine)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    on_path = {step for d in read_dialogues(tmp_path) for step in d.node_ids}
    for node in read_nodes(tmp_path):
        if node.id not in on_path:
            assert node.top_ids is None
            continue
        top = np.asarray(node.top_ids).reshape(-1, 4)
        ends = [end] if node.role == "assistant" else []
        assert list(top[:, 0]) == node.token_ids + ends
        assert node.top_logprobs == [-1.0, -2.0, -3.0, -4.0] * len(top)
    assert len(engine.scored) == 24, "one pass a path"
    fresh = sum(len(row.token_ids) - row.start for row in engine.scored)
    assert fresh < sum(len(row.token_ids) for row in engine.scored) / 1.5, "what a path shares is skipped"


def test_prompt_in_front(tiny_model_dir: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tiny_model_dir)
    starts = {}
    for context in ("training", "growing"):
        engine = ScriptedEngine(tokenizer, can_score=True)
        cfg = settings(dialogues=4, top_logprobs=2, top_logprobs_context=context)
        run(tiny_model_dir, tmp_path / context, cfg, engine)
        starts[context] = tokenizer.decode(engine.scored[0].token_ids)
    dialogue = read_dialogues(tmp_path / "training")[0].messages
    assert starts["training"] == tokenizer.apply_chat_template(dialogue, tokenize=False)
    system = {"role": "system", "content": root_prompt(cfg, "rivers")}
    assert starts["growing"] == tokenizer.apply_chat_template([system, *dialogue], tokenize=False)


def test_resumes(tiny_model_dir: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(tokenizer_of(tiny_model_dir), can_score=True)
    cfg = settings(shape=[3, 2, 2, 2], dialogues="all", top_logprobs=2)
    run(tiny_model_dir, tmp_path, cfg, engine)
    first = list(read_nodes(tmp_path))
    lost = [n.id for n in first if n.top_ids][::3]
    store = Store.create_or_resume(tmp_path, _identity(tmp_path))
    store._db.executemany("DELETE FROM topk WHERE id = ?", [(i,) for i in lost])
    store.close()
    again = ScriptedEngine(tokenizer_of(tiny_model_dir), can_score=True)
    run(tiny_model_dir, tmp_path, cfg, again)
    assert list(read_nodes(tmp_path)) == first
    assert 0 < len(again.scored) < len(engine.scored)
    third = ScriptedEngine(tokenizer_of(tiny_model_dir), can_score=True)
    run(tiny_model_dir, tmp_path, settings(shape=[3, 2, 2, 2], dialogues="all", top_logprobs=3), third)
    assert len(third.scored) == len(engine.scored), "another k scores anew, and grows nothing"
    assert third.requests == []


def _identity(out: Path) -> dict[str, object]:
    with Store.open_reader(out) as store:
        found: dict[str, object] = store.get("identity")
    return found


def test_against_the_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Through the transformers engine: the stored rows are the model's own soft-max under the training rendering."""
    torch = pytest.importorskip("torch")
    from regrow.models.load import load_model

    tokenizer = tokenizer_of(tiny_model_dir)
    cfg = settings(shape=[2, 2, 1, 1], dialogues="all", top_logprobs=5)
    run(tiny_model_dir, tmp_path, cfg, ScriptedEngine(tokenizer))
    model = load_model(tiny_model_dir)
    script = ChatScript(cfg, tokenizer)
    nodes = {n.id: n for n in read_nodes(tmp_path)}
    for dialogue in read_dialogues(tmp_path):
        q, a = (nodes[i] for i in dialogue.node_ids[:2])
        prefix = [*script.opening(None), *q.token_ids, *script.joint(2)]
        ids = [*prefix, *a.token_ids]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, len(prefix) - 1 :].float().log_softmax(-1)
        want, where = logits.topk(5)
        assert np.asarray(a.top_ids).reshape(-1, 5).tolist() == where.tolist()
        assert np.asarray(a.top_logprobs).reshape(-1, 5) == pytest.approx(want.numpy(), abs=5e-3)


def test_a_text_without_bos_against_the_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Pretrain mode, and nothing stands before the text: the first token has no distribution, all others theirs."""
    torch = pytest.importorskip("torch")
    from regrow.models.load import load_model

    tokenizer = tokenizer_of(tiny_model_dir)
    assert tokenizer("")["input_ids"] == [], "this tokenizer puts nothing in front"
    engine = ScriptedEngine(tokenizer, lambda r, i: sentence(r.seed + i) + ("…" if r.key == "t00" else ""))
    run(tiny_model_dir, tmp_path, settings(mode="pretrain", shape=[2, 2], dialogues="all", top_logprobs=5), engine)
    model = load_model(tiny_model_dir)
    nodes = {n.id: n for n in read_nodes(tmp_path)}
    for dialogue in read_dialogues(tmp_path):
        path = [nodes[i] for i in dialogue.node_ids]
        ids = [t for n in path for t in n.token_ids]
        with torch.inference_mode():
            want, where = model(torch.tensor([ids])).logits[0].float().log_softmax(-1).topk(5)
        found = np.concatenate([np.asarray(n.top_ids).reshape(-1, 5) for n in path])
        logprobs = np.concatenate([np.asarray(n.top_logprobs).reshape(-1, 5) for n in path])
        assert len(found) == len(ids) + 1, "a row a token, and one for the end of the text"
        assert (found[0] == -1).all() and np.isneginf(logprobs[0]).all()
        assert found[1:].tolist() == where.tolist()
        assert logprobs[1:] == pytest.approx(want.numpy(), abs=5e-3)
