"""VersaTune's domain knowledge distribution: what a model talks about when nobody asks, judged domain by domain.

arXiv 2411.11266, first phase: sample texts from the start token, classify each, average:
``P_j = (1/N) sum_i p_ij``, repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regrow.engines.base import Engine, Request, SampleParams
from regrow.errors import DataError, ModelError
from regrow.evaluate.stats import bootstrap_means, percentile_interval
from regrow.ledger import Ledger, pass_key
from regrow.probe.config import DomainsConfig
from regrow.probe.draws import seed_for
from regrow.probe.judge import Judge, Quality, TextEncoder, train_judge
from regrow.probe.texts import plain_text
from regrow.progress import note, task
from regrow.rows.readers import read_rows
from regrow.rows.writers import atomic_write_text, write_json_lines

Floats = npt.NDArray[np.float64]

CHUNK = 64
"""Texts of one request; what a killed run loses at most."""
_UNLABELLED = "\x00"


@dataclass(frozen=True, slots=True)
class Start:
    """What texts start from and what ends them."""

    ids: tuple[int, ...]
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Share:
    """One domain's share: soft or hard as asked, its interval over resampled texts, and both readings."""

    share: float
    low: float
    high: float
    soft: float
    hard: float


@dataclass(slots=True)
class DomainsSummary:
    """What `probe_domains` found.

    Attributes:
        shares: Domain -> share.
        repeats: The shares of each repetition.
        texts: Sampled texts that were judged.
        empty: Sampled texts without a word, which no judge can place; left out.
        cut: Texts that hit ``max_new_tokens``.
        start: What they started from.
        labels: ``soft`` or ``hard``.
        judge: What the judge is worth, on held-out labelled texts.
    """

    shares: dict[str, Share]
    repeats: list[dict[str, float]]
    texts: int
    empty: int
    cut: int
    tokens: int
    start: str
    labels: str
    judge: Quality

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def find_start(tokenizer: Any, start: str) -> Start:
    """The tokens that texts start from; see ``probe.domains.start``.

    Raises:
        ModelError: There is no such token, or the tokenizer has none of its own.
    """
    from regrow.models.turns import END_OF_TEXT, derive_turns

    vocabulary = tokenizer.get_vocab()
    ends = {int(vocabulary[t]) for t in END_OF_TEXT if t in vocabulary}
    if tokenizer.eos_token_id is not None:
        ends.add(int(tokenizer.eos_token_id))
    if start == "user":
        turns = derive_turns(tokenizer)
        ids = turns.encode(tokenizer, turns.opening, first=True)
        return Start(tuple(ids), turns.stop_ids("user"), turns.stop_strings("user"), turns.opening)
    if start != "auto":
        ids = tokenizer.encode(start, add_special_tokens=False)
        if not ids:
            raise ModelError(f"{start!r} has no tokens", where="probe.domains.start")
        return Start(tuple(ids), tuple(sorted(ends)), (), start)
    for name in (tokenizer.bos_token, *END_OF_TEXT, tokenizer.eos_token):
        if name is not None and name in vocabulary and not _opens_turns(tokenizer, name):
            return Start((int(vocabulary[name]),), tuple(sorted(ends)), (), name)
    raise ModelError(
        "the tokenizer has no token that a text could start from", where="probe.domains.start",
        hint="Give one: --set probe.domains.start='TEXT', or 'user' for an open user turn.",
    )  # fmt: skip


def _opens_turns(tokenizer: Any, token: str) -> bool:
    """Whether the chat template puts the token into every turn, as ChatML does: then it starts a turn, not a text."""
    if tokenizer.chat_template is None:
        return False
    said = [{"role": r, "content": "x"} for r in ("user", "assistant", "user")]
    text: str = tokenizer.apply_chat_template(said, tokenize=False)
    return text.count(token) >= len(said)


def sample_texts(
    engine: Engine, start: Start, cfg: DomainsConfig, ledger: Ledger, seed: int
) -> list[list[tuple[str, bool, int]]]:
    """Texts of every repetition as ``(text, cut, tokens)``; what the ledger holds is not sampled again."""
    params = SampleParams(
        cfg.max_new_tokens, cfg.temperature, cfg.top_p, stop_token_ids=start.stop_ids, stop_strings=start.stop_strings
    )
    settings = cfg.model_dump(include={"max_new_tokens", "temperature", "top_p", "samples", "repeats"})
    settings |= {"start": start.ids, "seed": seed, "engine": engine.info.name}
    name = pass_key("domains", engine.info.revision, settings)
    out: list[list[tuple[str, bool, int]]] = []
    with task("sampling texts", cfg.samples * cfg.repeats, "texts") as bar:
        for r in range(cfg.repeats):
            texts: list[tuple[str, bool, int]] = []
            for first in range(0, cfg.samples, CHUNK):
                key, n = f"{r}/{first}", min(CHUNK, cfg.samples - first)
                if (known := ledger.get(name, key)) is None:
                    request = Request(key, start.ids, n, seed_for(seed, "domains", r, first), params)
                    ((_, found),) = engine.sample([request])
                    said = [[c.text, c.finish == "length", len(c.token_ids)] for c in found]
                    known = {"texts": said}
                    ledger.add(name, [(key, known)])
                    bar.advance(n)
                else:
                    bar.skip(n)
                texts += [(str(t), bool(c), int(k)) for t, c, k in known["texts"]]
            out.append(texts)
    return out


