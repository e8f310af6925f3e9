"""One request to a server's REST API over plain HTTP, and the two ways in which a server does not help.

Only the standard library is used, so that a deploy needs nothing installed where it runs. Redirects are not followed:
they come from a proxy that wants a login, and would carry secret headers elsewhere.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

TIMEOUT = 30.0  # seconds
SERVER_ERROR = 500  # the first status of those that are the server's own fault
_SHOWN = 500  # characters of an answer in an error


class UnreachableError(ConnectionError):
    """The server does not answer, or not now; another try may succeed."""


class RefusedError(RuntimeError):
    """The server answers and refuses: another try fails in the same way."""


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    Args:
        status: The HTTP status.
        body: The bytes.
    """

    status: int
    body: bytes

    @property
    def text(self) -> str:
        """The beginning of the body, for an error."""
        return self.body.decode(errors="replace").strip()[:_SHOWN]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def ask(  # noqa: PLR0913 - what an HTTP request is made of
    url: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """Send one request and return the answer, whatever its status.

    Raises:
        UnreachableError: There was none.
    """
    request = urllib.request.Request(url, data=body, method=method, headers=dict(headers or {}))  # noqa: S310 - checked
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if tls is not None:
        handlers.append(urllib.request.HTTPSHandler(context=tls))
    if _is_loopback(url):
        handlers.append(urllib.request.ProxyHandler({}))  # no proxy of this machine's network reaches itself
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as answer:
            return Answer(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read())
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        msg = f"nothing answered at {url} ({type(error).__name__}: {reason})"
        raise UnreachableError(msg) from error


def json_headers(variable: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the HTTP headers that a variable of the environment holds as a JSON object; none if it is not set.

    Raises:
        RefusedError: It holds something else. The message does not repeat it, for it may be a secret.
    """
    text = environment.get(variable)
    if not text:
        return {}
    try:
        given = json.loads(text)
    except ValueError:
        given = None
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        msg = f'got a {variable} that is no JSON object of text, expected one such as {{"Authorization": "…"}}'
        raise RefusedError(msg)
    return given


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
