from __future__ import annotations

import subprocess
import sys

import pytest


def regrow(*args: str, cwd=None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from regrow.cli import main; main()", *args], capture_output=True, text=True, cwd=cwd
    )


HEAVY = ("torch", "transformers", "datasets", "trl", "peft", "pyarrow", "numpy", "openvino_genai", "jinja2", "pandas")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['regrow', '--help']\n"
        "from regrow.cli import _run\n"
        "status = _run()\n"
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "assert status == 0 and not loaded, (status, loaded)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tune" in done.stdout


COMMANDS = [
    "tune",
    "demo",
    "init",
    "validate",
    "run",
    "grow",
    "curate",
    "mix",
    "train",
    "eval",
    "report",
    "show",
    "chat",
    "export",
    "env",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    done = regrow(command, "--help")
    assert done.returncode == 0 and "Usage" in done.stdout


def test_wrong_usage_is_exit_code_1_not_2():
    assert regrow("tune").returncode == 1
    assert regrow("nonsense").returncode == 1


def test_init_writes_once_and_validates_its_own_output(tmp_path):
    assert regrow("init", "r.yaml", "--data", "d.jsonl", cwd=tmp_path).returncode == 0
    again = regrow("init", "r.yaml", cwd=tmp_path)
    assert again.returncode == 1 and "exists already" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["tune", "smollm2", "none.jsonl"], "none.jsonl"),
        (["tune", "./no-model", "d.jsonl"], "no-model"),
        (["tune", "smollm2", "d.jsonl", "--replay-ratio", "1.5"], "mix.replay_ratio"),
        (["tune", "smollm2", "d.jsonl", "--resume", "perhaps"], "--resume"),
        (["run", "none.yaml"], "none.yaml"),
        (["report", "nowhere"], "nowhere"),
        (["export", "nowhere", "--to", "csv", "-o", "x"], "csv"),
    ],
)
def test_mistakes_are_one_clear_message(tmp_path, args, expected):
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    done = regrow(*args, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1 and expected in done.stderr and "Traceback" not in done.stderr
