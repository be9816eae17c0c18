r"""The rows that read most like a reference text: perplexity under an n-gram model of it.

The idea is the stability gap paper's second part (arXiv 2406.14833), which ranks documents with a KenLM model of
high-quality text. KenLM's estimator is a program of its own that no Python package carries; for a reference of a few
megabytes a trigram model with Witten-Bell interpolation (Witten and Bell 1991; Chen and Goodman 1998) does without it.
With :math:`c` counts and :math:`N(h)` the number of different words seen after :math:`h`

.. math::
    P(w \mid h) = \frac{c(h w) + N(h)\, P(w \mid h')}{c(h) + N(h)}

where :math:`h'` is :math:`h` without its first word, down to equal shares of all known words and one for unknown ones.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from pydantic import Field, model_validator

from regrow.errors import DataError
from regrow.rows.row import Row
from regrow.rows.validate import content_text
from regrow.section import Section

ORDER = 3
START, END = "<s>", "</s>"


class QualityConfig(Section):
    """Train only on the rows that read most like a reference text."""

    reference: str | None = None
    """A file or folder of text that is as yours should be (any format of `data`); null keeps all rows."""
    keep: float = Field(default=0.5, gt=0, le=1)
    """Share of the training rows that is kept, those of the lowest perplexity. Held-out rows are not touched [G]."""

    @model_validator(mode="after")
    def _needs_a_reference(self) -> QualityConfig:
        # A dumped recipe names every key, so only another value than the default asks for something.
        if self.reference is None and self.keep != QualityConfig.model_fields["keep"].default:
            raise ValueError("keep needs a reference to rank by")
        return self


def words(text: str) -> list[str]:
    """Lower-case words and single marks."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


class NGramModel:
    """A word trigram model with Witten-Bell interpolation; see the module's formula.

    Args:
        texts: What it is estimated from.

    Raises:
        DataError: There is no word in them.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._after: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for text in texts:
            said = words(text)
            if not said:
                continue
            sequence = [START] * (ORDER - 1) + said + [END]
            for i in range(ORDER - 1, len(sequence)):
                for n in range(ORDER):
                    self._after[tuple(sequence[i - n : i])][sequence[i]] += 1
        if not self._after:
            raise DataError("the reference has no words", where="data.quality.reference")
        self.vocabulary = len(self._after[()]) + 1
        """Known words, the end of a text, and one for all others."""
        self._totals = {history: seen.total() for history, seen in self._after.items()}

    def probability(self, word: str, history: Sequence[str]) -> float:
        """Of a word after the last words of ``history`` (fewer than the order's are taken as they are)."""
        p = 1.0 / self.vocabulary
        for n in range(min(len(history), ORDER - 1) + 1):
            context = tuple(history[len(history) - n :])
            seen = self._after.get(context)
            if seen is None:
                break
            p = (seen[word] + len(seen) * p) / (self._totals[context] + len(seen))
        return p

    def loss(self, text: str) -> float:
        """Mean negative log-probability in nats a word, the end included: the logarithm of the perplexity."""
        sequence = [START] * (ORDER - 1) + words(text) + [END]
        logs = [
            math.log(self.probability(sequence[i], sequence[i - ORDER + 1 : i]))
            for i in range(ORDER - 1, len(sequence))
        ]
        return -math.fsum(logs) / len(logs)


def best(rows: Sequence[Row], model: NGramModel, keep: float) -> list[Row]:
    """The share ``keep`` of ``rows`` (one at least) with the lowest loss, in their order. Of a dialogue only what
    the assistant says counts: that is what is trained on."""
    losses = [
        model.loss("\n".join(content_text(m["content"]) for m in r.messages if m["role"] == "assistant")) for r in rows
    ]
    n = max(1, round(keep * len(rows)))
    chosen = sorted(range(len(rows)), key=lambda i: (losses[i], i))[:n]
    return [rows[i] for i in sorted(chosen)]
