"""Inside the job: one process of a temporary Dask cluster, ``scheduler SETTINGS`` or ``worker SETTINGS``.

The scheduler runs in this process; a worker below Dask's nanny, which starts it anew when it dies. The gang's
supervisor leaves nothing of either behind, also when this process is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.cluster.daemon import DaemonLostError, DaemonStartError
from rallypoint.worker import context, process

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

LOOK = 0.25  # seconds between two looks at a cluster that is starting
ORPHANED = 15.0  # seconds that a worker waits to be stopped with its scheduler, which is then what failed
STOP_SECONDS = 8.0  # that an orderly end may take
# What the tasks of a job on this cluster would take for their own stage. The marks by which an attempt's processes are
# found again stay.
_STAGES_OWN = (context.STAGE_FILE, context.EVENTS_URI, context.PROCESS, context.LEASE_URI)


async def scheduler(settings: Mapping[str, Any], _name: str, stop: asyncio.Event) -> None:
    """Run the scheduler, say when every worker has joined, and stay."""
    from distributed import Scheduler

    host = settings["host"]
    async with Scheduler(host=host, port=int(settings["port"]), dashboard_address=f"{host}:0") as running:
        wanted, deadline = set(settings["workers"]), asyncio.get_running_loop().time() + settings["start_timeout"]
        while missing := wanted - {str(each.name) for each in running.workers.values()}:
            if await _is_set(stop, LOOK):
                return
            if asyncio.get_running_loop().time() > deadline:
                msg = (
                    f"{len(wanted) - len(missing)} of {len(wanted)} workers joined within "
                    f"{settings['start_timeout']:g} s, without {', '.join(sorted(missing))}: look at their logs, or "
                    "raise start_timeout"
                )
                raise DaemonStartError(msg)
        url = f"http://{host}:{running.http_server.port}/status"
        process.writer().write("link", name="Dask dashboard", url=url)
        address = {"address": running.address, "dashboard_url": url, "workers": len(wanted)}
        process.writer().write("ready", address=address)
        print(f"ready: {running.address} with {len(wanted)} workers, dashboard {url}", flush=True)  # noqa: T201
        await _stay(running.finished(), "the cluster's scheduler", stop)


async def worker(settings: Mapping[str, Any], name: str, stop: asyncio.Event) -> None:
    """Run a worker below a nanny, and stay."""
    from distributed import Nanny

    options = {"nthreads": settings["threads"], "memory_limit": settings["memory"] or "auto"}
    async with Nanny(
        settings["scheduler"],
        name=name,
        host=settings["host"],
        dashboard_address=f"{settings['host']}:0",
        death_timeout=settings["start_timeout"],
        local_directory=_folder(name),
        **options,
    ) as running:
        try:
            await _stay(running.finished(), "this worker", stop)
        except DaemonLostError:
            # With its scheduler gone it is about to be stopped, and not what failed first.
            if not await _is_set(stop, ORPHANED):
                raise


def _folder(name: str) -> str:
    """Return where a worker spills to: below the attempt's folder, which is removed with it."""
    folder = Path(os.environ.get(context.RUN_DIR, "."), "dask", name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return str(folder)


async def _stay(end: Awaitable[Any], what: str, stop: asyncio.Event) -> None:
    """Wait until this process is asked to stop.

    Raises:
        DaemonLostError: What runs in it has ended before.
    """
    ended, asked = asyncio.ensure_future(end), asyncio.ensure_future(stop.wait())
    await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if stop.is_set():
        ended.cancel()
        return
    msg = f"{what} has ended although nobody asked it to: see its log"
    raise DaemonLostError(msg)


async def _is_set(stop: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def _run(role: str, settings: Mapping[str, Any], name: str) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def end() -> None:
        stop.set()
        loop.call_later(STOP_SECONDS, os._exit, 0)  # it was asked to end, and there is nothing that it has to save

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    await {"scheduler": scheduler, "worker": worker}[role](settings, name, stop)


def main(argv: list[str]) -> int:
    """Run one process of the gang."""
    role, settings = argv[0], json.loads(argv[1])
    name = os.environ.get(context.PROCESS, f"{role}-0")

    def body() -> None:
        for variable in _STAGES_OWN:
            os.environ.pop(variable, None)
        asyncio.run(_run(role, settings, name))

    return process.run(body, name=name, primary=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
