"""Inside the job: connects a Dask client, links its dashboard, and runs the user's code with it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from rallypoint.worker import context, process
from rallypoint.worker.entry import EntryLoadError, run_entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class SchedulerUnreachableError(ConnectionError):
    """Nothing answers at the scheduler's address."""


def main(argv: list[str]) -> int:
    """Run ``SETTINGS KIND WHERE ARG…``, where the settings are the JSON of `DaskJob.roles`."""
    settings = json.loads(argv[0])
    return process.run(lambda: _run(settings, argv[1:]), name=os.environ.get(context.PROCESS, "driver-0"))


def _run(settings: Mapping[str, Any], entry: list[str]) -> Any:
    import dask
    from distributed import Client

    with contextlib.ExitStack() as stack:
        target = settings.get("address") or stack.enter_context(_cluster(settings))
        try:
            client = stack.enter_context(Client(target, timeout=settings["connect_timeout"]))
        except (OSError, TimeoutError) as error:
            msg = (
                f"got the Dask scheduler {settings.get('address', target)}, at which nothing answered within "
                f"{settings['connect_timeout']:g} s: start it, correct cluster=, or leave it out for a local cluster"
            )
            raise SchedulerUnreachableError(msg) from error
        # For a script's `Client()`, here and in processes that it starts: the variable is read once, at import.
        dask.config.set(scheduler_address=client.scheduler.address)
        os.environ["DASK_SCHEDULER_ADDRESS"] = client.scheduler.address
        if client.dashboard_link:
            process.writer().write("link", name="Dask dashboard", url=client.dashboard_link)
        return run_entry(entry, inject={"client": client})


@contextlib.contextmanager
def _cluster(settings: Mapping[str, Any]) -> Iterator[Any]:
    if "local" in settings:
        from distributed import LocalCluster

        asked = settings["local"]
        cores = max(1, int(asked["cpus"] or os.cpu_count() or 1))
        memory = asked["memory"] // cores if asked["memory"] else "auto"
        # One thread per worker process: pandas holds the interpreter lock for most of its work.
        cluster = LocalCluster(
            n_workers=cores, threads_per_worker=1, memory_limit=memory, dashboard_address="127.0.0.1:0",
            host="127.0.0.1",
        )  # fmt: skip
        with cluster:
            yield cluster
        return
    spec = settings["cluster"]
    with _load(spec["cls"])(**spec["kwargs"]) as cluster:
        if spec["adaptive"]:
            cluster.adapt(minimum=spec["adaptive"][0], maximum=spec["adaptive"][1])
        elif spec["workers"]:
            cluster.scale(spec["workers"])
        yield cluster


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        msg = f"got the cluster class {path!r}, which {sys.executable} cannot import: correct it, or install it there"
        raise EntryLoadError(msg) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
