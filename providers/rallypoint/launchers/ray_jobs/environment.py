"""The credentials that Ray's own client finds in the environment (Ray docs: "Token authentication", "Ray Jobs CLI").

Who asks for a stage's logs by ``rallypoint logs`` has a URI of the launcher and nothing else, as who calls ``ray job
logs``. So what is not given as an option is looked for where Ray looks for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.errors import LaunchError

if TYPE_CHECKING:
    from collections.abc import Mapping

MODE, TOKEN, TOKEN_PATH, HEADERS = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_JOB_HEADERS"
_AUTHORIZATION = "authorization"


def with_environment(options: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the options with the token and the headers that the environment has and they have not.

    The token is ``RAY_AUTH_TOKEN``, else the content of the file ``RAY_AUTH_TOKEN_PATH``, else, with
    ``RAY_AUTH_MODE=token``, that of ``~/.ray/auth_token``. With ``RAY_AUTH_MODE=disabled``, or a header
    ``Authorization``, none is looked for. ``RAY_JOB_HEADERS`` is a JSON object.

    Args:
        options: A launcher's options.
        environ: The environment.

    Raises:
        LaunchError: A variable names no token, or no headers. The message repeats no value.
    """
    found = dict(options)
    if not found.get("headers") and (headers := _headers(environ)):
        found["headers"] = headers
    given = found.get("headers")
    has_own = isinstance(given, dict) and any(str(name).lower() == _AUTHORIZATION for name in given)
    if not found.get("token") and not has_own and (token := _token(environ)):
        found["token"] = token
    return found


def _token(environ: Mapping[str, str]) -> str | None:
    mode = environ.get(MODE, "").lower()
    if mode == "disabled":
        return None
    if token := environ.get(TOKEN, "").strip():
        return token
    if path := environ.get(TOKEN_PATH):
        content = _content(Path(path).expanduser())
        if content is None:
            msg = f"got {TOKEN_PATH}={path!r}, which is empty or cannot be read, expected a file with Ray's token"
            raise LaunchError(msg)
        return content
    return _content(Path.home() / ".ray" / "auth_token") if mode == "token" else None


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _headers(environ: Mapping[str, str]) -> dict[str, str] | None:
    if not (text := environ.get(HEADERS)):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        msg = f'got a value of {HEADERS} that is no JSON object, expected one such as {{"X-Team": "ml"}}'
        raise LaunchError(msg)
    return value
