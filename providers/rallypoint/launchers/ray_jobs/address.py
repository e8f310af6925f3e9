"""Where a Ray cluster's dashboard is, and how it is asked: a URI without secrets, and options beside it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

from rallypoint.errors import LaunchError

if TYPE_CHECKING:
    from collections.abc import Mapping

PLAIN, TLS = "ray-jobs", "ray-jobs+https"
_PORTS = {PLAIN: 8265, TLS: 443}
_NAMESPACE = re.compile(r"[a-z0-9-]{0,20}")
_EXAMPLE = f"{PLAIN}://ray-head:8265 or {TLS}://ray.example.com"


@dataclass(frozen=True)
class Address:
    """A cluster's dashboard, as the ledger and logs name it.

    Args:
        scheme: ``ray-jobs`` (http) or ``ray-jobs+https``.
        host: The host.
        port: The port.
        path: What stands before ``/api``, where a proxy serves the dashboard below a path.
        python: The command that is Python on the cluster's nodes.
        namespace: What is appended to the ids of jobs: it tells the stages of two orchestrators apart that share the
            cluster and run pipelines of the same name.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    python: str = "python"
    namespace: str = ""

    @classmethod
    def from_uri(cls, uri: str) -> Address:
        """Return the address that a URI such as ``ray-jobs://ray-head:8265?python=python3`` names.

        Raises:
            LaunchError: It is none, or it holds a password.
        """
        parts = urlsplit(uri)
        if "@" in parts.netloc:  # said without the URI, which is logged
            msg = (
                f"got a user or password in the URI of a {parts.scheme}:// launcher, expected none, since it is logged "
                "and recorded: give the token or headers as options, in Airflow by a connection of the type 'ray'"
            )
            raise LaunchError(msg)
        query = parse_qs(parts.query)
        try:
            port = parts.port
        except ValueError:
            port = -1
        namespace = query.get("namespace", [""])[0]
        wrong = parts.scheme not in _PORTS or not parts.hostname or port == -1 or parts.fragment
        if wrong or query.keys() - {"python", "namespace"} or not _NAMESPACE.fullmatch(namespace):
            msg = (
                f"got the launcher {uri!r}, expected {_EXAMPLE}, with nothing but python= and namespace= (up to 20 of "
                "a-z, 0-9 and -) as its query"
            )
            raise LaunchError(msg)
        return cls(
            scheme=parts.scheme,
            host=str(parts.hostname),
            port=port or _PORTS[parts.scheme],
            path=parts.path.rstrip("/"),
            python=query.get("python", ["python"])[0],
            namespace=namespace,
        )

    @property
    def uri(self) -> str:
        """The URI, always the same one for the same address."""
        query = {"python": self.python} if self.python != "python" else {}
        query |= {"namespace": self.namespace} if self.namespace else {}
        return f"{self.scheme}://{self._netloc}{self.path}{f'?{urlencode(query)}' if query else ''}"

    def job_id(self, attempt: str) -> str:
        """Return the id of an attempt's job."""
        return f"{attempt}-{self.namespace}" if self.namespace else attempt

    @property
    def url(self) -> str:
        """Where the dashboard answers."""
        return f"{'https' if self.scheme == TLS else 'http'}://{self._netloc}{self.path}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """Who gets what is sent there: credentials of one origin are no business of another."""
        return self.scheme, self.host, self.port

    @property
    def _netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Access:
    """How the dashboard is asked. Holds secrets; it is shown nowhere.

    Args:
        token: Sent as ``Authorization: Bearer …``: the token of a Ray with ``RAY_AUTH_MODE=token``, or a proxy's.
        headers: Further headers.
        cookies: Cookies.
        verify: Whether the certificate is checked against the system's authorities, or the path of a file or folder
            of authorities to check it against.
        cert: The path of a client certificate, or those of certificate and key.
        timeout: Seconds that one answer may take.
        dashboard_url: The dashboard's address in a browser, if it is another than the one that is asked.
    """

    token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    cookies: Mapping[str, str] = field(default_factory=dict, repr=False)
    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    timeout: float = 30.0
    dashboard_url: str | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Access:
        """Return what options say; those of other names are ignored here.

        Raises:
            LaunchError: A value is of another type. The message does not repeat it: it may be a secret.
        """
        token, timeout, cert = options.get("token"), options.get("timeout", 30.0), options.get("cert")
        page = options.get("dashboard_url")
        if token is not None and not _is_header(token):
            raise _wrong("token", token, "text without line breaks")
        for name in ("headers", "cookies"):
            value = options.get(name) or {}
            if not isinstance(value, dict) or not all(_is_header(text) for item in value.items() for text in item):
                raise _wrong(name, value, "an object of text")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
            raise _wrong("timeout", timeout, "seconds above 0")
        if isinstance(cert, list | tuple):
            cert = tuple(cert)
        if cert is not None and not (isinstance(cert, str) or (isinstance(cert, tuple) and len(cert) == 2)):  # noqa: PLR2004 - a pair
            raise _wrong("cert", cert, "a path, or the paths of certificate and key")
        if page is not None and not (isinstance(page, str) and page.startswith(("http://", "https://"))):
            raise _wrong("dashboard_url", page, "an http:// or https:// address")
        return cls(
            token=token or None,
            headers=options.get("headers") or {},
            cookies=options.get("cookies") or {},
            verify=_verify(options.get("verify")),
            cert=cert,
            timeout=float(timeout),
            dashboard_url=page.rstrip("/") if page else None,
        )

    @property
    def key(self) -> str:
        """What is equal for two that ask in the same way. It holds the secrets."""
        return json.dumps([self.token, dict(self.headers), dict(self.cookies), self.verify, self.cert, self.timeout])


def _verify(value: Any) -> bool | str:
    if value is None or value == "" or isinstance(value, bool):
        return True if value is None or value == "" else bool(value)
    # The form of an Airflow connection has text fields only.
    if isinstance(value, str) and value.strip().lower() in {"true", "false"}:
        return value.strip().lower() == "true"
    if isinstance(value, str) and Path(value).exists():
        return value
    raise _wrong("verify", value, "true, false, or the path of an existing file or folder of certificate authorities")


def _is_header(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _wrong(name: str, value: object, expected: str) -> LaunchError:
    return LaunchError(
        f"got {type(value).__name__} for the option {name!r} of a Ray launcher, expected {expected}; correct it where "
        "the launcher's options are given, in Airflow in the connection of the type 'ray'"
    )
