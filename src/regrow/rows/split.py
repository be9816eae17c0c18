"""Hold out part of the data so that no question of the held-out part is trained on in another spelling."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from regrow.errors import DataError
from regrow.rows.row import Row
from regrow.rows.validate import content_text


def normalise_question(text: str) -> str:
    """Casefolded, compatibility characters unified, punctuation and white space collapsed to single spaces."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", text)) or text.strip()


def group_key(row: Row) -> str:
    """What rows of one group share: ``meta["group"]`` when there is one, else the normalised first question.

    A row without a user turn (plain text) is known by its text.
    """
    group = row.meta.get("group")
    if group is not None:
        return f"group:{group}"
    first = next((m for m in row.messages if m["role"] == "user"), row.messages[0])
    return f"question:{normalise_question(content_text(first['content']))}"


def _groups(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of rows that belong together: the same ``meta["group"]`` or question, also through a third row."""
    parent = list(range(len(rows)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[str, int] = {}
    for i, row in enumerate(rows):
        bare = Row(id=row.id, messages=row.messages)
        for key in (group_key(row), group_key(bare)):
            j = find(seen.setdefault(key, i))
            parent[max(find(i), j)] = min(find(i), j)
    groups: dict[int, list[int]] = {}
    for i in range(len(rows)):
        groups.setdefault(find(i), []).append(i)
    return list(groups.values())


def split_rows(rows: Sequence[Row], test_size: float | int, seed: int) -> tuple[list[Row], list[Row]]:
    """Split into (train, heldout); rows of one group (see `group_key`) stay on one side, each side keeps its order.

    Groups are ordered by a keyed hash of what is in them, so that the choice depends on the seed and the rows and not
    on the machine; adding rows moves few others. Groups are held out in that order as long as they fit, so the
    held-out part has at most ``test_size`` rows, and at least one group.

    Args:
        rows: What `regrow.rows.readers.read_rows` gave.
        test_size: A share between 0 and 1 (exclusive), or a number of rows.
        seed: Any integer.

    Raises:
        DataError: ``test_size`` is out of range, or a side would be empty.
    """
    if isinstance(test_size, bool) or (isinstance(test_size, float) and not 0 < test_size < 1) or test_size <= 0:
        raise DataError(
            f"test_size is {test_size!r}", where="test_size", hint="Give a share between 0 and 1, or a number of rows."
        )
    wanted = max(1, round(test_size * len(rows))) if isinstance(test_size, float) else test_size
    groups = _groups(rows)
    if wanted >= len(rows) or len(groups) < 2:
        raise DataError(
            f"{len(rows)} row(s) with {len(groups)} different question(s) are too few to hold out {wanted}",
            where="test_size",
            hint="Give more data or a smaller data.test_size.",
        )
    ordered = sorted(groups, key=lambda g: (_rank(rows, g, seed), g[0]))
    held: list[int] = []
    for group in ordered:
        if len(held) + len(group) <= wanted:
            held += group
    if not held:
        smallest: list[int] = min(ordered, key=len)
        held = list(smallest)
    if len(held) == len(rows):  # every group fits only when wanted >= len(rows), refused above
        raise AssertionError("nothing is left to train on")
    chosen = set(held)
    train = [row for i, row in enumerate(rows) if i not in chosen]
    return train, [rows[i] for i in sorted(chosen)]


def _rank(rows: Sequence[Row], group: list[int], seed: int) -> bytes:
    key = min(group_key(rows[i]) for i in group)
    return hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
