"""The curate stage: a grown corpus in; a clean one, the held-out dialogues, and the reason of every drop out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from regrow.curate.config import CurateConfig
from regrow.curate.decontaminate import Encodes, probes, row_probes
from regrow.curate.forest import HELD, HELD_OUT, Forest, paths_through
from regrow.curate.passes import (
    CONTAMINATED,
    YOURS,
    Vectors,
    as_items,
    drop_contaminated,
    drop_duplicates,
    drop_low_quality,
    drop_near_held_out,
    hold_out,
    watch,
)
from regrow.curate.write import check_replaceable, replace_folder, write_curated
from regrow.errors import DataError
from regrow.evaluate.items import Item
from regrow.grow.corpus import WATCHED, Dialogue, read_dialogues, write_dialogues
from regrow.progress import note
from regrow.rows.row import Row
from regrow.rows.writers import atomic_write_text, write_json_lines

OWN, DROPPED, SUMMARY = "own_dialogues.jsonl", "dropped.jsonl", "curate.json"


@dataclass
class CurateSummary:
    """What curation did; also in ``curate.json``.

    Attributes:
        dialogues: ``in``, ``kept``, ``held_out`` (never trained on), ``evaluated`` (of those, the evaluation items),
            ``watched`` (measured while a model trains, never trained on).
        turns: Nodes on a dialogue, ``in`` and ``kept``.
        tokens, bytes: Of the text of those turns, ``in`` and ``kept``.
        dropped: By reason: ``turns`` with this reason, ``dialogues`` lost to it, ``bytes`` of those turns.
        compared_with: Evaluation items and rows of yours that the corpus was compared with.
    """

    dialogues: dict[str, int]
    turns: dict[str, int]
    tokens: dict[str, int]
    bytes: dict[str, int]
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    compared_with: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON shape."""
        return asdict(self)


def curate(
    corpus_dir: Path,
    cfg: CurateConfig,
    out: Path,
    *,
    items: Sequence[Item],
    domain_rows: Sequence[Row],
    encoder: Encodes | None,
    seed: int,
    earlier: Path | None = None,
) -> CurateSummary:
    """Write a cleaned copy of a corpus to ``out``, in the same layout.

    Dropping a turn drops every dialogue through it. Nodes keep their row, with ``kept`` false and the reason;
    ``n_paths`` counts the dialogues that are left. ``out`` also gets ``own_dialogues.jsonl`` (held-out dialogues as
    evaluation items), with ``watch_dialogues`` also ``watched.parquet``, ``dropped.jsonl`` (id, reason, evidence) and
    ``curate.json`` (`CurateSummary`). It appears whole or not at all; a second call with the same arguments writes the
    same bytes.

    Args:
        corpus_dir: A grown corpus; stays as it is.
        cfg: Settings.
        out: Result folder; replaced when it holds an earlier result of this stage.
        items: Evaluation items that must not occur in the corpus, by words and by meaning.
        domain_rows: Rows of the user that must not occur in it either: those held out for evaluation, or all.
        encoder: Sentence encoder; None when neither ``dedup_method`` nor ``embedding_threshold`` needs one.
        seed: Chooses the held-out dialogues.
        earlier: An earlier result of this stage, of the same corpus when it had fewer trees. What was held out then is
            held out now, and nothing else is; new turns that repeat an older one or a held-out one go, as the later
            ones.

    Raises:
        DataError: Nothing is left of the corpus.
        RecipeError: A setting needs an encoder and there is none.
        RunError: There is no corpus, or ``out`` holds something else.
    """
    check_replaceable(out, SUMMARY)
    forest = Forest(corpus_dir)
    vectors = Vectors(forest, encoder)
    drop_low_quality(forest, cfg)
    drop_contaminated(forest, cfg, probes(items), vectors, reason=CONTAMINATED)
    drop_contaminated(forest, cfg, row_probes(domain_rows), vectors, reason=YOURS)
    drop_duplicates(forest, cfg, vectors, seed)
    forest.prune()
    held, watched = _hold_out(forest, cfg, seed) if earlier is None else _hold_out_again(forest, earlier)
    if any(drop.reason in HELD for drop in forest.dropped.values()):
        drop_near_held_out(forest, cfg, vectors, seed)
    forest.prune()
    kept = list(forest.whole())
    summary = _summary(forest, cfg, len(kept), len(held), items, domain_rows, seed)
    summary.dialogues |= {"watched": len(watched)} if watched else {}
    if not kept:
        raise DataError(
            f"nothing is left of {len(forest.dialogues)} dialogues",
            where=str(corpus_dir),
            hint="; ".join(f"{why}: {n['turns']} turns" for why, n in summary.dropped.items())
            or "the corpus is empty",
        )
    with replace_folder(out, marker=SUMMARY) as folder:
        reasons = {turn: drop.reason for turn, drop in forest.dropped.items()}
        write_curated(corpus_dir, folder, reasons, {d.id for d in kept}, paths_through(kept), summary.to_dict())
        write_json_lines((asdict(item) for item in held), folder / OWN)
        if watched:
            write_dialogues(folder / WATCHED, watched)
        write_json_lines(
            ({"id": turn, **_drop_record(forest, turn)} for turn in forest.turns if turn in forest.dropped),
            folder / DROPPED,
        )
        atomic_write_text(folder / SUMMARY, json.dumps(summary.to_dict(), indent=1, ensure_ascii=False) + "\n")
    return summary


