"""The order of steps: write down, apply, wait, probe; and on any failure put back what was there."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.deploy.lease import Lease, LeaseTimeoutError
from rallypoint.frameworks.deploy.rest import UnreachableError
from rallypoint.frameworks.deploy.termination import TerminatedError
from rallypoint.frameworks.ray.serve.blame import blame
from rallypoint.frameworks.ray.serve.cluster import ConflictError, Target
from rallypoint.frameworks.ray.serve.history import DEPLOYING, FAILED, KEEP_VERSIONS, REMOVED, RUNNING, History, Version
from rallypoint.frameworks.ray.serve.live import DEPLOY_FAILED, UNHEALTHY
from rallypoint.frameworks.ray.serve.merge import (
    SECRET,
    VersionError,
    in_clear,
    redacted,
    revealed,
    same,
    with_variables,
)
from rallypoint.frameworks.ray.serve.probe import probe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rallypoint.frameworks.ray.serve.live import Application, Live
    from rallypoint.frameworks.ray.serve.packages import Packages

_UNHEALTHY_FOR = 30.0  # seconds: Serve replaces a replica that fails its health check by itself
_RESTORE_WHEN_ENDING = 12.0  # seconds: an orchestrator kills a process some twenty seconds after it asked it to end
_REPORT = 30.0  # seconds between two reports of the same


class DeployFailedError(RuntimeError):
    """The application did not come to run.

    Args:
        message: What failed, in a few lines.
        details: What Serve and the replica said.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class BuildFailedError(DeployFailedError):
    """The application could not be built: its code, its imports or its arguments are wrong."""


class DeployTimeoutError(DeployFailedError):
    """The application did not come to run in time."""


