"""The REST API of a TensorFlow model server: the status of versions, and predictions."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rallypoint.frameworks.deploy.rest import SERVER_ERROR, TIMEOUT, Answer, RefusedError, UnreachableError, ask

if TYPE_CHECKING:
    from collections.abc import Mapping

AVAILABLE, END = "AVAILABLE", "END"
_OK = ("OK", "")
_SHOWN = 500  # characters of an error


@dataclass(frozen=True)
class Status:
    """What the server says of one version.

    Args:
        state: ``START``, ``LOADING``, ``AVAILABLE``, ``UNLOADING`` or ``END``.
        error: The server's message if it has an error; the empty string otherwise.
    """

    state: str
    error: str = ""


@dataclass(frozen=True)
class Server:
    """One model on a server.

    Args:
        url: The server's address, without a slash at its end.
        name: The model.
        headers: Sent with each request. They may hold secrets.
        ca_file: A file of certificate authorities; None for the system's.
    """

    url: str
    name: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_file: str | None = None

    def versions(self) -> dict[int, Status]:
        """Return the status of each version that the server knows; none if it does not know the model yet.

        Raises:
            UnreachableError: It does not answer now.
            RefusedError: It is no model server, or refuses the request.
        """
        answer = self._ask("")
        if answer.status == http.client.NOT_FOUND and "error" in _json(answer):
            return {}  # a model without a version is reported so
        listed = self._checked(answer).get("model_version_status")
        if not isinstance(listed, list):
            msg = f"{self._url('')} answered {answer.text!r}, expected model_version_status: is it a model server's?"
            raise RefusedError(msg)
        return {int(each["version"]): _status(each) for each in listed if str(each.get("version", "")).isdigit()}

    def labelled(self, label: str) -> int | None:
        """Return the version that a label names and that is available; None if there is none.

        Raises:
            UnreachableError: The server does not answer now.
        """
        answer = self._ask(f"/labels/{quote(label, safe='')}")
        if answer.status != http.client.OK:
            return None
        for each in _json(answer).get("model_version_status") or []:
            if each.get("state") == AVAILABLE and str(each.get("version", "")).isdigit():
                return int(each["version"])
        return None

    def predict(self, version: int, body: Mapping[str, Any], timeout: float) -> Answer:
        """Send a request to one version, and return the answer whatever its status.

        Raises:
            UnreachableError: There was none.
        """
        return self._ask(f"/versions/{version}:predict", body=json.dumps(body).encode(), timeout=timeout)

    def _ask(self, path: str, *, body: bytes | None = None, timeout: float = TIMEOUT) -> Answer:
        tls = ssl.create_default_context(cafile=self.ca_file) if self.url.startswith("https:") else None
        return ask(
            self._url(path),
            method="GET" if body is None else "POST",
            body=body,
            headers={**self.headers, **({"Content-Type": "application/json"} if body else {})},
            timeout=timeout,
            tls=tls,
        )

    def _url(self, path: str) -> str:
        return f"{self.url}/v1/models/{quote(self.name, safe='')}{path}"

    def _checked(self, answer: Answer) -> dict[str, Any]:
        if answer.status == http.client.OK:
            return _json(answer)
        msg = f"{self._url('')} answered {answer.status}: {answer.text}"
        raise (UnreachableError if answer.status >= SERVER_ERROR else RefusedError)(msg)


def _json(answer: Answer) -> dict[str, Any]:
    try:
        value = json.loads(answer.body)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def _status(given: Mapping[str, Any]) -> Status:
    told = given.get("status")
    status: Mapping[str, Any] = told if isinstance(told, dict) else {}
    bad = status.get("error_code", "OK") not in _OK
    error = str(status.get("error_message") or status.get("error_code")) if bad else ""
    return Status(str(given.get("state", "")), " ".join(error.split())[:_SHOWN])
