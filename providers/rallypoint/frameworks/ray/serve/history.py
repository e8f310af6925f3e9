"""The configs that were applied, which Ray does not keep: ``serve/<cluster>/<application>/<number>.json``.

A version is written before it is applied, with what was there before it, so that a retry of a deploy that was killed
knows what to restore. Values of environment variables that nobody gave in clear are kept nowhere. What is no longer
kept is for `rallypoint.stages.deploy_retention` to say.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rallypoint.frameworks.deploy.records import Records

ROOT = "serve"
LEASES = "serve-leases"
PACKAGES = "serve-packages"
KEEP_VERSIONS = 20  # by default

DEPLOYING, RUNNING, REMOVED, FAILED = "deploying", "running", "removed", "failed"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_PART = 80  # characters
_TRIES = 100


@dataclass(frozen=True, kw_only=True)
class Version:
    """One config of an application, and what became of it.

    Args:
        number: From 1, in the order in which they were applied.
        name: The application.
        cluster: The cluster's id, as its history is kept under.
        action: ``deploy``, ``rollback`` or ``undeploy``.
        config: What was applied; None for a removal.
        previous: The config that was there before; None if there was none.
        state: ``deploying``, ``running``, ``removed`` or ``failed``.
        owner: The stage and its generation, as text.
        dashboard_url: The cluster's dashboard.
        session: The name of the cluster's session.
        source: For a rollback, the version whose config it applied.
        reason: Why it failed, in a line.
        replicas: How many ran when it was done.
        url: Where it is served.
        keep_versions: How many of the newest versions a prune leaves; None for all.
        temporary: Whether a stage made the cluster, which then ends with its run.
        created: Seconds since the epoch.
        ended: Likewise, once it is no longer deploying.
    """

    number: int
    name: str
    cluster: str
    action: str
    config: Mapping[str, Any] | None
    previous: Mapping[str, Any] | None
    state: str = DEPLOYING
    owner: str = ""
    dashboard_url: str = ""
    session: str = ""
    source: int | None = None
    reason: str = ""
    replicas: int | None = None
    url: str = ""
    keep_versions: int | None = KEEP_VERSIONS
    temporary: bool = False
    created: float = field(default_factory=time.time)
    ended: float | None = None

    def to_json(self) -> bytes:
        """Return the file's text."""
        return json.dumps({"v": 1, **asdict(self)}, sort_keys=True, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Version | None:
        """Return the version that a file describes; None if it is none."""
        try:
            value = json.loads(data)
            known = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
            version = cls(**known)
        except (ValueError, TypeError):
            return None
        found: tuple[object, ...] = (version.number, version.config, version.previous)
        return (
            version if isinstance(found[0], int) and all(isinstance(each, dict | None) for each in found[1:]) else None
        )


class History:
    """The versions of one application on one cluster.

    Args:
        records: The store.
        cluster: The cluster's id.
        name: The application.
    """

    def __init__(self, records: Records, cluster: str, name: str) -> None:
        self._records = records
        self._name = name
        self._cluster = cluster
        self.folder = application_folder(cluster, name)

    def newest(self) -> Version | None:
        """Return the newest version; None if there is none."""
        return next(self.versions(), None)

    def standing(self) -> Version | None:
        """Return the newest version that was not taken back; None if there is none."""
        return next((version for version in self.versions() if version.state != FAILED), None)

    def versions(self) -> Iterator[Version]:
        """Yield all versions, the newest first."""
        for number in reversed(self._numbers()):
            if version := self.read(number):
                yield version

    def read(self, number: int) -> Version | None:
        """Return a version; None if there is none of that number."""
        data = self._records.read(f"{self.folder}/{number}.json")
        return Version.from_json(data) if data else None

    def begin(self, **fields: Any) -> Version:
        """Write a new version, before it is applied, and return it with its number."""
        for _ in range(_TRIES):
            numbers = self._numbers()
            number = numbers[-1] + 1 if numbers else 1
            version = Version(number=number, name=self._name, cluster=self._cluster, **fields)
            if self._records.create(f"{self.folder}/{version.number}.json", version.to_json()):
                return version
        msg = f"{_TRIES} other deploys of {self._name} began at the same time: retry later"
        raise TimeoutError(msg)

    def finish(self, version: Version, **fields: Any) -> Version:
        """Write what became of a version."""
        done = replace(version, ended=time.time(), **fields)
        self._records.write(f"{self.folder}/{version.number}.json", done.to_json())
        return done

    def _numbers(self) -> list[int]:
        names = (name.removesuffix(".json") for name in self._records.names(self.folder))
        return sorted(int(name) for name in names if name.isdigit())


def cluster_id(dashboard_url: str, given: str | None) -> str:
    """Return the name under which a cluster's history is kept: what was given, or host and port of its dashboard."""
    if given:
        return given
    parts = urlsplit(dashboard_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.hostname}-{port}"


def application_folder(cluster: str, name: str) -> str:
    """Return the folder of an application's versions in the store."""
    return f"{ROOT}/{component(cluster)}/{component(name)}"


def lease_folder(cluster: str, name: str | None = None) -> str:
    """Return the folder of the lease on an application, or on the cluster's config."""
    return f"{LEASES}/{component(cluster)}/" + (f"applications/{component(name)}" if name is not None else "config")


def component(text: str) -> str:
    """Return text as one part of a path: readable, safe in every store, and different for different texts."""
    safe = _UNSAFE.sub("-", text)
    if safe == text and len(text) <= _MAX_PART and not text.startswith("."):
        return text
    return f"{safe[:_MAX_PART].lstrip('.-') or 'x'}={hashlib.sha256(text.encode()).hexdigest()[:10]}"
