"""Min-K% and Min-K%++: has the model seen a text? Scores of single texts, no second model needed.

Shi et al., "Detecting Pretraining Data from Large Language Models" (arXiv 2310.16789); Zhang et al., "Min-K%++"
(arXiv 2404.02936). Every score here is turned so that higher means "more likely seen".
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regrow.engines.base import Engine, Score, ScoreRow
from regrow.errors import EngineError
from regrow.ledger import Ledger, pass_key
from regrow.probe.config import MinKConfig
from regrow.probe.draws import seed_for
from regrow.probe.roc import separation, threshold
from regrow.probe.texts import Text
from regrow.progress import task
from regrow.rows.writers import atomic_write_text, write_json_lines

SCORES = ("min_k", "min_k_plus", "loss", "zlib", "lowercase", "reference")
"""The method's two scores, then the baselines that the paper compares with."""
BATCH = 64
"""Texts scored and made durable together."""
_LEAST_STD = 1e-4
"""Nats. A distribution this sharp has no spread to measure by; Min-K%++ would divide by rounding."""
_SHOWN = 80


def lowest_mean(values: npt.ArrayLike, k: float) -> float:
    """Mean of the share ``k`` of the lowest values, ``floor(n k)`` of them and at least one."""
    rising = np.sort(np.asarray(values, dtype=np.float64))
    return float(rising[: max(1, int(len(rising) * k + 1e-9))].mean())


def min_k(logprobs: npt.ArrayLike, k: float = 0.2) -> float:
    """Min-K% Prob (2310.16789): mean log-probability of the share ``k`` least likely tokens, nats.

    Args:
        logprobs: ``(n,)`` log-probabilities of a text's tokens, n >= 1.
        k: Share of the tokens.
    """
    return lowest_mean(logprobs, k)


def min_k_plus(logprobs: npt.ArrayLike, means: npt.ArrayLike, stds: npt.ArrayLike, k: float = 0.2) -> float:
    """Min-K%++ (2404.02936): as `min_k`, of log-probabilities standardised within their own position.

    Args:
        logprobs: ``(n,)``.
        means: ``(n,)`` expected log-probability of a token drawn at each position: minus its entropy.
        stds: ``(n,)`` standard deviation of it.
        k: Share of the tokens.
    """
    x, mean = np.asarray(logprobs, dtype=np.float64), np.asarray(means, dtype=np.float64)
    return lowest_mean((x - mean) / np.maximum(np.asarray(stds, dtype=np.float64), _LEAST_STD), k)


def longest_run(greedy: npt.NDArray[np.bool_]) -> int:
    """Most tokens in a row that are the model's first choice: how far it recites."""
    best = run = 0
    for hit in greedy.tolist():
        run = run + 1 if hit else 0
        best = max(best, run)
    return best


def text_scores(text: str, score: Score, k: float, lowercase: Score | None, reference: Score | None) -> dict[str, Any]:
    """All scores of one text.

    ``loss`` is minus the mean loss; ``zlib`` divides that by the bytes of the compressed text; ``lowercase`` is the
    loss of the lower-cased text over that of the text; ``reference`` is a reference model's loss minus the model's.
    ``greedy`` is the share of tokens that are the arg-max, ``run`` the longest run of them.

    Raises:
        EngineError: The engine does not tell the spread of the log-probabilities.
    """
    if score.logprob_std is None:
        raise EngineError(
            "the engine does not give the spread of the log-probabilities, which Min-K%++ needs",
            hint="use the transformers engine",
        )
    loss = -float(score.logprobs.mean(dtype=np.float64))
    out: dict[str, Any] = {
        "tokens": len(score.logprobs),
        "min_k": min_k(score.logprobs, k),
        "min_k_plus": min_k_plus(score.logprobs, -score.entropy, score.logprob_std, k),
        "loss": -loss,
        "zlib": -loss / len(zlib.compress(text.encode("utf-8", "surrogatepass"))),
        "greedy": float(score.greedy.mean()),
        "run": longest_run(score.greedy),
    }
    if lowercase is not None:
        out["lowercase"] = -float(lowercase.logprobs.mean(dtype=np.float64)) / max(loss, 1e-9)
    if reference is not None:
        out["reference"] = -float(reference.logprobs.mean(dtype=np.float64)) - loss
    return out


