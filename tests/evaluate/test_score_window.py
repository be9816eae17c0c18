from __future__ import annotations

import numpy as np
import pytest

WINDOW = 16


def _gemma3():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(
        Gemma3TextConfig(**_SMALL, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])
    )


def _mistral():
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**_SMALL, sliding_window=WINDOW))


_SMALL = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip


@pytest.mark.parametrize("make", [_gemma3, _mistral])
def test_rows_longer_than_a_sliding_window_score_as_the_model_alone_scores_them(make):
    import torch

    from regrow.evaluate.render import TokenRow
    from regrow.evaluate.score import Scorer

    torch.manual_seed(0)
    model = make().eval()
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)  # wide, so that what lies beyond the window would matter
    rng = np.random.default_rng(0)
    rows = [TokenRow(rng.integers(0, 100, n).tolist(), [(1, n)]) for n in (40, WINDOW, 25, 9)]
    scorer = Scorer(model)
    assert scorer.tree
    for row, score in zip(rows, scorer.score(rows), strict=True):
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            log_p = model(ids).logits.float().log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0].numpy()
        np.testing.assert_allclose(score.logprobs, log_p, atol=1e-4)
