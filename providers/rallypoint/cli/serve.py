"""The commands about Ray Serve: the versions of an application, going back to one, removing it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from rallypoint.cli.place import launcher_uri, open_store
from rallypoint.cli.run import run_stage
from rallypoint.cli.terminal import complain, output, say, text, when
from rallypoint.errors import StageNotFoundError
from rallypoint.frameworks.ray.serve.history import ROOT, Version, component
from rallypoint.frameworks.ray.serve.job import RayServeRollback, RayServeUndeploy
from rallypoint.launchers.registry import open_launcher
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import Intent
from rallypoint.stages.text import printable

if TYPE_CHECKING:
    from rallypoint.frameworks.ray.serve.job import ServeJob
    from rallypoint.stages.store import Store

_App = Annotated[str, typer.Argument(metavar="APP", help="The application's name.")]
_AnyApp = Annotated[str | None, typer.Argument(metavar="APP", help="The application's name; all if omitted.")]
_Cluster = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The cluster, where several have the application: host-port, or a name."),
]
_Dashboard = Annotated[
    str | None, typer.Option(metavar="URL", help="The Ray dashboard. Default: that of the newest version.")
]
_Version = Annotated[int | None, typer.Option("--to", metavar="N", help="The version. Default: the previous one.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_Store = Annotated[str | None, typer.Option(metavar="URI", help="The store, as for the other commands.")]
_Launcher = Annotated[str | None, typer.Option(metavar="URI", help="Where the deploy runs. Default: this machine.")]

_USAGE = 2  # exit code of wrong input
_INTERRUPTED = 130  # exit code after Ctrl-C

serve_app = typer.Typer(
    name="serve",
    help="Ray Serve: the configs that were applied to an application, and going back to one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@serve_app.command()
def history(app: _AnyApp = None, *, cluster: _Cluster = None, as_json: _Json = False, store: _Store = None) -> None:
    """Show what was applied to an application, or the newest version of each."""
    opened = open_store(store)
    found = asyncio.run(_versions(opened, app, cluster))
    shown = [version for versions in found for version in (versions if app else versions[:1])]
    if as_json:
        typer.echo(json.dumps([asdict(version) for version in shown], indent=2))
        return
    if not shown:
        say(f"no application was deployed to Ray Serve through {opened.uri}")
        return
    table = Table("application", "cluster", "version", "state", "what", "replicas", "when", "by", "why")
    for version in shown:
        what = f"rollback to {version.source}" if version.source else version.action
        table.add_row(
            text(version.name),
            text(version.cluster),
            str(version.number),
            text(version.state),
            text(what),
            "" if version.replicas is None else str(version.replicas),
            when(version.created),
            text(version.owner),
            text(version.reason),
        )
    output().print(table)


@serve_app.command()
def rollback(  # noqa: PLR0913 - the options of a command are its parameters
    app: _App,
    *,
    version: _Version = None,
    dashboard: _Dashboard = None,
    cluster: _Cluster = None,
    yes: _Yes = False,
    store: _Store = None,
    launcher: _Launcher = None,
) -> None:
    """Deploy an earlier version again, wait until it runs, and print where it is served.

    A token for the dashboard is taken from RAY_AUTH_TOKEN, other secret headers from RAY_JOB_HEADERS.
    """
    opened = open_store(store)
    newest = asyncio.run(_one(opened, app, cluster))
    url = dashboard or newest.dashboard_url
    _confirm(f"deploy version {version or '(the previous one)'} of {app} to {url}?", yes=yes)
    job = RayServeRollback(name=app, dashboard_url=url, cluster=newest.cluster, version=version)
    _run(job, opened, launcher)


@serve_app.command()
def undeploy(  # noqa: PLR0913 - the options of a command are its parameters
    app: _App,
    *,
    dashboard: _Dashboard = None,
    cluster: _Cluster = None,
    yes: _Yes = False,
    store: _Store = None,
    launcher: _Launcher = None,
) -> None:
    """Remove an application from Ray Serve; the others stay, and a rollback brings it back."""
    opened = open_store(store)
    newest = asyncio.run(_one(opened, app, cluster))
    url = dashboard or newest.dashboard_url
    _confirm(f"remove {app} from {url}?", yes=yes)
    _run(RayServeUndeploy(name=app, dashboard_url=url, cluster=newest.cluster), opened, launcher)


def _run(job: ServeJob, store: Store, launcher: str | None) -> None:
    unique = uuid.uuid4().hex[:8]  # each command is a deploy of its own, not a retry of the last one
    engine = Engine(
        store, StageKey(("cli", f"serve.{job.action}.{job.name}", unique)), open_launcher(launcher_uri(launcher, store))
    )
    owner = f"cli:{socket.gethostname()}:{os.getpid()}:{unique}"
    try:
        request = Request(owner=owner, intent=Intent.CONTINUE)
        result = asyncio.run(run_stage(engine, job, request, on_ready=lambda _: None))
    except (InterruptedError, KeyboardInterrupt):
        say("interrupted")
        raise typer.Exit(_INTERRUPTED) from None
    typer.echo(json.dumps(result))


async def _one(store: Store, app: str, cluster: str | None) -> Version:
    """Return the newest version of an application.

    Raises:
        StageNotFoundError: There is none, or there are several clusters.
    """
    found = await _versions(store, app, cluster)
    if len(found) != 1:
        where = ", ".join(versions[0].cluster for versions in found)
        problem = f"which several clusters have ({where}), expected --cluster" if found else "which was never deployed"
        msg = f"got the application {app!r}, {problem} through {store.uri}; see rallypoint serve history"
        raise StageNotFoundError(msg)
    return found[0][0]


async def _versions(store: Store, app: str | None, cluster: str | None) -> list[list[Version]]:
    """Return the versions of each application that is meant, the newest first."""
    folders = [
        f"{ROOT}/{folder}/{name}"
        for folder in await store.children(ROOT)
        if cluster is None or folder == component(cluster)
        for name in await store.children(f"{ROOT}/{folder}")
        if app is None or name == component(app)
    ]
    return [versions for folder in folders if (versions := await _read(store, folder))]


async def _read(store: Store, folder: str) -> list[Version]:
    names = [name.removesuffix(".json") for name in await store.children(folder)]
    numbers = sorted((int(name) for name in names if name.isdigit()), reverse=True)
    data = await asyncio.gather(*(store.get(f"{folder}/{number}.json") for number in numbers))
    versions: list[Any] = [Version.from_json(each) for each in data if each]
    return [version for version in versions if version is not None]


def _confirm(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        complain("nobody can be asked here: give --yes")
        raise typer.Exit(_USAGE)
    if not typer.confirm(printable(question), err=True):
        say("nothing was done")
        raise typer.Exit(1)
