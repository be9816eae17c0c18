"""A causal language model as the sampler needs it: how its caches are laid out, and logits after chosen tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from regrow.engines.kv import Layout
from regrow.errors import EngineError


class Network:
    """Runs a loaded ``PreTrainedModel``.

    Attributes:
        layout: Of its key-value caches. Layers with a sliding window keep all their tokens too (the mask hides what
            is out of sight), so that every cached prefix can be continued.
        direct: Whether the head is a plain matrix on the decoder's output. Some architectures scale or cap the logits
            after the head; for those every forward pass goes through the whole model.

    Raises:
        EngineError: The architecture keeps a state that is not a key-value cache.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device: torch.device = model.device
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.decoder, self.head = model.get_decoder(), model.get_output_embeddings()
        ids = torch.tensor([[1, 2, 3]], device=self.device) % self.vocabulary
        with torch.inference_mode():
            typed = DynamicCache(config=model.config)
            logits = model(input_ids=ids, past_key_values=typed, use_cache=True).logits
            plain = self.head(self.decoder(input_ids=ids, use_cache=False).last_hidden_state)
        if not all(isinstance(x, DynamicLayer) and x.keys is not None and x.keys.ndim == 4 for x in typed.layers):
            kinds = ", ".join(sorted({type(x).__name__ for x in typed.layers}))
            raise EngineError(
                f"{type(model).__name__} keeps a state the transformers engine cannot batch ({kinds})",
                hint="use an attention-only model",
            )
        self.layout = Layout(typed)
        self.direct = bool(torch.allclose(plain.float(), logits.float(), atol=1e-4, rtol=1e-4))

    def logits(
        self, ids: torch.Tensor, positions: torch.Tensor, cache: Cache, mask: torch.Tensor | None, last: torch.Tensor
    ) -> torch.Tensor:
        """Run ``ids``, ``(rows, tokens)``, on top of ``cache``.

        Args:
            ids, positions: int64 of the same shape.
            cache: Takes the new keys and values.
            mask: int64 ``(rows, cached + tokens)`` or None.
            last: int64 ``(rows,)``, the token of each row whose successor is wanted. Without `direct` it must be the
                last of all rows.

        Returns:
            float32 ``(rows, vocabulary)``.
        """
        inputs = {
            "input_ids": ids.to(self.device),
            "position_ids": positions.to(self.device),
            "attention_mask": mask,
            "past_key_values": cache,
            "use_cache": True,
        }
        with torch.inference_mode():
            if not self.direct:
                found: torch.Tensor = self.model(**inputs, logits_to_keep=1).logits[:, -1].float()
                return found
            hidden = self.decoder(**inputs).last_hidden_state
            rows = torch.arange(len(ids), device=self.device)
            found = self.head(hidden[rows, last.to(self.device)]).float()
            return found
