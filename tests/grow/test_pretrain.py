from __future__ import annotations

from pathlib import Path

from regrow.grow.corpus import read_dialogues, read_nodes
from tests.grow.helpers import ScriptedEngine, run, sentence, settings, tokenizer_of


def base_model(tiny_model_dir: Path, out: Path) -> Path:
    """The tiny model without its chat template."""
    import shutil

    shutil.copytree(tiny_model_dir, out)
    tokenizer = tokenizer_of(out)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(out)
    (out / "chat_template.jinja").unlink(missing_ok=True)
    return out


def test_continuations_of_a_lead_in(tiny_model_dir: Path, tmp_path: Path) -> None:
    """No roles: prompts are lead-in + text so far; texts cut at their cap go on, the last layer is trimmed."""
    folder = base_model(tiny_model_dir, tmp_path / "base")
    tokenizer = tokenizer_of(folder)
    engine = ScriptedEngine(tokenizer, lambda r, i: f" {sentence(r.seed + i)} And so…")
    cfg = settings(
        mode="pretrain",
        shape=[2, 2, 2],
        dialogues="all",
        truncated="trim",
        lead_in="Facts on {topic}:",
        answer={"max_new_tokens": [30, 60]},
    )
    done = run(folder, tmp_path / "out", cfg, engine)
    assert done.dialogues == 8
    assert {r.params.max_new_tokens for r in engine.requests if r.key.count("/") == 0} == {30}
    assert {r.params.max_new_tokens for r in engine.requests if r.key.count("/") == 2} == {60}
    nodes = {n.id: n for n in read_nodes(tmp_path / "out")}
    for request in engine.requests:
        steps = request.key.split("/")[1:]
        path = [nodes["/".join(["t00", *steps[: i + 1]])] for i in range(len(steps))]
        text = tokenizer.decode(request.prompt_ids, skip_special_tokens=True)
        assert text == "Facts on rivers:" + "".join(n.text for n in path)
    for dialogue in read_dialogues(tmp_path / "out"):
        (message,) = dialogue.messages
        assert message["role"] == "assistant" and message["content"].endswith("?")
        assert message["content"] == "".join(nodes[i].text for i in dialogue.node_ids)
        assert {nodes[i].role for i in dialogue.node_ids} == {"text"}
    again = settings(**{**cfg.model_dump(), "keep_system": True})
    run(folder, tmp_path / "kept", again, engine)
    assert read_dialogues(tmp_path / "kept")[0].messages[0]["content"].startswith("Facts on rivers: What")


def test_a_text_that_ends_early_is_whole(tiny_model_dir: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine(
        tokenizer_of(tiny_model_dir), lambda r, i: sentence(r.seed + i) + ("" if r.key == "t00" else "…")
    )
    done = run(tiny_model_dir, tmp_path, settings(mode="pretrain", shape=[3, 2], dialogues="all"), engine)
    assert done.dialogues == 3
    assert all(len(d.node_ids) == 1 for d in read_dialogues(tmp_path))


def test_scored_as_it_is_trained(tiny_model_dir: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tiny_model_dir)
    engine = ScriptedEngine(tokenizer, can_score=True)
    run(tiny_model_dir, tmp_path, settings(mode="pretrain", shape=[2], dialogues="all", top_logprobs=2), engine)
    row = engine.scored[0]
    bos = list(tokenizer("")["input_ids"][:1])
    first = next(n for n in read_nodes(tmp_path) if n.kept)
    assert list(row.token_ids) == [*bos, *first.token_ids, tokenizer.eos_token_id]
    top = first.top_ids or []
    assert top[:2] == [-1, -1], "this tokenizer has no BOS: nothing predicts the first token"
    assert top[2::2] == [*first.token_ids[1:], tokenizer.eos_token_id]
