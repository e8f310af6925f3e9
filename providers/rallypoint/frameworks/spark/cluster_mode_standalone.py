"""Standalone clusters: drivers are submitted, asked for and killed over the master's REST submission server.

The master chooses a driver's id and offers no name or tag to find it by. So what is submitted is first written down,
with the drivers that the master knew before, and the id as soon as it is known. Only a tracker that was killed between
the two leaves a doubt; then nothing is submitted while a driver lives that may be that one.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.spark.cluster_mode_apps import (
    Application,
    ManagerUnreachableError,
    OlderApplicationError,
    Phase,
    SetupError,
    SubmissionError,
    stage_of,
)
from rallypoint.frameworks.spark.cluster_mode_http import Rest
from rallypoint.worker.storage import open_storage, scratch_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rallypoint.worker.storage import Storage

_RECORDS = "spark-submissions"
_FILE = "submission.json"
_REST_PORT, _UI_PORT = "6066", "8080"
_PHASES = {
    "SUBMITTED": Phase.WAITING,
    "RELAUNCHING": Phase.WAITING,
    "RUNNING": Phase.RUNNING,
    "FINISHED": Phase.SUCCEEDED,
    "FAILED": Phase.FAILED,
    "ERROR": Phase.FAILED,
    "KILLED": Phase.KILLED,
    "UNKNOWN": Phase.WAITING,  # its worker is lost or the master has just recovered: it will say more
}


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What was written down about one submission.

    Args:
        attempt: The attempt that it belongs to.
        main_class: The class of the driver.
        known: The drivers that the master knew before.
        driver: The id that the master gave; None until it has.
    """

    attempt: str
    main_class: str
    known: Sequence[str]
    driver: str | None = None


class Submissions:
    """The submissions of one stage, kept in the store beside its checkpoints.

    Args:
        data_uri: Where the stage's generation keeps its data. Earlier generations lie beside it.
    """

    def __init__(self, data_uri: str) -> None:
        self._base, _, last = data_uri.rpartition("/")
        self._storages = {last: open_storage(data_uri)}
        self._current = last
        if last.isdigit():
            for number in range(int(last) - 1, 0, -1):
                name = f"{number:0{len(last)}d}"
                self._storages[name] = open_storage(f"{self._base}/{name}")

    def write(self, submission: Submission) -> None:
        """Write one down, in place of what was said of this attempt before."""
        storage = self._storages[self._current]
        with scratch_folder(storage) as folder:
            Path(folder, _FILE).write_text(json.dumps({"v": 1, **submission.__dict__}), encoding="utf-8")
            storage.commit(folder, f"{_RECORDS}/{submission.attempt}")

    def read(self) -> list[Submission]:
        """Return all of the stage."""
        return [each for storage in self._storages.values() for each in _read(storage)]


def _read(storage: Storage) -> list[Submission]:
    found = []
    for name in storage.names(_RECORDS):
        with suppress(FileNotFoundError):  # it is being replaced
            values = json.loads(Path(storage.fetch(f"{_RECORDS}/{name}"), _FILE).read_text(encoding="utf-8"))
            values.pop("v")
            found.append(Submission(**values))
    return found


