"""Which replica failed, with what it said: Serve's message and the last lines of its log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rallypoint.frameworks.ray.serve.client import Dashboard
    from rallypoint.frameworks.ray.serve.live import Application, Deployment, Replica

_LINES = 15  # of a log
_MAX_TEXT = 8_000  # characters of a message of Serve
# What Serve says of a replica that did not start.
_REPLICA = re.compile(r"Replica\(id='([^']+)'")
_ACTOR = re.compile(r"\bactor_id=([0-9a-f]{16,})")
_ADDRESS = re.compile(r"\bip=([0-9A-Fa-f.:]+)")
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


@dataclass(frozen=True)
class Blame:
    """What failed.

    Args:
        what: In a line, such as ``replica 4k2j of Model``.
        error: The last line of its traceback, if there is one.
        details: Serve's message and the log's last lines.
        built: Whether the application was built; if not, its code or its imports are wrong.
    """

    what: str
    error: str
    details: str
    built: bool


def blame(application: Application, dashboard: Dashboard) -> Blame:
    """Return what failed in an application that does not run."""
    suspects = sorted(application.deployments, key=lambda each: (each.status not in _FAILED, each.ready))
    if not suspects or suspects[0].ready:
        text = _clipped(application.message)
        return Blame(f"the application {application.name!r}", _last_line(text), text, built=bool(suspects))
    deployment = suspects[0]
    message = _clipped(deployment.message or application.message)
    replica = _suspect(deployment)
    parts = [f"deployment {deployment.name}: {deployment.status}, {deployment.running} of {deployment.target} replicas"]
    parts.append(message)
    what = f"the deployment {deployment.name!r}"
    if name := (_found(_REPLICA, message) or (replica.id if replica else "")):
        what = f"replica {name} of {deployment.name!r}"
        lines = _log(message, application.name, deployment.name, name, replica, dashboard)
        if lines:
            parts += [f"last lines of replica {name}:", *(f"  | {line[:500]}" for line in lines)]
    return Blame(what, _last_line(message), "\n".join(filter(None, parts)), built=True)


def _log(  # noqa: PLR0913, PLR0917 - what a log is found by
    message: str, application: str, deployment: str, name: str, replica: Replica | None, dashboard: Dashboard
) -> list[str]:
    """Return the last lines that a replica wrote: what it printed, and what Serve logged for it."""
    texts = []
    if actor := _found(_ACTOR, message):
        texts += [dashboard.log(_LINES, actor_id=actor, suffix=suffix) for suffix in ("out", "err")]
    # One that failed in its constructor has no log in Serve's answer, but a file all the same.
    if replica and replica.id == name and replica.node_id and replica.log:
        texts.append(dashboard.log(_LINES, node_id=replica.node_id, filename=replica.log.lstrip("/")))
    elif address := _found(_ADDRESS, message):
        filename = f"serve/replica_{application}_{deployment}_{name}.log"
        texts.append(dashboard.log(_LINES, node_ip=address, filename=filename))
    each = [[line for line in text.splitlines() if line.strip()][-_LINES:] for text in texts]
    return [line for lines in each for line in lines]


def _suspect(deployment: Deployment) -> Replica | None:
    """Return the replica that failed last: one that does not run, else one that ended."""
    waiting = [replica for replica in deployment.replicas if replica.state not in ("RUNNING", "STOPPING")]
    ended = sorted(deployment.dead, key=lambda each: each.started, reverse=True)
    return next(iter([*waiting, *ended]), None)


def _found(pattern: re.Pattern[str], text: str) -> str:
    """Return the last match's group; the empty string if there is none."""
    return next(iter(reversed(pattern.findall(text))), "")


def _last_line(text: str) -> str:
    """Return the line of a traceback that names the exception, or the first line of another text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    traced = any(line.startswith(("Traceback (most recent call last)", "File ")) for line in lines)
    return (lines[-1] if traced else lines[0])[:300]


def _clipped(text: str) -> str:
    text = text.strip()
    if len(text) <= _MAX_TEXT:
        return text
    return f"{text[: _MAX_TEXT // 4]}\n[…]\n{text[-_MAX_TEXT * 3 // 4 :]}"
