"""Starts a vLLM or llama.cpp server from its own interpreter or binary, and stops it again.

The server listens on loopback, asks for a random token, and writes into a log file. It runs below
`regrow.engines.guard` in a session of its own: it stops when it is told to, when the run ends, and when the run is
killed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from regrow.engines.config import ServeConfig, ServedName
from regrow.engines.memory import GIB, free_main_memory
from regrow.errors import EngineError
from regrow.progress import task

if TYPE_CHECKING:
    from regrow.models.load import ResolvedModel

HOST = "127.0.0.1"
_GUARD = Path(__file__).with_name("guard.py")
_POLL_S = 0.25
_STOP_S = 30.0
_TAIL = 12
_STEP_TOKENS = 4096
CPU_FACTS = Path("/proc/cpuinfo")
_VLLM_LOOK = """
import importlib.metadata as m, importlib.util as u, sys
if u.find_spec("vllm") is None:
    sys.exit(1)
print([d.metadata["Name"] + " " + d.version for d in m.distributions() if str(d.metadata["Name"]).startswith("vllm")])
"""
"""Names of the installed vLLM distributions; a build for the CPU says so in its name or version."""


class Server:
    """A running server.

    Attributes:
        url: Its address.
        key: The token it asks for.
        command: What was started.
        log: Where its output goes; removed in the end, unless something failed.
    """

    def __init__(self, command: list[str], env: Mapping[str, str], port: int, key: str, log: Path) -> None:
        self.url, self.key, self.command, self.log = f"http://{HOST}:{port}", key, command, log
        self._keep_log = False
        with log.open("wb") as out:
            self._guard = subprocess.Popen(
                [sys.executable, "-S", str(_GUARD), *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._guard.poll() is None

    def wait_until_healthy(self, seconds: float, label: str) -> None:
        """Wait until ``GET /health`` answers.

        Raises:
            EngineError: It ended or took too long; the message holds the end of its log.
        """
        import httpx2

        started = time.monotonic()
        with task(label, None, "s") as bar, httpx2.Client(timeout=5.0, trust_env=False) as http:
            while time.monotonic() - started < seconds:
                if not self.running:
                    raise self.failure(f"the server ended with code {self._guard.returncode} before it answered")
                try:
                    if http.get(f"{self.url}/health").status_code == 200:
                        return
                except httpx2.TransportError:
                    pass
                time.sleep(_POLL_S)
                bar.advance(_POLL_S)
        raise self.failure(f"the server did not answer within {seconds:g} s")

    def failure(self, message: str) -> EngineError:
        """An error with the end of the log in it; the log is kept."""
        self._keep_log = True
        lines = self.log.read_text(encoding="utf-8", errors="replace").replace(self.key, "***").splitlines()
        tail = "\n  ".join(line[:300] for line in lines[-_TAIL:])
        return EngineError(f"{message}; the end of its log:\n  {tail}", where=str(self.log))

    def close(self) -> None:
        """Stop it and everything it started. Idempotent."""
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._guard.stdin.close()
        try:
            self._guard.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        if not self._keep_log:
            self.log.unlink(missing_ok=True)

    def wait(self) -> int:
        """Until it ends by itself; its exit code."""
        return self._guard.wait()


def start(
    kind: ServedName,
    model: ResolvedModel,
    config: ServeConfig,
    *,
    port: int | None = None,
    key: str | None = None,
) -> Server:
    """Start a server for ``model`` and wait until it answers.

    Args:
        kind: ``vllm`` or ``llama.cpp``.
        model: What it serves.
        config: Interpreter or binary, size, more arguments.
        port: None takes a free one.
        key: The token to ask for; None makes a random one.

    Raises:
        EngineError: It is not installed, cannot run the model, or did not come up.
    """
    port = port or _free_port()
    key = key or secrets.token_urlsafe(24)
    context = _context(model, config.context)
    if kind == "vllm":
        command, env = _vllm(model, config, port, context), _vllm_env(key)
    else:
        command, env = _llama_cpp(model, config, port, context), {"LLAMA_API_KEY": key}
    handle, log = tempfile.mkstemp(prefix=f"regrow-{kind}-", suffix=".log")
    os.close(handle)
    server = Server(command, env, port, key, Path(log))
    try:
        server.wait_until_healthy(config.start_timeout, f"starting {kind}")
    except BaseException:
        server.close()
        raise
    return server


def _free_port() -> int:
    with socket.socket() as s:
        s.bind((HOST, 0))
        return int(s.getsockname()[1])


def _context(model: ResolvedModel, wanted: int) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code).get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    return min(wanted, int(longest)) if longest else wanted


def _vllm(model: ResolvedModel, config: ServeConfig, port: int, context: int) -> list[str]:
    python = config.python or os.environ.get("REGROW_VLLM_PYTHON") or sys.executable
    if shutil.which(python) is None:
        raise EngineError(f"no interpreter at {python}", where="grow.serve.python", hint=_VLLM_HINT)
    found = subprocess.run(
        [python, "-c", _VLLM_LOOK],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise EngineError(f"vLLM is not installed for {python}", where="grow.serve.python", hint=_VLLM_HINT)
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model.path),
        "--served-model-name", model.name, "--host", HOST, "--port", str(port),
        "--max-model-len", str(context), "--generation-config", "vllm", "--logprobs-mode", "raw_logprobs",
        "--enable-prefix-caching",
    ]  # fmt: skip
    if "cpu" in found.stdout:
        # vLLM 0.32 on a CPU dies of a request that has a seed and whose prompt is prefilled in two steps: it wants to
        # take the draw of the first step back, and a CPU generator cannot ("CPU Generator does not use offset").
        command += ["--max-num-batched-tokens", str(max(context, _STEP_TOKENS)), "--no-enable-chunked-prefill"]
        # Compiling took two to nine minutes of a CPU for a model of 135 M weights, longer than growing a small corpus.
        command.append("--enforce-eager")
        if not _half_precision():
            # Emulated bfloat16 gave a tenth of a token a second on such a CPU.
            command += ["--dtype", "float32"]
    if model.trust_remote_code:
        command.append("--trust-remote-code")
    return [*command, *config.arguments]


def _half_precision() -> bool:
    """Whether this CPU computes in bfloat16 itself; what is not known is taken for a yes, vLLM then decides."""
    try:
        return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(CPU_FACTS.read_text(encoding="utf-8").split())
    except OSError:
        return True


_VLLM_HINT = (
    "Install vLLM into an environment of its own and name its interpreter: --python /path/to/venv/bin/python, "
    "grow.serve.python, or REGROW_VLLM_PYTHON."
)
_LLAMA_HINT = "Install llama.cpp and name its llama-server: --binary, grow.serve.binary, or REGROW_LLAMA_SERVER."


def _vllm_env(key: str) -> dict[str, str]:
    """The key is read from the environment, where other users cannot see it as they see a command line."""
    env = {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:  # GiB; read by the CPU build only, which asks for it
        env["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, min(4, free_main_memory() // 4 // GIB)))
    return env


def _llama_cpp(model: ResolvedModel, config: ServeConfig, port: int, context: int) -> list[str]:
    from regrow.engines.weights import gguf_file

    given = config.binary or os.environ.get("REGROW_LLAMA_SERVER") or "llama-server"
    binary = shutil.which(given)
    if binary is None:
        raise EngineError(f"llama-server is not there: {given}", where="grow.serve.binary", hint=_LLAMA_HINT)
    weights = gguf_file(model, config.quant, "llama.cpp")
    return [
        binary, "--model", str(weights), "--alias", model.name, "--host", HOST, "--port", str(port),
        "--parallel", str(config.slots), "--ctx-size", str(context * config.slots), "--no-kv-unified",
        "--no-webui", *config.arguments,
    ]  # fmt: skip
