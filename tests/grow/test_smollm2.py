"""The real small model, end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from regrow.grow.config import GrowConfig
from regrow.grow.corpus import read_dialogues, read_nodes
from regrow.grow.stage import grow
from regrow.models.load import resolve_model


@pytest.mark.slow
def test_twelve_dialogues(tmp_path: Path) -> None:
    """SmolLM2 asks, answers, and is asked again: full budget, whole turns, distinct first questions, top-k rows."""
    model = resolve_model("smollm2")
    cfg = GrowConfig(
        dialogues=12,
        topics=["world history", "food and cooking", "animals, plants and nature"],
        answer={"max_new_tokens": [96, 128]},
        top_logprobs=8,
    )
    done = grow(cfg, model, tmp_path, seed=0)
    assert (done.dialogues, done.short) == (12, 0)
    nodes = {n.id: n for n in read_nodes(tmp_path)}
    dialogues = read_dialogues(tmp_path)
    for d in dialogues:
        assert [m["role"] for m in d.messages] == ["user", "assistant"] * 2
        assert all("<|im_" not in m["content"] and len(m["content"].split()) >= 3 for m in d.messages)
    firsts = {nodes[d.node_ids[0]].text for d in dialogues}
    assert len(firsts) == len({d.node_ids[0] for d in dialogues}), "no first question twice"
    asked = sum("?" in text or text.split()[0].lower() in ASKING for text in firsts)
    assert asked >= len(firsts) / 2, "most of them ask something"
    answer = nodes[dialogues[0].node_ids[1]]
    mass = np.exp(np.asarray(answer.top_logprobs, dtype=np.float64)).reshape(-1, 8).sum(1)
    assert len(mass) == len(answer.token_ids) + 1
    assert 0.5 < mass.mean() <= 1.01


ASKING = {
    "can",
    "could",
    "what",
    "how",
    "why",
    "who",
    "when",
    "where",
    "write",
    "tell",
    "give",
    "explain",
    "is",
    "describe",
}
