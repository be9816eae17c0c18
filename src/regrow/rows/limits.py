"""What is refused before it can fill the memory, and the faults that say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regrow.rows.validate import BadRow

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Limits:
    """What is refused before it can fill the memory.

    Attributes:
        row_bytes: Longest row as UTF-8; 4 MiB is about a million tokens, beyond any context.
        unpacked_bytes: Most bytes that one gzip or Parquet file may unpack to.
        columns: Most columns of a file or keys of an object.
    """

    row_bytes: int = 4 << 20
    unpacked_bytes: int = 8 << 30
    columns: int = 1000


@dataclass(frozen=True, slots=True)
class Record:
    """A raw record, or why there is none. ``line`` counts from 1 (for Parquet and hub data: the row)."""

    line: int
    data: Mapping[str, Any] | BadRow


def too_long(length: int, limit: int) -> BadRow:
    return BadRow(
        "too long",
        f"the row is {length:,} bytes long; the limit is {limit:,}",
        "Is the file one long line? Split it into rows.",
    )


def not_utf8(raw: bytes, err: UnicodeDecodeError, offset: int) -> BadRow:
    hint = "The file looks like UTF-16; save it as UTF-8." if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else \
        "Save the file as UTF-8 (iconv -f latin1 -t utf-8)."  # fmt: skip
    return BadRow(
        "invalid UTF-8",
        f"invalid UTF-8: byte 0x{raw[err.start]:02x} at offset {offset + err.start:,} of the file",
        hint,
    )


def too_many_columns(n: int, limits: Limits) -> BadRow:
    return BadRow(
        "too many columns",
        f"{n:,} columns; the limit is {limits.columns:,}",
        "A row should hold its texts in a few named columns; is the file transposed?",
    )
