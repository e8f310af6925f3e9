"""The REST API of a Ray dashboard: Serve's applications, packages and log files."""

from __future__ import annotations

import http.client
import json
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from rallypoint.frameworks.deploy.rest import (
    SERVER_ERROR,
    TIMEOUT,
    Answer,
    RefusedError,
    UnreachableError,
    ask,
    json_headers,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

APPLICATIONS = "/api/serve/applications/"
TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105 - the variable's name, Ray's own
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - likewise
HEADERS = "RAY_JOB_HEADERS"  # JSON, as Ray's own command line reads it
WRITE_TIMEOUT = 120.0  # seconds: the first write starts Serve's controller and proxies
_MAX_LOG = 1 << 20  # bytes


@dataclass(frozen=True)
class Dashboard:
    """A Ray dashboard.

    Args:
        url: Its address, without a slash at the end.
        headers: Sent with each request. They may hold secrets.
        ca_file: A file of certificate authorities; None for the system's.
        verify: Whether the certificate is checked.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_file: str | None = None
    verify: bool = True

    @classmethod
    def connect(cls, url: str, headers: Mapping[str, str], ca_file: str | None, *, verify: bool) -> Dashboard:
        """Return the dashboard, with the token and the secret headers that the environment holds.

        Raises:
            RefusedError: A variable of the environment holds no token, or no headers.
        """
        return cls(url, {**headers, **_secret_headers(os.environ)}, ca_file, verify)

    def applications(self) -> dict[str, Any]:
        """Return Serve's state: options, and each application with config, status and replicas.

        Raises:
            UnreachableError: The dashboard does not answer now.
            RefusedError: It is none of Ray's, has no Serve, or refuses the request.
        """
        return self._json(APPLICATIONS)

    def apply(self, config: Mapping[str, Any]) -> None:
        """Replace the configs of all applications.

        Raises:
            UnreachableError: The dashboard does not answer now; the config may be applied all the same.
            RefusedError: Ray refuses the config.
        """
        body = json.dumps(config).encode()
        self._checked(self._ask(APPLICATIONS, method="PUT", body=body, timeout=WRITE_TIMEOUT), APPLICATIONS)

    def session(self) -> str:
        """Return the name of the cluster's session, which is another one after the head was started anew."""
        return str(self._json("/api/version").get("session_name", ""))

    def has_package(self, name: str) -> bool:
        """Return whether the cluster holds a package; if it does, it stays there for some minutes."""
        answer = self._ask(f"/api/packages/gcs/{quote(name)}")
        if answer.status == http.client.NOT_FOUND:
            return False
        self._checked(answer, "/api/packages/gcs")
        return True

    def put_package(self, name: str, data: bytes) -> None:
        """Upload a package."""
        path = f"/api/packages/gcs/{quote(name)}"
        self._checked(self._ask(path, method="PUT", body=data, timeout=WRITE_TIMEOUT), path)

    def log(self, lines: int, **which: str) -> str:
        """Return the last lines of a log file; the empty string if it cannot be read.

        Args:
            lines: How many.
            **which: ``node_id`` or ``node_ip`` with ``filename``, or ``actor_id`` with the ``suffix`` out or err.
        """
        try:
            answer = self._ask(f"/api/v0/logs/file?{urlencode({**which, 'lines': lines})}")
        except UnreachableError:
            return ""
        return answer.body[-_MAX_LOG:].decode(errors="replace") if answer.status == http.client.OK else ""

    def _json(self, path: str) -> dict[str, Any]:
        answer = self._checked(self._ask(path), path)
        try:
            value = json.loads(answer.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            msg = f"got no JSON object from {self.url}{path}, but {answer.text!r}: is this a Ray dashboard's address?"
            raise RefusedError(msg)
        return value

    def _ask(self, path: str, *, method: str = "GET", body: bytes | None = None, timeout: float = TIMEOUT) -> Answer:
        headers = {**self.headers, **({"Content-Type": "application/json"} if body else {})}
        tls = ssl.create_default_context(cafile=self.ca_file) if self.url.startswith("https:") else None
        if tls is not None and not self.verify:
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        return ask(f"{self.url}{path}", method=method, body=body, headers=headers, timeout=timeout, tls=tls)

    def _checked(self, answer: Answer, path: str) -> Answer:
        where = f"{self.url}{path}"
        if answer.status < http.client.MULTIPLE_CHOICES:
            return answer
        if answer.status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
            msg = (
                f"{where} refused this job ({answer.status}): give secrets={{{TOKEN!r}: …}}, or {HEADERS!r} for a proxy"
            )
        elif answer.status < http.client.BAD_REQUEST:
            msg = f"{where} redirects ({answer.status}), as a login page does: give its cookie with {HEADERS!r}"
        elif answer.status == http.client.NOT_FOUND:
            msg = f"{where} is not there: expected the dashboard of a Ray cluster, 2.50 or newer"
        elif answer.status == http.client.NOT_IMPLEMENTED:
            msg = f"the cluster at {self.url} has no Ray Serve ({answer.text}): install ray[serve] on its head"
        elif answer.status >= SERVER_ERROR:
            msg = f"{where} answered {answer.status}: {answer.text}"
            raise UnreachableError(msg)
        else:
            msg = f"{where} refused the request ({answer.status}): {answer.text}"
        raise RefusedError(msg)


def _secret_headers(environment: Mapping[str, str]) -> dict[str, str]:
    found = json_headers(HEADERS, environment)
    token = environment.get(TOKEN)
    if not token and (path := environment.get(TOKEN_PATH)):
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            msg = f"cannot read the token that {TOKEN_PATH} names: {error}"
            raise RefusedError(msg) from error
    return found | ({"Authorization": f"Bearer {token}"} if token else {})
