"""The server behind `regrow ui`: the page's files, the runs as JSON, server-sent events."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict
from starlette.types import ASGIApp

from regrow.errors import RegrowError, RunError
from regrow.recipe import load_recipe
from regrow.report.build import Report
from regrow.ui import form, views
from regrow.ui.control import Control
from regrow.ui.folder import RunsFolder
from regrow.ui.follow import EVERY_S, LIST_EVERY_S, Event, Follower, numeric, stream
from regrow.ui.guard import Guard, new_token

STATIC = Path(str(resources.files("regrow.ui") / "static"))
SHARED_STYLE = Path(str(resources.files("regrow.report") / "style.css"))
MOST_COMPARED = 6
_SHUTDOWN_S = 1

api = APIRouter()


class Json(Response):
    """A value of ours as JSON."""

    media_type = "application/json"

    def __init__(self, value: Any, status: int = 200) -> None:
        super().__init__(views.to_json(value), status)


class App:
    """What the requests share."""

    def __init__(self, folder: RunsFolder, stopping: Callable[[], bool]) -> None:
        self.folder, self.control, self.stopping = folder, Control(folder), stopping

    def runs(self) -> list[dict[str, Any]]:
        """The list of runs: those that are only just starting, then the others, newest first."""
        found: list[dict[str, Any]] = [
            {"id": name, "name": name, "state": state} for name, state in self.control.starting().items()
        ]
        for run in self.folder.runs():
            found.append({**views.run_line(run.line), "id": run.name, "at": run.line.state, "state": run.state})
        return found


def _app(request: Request) -> App:
    found: App = request.app.state.regrow
    return found


Shared = Annotated[App, Depends(_app)]
RunName = Annotated[str, Query(alias="run", max_length=4096)]
Offset = Annotated[int, Query(ge=0, le=10**9)]
Limit = Annotated[int, Query(ge=1, le=views.MAX_PAGE)]


@api.get("/api/runs")
def list_runs(app: Shared) -> Json:
    return Json(app.runs())


@api.get("/api/run")
def one_run(app: Shared, run: RunName) -> Json:
    starting = app.control.starting().get(run)
    shown = {"starting": starting} if starting else views.detail(app.folder.data(run))
    return Json({"id": run, **shown, "printed": views.tail(app.control.printed(run))})


@api.get("/api/items")
def items(
    app: Shared,
    run: RunName,
    arm: str = "",
    outcome: str = "",
    domain: str = "",
    suite: str = "",
    q: Annotated[str, Query(max_length=500)] = "",
    offset: Offset = 0,
    limit: Limit = views.PAGE,
) -> Json:
    found = views.items_page(
        app.folder.items(run), arm=arm or app.folder.data(run).main_arm or "", outcome=outcome, domain=domain,
        suite=suite, words=q, offset=offset, limit=limit,
    )  # fmt: skip
    return Json(found)


@api.get("/api/tree")
def tree(
    app: Shared,
    run: RunName,
    parent: Annotated[str, Query(max_length=500)] = "",
    offset: Offset = 0,
    limit: Limit = views.PAGE,
) -> Json:
    return Json(views.tree_page(app.folder.run(run), parent, offset, limit))


@api.get("/api/logs")
def logs(app: Shared, run: RunName) -> Json:
    """The training logs by arm, thinned."""
    return Json({arm: numeric(rows) for arm, rows in app.folder.data(run).logs.items()})


@api.get("/api/compare")
def compare(app: Shared, run: Annotated[list[str], Query(min_length=2, max_length=MOST_COMPARED)]) -> Json:
    return Json(views.compared([(name, app.folder.data(name)) for name in run]))


@api.get("/api/report")
def report(app: Shared, run: RunName) -> HTMLResponse:
    """Written anew: a report.html that lies in the folder could be anybody's. The page brings its own policy."""
    page = Report(app.folder.data(run)).html()
    return HTMLResponse(page.encode("utf-8", "replace"), headers={"Content-Security-Policy": "frame-ancestors 'none'"})


@api.get("/api/form")
def recipe_form() -> Json:
    return Json(form.form())


