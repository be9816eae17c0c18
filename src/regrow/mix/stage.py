"""The mix stage: your rows and the corpus in, one stream of token rows out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regrow.errors import DataError
from regrow.mix.config import MixConfig
from regrow.mix.replay import choose, domain_order, interleave, wanted
from regrow.mix.tokenize import NO_ID, TokenRow, encode, encode_text, is_text, shorten
from regrow.progress import note, task
from regrow.rows.row import Message, Row
from regrow.rows.writers import atomic_path, atomic_write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from regrow.models.turns import Turns

WRITE_ROWS = 512
"""Rows in one Parquet row group; what is in memory at once while writing."""


@dataclass
class MixSummary:
    """What was mixed; also in ``mix.json``.

    Attributes:
        asked: ``replay_ratio`` and its unit.
        realised: Replay's share of all tokens (``tokens``), of trained tokens (``train_tokens``) and of rows (``rows``).
        domain, replay: ``rows``, ``tokens``, ``train_tokens`` (loss weights above 0) and ``distinct`` rows used.
        epochs: Passes over your rows that are laid out in the stream.
        dropped: Rows left out or cut, by reason.
        topk: Stored log-probabilities a position, 0 when the corpus has none.
    """

    asked: dict[str, Any]
    realised: dict[str, float]
    domain: dict[str, int]
    replay: dict[str, int]
    epochs: float
    tree_loss: str
    dropped: dict[str, int] = field(default_factory=dict)
    topk: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON shape."""
        return asdict(self)


class _Encoder:
    """Rows to token rows under one tokenizer; counts what it drops."""

    def __init__(self, model_dir: Path, cfg: MixConfig) -> None:
        from regrow.models.load import load_tokenizer

        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model_dir)
        self.cfg = cfg
        self.dropped: Counter[str] = Counter()
        self._turns: Turns | None = None

    @property
    def turns(self) -> Turns:
        """Derived when a dialogue needs them: plain text works without a chat template."""
        if self._turns is None:
            from regrow.models.turns import derive_turns

            self._turns = derive_turns(self.tokenizer)
        return self._turns

    def domain(self, row: Row) -> TokenRow | None:
        """A token row, or None when the row cannot fit (counted)."""
        if is_text(row):
            out = encode_text(self.tokenizer, str(row.messages[0]["content"]))
            if len(out.ids) > self.cfg.max_length:
                self.dropped["your rows cut to max_length"] += 1
                out = TokenRow(out.ids[: self.cfg.max_length], out.weights[: self.cfg.max_length])
        else:
            out = encode(self.tokenizer, self.turns, row.messages)
            if len(out.ids) > self.cfg.max_length:
                kept = shorten(self.tokenizer, self.turns, row.messages, self.cfg.max_length)
                if kept is None:
                    self.dropped["your rows longer than max_length"] += 1
                    return None
                self.dropped["your rows that lost their last turns"] += 1
                out = encode(self.tokenizer, self.turns, kept)
        if not self.cfg.assistant_only_loss:
            out.weights[1:] = 1.0
        if not out.weights.any():
            self.dropped["your rows without an answer to train on"] += 1
            return None
        return out


def count_tokens(rows: Sequence[Row], model_dir: Path, cfg: MixConfig) -> int:
    """Tokens of one pass over ``rows`` as they will be trained on."""
    encoder = _Encoder(model_dir, cfg)
    return sum(len(out.ids) for row in rows if (out := encoder.domain(row)) is not None)


def replay_tokens_wanted(rows: Sequence[Row], model_dir: Path, cfg: MixConfig, *, epochs: float) -> int:
    """Replay tokens the ratio asks for over all epochs (an estimate when the unit is rows: those of equally long rows)."""
    return round(wanted(count_tokens(rows, model_dir, cfg) * epochs, cfg.replay_ratio))


