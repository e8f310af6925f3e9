"""One request to a deployed application, and whether its answer is the expected one."""

from __future__ import annotations

import http.client
import json
import time
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.ray.serve.client import UnreachableError, ask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PAUSE = 0.5  # seconds
_MISMATCHES = 3  # a proxy may route to an old replica for a moment
_SHOWN = 1_000  # characters
_ROUTE_NOT_YET = (http.client.NOT_FOUND, http.client.BAD_GATEWAY, http.client.SERVICE_UNAVAILABLE)


class ProbeMismatchError(AssertionError):
    """The application answered, and not as expected."""


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


def difference(got: Any, expected: Any, *, tolerance: float = 0.0, at: str = "") -> str:  # noqa: PLR0911 - a case each
    """Return where an answer differs from the expected one, the empty string if it does not.

    Args:
        got: The answer. Of an object, keys that are not expected are not looked at.
        expected: What it should be.
        tolerance: How far numbers may be apart.
        at: Where in the answer this is.
    """
    where = f"the answer{at}"
    if isinstance(expected, dict) and isinstance(got, dict):
        for key, value in expected.items():
            if key not in got:
                return f"{where} has no {key!r}, but {_short(sorted(got))}"
            if found := difference(got[key], value, tolerance=tolerance, at=f"{at}[{key!r}]"):
                return found
        return ""
    if isinstance(expected, list) and isinstance(got, list):
        if len(got) != len(expected):
            return f"{where} has {len(got)} items, expected {len(expected)}"
        pairs = enumerate(zip(got, expected, strict=True))
        each = (difference(one, other, tolerance=tolerance, at=f"{at}[{index}]") for index, (one, other) in pairs)
        return next(filter(None, each), "")
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (got, expected))
    if numbers and abs(got - expected) <= tolerance:
        return ""
    equal = type(got) is type(expected) or numbers
    return "" if equal and got == expected else f"{where} is {_short(got)}, expected {_short(expected)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
