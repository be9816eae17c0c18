"""The recipe keys of engines that live elsewhere: a server that is asked or started, a Ray cluster."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from regrow.section import Section

EngineName = Literal["auto", "transformers", "openvino", "openai", "vllm", "llama.cpp", "ray", "dummy"]
ServedName = Literal["vllm", "llama.cpp"]


class ServerConfig(Section):
    """The server that the engines `openai`, `vllm` and `llama.cpp` ask for completions."""

    url: str | None = None
    """Its address, with or without ``/v1``: ``http://127.0.0.1:8000``. Needed by ``engine: openai``; the engines
    ``vllm`` and ``llama.cpp`` start a server of their own."""
    model: str | None = None
    """The name under which the server knows the model. None: the only one that it serves. It must be the model that is
    tuned, with the same tokenizer."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key, never the key itself."""
    max_concurrency: int = Field(default=128, ge=1, le=4096)
    """Requests in flight at once. A request asks for all siblings of a node where the server can do that."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Requests are sent at most this often, evenly spaced, tries after a failure included. None: no limit."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds that one request may take, until its last byte."""
    retries: int = Field(default=6, ge=0, le=100)
    """Tries after the first when the server is busy (429), fails (5xx), is slow, or cannot be reached. The waits grow
    from one second to a minute, or as long as the server's ``Retry-After`` says."""
    cache: bool = True
    """Keep every answer in the cache folder, so that a killed run does not pay for it again."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an address begins with http:// or https:// and names a machine")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("an address holds no user, password or query; a key goes into an environment variable")
        return value.strip().rstrip("/").removesuffix("/v1")

    @field_validator("api_key_env")
    @classmethod
    def _check_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
            raise ValueError("the name of an environment variable (capital letters), not the key itself")
        return value


class ServeConfig(Section):
    """How the server of ``engine: vllm`` or ``engine: llama.cpp`` is started."""

    python: str | None = None
    """The interpreter that vLLM is installed in. None: ``$REGROW_VLLM_PYTHON``, else this one."""
    binary: str | None = None
    """llama.cpp's ``llama-server``. None: ``$REGROW_LLAMA_SERVER``, else the one on the PATH."""
    quant: Literal["f16", "q8_0"] = "q8_0"
    """Weights for llama.cpp: ``q8_0``, or ``f16``, which is closer to the model and slower."""
    slots: int = Field(default=16, ge=1, le=256)
    """Sequences that llama.cpp decodes at once."""
    context: int = Field(default=4096, ge=256)
    """Longest sequence in tokens, at most what the model takes. Memory is set aside for it."""
    arguments: list[str] = Field(default_factory=list)
    """More arguments for the server's command line."""
    start_timeout: float = Field(default=900.0, gt=0)
    """Seconds until the server must answer. vLLM compiles first on a GPU; on a CPU it is started without
    (``--enforce-eager``; ``--no-enforce-eager`` in ``arguments`` compiles)."""


class RayConfig(Section):
    """Growing on a Ray cluster; read only with ``engine: ray``."""

    address: str = "local"
    """``local`` starts Ray on this machine for this run; ``auto`` joins the cluster this machine belongs to (``ray
    start``); or the head's ``HOST:PORT``."""
    engine: Literal["auto", "transformers", "openvino", "dummy"] = "auto"
    """The engine inside each worker; all workers must come to the same one."""
    workers: int | None = Field(default=None, ge=1)
    """Processes that each hold the model. null: as many as the cluster has room for."""
    cpus_per_worker: float | None = Field(default=None, gt=0)
    """Cores that Ray sets aside for a worker. null: all cores of the smallest node, 1 when a worker has a GPU."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """GPUs of a worker; below 1 they share one. null: 1 where the cluster has GPUs, else 0."""
