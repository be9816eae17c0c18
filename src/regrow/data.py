"""The user's rows, as a recipe's ``data`` section names them. One place for all who read them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regrow.errors import DataError, RecipeError
from regrow.recipe import Recipe
from regrow.runs import file_sha256

if TYPE_CHECKING:
    from regrow.rows.quality import QualityConfig
    from regrow.rows.readers import ReadResult
    from regrow.rows.row import Row

DEMO = "demo"
LEAST_HELDOUT = 10
"""With fewer held-out rows no gain can be significant: all of eight rows have to improve for p = 2/256, and several
suites are tested at once."""


def read_data(recipe: Recipe, folder: Path | None = None) -> ReadResult:
    """Read the rows of ``recipe.data``.

    Args:
        recipe: Its ``data`` section says what and how; its seed makes the demo's dataset.
        folder: Where the demo's dataset is kept when that is what is asked for; None keeps it nowhere.

    Raises:
        RecipeError: No data is named.
        DataError: It cannot be read.
    """
    from regrow.rows.readers import read_rows

    cfg = recipe.data
    if not cfg.path:
        raise RecipeError("no data is named", where="data.path", hint="a file, a folder, a hub name, or `demo`")
    if cfg.path == DEMO and folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return read_data(recipe, Path(temporary))
    source = cfg.path
    if source == DEMO:
        from regrow.demo import build_demo_dataset

        assert folder is not None
        source = str(build_demo_dataset(folder / "demo.jsonl", seed=recipe.seed))
    return read_rows(
        source,
        domain=cfg.domain,
        format=cfg.format,
        on_bad=cfg.on_bad,
        columns=cfg.columns or None,
        limit=cfg.max_rows,
    )


def split_data(recipe: Recipe, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows to train on and those held out, as ``data.test_size`` says.

    A share of few rows is no fewer than `LEAST_HELDOUT` (a quarter of the rows at most).

    Raises:
        DataError: There are too few rows for that.
    """
    from regrow.rows.split import split_rows

    size = recipe.data.test_size
    if isinstance(size, float) and 0 < size < 1:
        size = max(1, round(size * len(rows)), min(LEAST_HELDOUT, len(rows) // 4))
    return split_rows(rows, size, recipe.seed)


def read_general(recipe: Recipe) -> ReadResult:
    """The rows of ``data.general``, in any of the formats; nothing else that is said of the data holds for them but
    ``data.on_bad``.

    Raises:
        DataError: It cannot be read.
    """
    from regrow.rows.readers import read_rows

    try:
        return read_rows(recipe.data.general, domain="general", on_bad=recipe.data.on_bad)
    except DataError as error:
        renaming = error.hint and "data.columns" in error.hint
        hint = "data.columns is for your own data; rename the columns of this file" if renaming else error.hint
        raise DataError(f"data.general: {error.message}", where=error.where, hint=hint) from error


def source_hash(path: str) -> dict[str, str]:
    """File -> hash of the user's data, so that an edited file redoes the run from there; empty for hub names."""
    root = Path(path)
    if root.is_file():
        return {root.name: file_sha256(root)}
    if root.is_dir():
        return {str(p.relative_to(root)): file_sha256(p) for p in sorted(root.rglob("*")) if p.is_file()}
    return {}


def best_rows(rows: list[Row], cfg: QualityConfig) -> list[Row]:
    """The rows that read most like the reference."""
    from regrow.rows.quality import NGramModel, best
    from regrow.rows.readers import read_rows
    from regrow.rows.validate import content_text

    assert cfg.reference is not None
    texts = (content_text(m["content"]) for row in read_rows(cfg.reference).rows for m in row.messages)
    return best(rows, NGramModel(texts), cfg.keep)


def read_back(path: Path) -> list[Row]:
    """Rows that a stage of ours wrote."""
    from regrow.rows.row import Row

    with path.open(encoding="utf-8") as f:
        return [Row.from_dict(json.loads(line)) for line in f]
