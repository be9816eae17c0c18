"""Token rows beside the stream: what is measured while a model trains, and what joins the stream later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from regrow.mix.config import MixConfig
from regrow.mix.mixtures import WATCHED
from regrow.mix.stage import Encoder, scratch_in
from regrow.mix.table import record, write_parquet
from regrow.mix.trees import alone
from regrow.rows.row import Row


def write_watched(corpus_dir: Path, rows: Sequence[Row], model_dir: Path, cfg: MixConfig, out: Path) -> Counter[str]:
    """Write ``out/watched.parquet``: the dialogues that curation held out to be watched, and rows of yours.

    Args:
        corpus_dir: A corpus that was curated with ``watch_dialogues``.
        rows: Of yours; they must not be in the stream.
        model_dir: For the tokenizer and its chat template.
        cfg: ``max_length``, ``system_prompt``, ``assistant_only_loss`` (of your rows).
        out: The folder of a mix.

    Returns:
        Tokens by topic (by domain, for your rows).

    Raises:
        DataError: None of the dialogues fits.
        RunError: The corpus has none.
    """
    from regrow.grow.corpus import WATCHED as DIALOGUES

    whole = cfg.model_copy(update={"tree_loss": "paths"})
    return _write(corpus_dir, model_dir, whole, out / WATCHED, which=DIALOGUES, only=None, rows=rows)


def write_rows(rows: Sequence[Row], model_dir: Path, cfg: MixConfig, path: Path) -> Counter[str]:
    """Write rows of yours as token rows, to be measured while others are trained on.

    Returns:
        Tokens by domain.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(model_dir, cfg)
    tokens: Counter[str] = Counter()

    def records() -> Iterator[dict[str, Any]]:
        for row in rows:
            for row_id, example in encoder.examples(row):
                tokens[row.domain] += len(example.ids)
                yield record(row_id, "domain", row.domain, example.ids, example.weights)

    write_parquet(path, records())
    return tokens


def write_part(
    corpus_dir: Path, model_dir: Path, cfg: MixConfig, path: Path, *, only: Collection[str]
) -> Counter[str]:
    """Write the dialogues ``only`` (ids) of a corpus as replay rows that can join a stream.

    Returns:
        Tokens by topic; empty, and no file, when none of them fits ``max_length``.
    """
    return _write(corpus_dir, model_dir, cfg, path, which=None, only=set(only), rows=[])


def _write(
    corpus_dir: Path, model_dir: Path, cfg: MixConfig, path: Path, *, which: str | None, only: set[str] | None,
    rows: Sequence[Row],
) -> Counter[str]:  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens: Counter[str] = Counter()
    encoder = Encoder(model_dir, cfg)
    with scratch_in(path.parent) as scratch:
        grown = encoder.dialogues(corpus_dir, which=which)
        chosen = [i for i, p in enumerate(grown.paths) if only is None or p.id in only]
        if not chosen:
            return tokens
        grown.load(chosen, scratch)

        def records() -> Iterator[dict[str, Any]]:
            for one in alone(grown.paths, chosen):
                yield from grown.records(one)
            for row in rows:
                for row_id, example in encoder.examples(row):
                    yield record(row_id, "domain", row.domain, example.ids, example.weights)

        def counted() -> Iterator[dict[str, Any]]:
            for item in records():
                tokens[item["domain"]] += item["n_tokens"]
                yield item

        write_parquet(path, counted())
    return tokens
