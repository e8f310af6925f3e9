"""Inside the job: deploys, rolls back or removes an application. It needs the standard library only."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rallypoint.frameworks.deploy.lease import Lease
from rallypoint.frameworks.deploy.records import open_records
from rallypoint.frameworks.deploy.rest import UnreachableError
from rallypoint.frameworks.deploy.termination import Termination
from rallypoint.frameworks.ray.serve.client import Dashboard
from rallypoint.frameworks.ray.serve.cluster import Target
from rallypoint.frameworks.ray.serve.deploy import Deployer, DeployFailedError
from rallypoint.frameworks.ray.serve.history import History, cluster_id, lease_folder
from rallypoint.frameworks.ray.serve.packages import Packages
from rallypoint.worker import context, process
from rallypoint.worker.stage import stage

if TYPE_CHECKING:
    from collections.abc import Mapping

LINK = "Ray Serve application"
_ARCHIVE = "rallypoint.zip"  # beside the settings


def main(argv: list[str]) -> int:
    """Run the settings in the file that the one argument names."""
    termination = Termination()
    return process.run(
        lambda: _run(argv[0], termination), name=os.environ.get(context.PROCESS, "driver-0"), explain=_explain
    )


def _run(path: str, termination: Termination) -> dict[str, Any]:
    termination.install()
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    here = context.StageContext.from_environment()
    if here is None or not here.store_uri:
        msg = "a deploy keeps its history in the store: run it as a stage, with an orchestrator of this version"
        raise RuntimeError(msg)
    name, url = settings["name"], settings["dashboard_url"]
    cluster = cluster_id(url, settings["cluster"])
    dashboard = Dashboard.connect(url, settings["headers"], settings["ca_file"], verify=settings["verify"])
    records = open_records(here.store_uri)
    stage_name = "/".join(here.stage)
    stage().link(LINK, f"{url}/#/serve/applications/{quote(name, safe='')}")
    deployer = Deployer(
        settings=settings,
        target=Target(name, dashboard, Lease(records, lease_folder(cluster), stage_name), termination),
        history=History(records, cluster, name),
        lease=Lease(records, lease_folder(cluster, name), stage_name),
        packages=Packages(dashboard, records),
        owner=f"{stage_name} generation {here.generation}",
        session=_session(dashboard),
        secrets={key: os.environ[key] for key in settings["secret_names"] if key in os.environ},
        report=_report,
        say=_say,
    )
    return deployer.run(archive=str(Path(path).with_name(_ARCHIVE)))


def _session(dashboard: Dashboard) -> str:
    with suppress(UnreachableError):
        return dashboard.session()
    return ""  # the first look at the applications waits for it, and tells


def _report(running: int, target: int, status: str, counts: Mapping[str, int]) -> None:
    metrics = {f"replicas of {name}": count for name, count in counts.items()}
    stage().report(step=running, total=target or None, unit="replica", status=status, **metrics)


def _explain(error: BaseException) -> list[dict[str, Any]]:
    """Return what Serve and the failed replica said, in the place of this driver's own traceback."""
    if not isinstance(error, DeployFailedError) or not error.details:
        return []
    kind = type(error)
    return [
        {
            "kind": "process",
            "exception": f"{kind.__module__}.{kind.__qualname__}",
            "message": str(error)[: process.MAX_TRACEBACK],
            "traceback": error.details[-process.MAX_TRACEBACK :],
            "host": context.host(),
        }
    ]


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the stage's log


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
