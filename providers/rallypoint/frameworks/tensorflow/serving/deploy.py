"""The order of steps: check, put, wait, probe, label, prune; and on a failure take the version back."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.deploy.comparison import ProbeMismatchError, difference
from rallypoint.frameworks.deploy.rest import UnreachableError
from rallypoint.frameworks.deploy.termination import TerminatedError, Termination
from rallypoint.frameworks.tensorflow.serving.server import AVAILABLE, END, Server, Status
from rallypoint.frameworks.tensorflow.serving.versions import DEPLOYING, FAILED, PRUNED, SERVING, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rallypoint.frameworks.tensorflow.serving.served_labels import ServedLabels
    from rallypoint.frameworks.tensorflow.serving.versions import Journal, Versions

_ROLLBACK_WHEN_ENDING = 12.0  # seconds: an orchestrator kills a process some twenty seconds after it asked it to end
_REPORT = 30.0  # seconds between two reports of the same
_SHOWN = 500  # characters
_NOT_YET = (http.client.NOT_FOUND, http.client.BAD_GATEWAY, http.client.SERVICE_UNAVAILABLE)


class NotAvailableError(RuntimeError):
    """The server did not load the version, or not in time."""


@dataclass
class Deployer:
    """Deploys one model.

    Args:
        settings: The JSON of a `TFServingDeploy`.
        server: The model on the server.
        versions: The base path.
        journal: Who put which version there.
        labels: The server's model config file; None if there are no labels to set.
        owner: The stage and its generation, as text.
        termination: Whether this process was asked to end.
        report: Takes what the server says of the version.
        say: Writes a line to the log.
    """

    settings: Mapping[str, Any]
    server: Server
    versions: Versions
    journal: Journal
    labels: ServedLabels | None
    owner: str
    termination: Termination = field(default_factory=Termination)
    report: Callable[[str], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        self._reported = ("", 0.0)

    def run(self, folder: str, digest: str) -> dict[str, Any]:
        """Deploy a SavedModel, and return the job's result.

        Args:
            folder: The SavedModel, whose signature was checked.
            digest: The content that it was made from.
        """
        self.server.versions()  # an address that is wrong is told before anything is put anywhere
        if self.labels is not None:
            self.labels.current()  # so is a config file that does not fit
        entry, is_own = self._entry(digest)
        number = entry.number
        previous = max((each for each in self.versions.numbers() if each != number), default=None)
        try:
            if number not in self.versions.numbers():
                self.versions.put(number, folder)
                self.say(f"version {number} is at {self.versions.path(number)}")
            self._wait_available(number, self.settings["timeout"])
            if self.settings["probe"] is not None:
                self._probe(number, self.settings["probe"])
            if self.labels is not None:
                self.labels.set(number, within=self.settings["timeout"])
            if entry.state == DEPLOYING:
                entry = self.journal.set(entry, SERVING)
        except (Exception, TerminatedError) as error:
            self._take_back(entry, previous, error, is_own=is_own)
            raise
        labels = self._labels()
        return {
            "name": self.server.name,
            "version": number,
            "path": self.versions.path(number),
            "url": f"{self.server.url}/v1/models/{self.server.name}",
            "labels": labels,
            "pruned": self._prune(number),
        }

    def _entry(self, digest: str) -> tuple[Entry, bool]:
        """Return the version to go on with, and whether it is this stage's to take away."""
        there, entries = self.versions.numbers(), self.journal.entries()
        newest = there[-1] if there else 0
        for entry in entries:
            if entry.owner != self.owner or entry.digest != digest or entry.state not in (DEPLOYING, SERVING):
                continue
            if entry.number < newest or (entry.state == SERVING and entry.number != newest):
                break  # others have deployed since: what the server has is theirs
            self.say(f"going on with version {entry.number}, which an earlier attempt began")
            return entry, True
        for entry in entries:
            if entry.number == newest and entry.digest == digest and entry.state == SERVING:
                self.say(f"version {newest} is this model already")
                return entry, False
        entry = self.journal.claim(owner=self.owner, digest=digest, model=self.settings["model"], taken=newest)
        self.say(f"version {entry.number} of {self.server.name!r}")
        return entry, True

    # Wait and probe --------------------------------------------------------------------------------------------------

    def _wait_available(self, number: int, within: float) -> None:
        deadline, status, silence = time.monotonic() + within, Status("unknown"), ""
        while True:
            try:
                status, silence = self.server.versions().get(number, Status("unknown")), ""
            except UnreachableError as error:  # it may be starting anew
                silence = str(error)
            self._tell(status.state)
            if status.state == AVAILABLE and not silence:
                return
            if status.state == END and status.error:
                msg = f"the server could not load version {number}: {status.error}"
                raise NotAvailableError(msg)
            if time.monotonic() > deadline:
                if silence:
                    raise UnreachableError(silence)
                why = f"{status.state}{f', {status.error}' if status.error else ''}"
                msg = (
                    f"version {number} was not available within {within:g} s (the server says: {why}); is "
                    f"{self.settings['base_path']} the base path of {self.server.name!r}, and its policy 'latest'?"
                )
                raise NotAvailableError(msg)
            time.sleep(self.settings["poll_interval"])

    def _probe(self, number: int, wanted: Mapping[str, Any]) -> None:
        body = {"signature_name": self.settings["signature"]["name"], **wanted["body"]}
        deadline, problem = time.monotonic() + wanted["timeout"], ""
        while (left := deadline - time.monotonic()) > 0:
            try:
                answer = self.server.predict(number, body, left)
            except UnreachableError as error:
                problem = str(error)
            else:
                problem = f"got the status {answer.status}: {answer.text}"
                if answer.status not in _NOT_YET:
                    break
            time.sleep(self.settings["poll_interval"])
        else:
            msg = f"the probe of version {number} had no answer within {wanted['timeout']:g} s: {problem}"
            raise NotAvailableError(msg)
        if answer.status == http.client.OK:
            value = json.loads(answer.body)
            expected = wanted["expect"]
            problem = "" if expected is None else difference(value, expected, tolerance=wanted["tolerance"])
        if problem:
            msg = f"the probe of version {number} failed: {problem}"
            raise ProbeMismatchError(msg)
        self.say(f"the probe was answered: {answer.text[:_SHOWN]}")

    def _labels(self) -> dict[str, int]:
        """Return the labels in the file, and say which of them the server cannot go by."""
        if self.labels is None:
            return {}
        labels, served = self.labels.current(), self.server.versions()
        for label, version in sorted(labels.items()):
            if served.get(version, Status("")).state != AVAILABLE:
                self.say(
                    f"the label {label!r} names version {version}, which the server does not serve: it refuses its "
                    "whole config file for that. Move the label, or have the version policy keep the version"
                )
        return labels

    def _tell(self, state: str) -> None:
        if state != self._reported[0] or time.monotonic() - self._reported[1] > _REPORT:
            self._reported = (state, time.monotonic())
            self.report(state)

    # Back and away ---------------------------------------------------------------------------------------------------

    def _take_back(self, entry: Entry, previous: int | None, error: BaseException, *, is_own: bool) -> None:
        """Take the version away, wait for the one before, and say in the error what was done."""
        self.say(f"failed: {error}")
        with self.termination.shield(quietly=True):
            try:
                if self.labels is not None:
                    self.labels.restore()
                if is_own:
                    self.versions.remove(entry.number)
                    self.journal.set(entry, FAILED, next(iter(str(error).splitlines()), type(error).__name__)[:_SHOWN])
                    what = f"version {entry.number} was taken away; {self._wait_back(entry.number, previous)}"
                else:
                    what = f"version {entry.number} was there before, and is left"
            except Exception as problem:  # noqa: BLE001 - the first error is what the user has to see
                what = f"version {entry.number} could not be taken away ({problem}): a retry goes on with it"
        error.args = (f"{error}; {what}",)
        self.say(what)

    def _wait_back(self, number: int, previous: int | None) -> str:
        began, known = time.monotonic(), ""
        while True:
            limit = _ROLLBACK_WHEN_ENDING if self.termination.asked else self.settings["rollback_timeout"]
            if time.monotonic() - began > limit:
                return f"the server has not gone back within {limit:g} s ({known})"
            try:
                found = self.server.versions()
            except UnreachableError as error:
                known = str(error)
            else:
                known = ", ".join(f"version {each}: {status.state}" for each, status in sorted(found.items()))
                gone = found.get(number, Status("")).state != AVAILABLE
                if gone and previous is None:
                    return "there was none before"
                if gone and previous is not None and found.get(previous, Status("")).state == AVAILABLE:
                    return f"version {previous} is available"
            time.sleep(self.settings["poll_interval"])

    def _prune(self, number: int) -> list[int]:
        """Remove old versions, and return their numbers; what cannot be removed is left to the next deploy."""
        kept = self.settings["keep_versions"]
        if kept is None:
            return []
        labelled = set(self.labels.current().values()) if self.labels is not None else set()
        entries = {entry.number: entry for entry in self.journal.entries()}
        gone = []
        older = [each for each in self.versions.numbers() if each < number]
        for old in older[: max(0, len(older) - kept + 1)]:
            entry = entries.get(old)
            if old in labelled or (entry is not None and entry.state == DEPLOYING):
                continue
            try:
                self.versions.remove(old)
                if entry is not None:
                    self.journal.set(entry, PRUNED)
            except OSError as error:
                self.say(f"version {old} could not be pruned: {error}")
            else:
                gone.append(old)
        return gone
