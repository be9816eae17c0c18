"""Does a sample of tokens come from a known distribution?"""

from __future__ import annotations

import numpy as np
from scipy.stats import chi2


def p_value(tokens, probabilities) -> float:
    """P-value of the G-test of token counts against exact probabilities.

    Tokens expected fewer than five times are pooled.

    A token of probability 0 in the sample gives 0.
    """
    n, p = len(tokens), np.asarray(probabilities, dtype=np.float64)
    p = p / p.sum()
    counts = np.bincount(tokens, minlength=len(p))
    if counts[p == 0].any():
        return 0.0
    big = p * n >= 5
    observed, expected = counts[big].astype(float), p[big] * n
    if (rest := n - expected.sum()) > 1e-6 * n:
        observed, expected = np.append(observed, n - observed.sum()), np.append(expected, rest)
    assert len(observed) > 4, "too few likely tokens for a test"
    seen = observed > 0
    g = 2 * float((observed[seen] * np.log(observed[seen] / expected[seen])).sum())
    return float(chi2.sf(g, len(observed) - 1))


def filtered(logits, temperature=1.0, top_k=0, top_p=1.0):
    """Exact sampling probabilities, token by token in plain Python: temperature, then top-k, then top-p."""
    x = np.asarray(logits, dtype=np.float64) / temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    keep = order[: top_k or len(order)]
    total, mass, kept = p[keep].sum(), 0.0, []
    for token in keep:
        kept.append(token)
        mass += p[token] / total
        if mass >= top_p:
            break
    out = np.zeros_like(p)
    out[kept] = p[kept]
    return out / out.sum()
