"""What a finished run gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrow.arms import BASE


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        path: The run folder.
        report: The page.
        models: Arm -> model folder.
        results: What stands in ``eval/results.json``.
    """

    path: Path
    report: Path
    models: dict[str, Path]
    results: dict[str, Any]

    def text(self) -> str:
        """The table for the terminal, and where everything is."""
        from regrow.report.build import load_report

        lines = [load_report(self.path).text_table(), ""]
        lines += [f"{arm + ' model':<14} {path}" for arm, path in self.models.items() if arm != BASE]
        lines += [f"{'report':<14} {self.report}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from regrow.report.build import load_report

        return load_report(self.path)._repr_html_()
