"""From a name to an engine."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, get_args

from regrow.engines.config import EngineName, RayConfig, ServeConfig, ServerConfig
from regrow.errors import EngineError, MissingExtra
from regrow.progress import note

if TYPE_CHECKING:
    from regrow.engines.base import Engine
    from regrow.engines.config import ServedName
    from regrow.models.config import Dtype
    from regrow.models.load import ResolvedModel


def make_engine(
    name: EngineName,
    model: ResolvedModel,
    *,
    seed: int = 0,
    dtype: Dtype = "auto",
    device: str = "auto",
    batch_size: int | None = None,
    memory_gib: float | None = None,
    server: ServerConfig | None = None,
    serve: ServeConfig | None = None,
    ray: RayConfig | None = None,
) -> Engine:
    """Start an engine, and say in one line which one and why.

    Args:
        name: ``transformers``, ``openvino``, ``dummy``; ``ray`` (workers on a cluster); ``openai`` (a server at
            ``server.url``); ``vllm`` and ``llama.cpp`` (a server that is started here and stopped with the engine); or
            ``auto``: OpenVINO GenAI when the machine has no GPU that torch can use, the package is installed, the
            model came from a GGUF or has an OpenVINO form, and OpenVINO can read it; else transformers.
        model: The resolved model.
        seed: Used by the dummy only; the others take all randomness from the requests.
        dtype: Number format of the weights; see `TransformersEngine` and `OpenVinoEngine`.
        device: Device of the transformers engine; OpenVINO runs on the CPU.
        batch_size: Most sequences at once; None lets the engine choose.
        memory_gib: For caches; None lets the engine choose.
        server: Address and limits of the server engines.
        serve: How the engines ``vllm`` and ``llama.cpp`` start theirs.
        ray: The cluster, for the ray engine; None starts Ray on this machine.

    Raises:
        EngineError: Unknown name, or the engine cannot run the model.
        MissingExtra: The engine's package is not installed.
        ModelError: The model cannot be loaded.
    """
    sizes: dict[str, Any] = {"batch_size": batch_size, "memory_gib": memory_gib}
    if name == "dummy":
        from regrow.engines.dummy import DummyEngine
        from regrow.models.load import load_tokenizer

        note("engine: dummy (word salad, for trying things out)")
        tokenizer = load_tokenizer(model.path, trust_remote_code=model.trust_remote_code)
        return DummyEngine(tokenizer, seed=seed, model=model.name, revision=model.revision)
    if name == "openvino":
        if find_spec("openvino_genai") is None:
            raise MissingExtra("openvino-genai", "demo", "the openvino engine")
        return _openvino(model, dtype, sizes, "as asked")
    if name == "transformers":
        return _transformers(model, dtype, device, sizes, "as asked")
    if name == "ray":
        from regrow.engines.ray import RayEngine

        spread = RayEngine(model, ray or RayConfig(), seed=seed, dtype=dtype, device=device, **sizes)
        info = spread.info
        note(f"engine: {info.workers} workers on Ray, each {info.sampler} {info.version}, {info.dtype}")
        return spread
    if name == "openai":
        return _server(model, server or ServerConfig())
    if name in ("vllm", "llama.cpp"):
        return _served(name, model, server or ServerConfig(), serve or ServeConfig())
    if name != "auto":
        raise EngineError(f"no engine '{name}'", hint=f"one of {', '.join(get_args(EngineName))}")
    reason = _against_openvino(model, device)
    if reason is None:
        try:
            return _openvino(model, dtype, sizes, "the faster one on a CPU")
        except EngineError as error:
            reason = error.message
    return _transformers(model, dtype, device, sizes, reason)


def _server(model: ResolvedModel, server: ServerConfig) -> Engine:
    from regrow.engines.openai import OpenAIEngine

    engine = OpenAIEngine(model, server)
    note(f"engine: openai, {engine.info.version} at {server.url} serves {engine.info.model} ({_tells(engine)})")
    return engine


def _served(name: ServedName, model: ResolvedModel, server: ServerConfig, serve: ServeConfig) -> Engine:
    from regrow.engines.openai import OpenAIEngine
    from regrow.engines.serve import start

    if find_spec("httpx2") is None:
        raise MissingExtra("httpx2", "server", f"the {name} engine")
    started = start(name, model, serve)
    try:
        here = server.model_copy(update={"url": started.url, "model": None, "api_key_env": None})
        home = " ".join((name, *serve.arguments))  # its address is another one each time
        engine = OpenAIEngine(model, here, key=started.key, name=name, home=home, on_close=started.close)
    except BaseException:
        started.close()
        raise
    note(f"engine: {engine.info.version}, {engine.info.dtype} ({_tells(engine)})")
    return engine


def _tells(engine: Engine) -> str:
    return "with log-probabilities" if engine.info.gives_logprobs else "no log-probabilities of the model"


def _against_openvino(model: ResolvedModel, device: str) -> str | None:
    """Why ``auto`` does not try OpenVINO, or None."""
    from regrow.engines.openvino import can_read
    from regrow.models.load import pick_device

    if (chosen := pick_device(device)) != "cpu":
        return f"on {chosen}"
    if find_spec("openvino_genai") is None:
        return "openvino-genai is not installed (it is faster on a CPU: pip install 'regrow[demo]')"
    if not can_read(model):
        return "the model has neither a GGUF nor an OpenVINO form"
    return None


def _openvino(model: ResolvedModel, dtype: Dtype, sizes: dict[str, Any], reason: str) -> Engine:
    from regrow.engines.openvino import OpenVinoEngine

    engine = OpenVinoEngine(model, dtype=dtype, **sizes)
    note(f"engine: openvino {engine.info.version}, {engine.info.dtype} ({reason})")
    return engine


def _transformers(model: ResolvedModel, dtype: Dtype, device: str, sizes: dict[str, Any], reason: str) -> Engine:
    from regrow.engines.hf import TransformersEngine

    engine = TransformersEngine(model, dtype=dtype, device=device, **sizes)
    note(f"engine: transformers {engine.info.version}, {engine.info.dtype} ({reason})")
    return engine
