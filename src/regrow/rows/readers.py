"""Read anybody's fine-tuning data as `Row`s, and say exactly which line is wrong when one is."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from regrow.errors import DataError
from regrow.rows.formats import COMMON, FORMATS, Format, detect, wrong_columns
from regrow.rows.limits import Limits, Record
from regrow.rows.row import Row, Source
from regrow.rows.sources import find_files, read_records
from regrow.rows.validate import BadRow, check_dialogue, check_images, require_text, shorten

OnBad = Literal["error", "drop"]


@dataclass
class ReadResult:
    """What was read.

    Attributes:
        rows: The good rows in file order; ids are unique.
        dropped: Number of rows left out, by reason: exact duplicates always, others only with ``on_bad="drop"``.
        format: The format's name; names joined with ``+`` when the files of a folder differ.
        files: The files read, in order (empty for a hub data set).
        ignored: Columns that were in the data but not used, with the number of rows that had them.
    """

    rows: list[Row]
    dropped: dict[str, int]
    format: str
    files: list[Path]
    ignored: dict[str, int] = field(default_factory=dict)


def read_rows(
    path: str | Path,
    *,
    source: Source = "domain",
    domain: str | None = None,
    format: str = "auto",
    on_bad: OnBad = "error",
    columns: dict[str, str] | None = None,
    limit: int | None = None,
    limits: Limits | None = None,
) -> ReadResult:
    """Read a file, a folder of files or a hub data set.

    Args:
        path: A ``.jsonl``, ``.json``, ``.parquet``, ``.csv``, ``.tsv`` or ``.txt`` file (text ones also ``.gz``), a
            folder of such files (read in order of their paths), or a hub name ``owner/name[:split]`` (split ``train``
            by default).
        source: For rows that do not say it themselves.
        domain: For rows without a ``domain`` (or ``channel``) column; the name of the file or folder by default.
        format: A name out of `regrow.rows.formats.FORMATS`, or ``auto`` to tell from the columns.
        on_bad: ``error`` stops at the first bad row and names it; ``drop`` leaves bad rows out, counted by reason.
        columns: Renames: ``{"question": "my_column"}`` reads the field ``question`` from the column ``my_column``.
        limit: Stop after this many good rows.
        limits: What is refused as too large.

    Raises:
        DataError: Nothing to read; a bad row (``where`` is ``file:line``); no good row at all.
    """
    reading = _Reading(
        source=source, domain=domain, forced=_format(format), drop=on_bad == "drop", columns=columns or {},
        limit=limit, limits=limits or Limits(),
    )  # fmt: skip
    local = Path(path)
    if local.exists() or not _is_hub_name(str(path)):
        files = find_files(local)
        for file in files:
            shown = file.name if file == local else file.relative_to(local).as_posix()
            root = file.parent if file == local else local
            reading.default_domain = local.name.split(".")[0] or local.resolve().name
            reading.add(read_records(file, reading.limits), str(file), shown, root)
    else:
        files = []
        reading.default_domain = str(path).split("/")[-1].split(":")[0]
        reading.add(_hub_records(str(path)), str(path), str(path), None)
    return reading.result(str(path), files)


def _format(name: str) -> Format | None:
    if name == "auto":
        return None
    if name not in FORMATS:
        raise DataError(f"unknown format {name!r}", where="format", hint=f"Known: auto, {', '.join(FORMATS)}.")
    return FORMATS[name]


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?", name) is not None and not re.search(
        r"\.(jsonl?|ndjson|parquet|csv|tsv|txt)(\.gz)?$", name, re.IGNORECASE
    )


def _hub_records(name: str) -> Iterator[Record]:
    """The rows of a hub data set, ``owner/name[:split]``; its code is never run."""
    from datasets import load_dataset

    repo, _, split = name.partition(":")
    try:
        data = load_dataset(repo, split=split or "train")
    except Exception as err:  # the hub client raises errors of many libraries
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0") or os.environ.get(
            "HF_DATASETS_OFFLINE", ""
        ) not in ("", "0")
        why = (
            "hub access is switched off (HF_HUB_OFFLINE)"
            if offline
            else f"{type(err).__name__}: {str(err).splitlines()[0][:200]}"
        )
        raise DataError(
            f"no such file or folder here, and it cannot be had from the hub either: {why}", where=name,
            hint="Give the path of a file or folder, or check the name, the split (owner/name:split) and the network.",
        ) from err  # fmt: skip
    for n, record in enumerate(data, 1):
        yield Record(n, record)


class _Reading:
    """The state of one `read_rows`: what was seen so far over all files."""

    def __init__(
        self, *, source: Source, domain: str | None, forced: Format | None, drop: bool, columns: Mapping[str, str],
        limit: int | None, limits: Limits,
    ) -> None:  # fmt: skip
        self.source, self.domain, self.forced, self.drop = source, domain, forced, drop
        self.columns, self.limit, self.limits = columns, limit, limits
        self.default_domain = ""
        self.rows: list[Row] = []
        self.dropped: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.formats: dict[str, None] = {}
        self._ids: dict[str, str] = {}
        self._seen: set[bytes] = set()

    @property
    def full(self) -> bool:
        return self.limit is not None and len(self.rows) >= self.limit

    def add(self, records: Iterator[Record], file: str, shown: str, root: Path | None) -> None:
        """Read one file to its end, or until `limit` is reached."""
        current: Format | None = self.forced
        n = last_line = 0
        for n, record in enumerate(records, 1):
            if self.full:
                return
            where = f"{file}:{record.line}"
            if record.line == last_line:  # a JSON array on one line
                where += f" (row {n})"
            last_line = record.line
            try:
                if isinstance(record.data, BadRow):
                    raise record.data
                data = self._renamed(record.data)
                current = self._format_of(data, current)
                row = self._row(data, current, root, shown, record.line, n)
                if self._is_new(row, where):
                    self.rows.append(row)
                    self.formats[current.name] = None
            except BadRow as bad:
                if not self.drop:
                    raise DataError(bad.message, where=where, hint=bad.hint) from None
                self.dropped[bad.reason] += 1
        if n == 0:
            if not self.drop:
                raise DataError("the file is empty", where=file)
            self.dropped["empty file"] += 1

    def _renamed(self, data: Mapping[str, Any]) -> dict[str, Any]:
        out = dict(data)
        for wanted, have in self.columns.items():
            if have not in out:
                raise wrong_columns(out, Format(f"columns={dict(self.columns)}", (have,), (), FORMATS["text"].parse))
            out[wanted] = out.pop(have)
        return out

    def _format_of(self, data: Mapping[str, Any], current: Format | None) -> Format:
        if self.forced is not None:
            if not set(self.forced.required) <= set(data):
                raise wrong_columns(data, self.forced)
            return self.forced
        found = detect(data)
        if found is None and current is None:
            raise wrong_columns(data)
        if found is None or current is None:
            if found is None and current is not None:
                raise wrong_columns(data, current)
            assert found is not None
            return found
        # LLaVA's files mix rows with an image and rows without.
        if found is not current and {found.name, current.name} != {"llava", "sharegpt"}:
            raise BadRow(
                "mixed formats",
                f"this row is {found.name!r}, but the file began as {current.name!r}",
                "Split the file by format, or force one with data.format.",
            )
        return found

    def _row(self, data: Mapping[str, Any], form: Format, root: Path | None, file: str, line: int, n: int) -> Row:
        meta = _meta(data)
        parsed = form.parse({**data, "meta": meta}, root)
        messages = check_dialogue(parsed.messages, kind=parsed.kind)
        check_images(messages, parsed.images)
        size = sum(len(str(m["content"])) for m in messages)
        if size > self.limits.row_bytes:
            raise BadRow("too long", f"the row is {size:,} characters long; the limit is {self.limits.row_bytes:,}")
        known = {*COMMON, *form.required, *form.optional}
        self.ignored.update(str(c) for c, v in data.items() if c not in known and v is not None)
        if parsed.kind:
            meta["kind"] = parsed.kind
        meta.setdefault("file", file)
        meta.setdefault("line", line)
        own_source = data.get("source")
        return Row(
            id=_id(data.get("id"), f"{file}#{n}"), messages=messages, images=parsed.images, meta=meta,
            source=own_source if own_source in ("domain", "replay") else self.source,
            domain=_label(data.get("domain")) or _label(data.get("channel")) or self.domain or self.default_domain,
        )  # fmt: skip

    def _is_new(self, row: Row, where: str) -> bool:
        """Whether the row is no exact duplicate of an earlier one; raises `BadRow` when only its id is."""
        said = json.dumps([row.messages, row.images, row.source], sort_keys=True).encode()
        key = hashlib.blake2b(said, digest_size=16).digest()
        if key in self._seen:
            self.dropped["exact duplicate"] += 1
            return False
        if row.id in self._ids:
            raise BadRow(
                "duplicated id",
                f"the id {shorten(row.id)} was already used at {self._ids[row.id]}",
                "Ids must be unique; leave the column out to have them numbered.",
            )
        self._seen.add(key)
        self._ids[row.id] = where
        return True

    def result(self, path: str, files: list[Path]) -> ReadResult:
        if not self.rows:
            counts = (
                ", ".join(f"{n:,} {reason}" for reason, n in self.dropped.most_common()) or "the data set is empty"
            )
            raise DataError(
                f"no usable row: {counts}", where=path, hint="Read with on_bad='error' to see the first bad one."
            )
        names = [f for f in self.formats if f != "sharegpt" or "llava" not in self.formats]
        ignored = dict(sorted(self.ignored.items()))
        return ReadResult(self.rows, dict(sorted(self.dropped.items())), "+".join(names), files, ignored)


def _id(value: object, default: str) -> str:
    if value is None or value == "":
        return default
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return require_text(value, "the id")


def _label(value: object) -> str:
    return require_text(value, "the domain").strip() if isinstance(value, str) else ""


def _meta(data: Mapping[str, Any]) -> dict[str, Any]:
    """The row's ``meta`` when it is an object (or its JSON, as in our Parquet files), and its ``group``.

    Raises:
        BadRow: It holds what could not be written again (NaN, bytes, a lone surrogate).
    """
    value = data.get("meta")
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    meta = dict(value) if isinstance(value, Mapping) else {}
    if data.get("group") is not None:
        meta["group"] = data["group"]
    try:
        json.dumps(meta, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, TypeError) as err:
        raise BadRow("bad meta", f"'meta' (or 'group') has no JSON form: {err}") from None
    return meta
