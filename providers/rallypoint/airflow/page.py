"""The page of a stage in Airflow's UI: attempts, processes, progress, failure and logs."""

from __future__ import annotations

import re
import shlex
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.sdk import conf
from airflow.sdk.exceptions import AirflowNotFoundException
from fastapi import Depends, FastAPI, HTTPException, Query
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader
from starlette.concurrency import run_in_threadpool

from rallypoint.airflow.hooks import RallypointHook
from rallypoint.airflow.links import stage_page as address_of
from rallypoint.airflow.place import DEFAULT_CONN_ID, SECTION
from rallypoint.errors import RallypointError
from rallypoint.stages.history import Histories, tensorboard_prefix
from rallypoint.stages.key import StageKey
from rallypoint.stages.text import printable

if TYPE_CHECKING:
    from rallypoint.stages.engine import Engine

LOG_TAIL = 65_536  # bytes of one log that the page shows
_TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
_ReadLogs = Depends(requires_access_dag("GET", DagAccessEntity.TASK_LOGS))
# No script runs on the page, whatever gets into it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_ConnId = Annotated[str, Query(max_length=250)]
_HISTORIES = Histories()
_On = Annotated[str | None, Query(max_length=250)]  # the connection of the launcher, if the task names one itself

app = FastAPI(title="Rallypoint", docs_url=None, redoc_url=None, openapi_url=None)


@app.get("/stages/{dag_id}/{run_id}/{task_id}/{map_index}", dependencies=[_ReadLogs])
async def stage_page(
    dag_id: str,
    run_id: str,
    task_id: str,
    map_index: int,
    attempt: Annotated[int | None, Query(ge=1)] = None,
    log: Annotated[str | None, Query(max_length=200)] = None,
    conn: _ConnId = DEFAULT_CONN_ID,
    on: _On = None,
    *,
    tensorboard: Annotated[bool, Query()] = False,
) -> HTMLResponse:
    """Show a stage to those who may read the task's logs."""
    engine = await _engine(dag_id, run_id, task_id, map_index, conn, on)
    numbers = await engine.ledger.numbers()
    if not numbers:
        raise HTTPException(404, f"{engine.key.text} has no attempt in {engine.store.uri}")
    number = attempt if attempt in numbers else numbers[-1]
    shown = await engine.inspect(number)
    entries = [entry for number in numbers if (entry := await engine.ledger.read(number))]
    generation = shown.entry.record.generation
    mates = [one.record.number for one in entries if one.record.generation == generation]
    history = await _HISTORIES.get(engine.ledger, generation, mates)
    names = sorted({process.log for process in shown.view.processes.values()})
    text = await engine.tail(number, log if log in names else (shown.view.shown_logs() or [""])[-1], LOG_TAIL)
    context = {
        "key": engine.key.text,
        "attempts": entries,
        "entry": shown.entry,
        "view": shown.view,
        "state": shown.state,
        "logs": names,
        "log": log if log in names else (shown.view.shown_logs() or [""])[-1],
        "text": text,
        "failure": shown.entry.outcome.failure.render() if shown.entry.outcome and shown.entry.outcome.failure else "",
        "now": time.time(),
        "when": _when,
        "conn": conn,
        "on": on or "",
        "metrics": history.metrics,
        "scalars": history.scalars,
        "tensorboard": tensorboard or history.scalars.files,
        "tensorboard_url": tensorboard_address(engine, generation),
        "tensorboard_command": shlex.join(["rallypoint", "tensorboard", engine.key.text, "--store", engine.store.uri]),
    }
    # Jinja makes HTML inert, `printable` the escapes that a terminal would obey when somebody saves the page.
    return HTMLResponse(printable(_TEMPLATES.get_template("stage.html").render(context)), headers=_HEADERS)


@app.get("/stages/{dag_id}/{run_id}/{task_id}/{map_index}/links/{name}", dependencies=[_ReadLogs])
async def stage_link(
    dag_id: str,
    run_id: str,
    task_id: str,
    map_index: int,
    name: str,
    conn: _ConnId = DEFAULT_CONN_ID,
    on: _On = None,
) -> RedirectResponse:
    """Send the browser on to a link that the running attempt has reported, such as the Dask dashboard."""
    engine = await _engine(dag_id, run_id, task_id, map_index, conn, on)
    numbers = await engine.ledger.numbers()
    links: dict[str, Any] = (await engine.inspect(numbers[-1])).view.links if numbers else {}
    if name not in links:
        raise HTTPException(404, f"the newest attempt of {engine.key.text} has reported no link {name!r} (yet)")
    return RedirectResponse(links[name])


@app.get("/stages/{dag_id}/{run_id}/{task_id}/{map_index}/tensorboard", dependencies=[_ReadLogs])
async def stage_tensorboard(
    dag_id: str, run_id: str, task_id: str, map_index: int, conn: _ConnId = DEFAULT_CONN_ID, on: _On = None
) -> RedirectResponse:
    """Send the browser on to the configured TensorBoard, or to where the stage's page says how to open one.

    A web server starts no process for a click.
    """
    engine = await _engine(dag_id, run_id, task_id, map_index, conn, on)
    last = await engine.ledger.last()
    if last is None:
        raise HTTPException(404, f"{engine.key.text} has no attempt in {engine.store.uri}")
    asked = {"conn": conn, **({"on": on} if on else {}), "tensorboard": "true"}
    page = f"{address_of(dag_id, run_id, task_id, map_index)}?{urlencode(asked, quote_via=quote)}#tensorboard"
    return RedirectResponse(tensorboard_address(engine, last.record.generation) or page)


def tensorboard_address(engine: Engine, generation: int) -> str:
    """Return a generation's address on the TensorBoard that ``[rallypoint] tensorboard_url`` names.

    That one is started by whoever runs this place, on the store or a folder above it; its runs are then called as
    the stages' folders, by which they are filtered here.

    Returns:
        The address; the empty string if none is configured.
    """
    base = conf.get(SECTION, "tensorboard_url", fallback="").strip().rstrip("/")
    if not base.startswith(("http://", "https://")):
        return ""
    runs = re.escape(tensorboard_prefix(engine.ledger, generation))
    return f"{base}/?runFilter={quote(runs, safe='')}#timeseries"


async def _engine(dag_id: str, run_id: str, task_id: str, map_index: int, conn: str, on: str | None = None) -> Engine:
    mapped = (str(map_index),) if map_index >= 0 else ()
    try:
        place = await run_in_threadpool(RallypointHook(conn, on).get_conn)
        return place.engine(StageKey((dag_id, run_id, task_id, *mapped)))
    except AirflowNotFoundException as error:
        raise HTTPException(404, f"there is no connection {conn!r} of the type 'rallypoint', or none {on!r}") from error
    except RallypointError as error:
        raise HTTPException(502, str(error)) from error


def _when(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if seconds else ""
