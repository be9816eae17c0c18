"""Files to raw records: JSON, JSON Lines, Parquet, CSV/TSV and text, plain or gzipped."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from regrow.errors import DataError
from regrow.rows.json_text import parse_document, parse_line
from regrow.rows.limits import BOM, Limits, Record, not_utf8, too_long, too_many_columns
from regrow.rows.validate import BadRow

SUFFIXES = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
}
IGNORED = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""JSON files that describe a data set rather than hold rows."""


def container(path: Path) -> str | None:
    """Which kind of file this is by its name, ``.gz`` looked through; None when it is none of ours."""
    name = path.name.lower().removesuffix(".gz")
    kind = SUFFIXES.get(Path(name).suffix)
    return None if kind == "parquet" and path.name.lower().endswith(".gz") else kind


def find_files(path: Path) -> list[Path]:
    """The data files of a folder (with its subfolders, in order of their paths), or the file itself.

    Hidden files, links that lead elsewhere and files of other kinds are passed over.

    Raises:
        DataError: Nothing to read.
    """
    known = ", ".join(SUFFIXES) + " (also .gz)"
    if path.is_file():
        if container(path) is None:
            raise DataError(
                f"cannot tell the kind of file from the name {path.name!r}",
                where=str(path),
                hint=f"Known endings: {known}.",
            )
        return [path]
    if not path.is_dir():
        if path.exists():
            raise DataError("neither a file nor a folder", where=str(path))
        hint = "" if path.is_absolute() else f"A relative path starts where the command runs: {path.absolute()}."
        raise DataError("no such file or folder", where=str(path), hint=hint or None)
    found = []
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        for name in names:
            file = Path(folder) / name
            if not name.startswith(".") and name not in IGNORED and container(file) and _inside(file, path):
                found.append(file)
    if not found:
        arrow = any(path.rglob("*.arrow"))
        raise DataError(
            "no data files in this folder",
            where=str(path),
            hint="Save the data set with to_parquet or to_json first." if arrow else f"Known endings: {known}.",
        )
    return sorted(found, key=lambda f: f.relative_to(path).as_posix())


def _inside(file: Path, folder: Path) -> bool:
    return file.is_file() and file.resolve().is_relative_to(folder.resolve())


def read_records(path: Path, limits: Limits) -> Iterator[Record]:
    """All records of one file in order. Faults of one record come as `BadRow`, so that the caller may go on.

    Raises:
        DataError: The file cannot be read on: a broken JSON array, CSV or Parquet, a zip bomb, too many columns.
    """
    kind = container(path)
    assert kind is not None
    try:
        if kind == "parquet":
            yield from _parquet(path, limits)
        else:
            with _opened(path, limits) as fh:
                yield from {"json": _json, "jsonl": _jsonl, "csv": _csv, "tsv": _csv, "txt": _txt}[kind](
                    fh, path, limits
                )
    except (gzip.BadGzipFile, EOFError, zlib.error) as err:
        raise DataError(f"the gzip file is damaged or not gzip: {err}", where=str(path)) from err
    except OSError as err:
        raise DataError(f"cannot be read: {err.strerror or err}", where=str(path)) from err


class _Limited:
    """A binary file that refuses to give more than ``limit`` bytes."""

    def __init__(self, fh: IO[bytes], limit: int | None, path: Path) -> None:
        self._fh, self._left, self._path, self._limit = fh, limit, path, limit

    def _count(self, data: bytes) -> bytes:
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise DataError(
                    f"unpacks to more than {self._limit:,} bytes",
                    where=str(self._path),
                    hint="Unpack it yourself if it is meant to be so large.",
                )
        return data

    def readline(self, size: int) -> bytes:
        return self._count(self._fh.readline(size))

    def read(self, size: int) -> bytes:
        return self._count(self._fh.read(size))


@contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[_Limited]:
    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as fh:
            yield _Limited(fh, limits.unpacked_bytes, path)  # type: ignore[arg-type]
    else:
        with path.open("rb") as fh:
            yield _Limited(fh, None, path)


def _lines(fh: _Limited, limit: int) -> Iterator[tuple[int, str | BadRow]]:
    """Numbered lines without their ``\\n``. Lines end at ``\\n`` only, so U+2028 and the like stay inside."""
    n = offset = 0
    while raw := fh.readline(limit + 1):
        n += 1
        length = len(raw)
        if length > limit:
            while not raw.endswith(b"\n") and (raw := fh.readline(1 << 16)):
                length += len(raw)
            yield n, too_long(length, limit)
        else:
            skip = len(BOM) if n == 1 and raw.startswith(BOM) else 0
            try:
                yield n, raw[skip:].decode("utf-8").removesuffix("\n")
            except UnicodeDecodeError as err:
                yield n, not_utf8(raw[skip:], err, offset + skip)
        offset += length


