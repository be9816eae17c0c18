"""The mix stage: your rows and the corpus in, one stream of token rows out."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regrow.errors import DataError, ModelError
from regrow.mix.config import MixConfig
from regrow.mix.grown import GrownRows
from regrow.mix.replay import choose, domain_order, even_weight, interleave, wanted
from regrow.mix.table import Shelf, batches, record, schema, shelve, write_parquet
from regrow.mix.tokenize import TokenRow, cut_to_pieces, encode, encode_text, is_text, shorten
from regrow.mix.trees import Bundle, alone, bundle
from regrow.progress import note, task
from regrow.rows.row import Message, Row
from regrow.rows.writers import atomic_write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from regrow.models.turns import Turns

SCRATCH = ".scratch"
SHORT_OF = 0.98
"""Below this share of the replay asked for, the run says that the corpus was too small."""


@dataclass
class MixSummary:
    """What was mixed; also in ``mix.json``.

    Attributes:
        asked: ``replay_ratio`` and its ``unit``.
        realised: Replay's share of all tokens (``tokens``), of trained ones (``train_tokens``), of rows (``rows``),
            and of the tokens that the trainer computes (``computed_tokens``; smaller with ``tree_packing``).
        domain, replay: ``rows``, ``tokens``, ``train_tokens`` (loss weights above 0), ``distinct`` examples used, and
            how many were ``given`` (your rows, dialogues of the corpus).
        epochs: Passes over your rows that are laid out in the stream.
        tree_loss: How shared turns of replay are weighted.
        trees: What tree packing saves: whether the stream is ``packed``; ``path_tokens`` of the replay, every dialogue
            in full, which is what ``replay_ratio`` counts; ``unique_tokens``, with each shared beginning once, in
            sequences of ``max_length`` (with ``packed`` false: what it would be); ``bundles`` of several dialogues and
            ``bundled`` dialogues in them; ``unique_tokens_unlimited``, what is left when a whole tree is one sequence.
        dropped: Rows and dialogues left out, by reason.
        shortened: Rows and dialogues used in part, by reason.
        topk: Stored log-probabilities a position, 0 when the corpus has none.
    """

    asked: dict[str, Any]
    realised: dict[str, float]
    domain: dict[str, int]
    replay: dict[str, int]
    epochs: float
    tree_loss: str
    trees: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    shortened: dict[str, int] = field(default_factory=dict)
    topk: int = 0

    @property
    def even_weight(self) -> float:
        """The ``train.replay_weight`` with which replay is as much of the loss as it is of the tokens."""
        yours, grown = self.domain, self.replay
        return even_weight(yours["tokens"], yours["train_tokens"], grown["tokens"], grown["train_tokens"])

    def to_dict(self) -> dict[str, Any]:
        """JSON shape."""
        return asdict(self)


class Encoder:
    """The user's rows to token rows under one tokenizer; counts what it drops and shortens."""

    def __init__(self, model_dir: Path, cfg: MixConfig) -> None:
        from regrow.models.load import load_tokenizer

        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model_dir)
        self.cfg = cfg
        self.dropped: Counter[str] = Counter()
        self.shortened: Counter[str] = Counter()
        self._turns: Turns | None = None

    def turns(self) -> Turns:
        """Derived when a dialogue needs them: plain text works without a chat template."""
        if self._turns is None:
            from regrow.models.turns import derive_turns

            self._turns = derive_turns(self.tokenizer)
        return self._turns

    def dialogues(self, corpus_dir: Path, *, which: str | None = None) -> GrownRows:
        """The dialogues of a corpus under the same tokenizer, counted with the rest (see `regrow.mix.grown`)."""
        return GrownRows(
            corpus_dir,
            self.tokenizer,
            self.turns,
            self.cfg,
            dropped=self.dropped,
            shortened=self.shortened,
            which=which,
        )

    def examples(self, row: Row) -> list[tuple[str, TokenRow]]:
        """``(id, token row)`` of a row: one, several for a long text, none when it cannot be used (counted)."""
        if is_text(row):
            whole = encode_text(self.tokenizer, _text(row.messages[0]["content"], row))
            pieces = cut_to_pieces(whole, self.cfg.max_length)
            if len(pieces) > 1:
                self.shortened["your texts cut into pieces of max_length"] += 1
        else:
            one = self._dialogue(row)
            pieces = [one] if one is not None else []
        out = []
        for n, piece in enumerate(pieces, 1):
            if not self.cfg.assistant_only_loss:
                piece.weights[:] = 1.0
            piece.weights[:1] = 0.0  # nothing comes before the first token to predict it from
            if piece.weights.any():
                out.append((row.id if n == 1 else f"{row.id}#{n}", piece))
        if pieces and not out:
            self.dropped["your rows without an answer to train on"] += 1
        return out

    def _dialogue(self, row: Row) -> TokenRow | None:
        messages: list[Message] = [{"role": m["role"], "content": _text(m["content"], row)} for m in row.messages]
        while messages and messages[-1]["role"] == "user":  # a question without an answer teaches nothing
            messages.pop()
        if not any(m["role"] == "assistant" for m in messages):
            self.dropped["your rows without an answer to train on"] += 1
            return None
        if self.cfg.system_prompt is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.cfg.system_prompt})
        turns = self.turns()
        try:
            whole = encode(self.tokenizer, turns, messages)
        except ModelError as error:
            raise DataError(error.message, where=_place(row), hint="mend the row or remove it") from error
        if len(whole.ids) <= self.cfg.max_length:
            return whole
        kept = shorten(whole, self.cfg.max_length)
        if kept is None:
            self.dropped["your rows longer than max_length"] += 1
        elif len(kept.spans) < len(whole.spans):
            self.shortened["your rows that lost their last turns"] += 1
        return kept