def mix(
    domain_rows: Sequence[Row],
    corpus_dir: Path | None,
    model_dir: Path,
    cfg: MixConfig,
    out: Path,
    *,
    seed: int,
    epochs: float = 1.0,
) -> MixSummary:
    """Write ``out/train.parquet`` (token rows in training order) and ``out/mix.json``.

    All epochs over your rows are laid out one after the other, each in its own order and with its own replay: a replay
    dialogue comes back only when the corpus is too small. The trainer then passes over the stream once.

    Args:
        domain_rows: Your rows.
        corpus_dir: A corpus (see `regrow.grow.corpus`), or None for no replay.
        model_dir: For the tokenizer and its chat template.
        cfg: Settings.
        out: Result folder.
        seed: Order of rows, choice of dialogues.
        epochs: Passes over your rows.

    Raises:
        DataError: No row can be trained on, or replay is asked of an empty corpus.
        ModelError: The chat template cannot be used.
    """
    out.mkdir(parents=True, exist_ok=True)
    encoder = _Encoder(model_dir, cfg)
    encoded = [(row, token_row) for row in domain_rows if (token_row := encoder.domain(row)) is not None]
    if not encoded:
        raise DataError(
            "none of your rows can be trained on", where="data", hint=f"dropped: {dict(encoder.dropped) or 'no rows'}"
        )
    order = domain_order(len(encoded), epochs, seed)
    sizes = [len(encoded[i][1].ids) for i in order]
    replay = _Replay(corpus_dir, encoder, cfg) if corpus_dir is not None and cfg.replay_ratio > 0 else None
    chosen: list[int] = []
    if replay is not None:
        unit = replay.sizes if cfg.replay_unit == "tokens" else [1] * len(replay.sizes)
        target = wanted(sum(sizes) if cfg.replay_unit == "tokens" else len(sizes), cfg.replay_ratio)
        rng = np.random.default_rng([seed, 0x5EED])
        chosen = choose(unit, replay.topics, target, max_repeats=cfg.max_repeats, rng=rng)
        replay.weigh(chosen)
        got = sum(unit[i] for i in chosen)
        if got < 0.9 * target:
            note(
                f"mix: the corpus has {got:,} of the {round(target):,} {cfg.replay_unit} of replay wanted, "
                f"each dialogue used up to {cfg.max_repeats} times; grow more, or lower mix.replay_ratio"
            )
    plan = interleave(sizes, [replay.sizes[i] for i in chosen] if replay else [])
    totals: dict[str, Counter[str]] = {"domain": Counter(), "replay": Counter()}

    def rows() -> Iterator[dict[str, Any]]:
        with task("mixing", len(plan), "rows") as bar:
            for slot in plan:
                if slot.replay:
                    assert replay is not None
                    record = replay.record(chosen[slot.index])
                else:
                    row, token_row = encoded[order[slot.index]]
                    record = _record(row.id, "domain", row.domain, token_row)
                counts = totals[record["source"]]
                counts["rows"] += 1
                counts["tokens"] += record["n_tokens"]
                counts["train_tokens"] += record["n_train_tokens"]
                bar.advance(1)
                yield record

    _write(out / "train.parquet", rows())
    totals["domain"]["distinct"] = len(set(order.tolist()))
    totals["replay"]["distinct"] = len(set(chosen))
    summary = MixSummary(
        asked={"replay_ratio": cfg.replay_ratio if corpus_dir is not None else 0.0, "unit": cfg.replay_unit},
        realised={
            key: totals["replay"][key] / max(1, totals["replay"][key] + totals["domain"][key])
            for key in ("tokens", "train_tokens", "rows")
        },
        domain=dict(totals["domain"]),
        replay=dict(totals["replay"]),
        epochs=float(epochs),
        tree_loss=cfg.tree_loss,
        dropped=dict(encoder.dropped),
        topk=replay.topk if replay else 0,
    )
    atomic_write_text(out / "mix.json", json.dumps(summary.to_dict(), indent=1))
    return summary


