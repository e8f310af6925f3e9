"""Kubernetes: the driver's pod has a name and labels that follow from the attempt; the API server is asked for it.

Tested against the shapes that the Kubernetes API reference gives for pods, not against a cluster.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import ssl
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.spark.cluster_mode_apps import (
    Application,
    ManagerRefusedError,
    ManagerUnreachableError,
    Phase,
    SetupError,
    stage_of,
)
from rallypoint.frameworks.spark.cluster_mode_http import Rest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ATTEMPT_LABEL, STAGE_LABEL = "rallypoint-attempt", "rallypoint-stage"
_PHASES = {"Pending": Phase.WAITING, "Running": Phase.RUNNING, "Succeeded": Phase.SUCCEEDED, "Failed": Phase.FAILED}
_CONTAINER = "spark-kubernetes-driver"
_GRACE = 20  # seconds that a driver has for its own end
_LAST_LINES = 30
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_AUTH = ("spark.kubernetes.authenticate.submission", "spark.kubernetes.authenticate")
_KUBECTL_TIMEOUT = 30.0  # seconds


class Kubernetes:
    """The API server of a Kubernetes cluster.

    Args:
        rest: The API server.
        submit: Runs ``spark-submit`` with further properties.
        namespace: Where the pods are.
    """

    name = "Kubernetes"

    def __init__(self, rest: Rest, submit: Callable[[Mapping[str, str]], None], *, namespace: str) -> None:
        self._rest = rest
        self._submit = submit
        self._pods = f"/api/v1/namespaces/{namespace}/pods"

    def find(self, attempt: str) -> Application | None:
        """Return the driver's pod of an attempt, which has the attempt's name."""
        return self.look(pod_of(attempt))

    def older(self, attempt: str) -> list[Application]:
        """Return the living pods with the stage's label and not this attempt's."""
        selector = f"{STAGE_LABEL}={stage_of(attempt)},{ATTEMPT_LABEL}!={attempt},spark-role=driver"
        answer = self._rest.get(self._pods, labelSelector=selector) or {}
        found = [_application(pod) for pod in answer.get("items") or []]
        return [application for application in found if not application.phase.ended]

    def submit(self, attempt: str) -> None:
        """Submit; a second pod of the same name is refused by Kubernetes itself."""
        label = "spark.kubernetes.driver.label."
        self._submit(
            {
                "spark.kubernetes.driver.pod.name": pod_of(attempt),
                f"{label}{ATTEMPT_LABEL}": attempt,
                f"{label}{STAGE_LABEL}": stage_of(attempt),
                "spark.kubernetes.submission.waitAppCompletion": "false",
            }
        )

    def look(self, application: str) -> Application | None:
        """Return what the driver's pod says; of a failed one with the end of its log."""
        pod = self._rest.get(f"{self._pods}/{application}")
        if pod is None:
            return None
        found = _application(pod)
        return found if found.phase is not Phase.FAILED else self._with_log(found)

    def kill(self, application: str) -> None:
        """Delete the driver's pod, and with it, as their owner, the executors'."""
        self._rest.delete(
            f"{self._pods}/{application}",
            {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": _GRACE},
        )

    def _with_log(self, found: Application) -> Application:
        with suppress(ManagerRefusedError, ManagerUnreachableError):  # the right to read logs is another one
            text = self._rest.get_text(f"{self._pods}/{found.id}/log", container=_CONTAINER, tailLines=str(_LAST_LINES))
            if text:
                return Application(
                    id=found.id, phase=found.phase, word=found.word, message=f"{found.message}\nits last lines:\n{text}"
                )
        return found


def pod_of(attempt: str) -> str:
    """Return the name of the driver's pod."""
    return f"{attempt}-driver"


def _application(pod: Mapping[str, Any]) -> Application:
    meta, status = pod.get("metadata") or {}, pod.get("status") or {}
    word = str(status.get("phase", ""))
    phase = _PHASES.get(word, Phase.UNKNOWN)
    ends = [_ended(each) for each in status.get("containerStatuses") or []]
    said = [str(status.get(name)) for name in ("reason", "message") if status.get(name)]
    for name, end in ends:
        code, reason = end.get("exitCode"), end.get("reason", "")
        said.append(
            " ".join(filter(None, (f"container {name} ended with exit code {code}", reason, end.get("message"))))
        )
        if phase is Phase.SUCCEEDED and name == _CONTAINER and code != 0:
            phase = Phase.FAILED
    if meta.get("deletionTimestamp") and phase is not Phase.SUCCEEDED:
        word, phase = f"{word}, being deleted", Phase.RUNNING if not phase.ended else phase
    # "Unknown" is a node that does not answer: the pod may go on there.
    if word == "Unknown":
        phase = Phase.RUNNING
    return Application(id=str(meta.get("name", "")), phase=phase, word=word, message="; ".join(said))


def _ended(container: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    return str(container.get("name", "")), (container.get("state") or {}).get("terminated") or {}


# How to reach the API server -----------------------------------------------------------------------------------------


def api_server(settings: Mapping[str, Any]) -> Rest:
    """Return the API server that a ``k8s://`` master names, with the login that ``spark-submit`` would use.

    That is the token, certificate authority and client certificate of the properties
    ``spark.kubernetes.authenticate.submission.…``, or the pod's own service account, or what ``kubectl`` reads from the
    user's kubeconfig. A kubeconfig that runs a program for its login (an *exec plugin*) is not read: give a token.

    Raises:
        SetupError: There is no login, or a file of it cannot be read.
    """
    url = settings["master"].removeprefix("k8s://")
    url = url if url.startswith(("http://", "https://")) else f"https://{url}"
    given = _given(settings)
    login = given or _own_account(url) or _kubeconfig(settings.get("conf", {}).get("spark.kubernetes.context"))
    try:
        token = login.get("oauthToken") or (
            Path(login["oauthTokenFile"]).read_text(encoding="utf-8").strip() if "oauthTokenFile" in login else ""
        )
        tls = ssl.create_default_context(cafile=login.get("caCertFile")) if url.startswith("https://") else None
        if tls is not None and "clientCertFile" in login:
            tls.load_cert_chain(login["clientCertFile"], login.get("clientKeyFile"))
    except (OSError, ssl.SSLError) as error:
        msg = f"a file of the login at Kubernetes cannot be read: {error}"
        raise SetupError(msg) from error
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Rest([url], name="Kubernetes' API server", headers=headers, tls=tls, fix="correct master=")


def namespace_of(settings: Mapping[str, Any]) -> str:
    """Return the namespace of the application's pods.

    Raises:
        SetupError: It is no namespace's name.
    """
    found = str(settings.get("conf", {}).get("spark.kubernetes.namespace", "default"))
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", found):
        msg = (
            f"got the namespace {found!r}, expected lower-case letters, digits and '-': correct "
            "spark.kubernetes.namespace"
        )
        raise SetupError(msg)
    return found


def _given(settings: Mapping[str, Any]) -> dict[str, str]:
    conf = {**settings.get("conf", {})}
    for name, variable in (settings.get("secret_conf") or {}).items():
        conf[name] = os.environ.get(variable, "")
    found: dict[str, str] = {}
    for prefix in reversed(_AUTH):
        for name in ("oauthToken", "oauthTokenFile", "caCertFile", "clientCertFile", "clientKeyFile"):
            if conf.get(f"{prefix}.{name}"):
                found[name] = str(conf[f"{prefix}.{name}"])
    return found


def _own_account(url: str) -> dict[str, str]:
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    inside = (host and host in url) or "kubernetes.default" in url
    token, authority = _ACCOUNT / "token", _ACCOUNT / "ca.crt"
    return {"oauthTokenFile": str(token), "caCertFile": str(authority)} if inside and token.is_file() else {}


def _kubeconfig(context: object) -> dict[str, str]:
    """Return the login of the user's kubeconfig: it is YAML, which ``kubectl`` prints as JSON."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return {}
    words = [kubectl, "config", "view", "--raw", "--minify", "--output=json"]
    if context:
        words.append(f"--context={context}")
    try:
        done = subprocess.run(words, capture_output=True, check=True, timeout=_KUBECTL_TIMEOUT)
        config = json.loads(done.stdout)
        user, cluster = config["users"][0]["user"], config["clusters"][0]["cluster"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, IndexError, TypeError):
        return {}
    if "exec" in user:
        msg = (
            "the kubeconfig runs a program for its login, which is not done here: give a token with secret_conf="
            '{"spark.kubernetes.authenticate.submission.oauthToken": …}'
        )
        raise SetupError(msg)
    found = {"oauthToken": user.get("token"), "oauthTokenFile": user.get("tokenFile")}
    files = {
        "caCertFile": (cluster, "certificate-authority"),
        "clientCertFile": (user, "client-certificate"),
        "clientKeyFile": (user, "client-key"),
    }
    for name, (where, key) in files.items():
        found[name] = where.get(key) or _file(where.get(f"{key}-data"))
    return {name: value for name, value in found.items() if value}


def _file(data: str | None) -> str | None:
    """Return a file of this user alone with what a kubeconfig holds in base64; Python's TLS reads files only."""
    if not data:
        return None
    file, path = tempfile.mkstemp(prefix="rallypoint-kube-", dir=os.environ.get("RALLYPOINT_RUN_DIR"))
    with os.fdopen(file, "wb") as opened:
        opened.write(base64.b64decode(data))
    return path
