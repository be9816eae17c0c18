"""Write rows and small files so that a reader sees the old file or the whole new one, never a part."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regrow.errors import DataError
from regrow.rows.row import Row

# Valid inside JSON strings, but `str.splitlines` and some other tools take them for line ends.
_LINE_BREAKS = str.maketrans({"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"})


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well, it replaces ``path``.

    The parent folder is made. The file reaches the disk before it is renamed; after an exception (Ctrl-C too) the
    temporary file is removed and ``path`` is as it was. The block must create the file it is given.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, so that readers of the folder skip what a killed process left; some writers look at the suffix.
    tmp = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.tmp{path.suffix}")
    try:
        yield tmp
        with tmp.open("rb+") as fh:
            os.fsync(fh.fileno())
        tmp.replace(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def atomic_folder(out: Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a hidden folder beside ``out``, then put it in its place; an older ``out`` goes.

    The files can be read by whom the system's umask lets; safetensors makes its own for the owner alone.
    """
    tmp = out.with_name(f".{out.name}.tmp")
    if tmp.exists():  # left by a killed run
        shutil.rmtree(tmp)
    tmp.mkdir(parents=True)
    try:
        (tmp / ".mode").touch()
        mode = (tmp / ".mode").stat().st_mode
        (tmp / ".mode").unlink()
        write(tmp)
        for path in tmp.rglob("*"):
            if path.is_file():
                path.chmod(mode)
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        if out.exists():
            shutil.rmtree(out)
        tmp.replace(out)
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    return out


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, on systems that can open a folder."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8 with ``\\n`` line ends, all or nothing, and return the path."""
    with atomic_path(path) as tmp:
        tmp.write_bytes(text.encode("utf-8"))
    return Path(path)


def json_line(data: dict[str, Any]) -> str:
    """One line of JSON Lines, with its ``\\n``.

    Raises:
        ValueError: NaN or infinity among the values; text that is not Unicode (a lone surrogate).
    """
    line = json.dumps(data, ensure_ascii=False, allow_nan=False).translate(_LINE_BREAKS)
    line.encode("utf-8")
    return line + "\n"


def write_json_lines(records: Iterable[dict[str, Any]], path: str | Path) -> Path:
    """Write plain dictionaries as JSON Lines, all or nothing.

    Raises:
        DataError: A record has no JSON form; names its number.
    """
    with atomic_path(path) as tmp, tmp.open("w", encoding="utf-8", newline="\n") as fh:
        for n, record in enumerate(records, 1):
            try:
                fh.write(json_line(record))
            except (ValueError, TypeError) as err:
                raise DataError(
                    f"record {n} (id {record.get('id')!r}) cannot be written as JSON: {err}", where=str(path)
                ) from err
    return Path(path)


def write_jsonl(rows: Iterable[Row], path: str | Path) -> Path:
    """Write rows as JSON Lines (`Row.to_dict` a line); `regrow.rows.readers.read_rows` gives them back.

    Raises:
        DataError: A row holds what JSON cannot say.
    """
    return write_json_lines((row.to_dict() for row in rows), path)


def write_parquet(rows: Iterable[Row], path: str | Path) -> Path:
    """Write rows as Parquet; `regrow.rows.readers.read_rows` gives them back.

    Columns: ``id``, ``messages`` (list of struct role, content), ``source``, ``domain``, ``images`` (list of string),
    ``meta`` (a JSON string, as its keys differ by row). ``content`` is a string; when any row of the file has content
    blocks it is a list of struct (type, text) throughout, which is what vision trainers expect.

    Raises:
        DataError: A message has keys besides role and content, or ``meta`` has no JSON form.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(rows)
    blocks = any(isinstance(m["content"], list) for row in rows for m in row.messages)
    content = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())])) if blocks else pa.string()
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", content)]))),
            ("source", pa.string()),
            ("domain", pa.string()),
            ("images", pa.list_(pa.string())),
            ("meta", pa.string()),
        ]
    )
    records = [_parquet_record(row, blocks, path) for row in rows]
    with atomic_path(path) as tmp:
        pq.write_table(pa.Table.from_pylist(records, schema=schema), tmp, compression="zstd")
    return Path(path)


def _parquet_record(row: Row, blocks: bool, path: str | Path) -> dict[str, Any]:
    messages = []
    for m in row.messages:
        if set(m) != {"role", "content"}:
            raise DataError(
                f"row {row.id!r} has a message with keys {sorted(m)}; Parquet rows hold role and content only",
                where=str(path),
                hint="Write it as JSON Lines instead.",
            )
        content = m["content"]
        if blocks and isinstance(content, str):
            content = [{"type": "text", "text": content}]
        messages.append({"role": m["role"], "content": content})
    try:
        meta = json.dumps(row.meta, ensure_ascii=False, allow_nan=False, sort_keys=True)
        meta.encode("utf-8")
    except (ValueError, TypeError) as err:
        raise DataError(f"the meta of row {row.id!r} has no JSON form: {err}", where=str(path)) from err
    return {
        "id": row.id,
        "messages": messages,
        "source": row.source,
        "domain": row.domain,
        "images": row.images,
        "meta": meta,
    }
