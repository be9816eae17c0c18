from __future__ import annotations

import subprocess
import sys

import pytest


def regrow(*args: str, cwd=None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from regrow.cli import main; main()", *args], capture_output=True, text=True, cwd=cwd
    )


HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "trl",
    "peft",
    "pyarrow",
    "numpy",
    "openvino_genai",
    "jinja2",
    "pandas",
    "fastapi",
    "uvicorn",
)


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
    "sweep",
    "demo",
    "init",
    "validate",
    "run",
    "probe",
    "gradual",
    "grow",
    "curate",
    "mix",
    "train",
    "eval",
    "eval-sequence",
    "gate",
    "report",
    "show",
    "runs",
    "diff",
    "ui",
    "chat",
    "export",
    "env",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    done = regrow(command, "--help")
    assert done.returncode == 0 and "Usage" in done.stdout


@pytest.mark.parametrize("probe", ["domains", "mastery", "min-k", "skills"])
def test_every_probe_explains_itself(probe):
    done = regrow("probe", probe, "--help")
    assert done.returncode == 0 and "Usage" in done.stdout and "--resume" in done.stdout


def test_the_version():
    from regrow import __version__

    assert regrow("--version").stdout == f"regrow {__version__}\n"


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
        (["tune", "smollm2", "d.jsonl", "--replay-ratio", "1.5"], "error: mix.replay_ratio: "),
        (["tune", "smollm2", "gone.jsonl"], "starts where the command runs: /"),
        (["sweep", "smollm2", "d.jsonl", "--replay-ratios", "0,some"], "--replay-ratios"),
        (["sweep", "smollm2", "d.jsonl", "--replay-ratios", "0.1,0.2"], "sweep.replay_ratios"),
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


def recipe_for(model, tmp_path, **mix) -> str:
    import json

    rows = [{"question": f"What is number {i}?", "answer": f"It is {i}."} for i in range(40)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = f"model: {{model_name_or_path: {model}}}\ndata: {{path: d.jsonl}}\ngrow: {{engine: dummy}}\n"
    (tmp_path / "r.yaml").write_text(text + f"mix: {json.dumps(mix)}\n")
    return "r.yaml"


def test_validate_says_the_cost_and_writes_nothing(tiny_model_dir, tmp_path):
    recipe = recipe_for(tiny_model_dir, tmp_path, replay_ratio=0.5)
    before = sorted(tmp_path.iterdir())
    done = regrow("validate", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in (
        "30 to train on",
        "10 held out",
        "to grow",
        "to train (regrow)",
        "disk",
        "time to train",
        "in all",
        "engine dummy",
    ):
        assert word in done.stdout, done.stdout
    assert sorted(tmp_path.iterdir()) == before
    quick = regrow("validate", recipe, "--no-timing", "--set", "compare=false", cwd=tmp_path)
    assert "time to" not in quick.stdout and "to train (sft)" not in quick.stdout


def test_validate_finds_what_run_would_stop_at(tiny_model_dir, tmp_path):
    recipe = recipe_for(tiny_model_dir, tmp_path)
    with (tmp_path / "d.jsonl").open("a") as f:
        f.write('{"question": "and this?", "answer": ""}\n')
    done = regrow("validate", recipe, "--no-timing", cwd=tmp_path)
    assert done.returncode == 1 and "d.jsonl:41" in done.stderr and "'answer' is empty" in done.stderr
    (tmp_path / "d.jsonl").write_text("".join(f'{{"ask": "a {i}", "reply": "b"}}\n' for i in range(20)))
    done = regrow("validate", recipe, "--no-timing", cwd=tmp_path)
    assert "--set data.columns.query=YOUR_COLUMN --set data.columns.response=YOUR_COLUMN" in done.stderr
    named = ["--set", "data.columns.query=ask", "--set", "data.columns.response=reply"]
    assert regrow("validate", recipe, "--no-timing", *named, cwd=tmp_path).returncode == 0
    done = regrow("run", recipe, "-o", "half", cwd=tmp_path)
    assert done.returncode == 1 and not (tmp_path / "half").exists(), "nothing half-written"


def test_eval_compares_two_models(tiny_model_dir, tmp_path):
    import json

    items = [{"question": f"{i}?", "choices": ["yes", "no"], "answer_index": i % 2} for i in range(8)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    model = str(tiny_model_dir)
    done = regrow(
        "eval", model, model, "-o", "out", "--suite", "file:q.jsonl", "--set", "evaluate.bootstrap=200", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/report.html").exists() and "No change" in done.stdout
    assert regrow("eval", model, "-o", "out2", cwd=tmp_path).returncode == 1


def test_stages_one_by_one(tiny_model_dir, tmp_path):
    """grow, curate, mix, train, export: each alone, each on the other's files."""
    model, small = (
        str(tiny_model_dir),
        ["--set", "curate.embedding_threshold=null", "--set", "curate.dedup_method=minhash"],
    )
    recipe_for(tiny_model_dir, tmp_path)
    steps = [
        [
            "grow",
            model,
            "-o",
            "c",
            "--shape",
            "4,2",
            "--dialogues",
            "16",
            "--engine",
            "dummy",
            "--set",
            "grow.encoder=none",
        ],
        ["curate", "c", "-o", "k", *small, "--set", "grow.encoder=none"],
        ["mix", model, "d.jsonl", "-o", "m", "--corpus", "k", "--replay-ratio", "0.3"],
        ["train", model, "m", "-o", "t", "--epochs", "1", "--learning-rate", "1e-3"],
        ["export", "k", "--to", "sharegpt", "-o", "s.json"],
    ]
    for step in steps:
        done = regrow(*step, cwd=tmp_path)
        assert done.returncode == 0, (step[0], done.stderr[-1500:])
    assert (tmp_path / "t/model/model.safetensors").exists() and (tmp_path / "s.json").exists()


def test_chat_answers_with_each_model(tiny_model_dir, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from regrow.cli import main; main()",
            "chat",
            str(tiny_model_dir),
            "--max-new-tokens",
            "4",
        ],
        input="hello\n/reset\n/quit\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "you> " in done.stdout and f"{tiny_model_dir.name}> " in done.stdout


def test_the_same_question_again_is_another_draw(tiny_model_dir, monkeypatch, capsys):
    import regrow.models.generate as generate
    from regrow.chat import talk

    seeds = []
    monkeypatch.setattr(generate, "chat_once", lambda *_, seed, **__: str(seeds.append(seed)))
    said = iter(["hello", "/reset", "hello", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(said))
    talk(tiny_model_dir, temperature=1.0)
    assert len(seeds) == len(set(seeds)) == 2


def test_env_names_versions_and_this_machine():
    done = regrow("env")
    assert "torch" in done.stdout and "transformers" in done.stdout and "Traceback" not in done.stderr
