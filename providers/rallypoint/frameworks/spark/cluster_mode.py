"""Inside the job: submits an application in cluster mode and follows it to its end, ``SETTINGS KIND WHERE ARG…``.

The driver runs on the cluster, and lives on when this process is killed. So before anything is submitted, this looks
for what an earlier start of the same attempt submitted and goes on with that, and ends what older attempts of the stage
left. Only the manager's word that the application succeeded is a success.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.spark.cluster_mode_apps import (
    ApplicationFailedError,
    ApplicationLostError,
    ManagerRefusedError,
    ManagerUnreachableError,
    OlderApplicationError,
    Phase,
    SetupError,
    SubmissionError,
)
from rallypoint.frameworks.spark.cluster_mode_kubernetes import Kubernetes, api_server, namespace_of
from rallypoint.frameworks.spark.cluster_mode_standalone import Standalone, Submissions, addresses, request_of
from rallypoint.frameworks.spark.cluster_mode_submit import Submitter, spark_version
from rallypoint.frameworks.spark.cluster_mode_yarn import Yarn, resource_managers
from rallypoint.worker import context, process
from rallypoint.worker.stage import stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rallypoint.frameworks.spark.cluster_mode_apps import Application, Manager

LOOK = 2.0  # seconds between two looks at an application
SIGN_OF_LIFE = 60.0  # seconds between two signs that the manager still answers, for the stall timer
_OLDER_SECONDS = 120.0  # until an older attempt's application has to be gone
_SHOWN_SECONDS = 15.0  # until an application that was accepted has to be listed
_KILL_SECONDS = 15.0  # that a kill may take; the process itself is killed soon after
_MAX_MESSAGE = 8_000  # characters of what a manager says of an end

_stop = threading.Event()


class StoppedError(RuntimeError):
    """This process was asked to end, and the application was killed."""


def follow(manager: Manager, attempt: str, *, look_every: float = LOOK) -> dict[str, Any]:
    """Submit an application unless it is there, and return when it has succeeded.

    Args:
        manager: The cluster's manager.
        attempt: The attempt's id.
        look_every: Seconds between two looks.

    Returns:
        The stage's result: the application's id and its pages.

    Raises:
        ApplicationFailedError: It ended, and not as a success.
        ApplicationLostError: The manager does not know it any more.
        OlderApplicationError: What an older attempt left could not be ended.
        SubmissionError: It was not accepted.
        StoppedError: This process was asked to end.
        ManagerRefusedError: A login or a right is missing.
        ManagerUnreachableError: Nothing answers before anything was submitted.
    """
    try:
        _end_older(manager, attempt)
        found = manager.find(attempt)
        if found is None and not _stop.is_set():
            manager.submit(attempt)
            found = _submitted(manager, attempt)
        if found is not None:
            _say(f"{manager.name}: application {found.id}")
            found = _wait(manager, found, look_every)
    except (ManagerUnreachableError, SubmissionError):
        if not _stop.is_set():
            raise
        found = None  # whether anything was submitted is seen below
    if _stop.is_set() and (found is None or not found.phase.ended):
        _kill(manager, attempt)
    if found is None:
        msg = f"{manager.name} took the application of {attempt} and does not know it: look at its own log"
        raise ApplicationLostError(msg)
    if found.phase is Phase.SUCCEEDED:
        return {"application": found.id, "links": dict(found.links)}
    msg = f"{manager.name} says of the application {found.id}: {found.word or found.phase}. {found.message}".rstrip()
    if found.phase is Phase.UNKNOWN:
        raise ApplicationLostError(f"{msg}; nobody can say how it ended")
    raise ApplicationFailedError(msg[:_MAX_MESSAGE])


def _submitted(manager: Manager, attempt: str) -> Application | None:
    """Return what was just submitted; a manager may show it a little later."""
    deadline = time.monotonic() + _SHOWN_SECONDS
    while (found := manager.find(attempt)) is None and time.monotonic() < deadline and not _stop.wait(0.5):
        pass
    return found


def _wait(manager: Manager, first: Application, look_every: float) -> Application:
    """Return an application when it has ended, or this process is asked to."""
    told, sign, shown = "", 0.0, dict[str, str]()
    found: Application | None = first
    while True:
        if found is None:
            msg = f"{manager.name} no longer knows the application {first.id}: nobody can say how it ended"
            raise ApplicationLostError(msg)
        for name, url in found.links.items():
            if shown.get(name) != url:
                shown[name] = url
                process.writer().write("link", name=name, url=url)
        if found.word != told or time.monotonic() - sign >= SIGN_OF_LIFE:
            # An event of a kind that readers pass over; its time is what the stall timer sees.
            process.writer().write("application", id=found.id, state=found.word, manager=manager.name)
            sign = time.monotonic()
        if found.word != told:
            told = found.word
            _say(f"{manager.name}: {found.id} is {told}")
        if found.percent is not None:
            stage().report(step=round(found.percent), total=100, unit="%")
        if found.phase.ended or _stop.wait(look_every):
            return found
        found = _look(manager, found)


def _look(manager: Manager, before: Application) -> Application | None:
    """Return what the manager says now; while it does not answer, what it said before.

    An application goes on without its manager, so this waits; the job's stall timeout limits how long.
    """
    try:
        return manager.look(before.id)
    except ManagerUnreachableError as error:
        _say(f"{error}: the application may go on, will ask again")
        _stop.wait(LOOK)
        return before


def _end_older(manager: Manager, attempt: str) -> None:
    deadline = time.monotonic() + _OLDER_SECONDS
    killed: set[str] = set()
    while (left := manager.older(attempt)) and not _stop.is_set():
        for each in left:
            if each.id not in killed:
                _say(f"{manager.name}: killing {each.id}, which an older attempt of this stage left")
                manager.kill(each.id)
                killed.add(each.id)
        if time.monotonic() > deadline:
            msg = (
                f"the applications {', '.join(each.id for each in left)} of older attempts still live "
                f"{_OLDER_SECONDS:g} s after {manager.name} was told to kill them: end them, then retry the stage"
            )
            raise OlderApplicationError(msg)
        _stop.wait(1.0)


def _kill(manager: Manager, attempt: str) -> None:
    """Kill what was submitted for an attempt, and raise."""
    deadline = time.monotonic() + _KILL_SECONDS
    reason = "it did not end in time"
    while time.monotonic() < deadline:
        try:
            found = manager.find(attempt)
            if found is None or found.phase.ended:
                what = "there is none of its application" if found is None else f"{found.id} is {found.word}"
                msg = f"this stage was asked to end: {what}"
                raise StoppedError(msg)
            manager.kill(found.id)
        except (ManagerUnreachableError, ManagerRefusedError, OlderApplicationError) as error:
            reason = str(error)
        time.sleep(0.5)
    msg = f"this stage was asked to end, but its application may still run: {reason}. A retry kills it first"
    raise StoppedError(msg)


def manager_of(settings: Mapping[str, Any], entry: Sequence[str], attempt: str) -> Manager:
    """Return the manager of the cluster that a job's master names.

    Raises:
        SetupError: The job does not say enough to reach it.
    """
    master: str = settings["master"]
    submit: Callable[[Mapping[str, str]], None] = Submitter(settings, entry, _stop).run
    if master.startswith("spark://"):
        rest, pages = addresses(settings)
        request = request_of(settings, entry, attempt, spark_version(settings))
        return Standalone(rest, pages, request, Submissions(stage().data_uri))
    if master == "yarn":
        tags = settings.get("conf", {}).get("spark.yarn.tags", "")
        return Yarn(resource_managers(settings), submit, user=settings.get("proxy_user", ""), tags=tags)
    if master.startswith("k8s://"):
        return Kubernetes(api_server(settings), submit, namespace=namespace_of(settings))
    msg = f"got the master {master!r}, expected yarn, k8s://… or spark://… for deploy_mode='cluster'"
    raise SetupError(msg)


def _run(settings: Mapping[str, Any], entry: list[str]) -> dict[str, Any]:
    attempt = os.environ[context.ATTEMPT_ID]
    result = follow(manager_of(settings, entry, attempt), attempt)
    if settings.get("history_server") and settings["master"] == "yarn":  # elsewhere the id is the driver's
        url = f"{settings['history_server'].rstrip('/')}/history/{result['application']}/"
        process.writer().write("link", name="Spark history", url=url)
    return result


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the process's own log


def main(argv: list[str]) -> int:
    """Submit and follow."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _stop.set())
    settings = json.loads(argv[0])
    return process.run(lambda: _run(settings, argv[1:]), name=os.environ.get(context.PROCESS, "driver-0"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