@dataclass(slots=True)
class MinKSummary:
    """What `probe_texts` found.

    Attributes:
        texts, control: Texts scored; control texts, or 0.
        skipped: Texts too short to score (fewer than two tokens).
        cut: Texts longer than ``max_tokens``.
        k, fpr: As set.
        means: Score -> mean over the texts, and ``control``: the same over the control texts.
        separation: Score -> AUC and the rest against the control texts.
        threshold: Of ``min_k``, None without control texts.
        flagged: Texts above it.
        recited: Longest run of first-choice tokens in any text.
    """

    texts: int
    control: int
    skipped: int
    cut: int
    k: float
    fpr: float
    means: dict[str, dict[str, float]]
    separation: dict[str, dict[str, float]]
    threshold: float | None
    flagged: int | None
    recited: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


class _Rows:
    """Token rows of texts for one tokenizer."""

    def __init__(self, tokenizer: Any, cfg: MinKConfig) -> None:
        self._tokenizer, self._cfg = tokenizer, cfg
        self._turns: Any = None
        if cfg.form == "chat":
            from regrow.models.turns import derive_turns

            self._turns = derive_turns(tokenizer)

    def __call__(self, text: Text, lower: bool = False) -> tuple[ScoreRow | None, bool, list[int]]:
        """The row (None when there is nothing to score), whether it was cut, and which scored positions count."""
        if self._turns is not None and text.messages:
            messages = [{**m, "content": m["content"].lower() if lower else m["content"]} for m in text.messages]
            ids, learn = self._turns.encode_dialogue(self._tokenizer, messages)
        else:
            ids = list(self._tokenizer(text.text.lower() if lower else text.text)["input_ids"])
            learn = [1] * len(ids)
        cut = len(ids) > self._cfg.max_tokens
        ids, learn = ids[: self._cfg.max_tokens], learn[: self._cfg.max_tokens]
        wanted = [t - 1 for t in range(1, len(ids)) if learn[t]]
        return (ScoreRow(ids, 1) if wanted else None), cut, wanted


def _only(score: Score, wanted: list[int]) -> Score:
    if len(wanted) == len(score.logprobs):
        return score
    std = None if score.logprob_std is None else score.logprob_std[wanted]
    return Score(score.logprobs[wanted], score.greedy[wanted], score.entropy[wanted], logprob_std=std)


def probe_texts(
    texts: Sequence[Text], control: Sequence[Text], cfg: MinKConfig, out: Path, *, engine: Engine, tokenizer: Any,
    reference: tuple[Engine, Any] | None = None, confidence: float = 0.95, seed: int = 0,
) -> MinKSummary:  # fmt: skip
    """Score texts, and control texts that the model cannot have seen.

    Args:
        texts: To be judged.
        control: Texts of the same kind and length that are surely new to the model; may be empty. With them the
            separation (AUC) is measured and texts above the control's 1 - ``fpr`` quantile are flagged.
        cfg: Settings.
        out: Folder for ``scores.jsonl`` (a line a text) and ``min_k.json``; what is done is kept there and not done
            again.
        engine: Must score.
        tokenizer: Of the model.
        reference: Engine and tokenizer of a model that has not seen the texts, for the baseline of that name.
        confidence: Level of the intervals.
        seed: Of their resampling.

    Raises:
        EngineError: The engine cannot score.
    """
    groups = {"data": texts, "control": control}
    settings = cfg.model_dump(include={"k", "max_tokens", "form", "lowercase"})
    settings["reference"] = None if reference is None else reference[0].info.revision
    name = pass_key("min_k", engine.info.revision, settings)
    rows = _Rows(tokenizer, cfg)
    other = None if reference is None else (reference[0], _Rows(reference[1], cfg))
    done: dict[str, list[dict[str, Any] | None]] = {}
    with Ledger(out / "ledger.jsonl") as ledger, task("scoring texts", len(texts) + len(control), "texts") as bar:
        for group, members in groups.items():
            found: list[dict[str, Any] | None] = []
            for first in range(0, len(members), BATCH):
                batch = members[first : first + BATCH]
                keys = [_hash(t) for t in batch]
                if all(ledger.get(name, key) is not None for key in keys):
                    bar.skip(len(batch))
                else:
                    values = _score(batch, cfg, rows, engine, other)
                    ledger.add(name, list(zip(keys, values, strict=True)))
                    bar.advance(len(batch))
                found += [_known(ledger.get(name, key)) for key in keys]
            done[group] = found
    summary, records = _summarise(groups, done, cfg, confidence, seed)
    write_json_lines(records, out / "scores.jsonl")
    atomic_write_text(out / "min_k.json", json.dumps(summary.to_dict(), indent=1) + "\n")
    (out / "ledger.jsonl").unlink()  # all of it stands in scores.jsonl now
    return summary