@api.get("/api/form/values")
def recipe_values(app: Shared, run: RunName) -> Json:
    return Json(form.typed(load_recipe(app.folder.run(run) / "recipe.yaml")))


class Wanted(BaseModel):
    """A recipe as it was typed: key -> text."""

    model_config = ConfigDict(extra="forbid")

    values: dict[str, str]
    name: str | None = None


class Named(BaseModel):
    """A run to continue or stop."""

    model_config = ConfigDict(extra="forbid")

    run: str


@api.post("/api/check")
def check(wanted: Wanted) -> Json:
    return Json({"problems": form.check(wanted.values)[1]})


@api.post("/api/start")
def start(app: Shared, wanted: Wanted) -> Json:
    """The run and its process, or what is wrong by key; a mistake in a form is an answer, not an error."""
    recipe, problems = form.check(wanted.values)
    name = wanted.name or ""
    if recipe is not None:
        try:
            return Json({"run": name, "pid": app.control.start(name, recipe)})
        except RunError as error:
            problems = {error.where or "": error.message}
    return Json({"problems": problems})


@api.post("/api/continue")
def proceed(app: Shared, named: Named) -> Json:
    return Json({"run": named.run, "pid": app.control.proceed(named.run)})


@api.post("/api/stop")
def stop(app: Shared, named: Named) -> Json:
    return Json({"run": named.run, "pid": app.control.stop(named.run)})


@api.get("/api/events")
def events(app: Shared, run: Annotated[str | None, Query(max_length=4096)] = None) -> StreamingResponse:
    """Of one run, or without ``run`` of the list of runs."""
    poll = _list_poll(app) if run is None else Follower(app.folder.run(run)).poll
    every = LIST_EVERY_S if run is None else EVERY_S
    return StreamingResponse(
        stream(poll, app.stopping, every), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


def _list_poll(app: App) -> Callable[[], list[Event]]:
    told: list[dict[str, Any]] | None = None

    def poll() -> list[Event]:
        nonlocal told
        found = app.runs()
        if found == told:
            return []
        told = found
        return [("runs", found)]

    return poll


@api.get("/")
def page() -> FileResponse:
    return FileResponse(STATIC / "index.html", media_type="text/html")


@api.get("/static/report.css")
def shared_style() -> FileResponse:
    return FileResponse(SHARED_STYLE, media_type="text/css")


def create_app(
    root: Path, token: str, *, loopback: bool = True, stopping: Callable[[], bool] = lambda: False
) -> ASGIApp:
    """The whole server for a folder of runs.

    Args:
        root: The folder.
        token: What every path begins with; see `regrow.ui.guard`.
        loopback: The server listens on this machine only.
        stopping: Whether open event streams are to end.

    Raises:
        RunError: There is no such folder.
    """
    app = FastAPI(title="Regrow", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.regrow = App(RunsFolder(root), stopping)
    app.include_router(api)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.exception_handler(RegrowError)
    async def told(_: Request, error: RegrowError) -> Json:
        return Json({"message": error.message, "where": error.where, "hint": error.hint}, 400)

    return Guard(app, token, loopback=loopback)


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(root: Path, *, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. ``ready`` is told the address, with its token, once connections are taken.

    Raises:
        RunError: There is no such folder, or the address cannot be listened on.
    """
    import uvicorn

    loopback = is_loopback(host)
    token = new_token()
    servers: list[uvicorn.Server] = []
    app = create_app(root, token, loopback=loopback, stopping=lambda: any(s.should_exit for s in servers))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise RunError(
            f"cannot listen there: {error.strerror or error}", where=f"{host}:{port}", hint="choose another --port"
        ) from error
    listener.listen(128)
    named = socket.gethostname() if host in ("0.0.0.0", "::") else host  # noqa: S104 - only shown
    named = f"[{named}]" if ":" in named else named
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=_SHUTDOWN_S
    )
    servers.append(uvicorn.Server(config))
    with suppress(KeyboardInterrupt):  # before uvicorn listens to signals, too; it raises them again when it is done
        ready(f"http://{named}:{listener.getsockname()[1]}/{token}/")
        servers[0].run(sockets=[listener])
