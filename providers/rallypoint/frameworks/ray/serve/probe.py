"""One request to a deployed application, whose answer has to be the expected one."""

from __future__ import annotations

import http.client
import json
import time
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.deploy.comparison import ProbeMismatchError, difference
from rallypoint.frameworks.deploy.rest import UnreachableError, ask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PAUSE = 0.5  # seconds
_MISMATCHES = 3  # a proxy may route to an old replica for a moment
_SHOWN = 1_000  # characters
_ROUTE_NOT_YET = (http.client.NOT_FOUND, http.client.BAD_GATEWAY, http.client.SERVICE_UNAVAILABLE)


class ProbeTimeoutError(TimeoutError):
    """The application's route did not answer."""


def probe(url: str, wanted: Mapping[str, Any], look: Callable[[], None] = lambda: None) -> Any:
    """Send a probe until it has its answer, and return that.

    Args:
        url: The application's address.
        wanted: The JSON of a `ServeProbe`.
        look: Is called between two requests.

    Raises:
        ProbeMismatchError: It answered something else, or refused the request.
        ProbeTimeoutError: Its route did not answer in time.
    """
    address = url.rstrip("/") + wanted["path"]
    body = None if wanted["body"] is None else json.dumps(wanted["body"]).encode()
    deadline, problem, mismatches = time.monotonic() + wanted["timeout"], "", 0
    while (left := deadline - time.monotonic()) > 0:
        try:
            answer = ask(
                address,
                method="GET" if body is None else "POST",
                body=body,
                headers={"Content-Type": "application/json"} if body is not None else {},
                timeout=left,
            )
        except UnreachableError as error:
            problem = str(error)
        else:
            if answer.status in _ROUTE_NOT_YET:
                problem = f"{address} answered {answer.status}: {answer.text}"
            else:
                value, problem = _read(answer.status, answer.body, wanted)
                if not problem:
                    return value
                mismatches += 1
                if mismatches == _MISMATCHES:
                    msg = f"the probe of {address} failed: {problem}"
                    raise ProbeMismatchError(msg)
        look()
        time.sleep(_PAUSE)
    msg = (
        f"the probe had no answer within {wanted['timeout']:g} s: {problem}; if the proxy is elsewhere, give serve_url="
    )
    raise ProbeTimeoutError(msg)


def _read(status: int, body: bytes, wanted: Mapping[str, Any]) -> tuple[Any, str]:
    text = body.decode(errors="replace")
    if status >= http.client.BAD_REQUEST:
        return None, f"got the status {status} ({text[:_SHOWN]}), expected one below 400"
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if wanted["expect"] is None:
        return value, ""
    return value, difference(value, wanted["expect"], tolerance=wanted["tolerance"])
