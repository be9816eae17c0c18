"""The library as a user of Python meets it: functions stay functions, whatever was imported before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import regrow
from regrow.errors import RegrowError

STAGES = ["curate", "evaluate", "grow", "mix", "report", "train"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_can_be_called_after_its_package_was_imported(name: str, tmp_path: Path) -> None:
    __import__(f"regrow.{name}.config" if name != "report" else "regrow.report.load")
    none, out = tmp_path / "none", tmp_path / "out"
    arguments = {"evaluate": (["a", "b"], out), "report": (none,), "curate": (none, out), "grow": (none, out)}
    with pytest.raises(RegrowError):
        getattr(regrow, name)(*arguments.get(name, (none, none, out)))


def test_growing_twice_in_one_session(tiny_model_dir: Path, tmp_path: Path) -> None:
    code = f"""
import regrow
for i in range(2):
    done = regrow.grow({str(tiny_model_dir)!r}, {str(tmp_path)!r} + f"/{{i}}", dialogues=4, engine="dummy",
                       topics=["rivers"], settings={{"grow.encoder": "none", "grow.turns": 1}})
    assert done.facts["dialogues"] == 4, done
from regrow.grow.stage import grow
import regrow.grow.stage as stage
assert stage.grow is grow
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_importing_the_library_stays_instant() -> None:
    code = "import regrow, sys; assert not {'torch', 'transformers', 'datasets', 'pydantic'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
