"""YARN: applications in cluster mode are found by their tags, and asked for over the resource manager's REST API.

Tested against the shapes that the documentation of Hadoop's "ResourceManager REST API's" gives, not against a YARN.
"""

from __future__ import annotations

import getpass
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.spark.cluster_mode_apps import (
    Application,
    ManagerRefusedError,
    Phase,
    SetupError,
    stage_of,
)
from rallypoint.frameworks.spark.cluster_mode_http import Rest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_APPS = "/ws/v1/cluster/apps"
_LIVING = "NEW,NEW_SAVING,SUBMITTED,ACCEPTED,RUNNING"
_PHASES = {"RUNNING": Phase.RUNNING, "FAILED": Phase.FAILED, "KILLED": Phase.KILLED}
# A finished application says itself how: one that ended without a word is `UNDEFINED`, and no success.
_FINAL = {"SUCCEEDED": Phase.SUCCEEDED, "FAILED": Phase.FAILED, "KILLED": Phase.KILLED}
_RM = "yarn.resourcemanager"
_HTTP_PORT, _HTTPS_PORT = 8088, 8090
_KERBEROS = "the resource manager wants a Kerberos login, which this has not: give resource_manager= a gateway (Knox)"


class Yarn:
    """YARN's resource manager.

    Args:
        urls: The addresses of its web application; several where it is highly available.
        submit: Runs ``spark-submit`` with further properties.
        user: Who asks, where the cluster has no authentication.
        tags: The application's own tags.
    """

    name = "YARN"

    def __init__(
        self, urls: list[str], submit: Callable[[Mapping[str, str]], None], *, user: str = "", tags: str = ""
    ) -> None:
        self._rest = Rest(urls, name="YARN's resource manager", fix="correct resource_manager=, or HADOOP_CONF_DIR")
        self._submit = submit
        self._user = user or os.environ.get("HADOOP_USER_NAME") or getpass.getuser()
        self._tags = tags

    def find(self, attempt: str) -> Application | None:
        """Return the application with an attempt's tag; the newest, which a resource manager lists too."""
        found = self._apps(applicationTags=attempt)
        return _application(max(found, key=lambda app: app.get("startedTime", 0))) if found else None

    def older(self, attempt: str) -> list[Application]:
        """Return what lives with the stage's tag and not with this attempt's."""
        found = self._apps(applicationTags=stage_of(attempt), states=_LIVING)
        return [_application(app) for app in found if attempt not in str(app.get("applicationTags", "")).split(",")]

    def submit(self, attempt: str) -> None:
        """Submit with the two tags; ``spark-submit`` ends when YARN has accepted."""
        tags = ",".join(filter(None, (attempt, stage_of(attempt), self._tags)))
        self._submit({"spark.yarn.tags": tags, "spark.yarn.submit.waitAppCompletion": "false"})

    def look(self, application: str) -> Application | None:
        """Return an application by its id."""
        answer = self._get(f"{_APPS}/{application}")
        return None if answer is None else _application(answer["app"])

    def kill(self, application: str) -> None:
        """Have an application killed."""
        self._rest.put(f"{_APPS}/{application}/state", {"state": "KILLED"}, **{"user.name": self._user})

    def _apps(self, **query: str) -> list[dict[str, Any]]:
        answer = self._get(_APPS, **query)
        # Without any the documented answer is {"apps": null}; some versions say {"apps": {}}.
        return list(((answer or {}).get("apps") or {}).get("app") or [])

    def _get(self, path: str, **query: str) -> Any:
        try:
            return self._rest.get(path, **query, **{"user.name": self._user})
        except ManagerRefusedError as error:
            if "HTTP 401" in str(error):
                msg = f"{_KERBEROS}; {error}"
                raise ManagerRefusedError(msg) from error
            raise


def _application(app: Mapping[str, Any]) -> Application:
    state, final = str(app.get("state", "")), str(app.get("finalStatus", ""))
    phase = _FINAL.get(final, Phase.UNKNOWN) if state == "FINISHED" else _PHASES.get(state)
    if phase is None:
        phase = Phase.WAITING if state in _LIVING.split(",") else Phase.UNKNOWN
    pages = {"YARN application": app.get("trackingUrl"), "YARN logs": app.get("amContainerLogs")}
    progress = app.get("progress")
    return Application(
        id=str(app["id"]),
        phase=phase,
        word=f"{state}/{final}" if state == "FINISHED" else state,
        message=str(app.get("diagnostics") or "").strip(),
        links={name: str(url) for name, url in pages.items() if str(url).startswith(("http://", "https://"))},
        percent=float(progress) if isinstance(progress, int | float) and phase is Phase.RUNNING else None,
    )


def resource_managers(settings: Mapping[str, Any]) -> list[str]:
    """Return the addresses of the resource manager's web application.

    They come from ``resource_manager``, from properties ``spark.hadoop.yarn.…``, or from the ``yarn-site.xml`` in
    ``YARN_CONF_DIR`` or ``HADOOP_CONF_DIR``.

    Raises:
        SetupError: None of these says where it is.
    """
    if settings.get("resource_manager"):
        return [url.strip() for url in settings["resource_manager"].split(",")]
    prefix = "spark.hadoop."
    conf: Mapping[str, str] = settings.get("conf", {})
    given = {name.removeprefix(prefix): value for name, value in conf.items() if name.startswith(prefix)}
    site = {**_site(), **given}
    secure = site.get("yarn.http.policy") == "HTTPS_ONLY"
    kind, port = ("webapp.https.address", _HTTPS_PORT) if secure else ("webapp.address", _HTTP_PORT)
    ids = [f".{each.strip()}" for each in site.get(f"{_RM}.ha.rm-ids", "").split(",") if each.strip()] or [""]
    found = []
    for each in ids:
        address = site.get(f"{_RM}.{kind}{each}", "")
        host = site.get(f"{_RM}.hostname{each}", "")
        if not address and host:
            address = f"{host}:{port}"
        if address and "${" not in address:
            found.append(f"{'https' if secure else 'http'}://{address}")
    if not found:
        msg = (
            "got no address of YARN's resource manager, expected resource_manager=, HADOOP_CONF_DIR with a "
            "yarn-site.xml, or the property spark.hadoop.yarn.resourcemanager.webapp.address"
        )
        raise SetupError(msg)
    return found


def _site() -> dict[str, str]:
    for variable in ("YARN_CONF_DIR", "HADOOP_CONF_DIR"):
        folder = os.environ.get(variable)
        if folder and (file := Path(folder, "yarn-site.xml")).is_file():
            properties = ET.parse(file).getroot().iter("property")  # noqa: S314 - the cluster's own configuration
            return {str(each.findtext("name", "")).strip(): each.findtext("value", "").strip() for each in properties}
    return {}
