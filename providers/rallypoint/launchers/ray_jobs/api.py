"""The requests of a Ray dashboard's Jobs API, and what its answers mean (Ray docs: "Ray Jobs REST API")."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx

from rallypoint.errors import LaunchError
from rallypoint.launchers.ray_jobs.clients import client_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rallypoint.launchers.ray_jobs.address import Access, Address

OK, BAD_REQUEST, NOT_FOUND = 200, 400, 404
BRIEF = 3.0  # seconds that one of many looks goes on trying
PATIENT = 30.0  # seconds that a launch goes on trying
MAX_ANSWER = 8 << 20  # bytes of an answer that is no log
_PASSING = frozenset({429, 502, 503, 504})  # of a proxy or a dashboard that is starting or overloaded
_DENIED = frozenset({401, 403, 407})
_UNKNOWN = "does not exist"  # Ray's own words; any other 404 is a proxy's
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 3.0  # seconds between two tries
_SHOWN = 600  # characters of an answer in an error


class AccessError(LaunchError):
    """The dashboard was not asked: its certificate is not trusted, or the credentials are refused."""


class RequestError(LaunchError):
    """The dashboard was asked and found the request wrong."""


class RayJobsApi:
    """The Jobs API of one cluster. Every method raises `LaunchError` if it cannot be reached.

    Args:
        address: The dashboard.
        access: Credentials and settings.
    """

    def __init__(self, address: Address, access: Access) -> None:
        self.address = address
        self.access = access

    async def version(self) -> dict[str, Any]:
        """Return what the dashboard says about itself, such as ``ray_version``."""
        return await self._object("GET", "/api/version", patience=BRIEF)

    async def job(self, submission_id: str, *, patience: float = BRIEF) -> dict[str, Any] | None:
        """Return what Ray knows of a job; None if Ray itself says that there is none."""
        answer = await self._send("GET", _job(submission_id), patience=patience)
        if answer.status_code == NOT_FOUND and _UNKNOWN in answer.text:
            return None
        return self._json(answer)

    async def submit(self, request: Mapping[str, Any]) -> None:
        """Submit a job, once more if no answer came: Ray takes an id only once.

        Raises:
            RequestError: Ray refuses it; also if it has a job of that id.
        """
        answer = await self._send("POST", "/api/jobs/", patience=PATIENT, json=dict(request))
        # The dashboard repeats the refusal of its agent with status 500.
        wrong = answer.status_code == BAD_REQUEST or "status code 400" in answer.text
        if answer.status_code != OK and wrong:
            msg = f"the Ray cluster at {self.address.url} refuses the job: {_last_line(answer.text)}"
            raise RequestError(msg)
        self._json(answer)

    async def stop(self, submission_id: str) -> None:
        """Ask for the end of a job; nothing is done if there is none, or it has ended."""
        answer = await self._send("POST", f"{_job(submission_id)}/stop", patience=BRIEF)
        if not (answer.status_code == NOT_FOUND and _UNKNOWN in answer.text):
            self._json(answer)

    async def delete(self, submission_id: str) -> None:
        """Have Ray forget a job that has ended; nothing is done if there is none."""
        answer = await self._send("DELETE", _job(submission_id), patience=BRIEF)
        if not (answer.status_code == NOT_FOUND and _UNKNOWN in answer.text):
            self._json(answer)

    async def has_package(self, name: str) -> bool:
        """Return whether the cluster has a package; if so it keeps it for ten minutes at the least."""
        answer = await self._send("GET", f"/api/packages/gcs/{quote(name)}", patience=PATIENT)
        if answer.status_code == NOT_FOUND and _UNKNOWN in answer.text:
            return False
        self._expect_ok(answer)
        return True

    async def upload(self, name: str, data: bytes) -> None:
        """Store a package in the cluster."""
        answer = await self._send("PUT", f"/api/packages/gcs/{quote(name)}", patience=PATIENT, content=data)
        self._expect_ok(answer)

    async def log_file(self, node: str, name: str, limit: int) -> bytes | None:
        """Return a file below a node's log folder, at most its first bytes; None if it cannot be had.

        A log that is gone with its node is no reason to think otherwise of a job, so only a dashboard that does not
        answer at all is an error.
        """
        query = {"node_id": node, "filename": name, "lines": "-1"}
        answer = await self._send("GET", "/api/v0/logs/file", patience=BRIEF, params=query, limit=limit)
        return answer.content if answer.status_code == OK else None

    # How it is done ------------------------------------------------------------------------------------------------

    async def _object(self, method: str, path: str, *, patience: float) -> dict[str, Any]:
        return self._json(await self._send(method, path, patience=patience))

    async def _send(
        self, method: str, path: str, *, patience: float, limit: int = MAX_ANSWER, **content: Any
    ) -> httpx.Response:
        """Return the answer to a request; every request here may be sent twice."""
        deadline, wait = time.monotonic() + patience, _FIRST_WAIT
        while True:
            problem = ""
            try:
                answer = await self._once(method, path, limit, content)
            except httpx.TransportError as error:
                if (cause := _certificate_error(error)) is not None:
                    raise AccessError(self._untrusted(cause)) from error
                problem = f"{type(error).__name__} {error}".strip()
            else:
                if answer.status_code not in _PASSING:
                    self._check_access(answer)
                    return answer
                problem = f"HTTP status {answer.status_code}"
            if time.monotonic() + wait > deadline:
                msg = (
                    f"the Ray dashboard at {self.address.url} does not answer ({problem}): see whether the cluster "
                    "runs and can be reached from here"
                )
                raise LaunchError(msg)
            await asyncio.sleep(wait * random.uniform(0.7, 1.0))  # noqa: S311 - no secret
            wait = min(wait * 2, _LONGEST_WAIT)

    async def _once(self, method: str, path: str, limit: int, content: Mapping[str, Any]) -> httpx.Response:
        client = await client_of(self.address, self.access)
        async with client.stream(method, path, **content) as answer:
            body = bytearray()
            async for part in answer.aiter_bytes():
                body += part
                if len(body) >= limit:  # the rest is not read, and the connection is given up
                    break
            request = answer.request
        return httpx.Response(answer.status_code, content=bytes(body[:limit]), request=request)

    def _check_access(self, answer: httpx.Response) -> None:
        if answer.status_code in _DENIED:
            given = "the credentials were refused" if self._has_credentials else "it asks for credentials"
            said = _last_line(answer.text)
            msg = (
                f"the Ray dashboard at {self.address.url} answered HTTP status {answer.status_code}, {given} "
                f"({said}): correct token or headers where the launcher's options are given, in Airflow in the "
                "connection of the type 'ray'"
            )
            raise AccessError(msg)
        if answer.is_redirect:
            msg = (
                f"{self.address.url} answered with a redirection (HTTP status {answer.status_code}), expected a Ray "
                "dashboard: a login page wants a token, headers or cookies; https:// is the scheme ray-jobs+https"
            )
            raise AccessError(msg)

    @property
    def _has_credentials(self) -> bool:
        return bool(self.access.token or self.access.headers or self.access.cookies)

    def _untrusted(self, cause: ssl.SSLError) -> str:
        return (
            f"the TLS connection to {self.address.url} failed ({cause.verify_message}): give the path of its "
            "certificate authority as the option verify"
            if isinstance(cause, ssl.SSLCertVerificationError)
            else f"the TLS connection to {self.address.url} failed ({cause.reason}): see whether it speaks https"
        )

    def _expect_ok(self, answer: httpx.Response) -> None:
        if answer.status_code != OK:
            msg = (
                f"{self.address.url} answered HTTP status {answer.status_code}, expected 200 of a Ray dashboard: "
                f"{_last_line(answer.text)}"
            )
            raise LaunchError(msg)

    def _json(self, answer: httpx.Response) -> dict[str, Any]:
        self._expect_ok(answer)
        try:
            value = json.loads(answer.content)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            msg = f"{self.address.url} answered something else than a Ray dashboard: correct the launcher's URI"
            raise LaunchError(msg)
        return value


def _job(submission_id: str) -> str:
    return f"/api/jobs/{quote(submission_id, safe='')}"


def _certificate_error(error: BaseException) -> ssl.SSLError | None:
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLError):
            return found
        found = found.__cause__ or found.__context__
    return None


def _last_line(text: str) -> str:
    """Return the end of an answer: of a traceback, what was raised."""
    lines = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]
    return lines[-1][:_SHOWN] if lines else "no further words"
