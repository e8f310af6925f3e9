"""Inside the job: checks a model, and deploys it to a TensorFlow model server."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.deploy.rest import json_headers
from rallypoint.frameworks.deploy.termination import Termination
from rallypoint.frameworks.tensorflow.serving.deploy import Deployer
from rallypoint.frameworks.tensorflow.serving.job import HEADERS
from rallypoint.frameworks.tensorflow.serving.model import as_saved_model, content_digest, fetch
from rallypoint.frameworks.tensorflow.serving.served_labels import ServedLabels
from rallypoint.frameworks.tensorflow.serving.server import Server
from rallypoint.frameworks.tensorflow.serving.signature import check, read_signatures
from rallypoint.frameworks.tensorflow.serving.versions import Journal, open_versions
from rallypoint.worker import context, process
from rallypoint.worker.stage import stage

if TYPE_CHECKING:
    from collections.abc import Mapping


def main(argv: list[str]) -> int:
    """Run the settings in the file that the one argument names."""
    return process.run(lambda: _run(argv[0]), name=os.environ.get(context.PROCESS, "driver-0"))


def _run(path: str) -> dict[str, Any]:
    termination = Termination()
    termination.install()
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="rallypoint-") as scratch:
        model = fetch(settings["model"], scratch)
        digest = content_digest(model)
        folder = as_saved_model(model, scratch, _say)
        signatures = read_signatures(folder)
        _say(f"signatures: {json.dumps(signatures)[:2000]}")
        check(signatures, settings["signature"])
        return deployer(settings, termination).run(folder, digest)


def deployer(settings: Mapping[str, Any], termination: Termination) -> Deployer:
    """Return what deploys, from a job's settings and this process's stage."""
    here = context.StageContext.from_environment()
    owner = f"{'/'.join(here.stage)} generation {here.generation}" if here else f"process {os.getpid()}"
    server = Server(settings["rest_url"], settings["name"], json_headers(HEADERS, os.environ), settings["ca_file"])
    labels = None
    if settings["config_file"] is not None:
        labels = ServedLabels(
            settings["config_file"],
            server,
            settings["labels"],
            owner=owner,
            pause=settings["poll_interval"],
            say=_say,
        )
    return Deployer(
        settings=settings,
        server=server,
        versions=open_versions(settings["base_path"]),
        journal=Journal(settings["base_path"]),
        labels=labels,
        owner=owner,
        termination=termination,
        report=lambda state: stage().report(status=state),
        say=_say,
    )


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the stage's log


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