def _place(row: Row) -> str:
    file, line = row.meta.get("file"), row.meta.get("line")
    return f"{file}:{line}" if file and line else f"row '{row.id}'"


def _text(content: Any, row: Row) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(b, dict) and b.get("type") == "text" for b in content):
        return "".join(str(block["text"]) for block in content)
    raise DataError(
        "the row has content that is not text", where=_place(row), hint="a language model's mix holds text only"
    )


def count_tokens(rows: Sequence[Row], model_dir: Path, cfg: MixConfig) -> int:
    """Tokens of one pass over ``rows`` as they will be trained on."""
    encoder = Encoder(model_dir, cfg)
    return sum(len(example.ids) for row in rows for _, example in encoder.examples(row))


def replay_tokens_wanted(rows: Sequence[Row], model_dir: Path, cfg: MixConfig, *, epochs: float) -> int:
    """Replay tokens the ratio asks for over all epochs; with ``replay_unit: rows`` an estimate that takes replay rows
    to be as long as yours."""
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
    nested: bool = False,
) -> MixSummary:
    """Write ``out/train.parquet`` (token rows in training order) and ``out/mix.json``.

    All epochs over your rows are laid out one after the other, each in its own order and with its own replay: a replay
    dialogue comes back only when the corpus is too small. The trainer then passes over the stream once. The order of
    your rows depends on the seed and their number alone, so that arms with other replay or none see them alike.

    Columns of ``train.parquet``: ``id``, ``source``, ``domain``, ``input_ids``, ``loss_weights`` (same length; weight
    of the loss on that token), ``topk_ids`` and ``topk_logprobs`` (flat, ``n_train_tokens`` x ``topk_k``, in order of
    the positions with a weight above 0; empty without a stored distribution; id -1 and -inf at single positions that
    have none, such as an end token that was not scored), ``topk_k``, ``n_tokens``, ``n_train_tokens``, ``n_shared``
    (tokens at the beginning that are those of the row before it; above 0 only with ``tree_packing``).

    Args:
        domain_rows: Your rows.
        corpus_dir: A corpus (see `regrow.grow.corpus`), or None for no replay.
        model_dir: For the tokenizer and its chat template.
        cfg: Settings.
        out: Result folder.
        seed: Order of rows, choice of dialogues.
        epochs: Passes over your rows.
        nested: Use the dialogues in one order and stop where the ratio is met, so that a mix with a smaller ratio, of
            the same corpus and seed, has the beginning of this one's replay (see `regrow.mix.replay.choose`).

    Raises:
        DataError: No row can be trained on, a row is malformed (named), or replay is asked of an empty corpus.
        ModelError: The chat template cannot be used.
    """
    with scratch_in(out) as scratch:
        encoder = Encoder(model_dir, cfg)
        domain, domain_sizes = _shelve_domain(domain_rows, encoder, scratch / "domain.arrow")
        order = domain_order(len(domain), epochs, seed)
        sizes = domain_sizes[order].tolist()
        replay: GrownRows | None = None
        chosen: list[int] = []
        bundles: list[Bundle] = []
        saved: dict[str, Any] = {}
        if corpus_dir is not None and cfg.replay_ratio > 0:
            replay = encoder.dialogues(corpus_dir)
            chosen = _choose(replay, cfg, sizes, seed, nested=nested)
            replay.load(chosen, scratch)
            bundles, saved = _bundles(replay, chosen, cfg)
        plan = interleave(sizes, [b.tokens for b in bundles])
        totals: dict[str, Counter[str]] = {"domain": Counter(), "replay": Counter()}

        def records() -> Iterator[dict[str, Any]]:
            with task("mixing", len(sizes) + len(chosen), "rows") as bar:
                for slot in plan:
                    if slot.replay:
                        assert replay is not None
                        items = replay.records(bundles[slot.index])
                    else:
                        items = iter([_from_shelf(domain, int(order[slot.index]))])
                    for item in items:
                        counts = totals[item["source"]]
                        counts.update(
                            rows=1,
                            tokens=item["n_tokens"],
                            train_tokens=item["n_train_tokens"],
                            computed_tokens=item["n_tokens"] - item["n_shared"],
                        )
                        bar.advance(1)
                        yield item

        write_parquet(out / "train.parquet", records())
    summary = MixSummary(
        asked={"replay_ratio": cfg.replay_ratio if corpus_dir is not None else 0.0, "unit": cfg.replay_unit},
        realised={
            key: totals["replay"][key] / max(1, totals["replay"][key] + totals["domain"][key])
            for key in ("tokens", "train_tokens", "rows", "computed_tokens")
        },
        domain={**_counts(totals["domain"]), "distinct": len(np.unique(order)), "given": len(domain_rows)},
        replay={
            **_counts(totals["replay"]),
            "distinct": len(set(chosen)),
            "given": replay.n_dialogues if replay else 0,
        },
        epochs=float(epochs),
        tree_loss=cfg.tree_loss,
        trees=saved,
        dropped=dict(sorted(encoder.dropped.items())),
        shortened=dict(sorted(encoder.shortened.items())),
        topk=replay.topk if replay else 0,
    )
    atomic_write_text(out / "mix.json", json.dumps(summary.to_dict(), indent=1) + "\n")
    return summary