def shares_of(
    probabilities: Floats, classes: Sequence[str], labels: str, *, confidence: float, resamples: int, seed: int
) -> dict[str, Share]:
    """Shares of domains over texts, soft (mean probability) and hard (share of the arg-max).

    Args:
        probabilities: ``(n, k)``, rows sum to 1, n >= 1.
        classes: The k domains.
        labels: Which of the two the interval belongs to.
        confidence: Level of the interval.
        resamples: Of the texts.
        seed: Of the resampling.
    """
    hard = np.eye(len(classes))[probabilities.argmax(1)]
    table = hard if labels == "hard" else probabilities
    draws = bootstrap_means(table, resamples, seed)
    out = {}
    for j, c in enumerate(classes):
        i = percentile_interval(float(table[:, j].mean()), draws[:, j], confidence)
        out[c] = Share(i.value, i.low, i.high, float(probabilities[:, j].mean()), float(hard[:, j].mean()))
    return out


def read_labelled(path: str | Path) -> tuple[list[str], list[str]]:
    """Texts and their domains from any rows with a ``domain`` column.

    Raises:
        DataError: Nothing to read, a row without a label, or one text under two labels.
    """
    seen: dict[str, str] = {}
    read = read_rows(path, domain=_UNLABELLED)
    for reason, n in read.dropped.items():
        note(f"{path}: {n:,} labelled texts left out, {reason} (the first one's label counts)")
    for row in read.rows:
        if row.domain == _UNLABELLED:
            raise DataError(
                "the row has no label", where=f"{path}: {row.id}", hint="Give every row its domain in 'domain'."
            )
        text = plain_text(row)
        if seen.setdefault(text, row.domain) != row.domain:
            raise DataError(
                f"a text has two labels, {seen[text]!r} and {row.domain!r}", where=f"{path}: {row.id}",
                hint="Keep one of them.",
            )  # fmt: skip
    return list(seen), list(seen.values())


def probe_domains(
    labelled: tuple[Sequence[str], Sequence[str]], cfg: DomainsConfig, out: Path, *, engine: Engine, tokenizer: Any,
    encoder: TextEncoder, confidence: float = 0.95, seed: int = 0,
) -> DomainsSummary:  # fmt: skip
    """Estimate how a model's own text is shared among domains.

    Args:
        labelled: Texts and their domains, to train and measure the judge.
        cfg: Settings.
        out: Folder for ``samples.jsonl`` (each text with its probabilities) and ``domains.json``; sampled texts are
            kept there and not sampled again.
        engine: Samples.
        tokenizer: Of the model.
        encoder: Of the judge.
        confidence: Level of the intervals.
        seed: Of the samples, the judge's split and the resampling.

    Raises:
        DataError: The labelled texts cannot train a judge; every sampled text is empty.
        ModelError: There is no token to start from.
    """
    judge, quality = train_judge(
        labelled[0], labelled[1], encoder, test_size=cfg.test_size, folds=cfg.folds, seed=seed
    )
    note(
        f"judge: {quality.accuracy:.0%} of {quality.tested} held-out labelled texts right "
        f"(always the most frequent: {quality.majority:.0%}); learned from {quality.trained}"
    )
    start = find_start(tokenizer, cfg.start)
    note(
        f"sampling {cfg.repeats} x {cfg.samples} texts of at most {cfg.max_new_tokens} tokens from {start.text!r}: "
        f"at most {cfg.repeats * cfg.samples * cfg.max_new_tokens:,} tokens"
    )
    with Ledger(out / "ledger.jsonl") as ledger:
        texts = sample_texts(engine, start, cfg, ledger, seed)
    summary, records = judge_texts(judge, quality, texts, cfg, start, confidence, seed)
    write_json_lines(records, out / "samples.jsonl")
    atomic_write_text(out / "domains.json", json.dumps(summary.to_dict(), indent=1, ensure_ascii=False) + "\n")
    (out / "ledger.jsonl").unlink()  # all of it stands in samples.jsonl now
    return summary


def judge_texts(
    judge: Judge, quality: Quality, texts: list[list[tuple[str, bool, int]]], cfg: DomainsConfig, start: Start,
    confidence: float, seed: int,
) -> tuple[DomainsSummary, list[dict[str, Any]]]:  # fmt: skip
    """Shares over the sampled texts, and a record a text.

    Raises:
        DataError: Every text is empty.
    """
    flat = [(r, *t) for r, of_repeat in enumerate(texts) for t in of_repeat]
    full = [x for x in flat if x[1].strip()]
    if not full:
        raise DataError(
            "every sampled text is empty", where=f"start {start.text!r}",
            hint="Start from another token (--set probe.domains.start=...).",
        )  # fmt: skip
    p = judge.probabilities([x[1] for x in full])
    repeat = np.array([x[0] for x in full])
    shares = shares_of(
        p, judge.classes, cfg.labels, confidence=confidence, resamples=cfg.bootstrap, seed=seed_for(seed, "shares")
    )
    table = np.eye(len(judge.classes))[p.argmax(1)] if cfg.labels == "hard" else p
    repeats = [
        dict(zip(judge.classes, table[repeat == r].mean(0).tolist(), strict=True))
        for r in range(len(texts))
        if (repeat == r).any()
    ]
    records = [
        {"text": text, "domain": judge.classes[int(row.argmax())], "repeat": r, "cut": cut,
         "probabilities": {c: round(float(v), 6) for c, v in zip(judge.classes, row, strict=True)}}
        for (r, text, cut, _), row in zip(full, p, strict=True)
    ]  # fmt: skip
    summary = DomainsSummary(
        shares=shares, repeats=repeats, texts=len(full), empty=len(flat) - len(full), cut=sum(x[2] for x in flat),
        tokens=sum(x[3] for x in flat), start=start.text, labels=cfg.labels, judge=quality,
    )  # fmt: skip
    return summary, records
