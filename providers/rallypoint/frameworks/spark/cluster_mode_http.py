"""Asks a manager's REST API, with the standard library alone: the job's Python may have nothing else."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.spark.cluster_mode_apps import ManagerRefusedError, ManagerUnreachableError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence

TIMEOUT = 15.0  # seconds of one question
_MAX_SHOWN = 500  # characters of an answer in an error
_REDIRECTS = {HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT}


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect to `Rest`: urllib would send a token along to whatever host it names."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""


def _json(answer: bytes) -> Any:
    return json.loads(answer) if answer.strip() else {}


def _text(answer: bytes) -> str:
    return answer.decode(errors="replace")


class Rest:
    """A REST API that answers in JSON, at one address or at several of which one is active.

    Args:
        urls: Its addresses.
        name: What to call it in errors.
        headers: Headers of every request. They may hold a token, and so are shown nowhere.
        tls: How certificates are checked; None for the system's authorities.
        fix: What to do if it cannot be reached, for the error.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        name: str,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        fix: str = "",
    ) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._name = name
        self._headers = {"Accept": "application/json", **(headers or {})}
        handlers = [] if tls is None else [urllib.request.HTTPSHandler(context=tls)]
        self._opener = urllib.request.build_opener(_NoRedirects, *handlers)
        self._fix = fix

    def get(self, path: str, **query: str) -> Any:
        """Return an answer; None if there is no such thing.

        Raises:
            ManagerUnreachableError: None of the addresses answers, or with something that is no JSON.
            ManagerRefusedError: It refuses; so do the other methods.
        """
        return self._ask("GET", path, query=query)

    def get_text(self, path: str, **query: str) -> str:
        """Return an answer that is text, such as a log; the empty string if there is none."""
        return str(self._ask("GET", path, query=query, read=_text) or "")

    def put(self, path: str, body: Mapping[str, Any], **query: str) -> Any:
        """Change something; None if there is no such thing."""
        return self._ask("PUT", path, body, query)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Have something done; None if there is no such thing."""
        return self._ask("POST", path, body)

    def delete(self, path: str, body: Mapping[str, Any]) -> Any:
        """Delete something; None if there is no such thing."""
        return self._ask("DELETE", path, body)

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        read: Callable[[bytes], Any] = _json,
    ) -> Any:
        tail = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        reasons = []
        for url in self._urls:
            try:
                answer = self._send(method, url + tail, body)
                return None if answer is None else read(answer)
            except (OSError, ValueError) as error:  # URLError is an OSError; ValueError is an answer without JSON
                reasons.append(f"{url}: {getattr(error, 'reason', None) or error}")
        msg = f"{self._name} cannot be reached ({'; '.join(reasons)})"
        raise ManagerUnreachableError(f"{msg}: {self._fix}" if self._fix else msg)

    def _send(self, method: str, url: str, body: Mapping[str, Any] | None, *, follow: bool = True) -> bytes | None:
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers if data is None else {**self._headers, "Content-Type": "application/json"}
        request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310 - http(s), checked
        try:
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                text = error.read()
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            there = error.headers.get("Location")
            if error.code in _REDIRECTS and there and follow and "Authorization" not in self._headers:
                # A standby resource manager names the active one.
                return self._send(method, urllib.parse.urljoin(url, there), body, follow=False)
            if error.code == HTTPStatus.TOO_MANY_REQUESTS or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                msg = f"HTTP {error.code}"
                raise OSError(msg) from error
            said = " ".join(text.decode(errors="replace").split())[:_MAX_SHOWN]
            msg = f"{self._name} refused {method} {urllib.parse.urlsplit(url).path}: HTTP {error.code} {said}"
            raise ManagerRefusedError(msg) from error