def _jsonl(fh: _Limited, path: Path, limits: Limits) -> Iterator[Record]:
    for n, line in _lines(fh, limits.row_bytes):
        if isinstance(line, BadRow):
            yield Record(n, line)
        elif line.strip():
            yield Record(n, parse_line(line, limits))


def _json(fh: _Limited, path: Path, limits: Limits) -> Iterator[Record]:
    raw = fh.read(limits.unpacked_bytes + 1)
    if len(raw) > limits.unpacked_bytes:
        raise DataError(
            f"larger than {limits.unpacked_bytes:,} bytes, and a JSON array must be read whole",
            where=str(path),
            hint="Save it as JSON Lines (.jsonl), which is read line by line.",
        )
    yield from parse_document(raw, path, limits)


def _csv(fh: _Limited, path: Path, limits: Limits) -> Iterator[Record]:
    """CSV or TSV with a header line, quoted as RFC 4180; quoted fields may span lines."""
    csv.field_size_limit(max(csv.field_size_limit(), limits.row_bytes))
    # A header of a million columns should be called that, not a long row.
    line_limit = max(limits.row_bytes, 64 << 20)

    def text_lines() -> Iterator[str]:
        for n, line in _lines(fh, line_limit):
            if isinstance(line, BadRow):
                raise DataError(line.message, where=f"{path}:{n}", hint=line.hint)
            yield line + "\n"

    tabs = (container(path) or "") == "tsv"
    reader = csv.reader(text_lines(), delimiter="\t" if tabs else ",", strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            begin, line = line, reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = _header(fields, path, begin, limits)
            else:
                yield Record(begin, _csv_record(header, fields, limits))
    except csv.Error as err:
        raise DataError(
            f"broken CSV: {err}",
            where=f"{path}:{line}",
            hint="Is a quote left open, or is the file really tab-separated (.tsv)?",
        ) from err


def _header(fields: list[str], path: Path, line: int, limits: Limits) -> list[str]:
    where = f"{path}:{line}"
    if len(fields) > limits.columns:
        bad = too_many_columns(len(fields), limits)
        raise DataError(bad.message, where=where, hint=bad.hint)
    header = [f.strip() for f in fields]
    twice = sorted({f for f in header if header.count(f) > 1})
    if twice:
        raise DataError(f"the column {twice[0]!r} occurs more than once", where=where)
    return header


def _csv_record(header: list[str], fields: list[str], limits: Limits) -> Mapping[str, Any] | BadRow:
    if len(fields) != len(header):
        return BadRow(
            "wrong number of fields",
            f"{len(fields)} fields, but the header has {len(header)}",
            "Fields with a comma or a line break must be quoted.",
        )
    size = sum(len(f.encode("utf-8")) for f in fields)
    return too_long(size, limits.row_bytes) if size > limits.row_bytes else dict(zip(header, fields, strict=True))


def _txt(fh: _Limited, path: Path, limits: Limits) -> Iterator[Record]:
    """Paragraphs, that is blocks of lines with empty lines between them, as ``{"text": ...}``."""
    block: list[str] = []
    begin, size = 1, 0

    def flush() -> Record:
        data = too_long(size, limits.row_bytes) if size > limits.row_bytes else {"text": "\n".join(block)}
        return Record(begin, data)

    for n, line in _lines(fh, limits.row_bytes):
        if isinstance(line, BadRow):
            yield Record(n, line)
        elif line.strip():
            if not block:
                begin, size = n, 0
            size += len(line.encode("utf-8")) + 1
            if size <= limits.row_bytes or not block:
                block.append(line.removesuffix("\r"))
        elif block:
            yield flush()
            block = []
    if block:
        yield flush()


def _parquet(path: Path, limits: Limits) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            meta = file.metadata
            if meta.num_columns > limits.columns:
                bad = too_many_columns(meta.num_columns, limits)
                raise DataError(bad.message, where=str(path), hint=bad.hint)
            unpacked = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
            if unpacked > limits.unpacked_bytes:
                raise DataError(
                    f"unpacks to {unpacked:,} bytes; the limit is {limits.unpacked_bytes:,}", where=str(path)
                )
            n = 0
            for batch in file.iter_batches(batch_size=256):
                for data in batch.to_pylist():
                    n += 1
                    yield Record(n, data)
    except (pa.ArrowException, UnicodeDecodeError) as err:
        raise DataError(f"damaged or not Parquet: {err}", where=str(path)) from err