def _hold_out(forest: Forest, cfg: CurateConfig, seed: int) -> tuple[list[Item], list[Dialogue]]:
    """Hold bushes out; what is evaluated and what is watched of them."""
    held = hold_out(forest, cfg, seed)
    if not isinstance(cfg.holdout_dialogues, float) and len(held) < cfg.holdout_dialogues:
        note(f"curate: {len(held)} of {cfg.holdout_dialogues} dialogues held out, as at most half of the bushes are")
    watched = watch(forest, cfg, seed) if cfg.watch_dialogues else []
    if cfg.watch_dialogues and not watched:
        raise DataError(
            "no topic has two first questions, so none can be held out",
            where="curate.watch_dialogues",
            hint="grow more, or fewer topics; or set it to 0",
        )
    return as_items(held), watched


def _hold_out_again(forest: Forest, earlier: Path) -> tuple[list[Item], list[Dialogue]]:
    """Hold out what an earlier curation did."""
    for line in (earlier / DROPPED).read_text(encoding="utf-8").splitlines():
        drop = json.loads(line)
        if drop["reason"] in HELD and drop["id"] in forest.turns and forest.turns[drop["id"]].layer == 1:
            forest.drop(drop["id"], drop["reason"], {})
    items = [Item(**json.loads(line)) for line in (earlier / OWN).read_text(encoding="utf-8").splitlines()]
    return items, read_dialogues(earlier, WATCHED) if (earlier / WATCHED).is_file() else []


def _drop_record(forest: Forest, turn: str) -> dict[str, Any]:
    drop = forest.dropped[turn]
    return {"reason": drop.reason, "evidence": drop.evidence}


def _summary(
    forest: Forest,
    cfg: CurateConfig,
    n_kept: int,
    n_items: int,
    items: Sequence[Item],
    domain_rows: Sequence[Row],
    seed: int,
) -> CurateSummary:
    turns, sizes, lost = Counter[str](), Counter[str](), Counter(forest.lost())
    for turn_id, drop in forest.dropped.items():
        turns[drop.reason] += 1
        sizes[drop.reason] += forest.turns[turn_id].n_bytes
    alive = forest.alive()
    every = forest.turns.values()
    return CurateSummary(
        dialogues={"in": len(forest.dialogues), "kept": n_kept, "held_out": lost[HELD_OUT], "evaluated": n_items},
        turns={"in": len(forest.turns), "kept": len(alive)},
        tokens={"in": sum(t.n_tokens for t in every), "kept": sum(t.n_tokens for t in alive)},
        bytes={"in": sum(t.n_bytes for t in every), "kept": sum(t.n_bytes for t in alive)},
        dropped={
            reason: {"turns": turns[reason], "dialogues": lost[reason], "bytes": sizes[reason]}
            for reason in sorted(turns, key=lambda r: (-turns[r], r))
        },
        compared_with={"items": len(items), "your_rows": len(domain_rows)},
        seed=seed,
        config=cfg.model_dump(mode="json"),
    )