class Standalone:
    """The master of a standalone cluster.

    Args:
        rest: The address of its REST submission server; several where masters stand by.
        pages: The addresses of its web UI, which also answers in JSON.
        request: What to submit: ``appResource``, ``mainClass`` and so on.
        submissions: Where submissions are written down.
    """

    name = "the Spark master"

    def __init__(
        self, rest: Sequence[str], pages: Sequence[str], request: Mapping[str, Any], submissions: Submissions
    ) -> None:
        fix = "start it with spark.master.rest.enabled=true, or correct resource_manager="
        self._rest = Rest(rest, name="the Spark master's REST server", fix=fix)
        self._ui = Rest(pages, name="the Spark master's web UI", fix="correct the master's ui, or spark.master.ui.port")
        self._pages = list(pages)
        self._request = dict(request)
        self._submissions = submissions

    def find(self, attempt: str) -> Application | None:
        """Return the driver that was written down for an attempt.

        Raises:
            OlderApplicationError: A driver lives that may have been submitted for it.
        """
        for each in self._submissions.read():
            if each.attempt == attempt:
                if each.driver is not None:
                    return self.look(each.driver) or _gone(each.driver)
                self._refuse_doubt(each)
        return None

    def older(self, attempt: str) -> list[Application]:
        """Return the living drivers of the stage's other attempts.

        Raises:
            OlderApplicationError: A driver lives that may be one of them.
        """
        found = []
        for each in self._submissions.read():
            if each.attempt == attempt or stage_of(each.attempt) != stage_of(attempt):
                continue
            if each.driver is None:
                self._refuse_doubt(each)
            elif (application := self.look(each.driver)) is not None and not application.phase.ended:
                found.append(application)
        return found

    def submit(self, attempt: str) -> None:
        """Write down what is to be submitted, submit it, and write down the driver's id."""
        main_class = str(self._request["mainClass"])
        intent = Submission(attempt=attempt, main_class=main_class, known=sorted(self._drivers()))
        self._submissions.write(intent)
        answer = self._rest.post("/v1/submissions/create", self._request)
        driver = (answer or {}).get("submissionId")
        if not (answer or {}).get("success") or not driver:
            msg = f"the Spark master did not take the application: {(answer or {}).get('message') or answer}"
            raise SubmissionError(msg)
        self._submissions.write(Submission(**{**intent.__dict__, "driver": str(driver)}))

    def look(self, application: str) -> Application | None:
        """Return what the master says of a driver."""
        answer = self._rest.get(f"/v1/submissions/status/{application}")
        if not answer or not answer.get("success"):
            return None
        word = str(answer.get("driverState", ""))
        return Application(
            id=application,
            phase=_PHASES.get(word, Phase.UNKNOWN),
            word=word,
            message=str(answer.get("message") or "").strip(),
            links={"Spark master": self._pages[0]} if self._pages else {},
        )

    def kill(self, application: str) -> None:
        """Have a driver killed; its executors end with it."""
        self._rest.post(f"/v1/submissions/kill/{application}")

    def _drivers(self) -> dict[str, str]:
        """Return the main classes of the living drivers, by id."""
        state = self._ui.get("/json/")
        if not isinstance(state, dict) or "activedrivers" not in state:
            msg = f"the Spark master's web UI at {', '.join(self._pages)} answers without activedrivers"
            raise ManagerUnreachableError(msg)
        return {str(each["id"]): str(each.get("mainclass", "")) for each in state["activedrivers"]}

    def _refuse_doubt(self, written: Submission) -> None:
        living = self._drivers()
        doubtful = [name for name, kind in living.items() if kind == written.main_class and name not in written.known]
        if doubtful:
            msg = (
                f"{written.attempt} was being submitted when its tracker was killed, and these drivers of "
                f"{written.main_class} may be it: {', '.join(sorted(doubtful))}. Nothing is submitted while one of "
                "them lives: wait for its end or kill it on the master's page, then retry the stage"
            )
            raise OlderApplicationError(msg)


def _gone(driver: str) -> Application:
    """Return a driver that the master has forgotten: it keeps those that ended, but not for ever."""
    return Application(id=driver, phase=Phase.UNKNOWN, word="not known to the master")


def addresses(settings: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the addresses of the REST submission servers and of the web UIs.

    Those of a SparkCluster are in its address object. For another master they are ``resource_manager``, or the ports
    6066 and 8080 of its hosts, or what ``spark.master.rest.port`` and ``spark.master.ui.port`` say.

    Raises:
        SetupError: The cluster was started without a REST server.
    """
    conf, cluster = settings.get("conf", {}), settings.get("cluster") or {}
    hosts = [each.rpartition(":")[0] for each in settings["master"].removeprefix("spark://").split(",")]
    pages = (
        [cluster["ui"]]
        if cluster.get("ui")
        else [f"http://{host}:{conf.get('spark.master.ui.port', _UI_PORT)}" for host in hosts]
    )
    if settings.get("resource_manager"):
        return [url.strip() for url in settings["resource_manager"].split(",")], pages
    if cluster and not cluster.get("rest"):
        msg = "got a SparkCluster without a REST server, expected one: start it with rest=True"
        raise SetupError(msg)
    port = conf.get("spark.master.rest.port", _REST_PORT)
    return [cluster["rest"]] if cluster.get("rest") else [f"http://{host}:{port}" for host in hosts], pages


def request_of(settings: Mapping[str, Any], entry: Sequence[str], attempt: str, version: str) -> dict[str, Any]:
    """Return what the master is sent.

    Args:
        settings: The job's.
        entry: ``jar PATH MAIN_CLASS ARG…``.
        attempt: The attempt's id, the application's name where the job has none.
        version: The client's version of Spark, which the protocol wants.
    """
    _, path, main_class, *args = entry
    # The master turns properties into options on the driver's command line, so no secret is among them.
    properties = {
        "spark.app.name": attempt,
        "spark.driver.supervise": "false",  # whether it is tried again is the orchestrator's to say
        **settings.get("conf", {}),
        "spark.master": settings["master"],
        "spark.submit.deployMode": "cluster",
    }
    jars = [path, *filter(None, properties.get("spark.jars", "").split(","))]
    properties["spark.jars"] = ",".join(dict.fromkeys(jars))
    return {
        "action": "CreateSubmissionRequest",
        "clientSparkVersion": version,
        "appResource": path,
        "mainClass": main_class,
        "appArgs": list(args),
        "sparkProperties": properties,
        "environmentVariables": {
            # The name by which Spark's scripts know that their environment is set already.
            "SPARK_ENV_LOADED": "1",
            **{name: os.environ[name] for name in settings.get("env", ()) if name in os.environ},
        },
    }