class _Replay:
    """The dialogues of a corpus as token rows, made when they are written."""

    def __init__(self, corpus_dir: Path, encoder: _Encoder, cfg: MixConfig) -> None:
        from regrow.grow.corpus import read_dialogues

        self.encoder, self.cfg = encoder, cfg
        found = read_dialogues(corpus_dir)
        wanted_nodes = {node for d in found for node in d.node_ids}
        self.nodes = _nodes(corpus_dir, wanted_nodes)
        self.topk = next((len(n["top_ids"]) // max(1, len(n["token_ids"])) for n in self.nodes.values() if n["top_ids"]), 0)
        self.dialogues, self.sizes = [], []
        for dialogue in found:
            size = len(self._encode(dialogue).ids)
            if size > cfg.max_length:
                encoder.dropped["replay dialogues longer than max_length"] += 1
                continue
            self.dialogues.append(dialogue)
            self.sizes.append(size)
        if not self.dialogues:
            raise DataError(
                "the corpus has no dialogue to replay", where=str(corpus_dir), hint="grow more, or raise mix.max_length"
            )
        self.topics = [d.topic for d in self.dialogues]
        self.uses: Counter[str] = Counter()

    def weigh(self, chosen: Sequence[int]) -> None:
        """Count the chosen paths through each node, for ``tree_loss: once``."""
        self.uses = Counter(node for i in chosen for node in self.dialogues[i].node_ids)

    def _encode(self, dialogue: Any) -> TokenRow:
        contents = [self.nodes[n]["token_ids"] for n in dialogue.node_ids]
        messages: list[Message] = list(dialogue.messages)
        if messages and messages[0]["role"] != "user" and len(messages) == 1:
            return encode_text(self.encoder.tokenizer, [token for c in contents for token in c])
        return encode(self.encoder.tokenizer, self.encoder.turns, messages, contents)

    def record(self, index: int) -> dict[str, Any]:
        """The Parquet record of one dialogue."""
        dialogue = self.dialogues[index]
        row = self._encode(dialogue)
        if self.cfg.tree_loss == "once":
            for node, (a, b), (c, d) in zip(dialogue.node_ids, row.spans, row.closing, strict=True):
                row.weights[a:b] /= self.uses[node]
                row.weights[c:d] /= self.uses[node]
        record = _record(dialogue.id, "replay", dialogue.topic, row)
        if self.topk:
            ids, logprobs = self._topk(dialogue, row)
            record |= {"topk_ids": ids.ravel(), "topk_logprobs": logprobs.ravel(), "topk_k": self.topk}
        return record

    def _topk(self, dialogue: Any, row: TokenRow) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """``(trained positions, k)`` ids and log-probabilities; `NO_ID` where nothing is stored."""
        k = self.topk
        ids = np.full((len(row.ids), k), NO_ID, dtype=np.int32)
        logprobs = np.full((len(row.ids), k), -np.inf, dtype=np.float32)
        for node_id, (a, b), (c, d) in zip(dialogue.node_ids, row.spans, row.closing, strict=True):
            node = self.nodes[node_id]
            if not node["top_ids"]:
                continue
            stored = np.asarray(node["top_ids"], dtype=np.int32).reshape(-1, k)
            values = np.asarray(node["top_logprobs"], dtype=np.float32).reshape(-1, k)
            ids[a:b], logprobs[a:b] = stored[: b - a], values[: b - a]
            if len(stored) > b - a and d > c:  # the distribution over what ends the answer, where it was stored
                ids[c], logprobs[c] = stored[b - a], values[b - a]
        trained = row.weights > 0
        return ids[trained], logprobs[trained]


def _nodes(corpus_dir: Path, wanted_nodes: set[str]) -> dict[str, dict[str, Any]]:
    from regrow.grow.corpus import read_nodes

    out = {}
    for node in read_nodes(corpus_dir, columns=["id", "token_ids", "top_ids", "top_logprobs"]):
        if node.id in wanted_nodes:
            out[node.id] = {"token_ids": node.token_ids, "top_ids": node.top_ids, "top_logprobs": node.top_logprobs}
    missing = wanted_nodes - out.keys()
    if missing:
        raise DataError(f"{len(missing)} nodes that dialogues name are not in nodes.parquet", where=str(corpus_dir))
    return out


def _record(row_id: str, source: str, domain: str, row: TokenRow) -> dict[str, Any]:
    return {
        "id": row_id,
        "source": source,
        "domain": domain,
        "input_ids": row.ids,
        "loss_weights": row.weights,
        "topk_ids": [],
        "topk_logprobs": [],
        "topk_k": 0,
        "n_tokens": len(row.ids),
        "n_train_tokens": int((row.weights > 0).sum()),
    }


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "id": pa.string(),
            "source": pa.string(),
            "domain": pa.string(),
            "input_ids": pa.list_(pa.int32()),
            "loss_weights": pa.list_(pa.float32()),
            "topk_ids": pa.list_(pa.int32()),
            "topk_logprobs": pa.list_(pa.float32()),
            "topk_k": pa.int32(),
            "n_tokens": pa.int32(),
            "n_train_tokens": pa.int32(),
        }
    )
    with atomic_path(path) as tmp, pq.ParquetWriter(tmp, schema, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for record in rows:
            batch.append(record)
            if len(batch) == WRITE_ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
