"""The demo on Prefect: a private server, the served deployment, the event that starts it, and live progress.

`make demo-prefect` calls it. Its exit code is 0 only if the flow run completed.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from demo import json_object, metrics_table, show_answer
from prefect_instance import PrefectInstance, PrefectInstanceError, stop_home
from rich.console import Console

from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.ledger import list_stages
from rallypoint.stages.store import Store
from rallypoint.worker.ports import free_ports

REPOSITORY = Path(__file__).resolve().parent.parent
DEPLOYMENT = "flights/on-new-data"
EVENT = "flights.data.arrived"
_ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_POLL_SECONDS = 1.0


class DemoError(RuntimeError):
    """The demo cannot go on."""


class Server:
    """The REST API of a private Prefect server; SQLite may be busy, so that a request is asked again.

    Args:
        client: Of the API.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def deployment(self, name: str) -> str | None:
        """Return the id of a deployment, None while there is none."""
        answer = self._client.get(f"/deployments/name/{name}")
        return str(answer.json()["id"]) if answer.is_success else None

    def emit(self, event: str, payload: Mapping[str, Any]) -> None:
        """Send an event, as whatever loads new data would."""
        body = {
            "id": str(uuid.uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": event,
            "resource": {"prefect.resource.id": "flights.data"},
            "payload": dict(payload),
        }
        self._ask("POST", "/events", json=[body])

    def newest_run(self, deployment: str) -> dict[str, Any] | None:
        """Return the newest flow run of a deployment."""
        wanted = {"deployments": {"id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_DESC", "limit": 1}
        found = self._ask("POST", "/flow_runs/filter", json=wanted).json()
        return found[0] if found else None

    def run(self, run_id: str) -> dict[str, Any]:
        """Return a flow run."""
        found: dict[str, Any] = self._ask("GET", f"/flow_runs/{run_id}").json()
        return found

    def log_tail(self, run_id: str, lines: int = 40) -> list[str]:
        """Return the last lines of a flow run's log."""
        wanted = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_DESC", "limit": lines}
        return [log["message"] for log in reversed(self._ask("POST", "/logs/filter", json=wanted).json())]

    def _ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        deadline = time.monotonic() + 60
        while True:
            answer = self._client.request(method, path, **body)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                return answer.raise_for_status()
            time.sleep(_POLL_SECONDS)


async def stages_of(folder: Path, run_id: str) -> dict[str, tuple[str, str, Any]]:
    """Return state, progress and result of every stage of a flow run, by the stage's name."""
    store, found = Store.open(folder), {}
    for key in await list_stages(store):
        if key.parts[0] != run_id:
            continue
        engine = Engine(store, StageKey(key.parts))
        numbers = await engine.ledger.numbers()
        if numbers:
            seen = await engine.inspect(numbers[-1])
            result = seen.entry.outcome.result if seen.entry.outcome else None
            found[key.parts[-1]] = (f"{seen.state}, attempt {numbers[-1]}", seen.view.progress_line, result)
    return found


def wait_for(condition: Any, what: str, *, seconds: float = 120) -> Any:
    """Wait until a condition returns something, and return that."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise DemoError(f"waited {seconds:.0f} s for {what}")
        time.sleep(_POLL_SECONDS)
    return value


def follow(server: Server, store: Path, run_id: str, *, timeout: float) -> dict[str, Any]:
    """Print a line for each change of a stage until the flow run has ended, and return the run."""
    shown: dict[str, tuple[str, str]] = {}
    began = time.monotonic()
    while True:
        run = server.run(run_id)  # before the stages, so that those of an ended run are final
        for name, (state, progress, _) in asyncio.run(stages_of(store, run_id)).items():
            if shown.get(name) != (state, progress):
                shown[name] = (state, progress)
                print(
                    f"{time.monotonic() - began:6.1f} s  {name}: {state}{', ' if progress else ''}{progress}",
                    flush=True,
                )
        if run["state_type"] in _ENDED:
            return run
        if time.monotonic() - began > timeout:
            raise DemoError(f"the flow run is {run['state_type']} after {timeout:.0f} s")
        time.sleep(_POLL_SECONDS)


def run_demo(options: argparse.Namespace, console: Console) -> int:
    """Run the flow on a private server and return the exit code."""
    home: Path = options.home
    store = home / "rallypoint"
    console.print(f"starting Prefect in {os.path.relpath(home)} (its logs: {os.path.relpath(home / 'processes')})")
    with PrefectInstance(home, env={"RALLYPOINT_STORE": str(store)}) as instance, instance.client() as client:
        server = Server(client)
        instance.serve(REPOSITORY / "flows" / "flights.py")
        deployment = wait_for(lambda: server.deployment(DEPLOYMENT), f"the deployment {DEPLOYMENT} to be served")
        before = server.newest_run(deployment)
        server.emit(EVENT, {"serve_port": free_ports(1)[0], **options.parameters})
        console.print(f"emitted the event {EVENT}")

        def started() -> dict[str, Any] | None:
            newest = server.newest_run(deployment)
            return newest if newest and newest["id"] != (before or {}).get("id") else None

        run_id = wait_for(started, "the run that the event starts")["id"]
        page = f"{instance.url}/runs/flow-run/{run_id}"
        console.print(f"run page: {page}", soft_wrap=True)
        run = follow(server, store, run_id, timeout=options.timeout)
        if run["state_type"] == "COMPLETED":
            results = {name: result for name, (_, _, result) in asyncio.run(stages_of(store, run_id)).items()}
            console.print(metrics_table(results.get("evaluate")) or "the stage evaluate left no metrics")
            show_answer(results.get("smoke"), console)
        else:
            console.print("\n".join(server.log_tail(run_id)), markup=False, highlight=False, soft_wrap=True)
        console.print(f"flow flights: {run['state_name']} in {run['total_run_time']:.0f} s")
        if options.keep:
            instance.detach()
            console.print(f"Prefect stays up: {page}\nstop it with `make demo-prefect-stop`", soft_wrap=True)
    return 0 if run["state_type"] == "COMPLETED" else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo from the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Run the flow flights on a private Prefect and show its progress.")
    parser.add_argument("--parameters", type=json_object, default={}, help="the flow's parameters, a JSON object")
    parser.add_argument("--home", type=Path, default=REPOSITORY / ".demo" / "prefect", help="PREFECT_HOME")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds until the run has to end")
    keep = os.environ.get("KEEP", "") not in {"", "0"}
    parser.add_argument("--keep", action="store_true", default=keep, help="leave Prefect up; the same as KEEP=1")
    parser.add_argument("--stop", action="store_true", help="stop the Prefect that --keep left up, run nothing")
    options = parser.parse_args(arguments)
    console = Console()
    if options.stop:
        console.print("stopped the Prefect of the demo" if stop_home(options.home) else "no Prefect of the demo runs")
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    try:
        return run_demo(options, console)
    except KeyboardInterrupt:
        console.print("stopped by Ctrl-C: nothing of the demo runs any more")
        return 128 + signal.SIGINT
    except (DemoError, PrefectInstanceError, httpx.HTTPError) as error:
        console.print(f"the demo failed: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
