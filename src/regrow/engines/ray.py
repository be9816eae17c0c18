"""Past one process: the same contract over Ray actors that hold an ordinary engine each.

Ray places the workers, starts a dead one again where there is room and says which call died with it; nothing of that
is ours. What is ours is the dealing: requests sorted by tree path go out in contiguous chunks, so that a worker keeps
the prefixes that siblings share, one chunk a worker at a time. A chunk whose worker died goes to the next free one.
Each request carries its seed, so who answers it changes nothing but the rounding that another batch brings.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from regrow.engines.base import RAY, Completion, Engine, EngineInfo, Request, Score, ScoreRow
from regrow.errors import EngineError, MissingExtra, RegrowError
from regrow.progress import note

if TYPE_CHECKING:
    from regrow.engines.config import RayConfig
    from regrow.models.load import ResolvedModel

CHUNKS_PER_WORKER = 2
"""Chunks a worker gets of one `sample` or `score`: more would level the load better and shrink the batches."""
TRIES = 4
"""Workers that may die over one chunk before it is held to be the cause."""
_PATIENCE_S = 30.0


class RayEngine:
    """An engine that spreads its requests over a Ray cluster.

    Every node needs Regrow and the inner engine's packages in the same versions, and the model: its folder at the same
    path (a shared disk), or a name that resolves to the same revision there.

    Args:
        model: What the workers load.
        config: Where the cluster is, how many workers, what each holds. A process that is connected to Ray already
            stays with its cluster.
        options: For `regrow.engines.choose.make_engine` inside the workers (``seed``, ``dtype``, ...).

    Raises:
        MissingExtra: Ray is not installed.
        EngineError: No cluster at the address, no room for a single worker, a worker cannot open its engine, or the
            workers' engines differ.
    """

    info: EngineInfo

    def __init__(self, model: ResolvedModel, config: RayConfig, **options: Any) -> None:
        if find_spec("ray") is None:
            raise MissingExtra("ray", "ray", "growing on more than one machine (engine: ray)")
        if config.address == "local":
            # Ray listens on every interface and runs what it is sent; read when Ray is imported.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        import ray

        self._closed = False
        self._workers: list[Any] = []
        self._idle: list[Any] = []
        self._joining: dict[Any, Any] = {}
        """Reference to a worker's `EngineInfo` -> the worker."""
        self._inner: EngineInfo | None = None
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(config.address)
        try:
            count, cpus, gpus = plan([n["Resources"] for n in ray.nodes() if n["Alive"]], config)
            # Ray restarts a worker as often as it dies; which work is tried again is decided below.
            actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1)(_Worker)
            self._workers = [actor.remote(model, config.engine, options) for _ in range(count)]
            for worker in self._workers:
                self._expect(worker)
            inner = self._join(self._next([]))
        except BaseException:
            self.close()
            raise
        self.info = replace(inner, name=RAY + inner.name, workers=count)

    # -- the contract --------------------------------------------------------------------------------------------

    def sample(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Completion]]]:
        """See `regrow.engines.base.Engine.sample`; chunks finish in any order."""
        self._require_open()
        order = sorted(range(len(requests)), key=lambda i: (requests[i].key, i))
        parts = deal([max(1, requests[i].n) for i in order], self.info.workers * CHUNKS_PER_WORKER)
        places = [[order[k] for k in part] for part in parts]
        for number, found in self._run("sample", [([requests[i] for i in mine],) for mine in places]):
            for k, completions in found:
                yield places[number][k], completions

    def score(self, rows: Sequence[ScoreRow], top_k: int = 0) -> Iterator[Score]:
        """See `regrow.engines.base.Engine.score`."""
        self._require_open()
        if not self.info.can_score:
            raise EngineError(f"the engine {self.info.name} cannot score", hint="grow.ray.engine: transformers")
        parts = deal([len(r.token_ids) for r in rows], self.info.workers * CHUNKS_PER_WORKER)
        waiting: dict[int, list[Score]] = {}
        due = 0
        for number, scores in self._run("score", [([rows[i] for i in part], top_k) for part in parts]):
            waiting[number] = scores
            while due in waiting:
                yield from waiting.pop(due)
                due += 1

    def close(self) -> None:
        """Stop the workers, and Ray when it was started here. Idempotent."""
        if self._closed:
            return
        self._closed = True
        import ray

        if ray.is_initialized():
            for worker in self._workers:
                ray.kill(worker)
            if self._ours:
                ray.shutdown()

    def _require_open(self) -> None:
        if self._closed:
            raise EngineError("the ray engine is closed")

    # -- dealing -------------------------------------------------------------------------------------------------

    def _run(self, method: str, chunks: list[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Call ``method`` of some worker once for each chunk; yield ``(number of the chunk, result)`` as they
        finish."""
        import ray
        from ray.exceptions import RayActorError, RayError

        queue = deque(range(len(chunks)))
        running: dict[Any, tuple[Any, int]] = {}
        deaths: Counter[int] = Counter()
        try:
            while queue or running:
                while queue and self._idle:
                    worker, number = self._idle.pop(), queue.popleft()
                    running[getattr(worker, method).remote(*chunks[number])] = worker, number
                ready = self._next(list(running))
                if ready in self._joining:
                    self._join(ready)
                    continue
                worker, number = running.pop(ready)
                try:
                    found = ray.get(ready)
                except RayActorError as error:
                    self._expect(worker)
                    deaths[number] += 1
                    if deaths[number] == TRIES:
                        raise EngineError(
                            f"{TRIES} workers died over the same requests: {_first_line(error)}",
                            hint="a worker that dies is most often out of memory: fewer workers a node, or a smaller "
                            "grow.batch_nodes",
                        ) from error
                    note(f"ray: a worker died; its {len(chunks[number][0])} requests go to another")
                    queue.appendleft(number)
                    continue
                except RayError as error:
                    self._idle.append(worker)
                    raise _clear(error) from error
                self._idle.append(worker)
                yield number, found
        finally:
            for worker, _ in running.values():  # not waited for: free again once what it does now is done
                self._expect(worker)

    def _next(self, running: list[Any]) -> Any:
        """The first reference to be ready among calls that run and workers that come up."""
        import ray

        told = False
        if not running and not self._joining:
            raise EngineError("no worker is left: each one failed to open its engine")
        while True:
            ready, _ = ray.wait([*running, *self._joining], num_returns=1, timeout=_PATIENCE_S)
            if ready:
                return ready[0]
            if not running and not told:
                note("ray: no worker is up yet; the cluster has no free place, or the model is still loading")
                told = True

    def _expect(self, worker: Any) -> None:
        """Ask what engine the worker holds; Ray answers once it is up, or up again."""
        self._joining[worker.info.options(max_task_retries=-1).remote()] = worker

    def _join(self, reference: Any) -> EngineInfo:
        """Take up a worker that says what engine it holds."""
        import ray
        from ray.exceptions import RayError

        worker = self._joining.pop(reference)
        try:
            info: EngineInfo = ray.get(reference)
        except RayError as error:
            raise _clear(error) from error
        if self._inner is None:
            self._inner = info
        elif info != self._inner:
            raise EngineError(
                f"the workers' engines differ: {_words(self._inner)}, and {_words(info)}",
                hint="set grow.ray.engine, and install the same versions on every node",
            )
        self._idle.append(worker)
        return info


class _Worker:
    """What runs on the cluster: an engine, opened at the first call so that its errors arrive as such."""

    def __init__(self, model: ResolvedModel, engine: str, options: dict[str, Any]) -> None:
        self._wanted = model, engine, options
        self._opened: Engine | None = None

    def _engine(self) -> Engine:
        if self._opened is None:
            from regrow.engines.choose import make_engine

            model, name, options = self._wanted
            self._opened = make_engine(name, _here(model), **options)  # type: ignore[arg-type]
        return self._opened

    def info(self) -> EngineInfo:
        with _portable_errors():
            return self._engine().info

    def sample(self, requests: list[Request]) -> list[tuple[int, list[Completion]]]:
        with _portable_errors():
            return list(self._engine().sample(requests))

    def score(self, rows: list[ScoreRow], top_k: int) -> list[Score]:
        with _portable_errors():
            return list(self._engine().score(rows, top_k))


def _here(model: ResolvedModel) -> ResolvedModel:
    """The model on this node."""
    from regrow.models.load import folder_revision, resolve_model

    if model.path.is_dir():
        if model.origin == "hub" or folder_revision(model.path) == model.revision:
            return model
        raise EngineError(
            f"the folder {model.path} holds another model than on the machine that grows",
            hint="copy the folder again, or put it on a disk that all nodes share",
        )
    found = resolve_model(model.name, trust_remote_code=model.trust_remote_code)
    if found.revision != model.revision:
        raise EngineError(
            f"'{model.name}' is revision {found.revision} on this node and {model.revision} on the machine that grows",
            hint="put the model into a folder on a disk that all nodes share, and name that",
        )
    return found


@contextmanager
def _portable_errors() -> Iterator[None]:
    """Errors a user can act on travel as one type that can be sent, with the node; all others keep their traceback."""
    try:
        yield
    except RegrowError as error:
        import ray

        node = f"worker on {ray.util.get_node_ip_address()}"
        where = f"{node}, {error.where}" if error.where else node
        raise EngineError(error.message, where=where, hint=error.hint) from None


def _clear(error: Exception) -> EngineError:
    """What a user can act on, out of Ray's wrapping."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, EngineError):
        return EngineError(cause.message, where=cause.where, hint=cause.hint)
    return EngineError(
        f"a worker failed: {type(cause or error).__name__}: {_first_line(cause or error)}",
        hint="its log is in the folder logs of Ray's session (/tmp/ray/session_latest on its node)",
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _words(info: EngineInfo) -> str:
    return f"{info.name} {info.version} ({info.dtype}) on {info.model} {info.revision}"


def _connect(address: str) -> None:
    """Start or join Ray.

    Raises:
        EngineError: There is nothing at the address.
    """
    import ray

    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EngineError(
            f"no Ray cluster can be used there: {_first_line(error)}",
            where=f"grow.ray.address: {address}",
            hint="`ray start --head` starts one, `ray status` shows it; `local` needs none",
        ) from error


def plan(nodes: Sequence[dict[str, float]], config: RayConfig) -> tuple[int, float, float]:
    """How many workers, and what each takes.

    Args:
        nodes: Resources of each living node, in Ray's words (``CPU``, ``GPU``).
        config: What was asked for.

    Returns:
        ``(workers, cpus_per_worker, gpus_per_worker)``. More workers than fit now are fine: they come up when nodes
        join.

    Raises:
        EngineError: No node has room for even one.
    """
    gpus = config.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if any(n.get("GPU") for n in nodes) else 0.0
    usable = [n for n in nodes if n.get("GPU", 0) >= gpus and n.get("CPU")]
    cpus = config.cpus_per_worker
    if cpus is None:
        cpus = 1.0 if gpus else min((n["CPU"] for n in usable), default=1.0)
    fit = 0
    for node in usable:
        rooms = [node["CPU"] / cpus, *([node["GPU"] / gpus] if gpus else [])]
        fit += int(min(rooms) + 1e-9)
    if not fit:
        have = ", ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes) or "no node"
        raise EngineError(
            f"no node has room for a worker with {cpus:g} CPUs and {gpus:g} GPUs; the cluster has {have}",
            where="grow.ray",
            hint="lower cpus_per_worker or gpus_per_worker",
        )
    if config.workers is not None and config.workers > fit:
        note(f"ray: {config.workers} workers are asked for, {fit} have room now; the others wait for nodes")
    return config.workers or fit, cpus, gpus


def deal(weights: Sequence[float], parts: int) -> list[list[int]]:
    """Cut ``0 .. len(weights)`` into at most ``parts`` contiguous runs of about equal weight, none empty."""
    whole = sum(weights)
    out: list[list[int]] = []
    before = 0.0
    last = -1
    for i, weight in enumerate(weights):
        # The run that the middle of this item falls into.
        here = min(parts - 1, int((before + weight / 2) / whole * parts))
        if here != last:
            out.append([])
            last = here
        out[-1].append(i)
        before += weight
    return out
