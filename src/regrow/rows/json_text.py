"""JSON texts to records: one object a line, an array of objects, or objects one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from regrow.errors import DataError
from regrow.rows.limits import BOM, Limits, Record, not_utf8, too_long, too_many_columns
from regrow.rows.validate import BadRow


def _refuse_constant(name: str) -> NoReturn:
    raise BadRow(
        "not text", f"{name} is not JSON and cannot be trained on", "Put text in its place, or leave the row out."
    )


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _object(value: object, limits: Limits) -> Mapping[str, Any] | BadRow:
    if not isinstance(value, dict):
        return BadRow(
            "not an object",
            f"a row must be a JSON object, found {_json_kind(value)}",
            'Expected for example {"question": "…", "answer": "…"}.',
        )
    if len(value) > limits.columns:
        return too_many_columns(len(value), limits)
    return value


def _json_kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def parse_line(line: str, limits: Limits) -> Mapping[str, Any] | BadRow:
    try:
        return _object(_DECODER.decode(line), limits)
    except BadRow as bad:
        return bad
    except json.JSONDecodeError as err:
        return BadRow(
            "broken JSON", f"broken JSON: {err.msg} at column {err.pos + 1}", "Each line must be one JSON object."
        )
    except (ValueError, RecursionError) as err:  # a number of thousands of digits; thousands of brackets
        return BadRow("broken JSON", f"this JSON cannot be read: {err}")


def parse_document(raw: bytes, path: Path, limits: Limits) -> Iterator[Record]:
    """A JSON array of objects, an object with such an array under ``data``, or objects one after the other.

    Files named ``.json`` that are really JSON Lines are common, so those work too.

    Raises:
        DataError: Invalid UTF-8 or broken JSON; names the line.
    """
    raw = raw.removeprefix(BOM)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as err:
        bad = not_utf8(raw, err, 0)
        line = raw.count(b"\n", 0, err.start) + 1
        raise DataError(bad.message, where=f"{path}:{line}", hint=bad.hint) from None
    del raw
    scan = _Scanner(text, path)
    if scan.peek() != "[":
        yield from _json_objects(scan, limits)
        return
    yield from _json_array(scan, limits)
    if scan.peek():
        scan.fail("something follows the array")


def _json_array(scan: _Scanner, limits: Limits) -> Iterator[Record]:
    scan.expect("[")
    if scan.peek() == "]":
        scan.expect("]")
        return
    while True:
        yield scan.record(limits)
        if scan.peek() == "]":
            scan.expect("]")
            return
        scan.expect(",")


def _json_objects(scan: _Scanner, limits: Limits) -> Iterator[Record]:
    first = True
    while scan.peek():
        record = scan.record(limits, keep_wrapper=first)
        only = first and not scan.peek()
        first = False
        rows = record.data.get("data") if only and not isinstance(record.data, BadRow) else None
        if isinstance(rows, list):
            for value in rows:
                yield Record(record.line, _object(value, limits))
            return
        if not isinstance(record.data, BadRow) and (long := _over_length(record, scan, limits)):
            record = Record(record.line, long)
        yield record


def _over_length(record: Record, scan: _Scanner, limits: Limits) -> BadRow | None:
    return too_long(scan.last_bytes, limits.row_bytes) if scan.last_bytes > limits.row_bytes else None


class _Scanner:
    """Values one by one out of a JSON text, with the line each begins on."""

    def __init__(self, text: str, path: Path) -> None:
        self._text, self._path = text, path
        self._at, self._line, self._counted = 0, 1, 0
        self.last_bytes = 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
            self._at += 1
        return self._text[self._at : self._at + 1]

    def expect(self, char: str) -> None:
        found = self.peek()
        if found != char:
            self.fail(f"expected {char!r}, found {found!r}" if found else f"the file ends where {char!r} was expected")
        self._at += 1

    def record(self, limits: Limits, keep_wrapper: bool = False) -> Record:
        self.peek()
        begin, line = self._at, self._line_of(self._at)
        try:
            value, self._at = _DECODER.raw_decode(self._text, begin)
        except BadRow as bad:
            # Where a NaN row ends is not known, so there is no going on.
            raise DataError(bad.message, where=f"{self._path}:{line}", hint=bad.hint) from None
        except json.JSONDecodeError as err:
            self._at = err.pos
            self.fail(err.msg)
        except (ValueError, RecursionError) as err:
            self.fail(str(err))
        self.last_bytes = len(self._text[begin : self._at].encode("utf-8", "surrogatepass"))
        if self.last_bytes > limits.row_bytes and not keep_wrapper:
            return Record(line, too_long(self.last_bytes, limits.row_bytes))
        return Record(line, _object(value, limits))

    def _line_of(self, at: int) -> int:
        self._line += self._text.count("\n", self._counted, at)
        self._counted = at
        return self._line

    def fail(self, what: str) -> NoReturn:
        column = self._at - self._text.rfind("\n", 0, self._at)
        raise DataError(f"broken JSON: {what} at column {column}", where=f"{self._path}:{self._line_of(self._at)}")