def _hash(text: Text) -> str:
    said = "\x00".join([text.text, *(f"{m['role']}\x01{m['content']}" for m in text.messages)])
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _known(value: dict[str, Any] | None) -> dict[str, Any] | None:
    return value if value and "min_k" in value else None


def _score(
    texts: Sequence[Text], cfg: MinKConfig, rows: _Rows, engine: Engine, reference: tuple[Engine, _Rows] | None
) -> list[dict[str, Any]]:
    """Values of a batch; a text without anything to score has none but ``cut``."""
    own = [rows(t) for t in texts]
    plain = _aligned(engine, own)
    small = _aligned(engine, [rows(t, lower=True) for t in texts]) if cfg.lowercase else [None] * len(texts)
    theirs = _aligned(reference[0], [reference[1](t) for t in texts]) if reference else [None] * len(texts)
    out: list[dict[str, Any]] = []
    for text, (_, cut, _), score, low, ref in zip(texts, own, plain, small, theirs, strict=True):
        value = {} if score is None else text_scores(text.text, score, cfg.k, low, ref)
        out.append({**value, "cut": cut})
    return out


def _aligned(engine: Engine, rows: Sequence[tuple[ScoreRow | None, bool, list[int]]]) -> list[Score | None]:
    scores: Iterator[Score] = iter(engine.score([row for row, _, _ in rows if row is not None]))
    return [None if row is None else _only(next(scores), wanted) for row, _, wanted in rows]


def _summarise(
    groups: dict[str, Sequence[Text]], done: dict[str, list[dict[str, Any] | None]], cfg: MinKConfig,
    confidence: float, seed: int,
) -> tuple[MinKSummary, list[dict[str, Any]]]:  # fmt: skip
    good = {group: [v for v in values if v is not None] for group, values in done.items()}
    names = [n for n in SCORES if all(n in v for v in good["data"])] if good["data"] else []
    columns = {g: {n: np.array([v[n] for v in values]) for n in names} for g, values in good.items()}
    both = bool(good["data"] and good["control"])
    told: dict[str, dict[str, float]] = {}
    if both:
        for n in names:
            told[n] = asdict(
                separation(
                    columns["data"][n], columns["control"][n], fpr=cfg.fpr, confidence=confidence,
                    resamples=cfg.bootstrap, seed=seed_for(seed, "min_k", n),
                )
            )  # fmt: skip
    limit = threshold(columns["control"]["min_k"], cfg.fpr) if both else None
    records: list[dict[str, Any]] = []
    for group, members in groups.items():
        for text, value in zip(members, done[group], strict=True):
            record: dict[str, Any] = {"id": text.id, "set": group, "domain": text.domain, **(value or {})}
            if limit is not None and value is not None and group == "data":
                record["flagged"] = value["min_k"] > limit
            records.append(record | {"begins": text.text[:_SHOWN]})
    means = {n: {g: float(columns[g][n].mean()) for g in groups if good[g]} for n in names}
    summary = MinKSummary(
        texts=len(good["data"]), control=len(good["control"]),
        skipped=sum(v is None for values in done.values() for v in values),
        cut=sum(v["cut"] for values in good.values() for v in values), k=cfg.k, fpr=cfg.fpr, means=means,
        separation=told,
        threshold=limit, flagged=None if limit is None else sum(bool(r.get("flagged")) for r in records),
        recited=max((v["run"] for v in good["data"]), default=0),
    )  # fmt: skip
    return summary, records