@dataclass
class Deployer:
    """Does what a job's settings say.

    Args:
        settings: The JSON of a `ServeJob`.
        target: The application.
        history: Its versions.
        lease: On the application.
        packages: Uploads local code.
        owner: The stage and its generation, as text.
        session: The name of the cluster's session.
        secrets: The job's, by name.
        report: Takes the replicas that run, those that there are to be, and the application's status.
        say: Writes a line to the log.
    """

    settings: Mapping[str, Any]
    target: Target
    history: History
    lease: Lease
    packages: Packages
    owner: str
    session: str
    secrets: Mapping[str, str]
    report: Callable[[int, int, str, Mapping[str, int]], None]
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.settings["timeout"]
        self._reported: tuple[Any, float] = (None, 0.0)

    def run(self, *, archive: str) -> dict[str, Any]:
        """Deploy, roll back or remove the application, and return the job's result.

        Args:
            archive: The zip of Rallypoint's shipped part, which goes along if the settings say so.
        """
        with self.lease.held(within=self.settings["timeout"], tell=self.say):
            if self.settings["action"] == "undeploy":
                return self._undeploy()
            if self.settings["action"] == "rollback":
                stored, source = self._choose()
                self.packages.restore(stored)
                return self._deploy(stored, source)
            config = self.settings["config"]
            config = self.packages.packed(config, archive=archive if self.settings["ship_rallypoint"] else None)
            return self._deploy(with_variables(config, dict.fromkeys(self.settings["replica_secrets"], SECRET)), None)

    # Deploy ----------------------------------------------------------------------------------------------------------

    def _deploy(self, stored: Mapping[str, Any], source: int | None) -> dict[str, Any]:
        live = self.target.look()
        before = live.config(self.target.name)
        config = revealed(stored, self.secrets, before)
        newest, standing = self.history.newest(), self.history.standing()
        mine = self._is_mine(newest) and newest is not None and same(newest.config, stored)
        if newest and mine and newest.state == DEPLOYING:
            self.say(f"going on with version {newest.number}, which an earlier attempt began")
            version, previous = newest, newest.previous
        elif standing and standing.state == RUNNING and same(before, config) and same(standing.config, stored):
            self.say(f"version {standing.number} is this config, and it is applied already")
            version, previous = standing, before
        else:
            version, previous = self._begin(stored, before, source), before
        try:
            self.packages.send()  # after the version is written: a prune removes what no version names
            self._tell_http_options(live)
            self.target.write(config, instead_of=previous, http_options=self.settings.get("http_options"))
            application = self._wait(config, previous)
            url = self._url(application)
            if self.settings["probe"] is not None:
                answer = probe(url, self.settings["probe"], self.lease.renew)
                self.say(f"the probe was answered: {str(answer)[:500]}")
        except LeaseTimeoutError:
            raise  # the newer deploy decides what becomes of the application
        except (Exception, TerminatedError) as error:
            self._restore(version, config, previous, error)
            raise
        done = self.history.finish(version, state=RUNNING, replicas=application.running, url=url, reason="")
        return {
            "name": self.target.name,
            "route_prefix": application.route_prefix,
            "url": url,
            "version": done.number,
            "replicas": application.running,
        }

    def _begin(self, stored: Mapping[str, Any] | None, before: Mapping[str, Any] | None, source: int | None) -> Version:
        newest = self.history.newest()
        known = in_clear(stored, newest.config if newest else None)
        version = self.history.begin(
            action=self.settings["action"],
            config=redacted(stored, known),
            previous=redacted(before, known),
            owner=self.owner,
            dashboard_url=self.settings["dashboard_url"],
            session=self.session,
            source=source,
            keep_versions=self.settings.get("keep_versions", newest.keep_versions if newest else KEEP_VERSIONS),
            temporary=self.settings["temporary"]
            or bool(newest and newest.temporary and newest.session == self.session),
        )
        self.say(
            f"version {version.number} of {self.target.name!r}" + (f", which is version {source}" if source else "")
        )
        return version

    def _is_mine(self, version: Version | None) -> bool:
        return bool(version and version.owner == self.owner and version.action == self.settings["action"])

    def _wait(self, config: Mapping[str, Any], previous: Mapping[str, Any] | None) -> Application:
        """Return the application once it runs.

        Raises:
            DeployFailedError: It does not come to run.
            ConflictError: Somebody else deployed it.
        """
        unhealthy_since: float | None = None
        while True:
            self.lease.renew()
            live = self.target.look()
            if not same(live.config(self.target.name), config):
                self.say("another writer took the config away: it is applied again")
                self.target.write(config, instead_of=previous)
                continue
            application = live.applications[self.target.name]
            self._tell(application)
            if application.ready:
                return application
            now = time.monotonic()
            unhealthy_since = (unhealthy_since or now) if application.status == UNHEALTHY else None
            late = now > self._deadline
            if (
                application.status == DEPLOY_FAILED
                or late
                or (unhealthy_since and now - unhealthy_since > _UNHEALTHY_FOR)
            ):
                raise self._failure(application, late=late)
            time.sleep(self.settings["poll_interval"])

    def _failure(self, application: Application, *, late: bool) -> DeployFailedError:
        found = blame(application, self.target.dashboard)
        if late and application.status != DEPLOY_FAILED:
            counts = f"{application.running} of {application.target} replicas"
            text = (
                f"{application.name!r} was not running within {self.settings['timeout']:g} s (status "
                f"{application.status}, {counts})"
            )
            return DeployTimeoutError(": ".join(filter(None, (text, found.error))), found.details)
        kind = DeployFailedError if found.built else BuildFailedError
        return kind(f"{found.what} failed: {found.error or application.status}", found.details)

    def _tell(self, application: Application) -> None:
        counts = {each.name: each.running for each in application.deployments}
        now = (application.running, application.target, application.status, counts)
        if now != self._reported[0] or time.monotonic() - self._reported[1] > _REPORT:
            self._reported = (now, time.monotonic())
            self.report(*now)

    def _tell_http_options(self, live: Live) -> None:
        running = live.options.get("http_options", {})
        for name, wanted in (self.settings.get("http_options") or {}).items():
            if live.started and running.get(name) != wanted:
                self.say(
                    f"got http_{name}={wanted!r}, and Serve runs with {running.get(name)!r} already: it is left so, "
                    "because only a restart of Serve changes it"
                )

    def _url(self, application: Application) -> str:
        base: str = self.settings["serve_url"] or self.target.look().serve_url(self.settings["dashboard_url"])
        return base.rstrip("/") + (application.route_prefix or "").rstrip("/") + "/"

    # Restore ---------------------------------------------------------------------------------------------------------

    def _restore(
        self,
        version: Version,
        config: Mapping[str, Any],
        previous: Mapping[str, Any] | None,
        error: BaseException,
    ) -> None:
        """Put back what was there before, and say in the error what was done."""
        self.say(f"failed: {error}")
        try:
            with self.target.termination.shield(quietly=True):
                what = self._put_back(config, previous)
        except (UnreachableError, LeaseTimeoutError, TimeoutError) as problem:
            # The version stays as it is: a retry finds it, and goes on or puts it back.
            error.args = (f"{error}; the previous config could not be restored yet ({problem}): retry to go on",)
            return
        except Exception as problem:  # noqa: BLE001 - the first error is what the user has to see
            what = f"the previous config could not be restored: {problem}"
        if version.state == DEPLOYING:
            self.history.finish(version, state=FAILED, reason=str(error).splitlines()[0][:500])
        error.args = (f"{error}; {what}",)
        self.say(what)

    def _put_back(self, config: Mapping[str, Any], previous: Mapping[str, Any] | None) -> str:
        name = self.target.name
        now = self.target.look().config(name)
        if now is None and previous is not None:
            return f"{name!r} was removed by somebody else meanwhile, and is left so"
        if same(config, previous):
            return "nothing had been changed"
        if now is not None and not same(now, config) and not same(now, previous):
            return f"{name!r} is left as somebody else deployed it meanwhile"
        wanted = None if previous is None else revealed(previous, self.secrets, now)
        if same(now, wanted):
            return "the previous config was still in place" if now else f"{name!r} had not been applied"
        self.target.write(wanted, instead_of=config)
        return self._wait_restored(wanted)

    def _wait_restored(self, wanted: Mapping[str, Any] | None) -> str:
        name, began = self.target.name, time.monotonic()
        while True:
            limit = _RESTORE_WHEN_ENDING if self.target.termination.asked else self.settings["restore_timeout"]
            if time.monotonic() - began > limit:
                break
            with suppress(LeaseTimeoutError):
                self.lease.renew()
            application = self.target.application(self.target.look())
            if wanted is None and application is None:
                return f"{name!r} was removed again, since it was not there before"
            if application and wanted is not None:
                self._tell(application)
                if application.ready:
                    return "the previous config is restored and healthy"
                if application.status == DEPLOY_FAILED:
                    failed = blame(application, self.target.dashboard)
                    return f"the previous config is applied again, and fails as well: {failed.what}: {failed.error}"
            time.sleep(self.settings["poll_interval"])
        return "the previous config is applied again, and not healthy yet" if wanted else f"{name!r} is being removed"

    # Rollback --------------------------------------------------------------------------------------------------------

    def _choose(self) -> tuple[Mapping[str, Any], int | None]:
        """Return the config to go back to, and the number of its version.

        Raises:
            VersionError: There is none.
        """
        newest = self.history.newest()
        if newest and self._is_mine(newest) and newest.state in (DEPLOYING, RUNNING) and newest.config:
            return newest.config, newest.source  # what an earlier attempt of this stage chose
        where = f"{self.target.name!r} in {self.history.folder}"
        if (number := self.settings["version"]) is not None:
            version = self.history.read(number)
            if version is None or version.config is None:
                have = ", ".join(str(each.number) for each in self.history.versions() if each.config is not None)
                msg = f"got version {number}, which has no config of {where}; expected one of {have or '(none)'}"
                raise VersionError(msg)
            return version.config, number
        live = self.target.look().config(self.target.name)
        for version in self.history.versions():
            if version.state == RUNNING and version.config is not None and not same(live, version.config):
                return version.config, version.number
        msg = f"there is no earlier version to go back to of {where}: deploy it with RayServe first, through this store"
        raise VersionError(msg)

    # Undeploy --------------------------------------------------------------------------------------------------------

    def _undeploy(self) -> dict[str, Any]:
        name, newest = self.target.name, self.history.newest()
        live = self.target.look()
        before: Mapping[str, Any] | None = live.config(name)
        if newest and self._is_mine(newest):
            version, before = newest, before or newest.previous
        elif self.target.application(live) is None:
            self.say(f"{name!r} is not there")
            return {"name": name, "removed": False, "version": newest.number if newest else None}
        else:
            version = self._begin(None, before, None)
        self.target.write(None, instead_of=before)
        version = self.history.finish(version, state=REMOVED, reason="")
        while (application := self.target.application(self.target.look())) is not None:
            self.lease.renew()
            self._tell(application)
            if time.monotonic() > self._deadline:
                msg = f"{name!r} was not gone within {self.settings['timeout']:g} s (status {application.status})"
                raise DeployTimeoutError(msg)
            if application.config is not None and application.status != "DELETING":
                self.target.write(None, instead_of=before)
            time.sleep(self.settings["poll_interval"])
        return {"name": name, "removed": True, "version": version.number}


__all__ = ["BuildFailedError", "ConflictError", "DeployFailedError", "DeployTimeoutError", "Deployer"]