def _bundles(replay: GrownRows, chosen: Sequence[int], cfg: MixConfig) -> tuple[list[Bundle], dict[str, Any]]:
    """The replay in the order of the stream, and what tree packing saves (or would save) on it."""
    packed = bundle(replay.paths, chosen, cfg.max_length)
    several = [b for b in packed if len(b.members) > 1]
    saved = {
        "packed": cfg.tree_packing,
        "path_tokens": sum(b.tokens for b in packed),
        "unique_tokens": sum(b.unique_tokens for b in packed),
        "unique_tokens_unlimited": sum(b.unique_tokens for b in bundle(replay.paths, chosen, float("inf"))),
        "bundles": len(several),
        "bundled": sum(len(b.members) for b in several),
    }
    if cfg.tree_packing:
        note(
            f"mix: {saved['bundled']:,} of {len(chosen):,} replay dialogues stand in {saved['bundles']:,} trees; "
            f"of the {saved['path_tokens']:,} replay tokens, which replay_ratio counts, {saved['unique_tokens']:,} "
            "are computed"
        )
    return packed if cfg.tree_packing else alone(replay.paths, chosen), saved


def _counts(totals: Counter[str]) -> dict[str, int]:
    return {key: totals[key] for key in ("rows", "tokens", "train_tokens")}


@contextmanager
def scratch_in(out: Path) -> Iterator[Path]:
    """A folder inside ``out`` that is gone afterwards; what a killed process left there goes first."""
    scratch = out / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _shelve_domain(rows: Sequence[Row], encoder: Encoder, path: Path) -> tuple[Shelf, npt.NDArray[np.int64]]:
    """Encode the rows to a memory-mapped file; returns it and the tokens of each example."""
    sizes: list[int] = []

    def records() -> Iterator[dict[str, Any]]:
        with task("encoding your rows", len(rows), "rows") as bar:
            for row in rows:
                for row_id, example in encoder.examples(row):
                    sizes.append(len(example.ids))
                    yield record(row_id, "domain", row.domain, example.ids, example.weights)
                bar.advance(1)

    with shelve(path, schema()) as writer:
        for batch in batches(records()):
            writer.write_batch(batch)
    if not sizes:
        raise DataError(
            "none of your rows can be trained on", where="data", hint=f"dropped: {dict(encoder.dropped) or 'no rows'}"
        )
    return Shelf(path), np.asarray(sizes, np.int64)


def _from_shelf(shelf: Shelf, row: int) -> dict[str, Any]:
    row_id, domain = shelf.value(row, "id"), shelf.value(row, "domain")
    return record(row_id, "domain", domain, shelf.value(row, "input_ids"), shelf.value(row, "loss_weights"))


def _choose(replay: GrownRows, cfg: MixConfig, sizes: Sequence[int], seed: int, *, nested: bool) -> list[int]:
    """Indices of the replay dialogues that the ratio asks for; says so when the corpus is too small for it."""
    by_tokens = cfg.replay_unit == "tokens"
    unit = replay.sizes if by_tokens else [1] * len(replay.sizes)
    target = wanted(sum(sizes) if by_tokens else len(sizes), cfg.replay_ratio)
    rng = np.random.default_rng([seed, 0x5EED])
    chosen = choose(unit, replay.topics, target, max_repeats=cfg.max_repeats, rng=rng, nested=nested)
    got = sum(unit[i] for i in chosen)
    exhausted = len(chosen) == cfg.max_repeats * len(unit)
    if not chosen:
        note(
            f"mix: a replay_ratio of {cfg.replay_ratio:g} of so little data is less than half a dialogue; "
            "this mix has no replay"
        )
    elif exhausted and got < SHORT_OF * target:
        note(
            f"mix: the corpus has {got:,} of the {round(target):,} {cfg.replay_unit} of replay wanted, "
            f"each dialogue used {cfg.max_repeats} times; more dialogues, or a lower mix.replay_ratio, would meet it"
        )
    elif len(chosen) > len(set(chosen)):
        note(
            f"mix: the corpus is small for the ratio: {len(set(chosen)):,} dialogues make {len(chosen):,} replay rows"
        )
    return chosen
