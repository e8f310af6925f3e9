"""Holds the processes of a gang together on one host: ``main(RUN_DIR)`` in a Python process of its own.

It detaches from whoever started it, so that it outlives an orchestrator's worker, and keeps its record in the run
folder, by which any later process finds it:

``supervisor.lock``  held (flock) while it lives: two supervisors of one attempt are impossible
``started.json``     pid and start time, written before the first process starts; a run with it never starts again
``heartbeat.json``   rewritten every few seconds, for readers on other hosts
``cancel.json``      put there by whoever wants it ended; ``"reason"`` says whether it only follows another node's end
``ended.json``       how every process ended; written before what they left behind is killed
``final.json``       the same; written last
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from rallypoint.worker import faults, hostprocs, variables
from rallypoint.worker.ports import EVERYWHERE, free_ports
from rallypoint.worker.silence import Silence

if TYPE_CHECKING:
    from rallypoint.worker.lease import LeaseWatch

HEARTBEAT = 2.0  # seconds
TICK = 0.25  # seconds
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MAX_MESSAGE = 24_000  # characters


class Supervisor:
    """One attempt's gang on this host.

    Args:
        run_dir: The attempt's folder, with ``processes.json`` in it.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir
        with open(self._path("processes.json"), encoding="utf-8") as file:
            self.spec: dict[str, Any] = json.load(file)
        self.children: dict[int, str] = {}
        self.ends: dict[str, dict[str, Any]] = {}
        self.first_failure: str | None = None
        self._roles = {process["name"]: process.get("role", "") for process in self.spec["processes"]}
        self._may_lose: dict[str, int] = dict(self.spec.get("may_lose") or {})
        self.tolerated: set[str] = set()
        self._last_beat = 0.0
        self._silence = Silence(run_dir, self.spec["events_dir"], self.spec["stall_timeout"])
        self._uploader: int | None = None  # uploads the logs, and outlives this process by some seconds
        self._pid = os.getpid()
        self._libc = ctypes.CDLL(None, use_errno=True)

    def run(self) -> None:
        """Start the gang, wait for its end, and leave the final record."""
        host = socket.gethostname()
        me = {"pid": os.getpid(), "start_time": hostprocs.start_time(os.getpid()), "boot_id": hostprocs.boot_id()}
        faults.reach("supervisor-before-started")
        write_json(self._path("started.json"), {"v": 1, "host": host, "t": time.time(), **me}, exclusive=True)
        faults.reach("supervisor-after-started")
        self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
        cancel = self._cancelled() or {}
        reason, message = str(cancel.get("reason", "cancelled")), "it was cancelled before it started"
        if not cancel:
            try:
                self._start()
                if self.spec.get("logs"):
                    self._uploader = _start_uploader(self.run_dir, self.spec["logs"])
                reason, message = self._watch()
            except _GivenUpError as error:
                reason, message = str(error), ""
            except (OSError, ValueError) as error:
                reason, message = "error", f"the supervisor could not start the processes: {error}"
        faults.reach("supervisor-before-ended")
        final = {"v": 1, "attempt": self.spec["attempt"], "reason": reason, "message": message[:_MAX_MESSAGE]}
        if not self.children:  # how the gang ended is known, and must not be lost while what it left is killed
            write_json(self._path("ended.json"), {**final, **self._ends(host)}, durable=False)
        self._end_all()
        faults.reach("supervisor-before-final")
        write_json(self._path("final.json"), {**final, **self._ends(host)})

    def _ends(self, host: str) -> dict[str, Any]:
        """Return how every process of the gang ended."""
        unknown = {"exit_code": None, "signal": None}
        return {
            "host": host,
            "t": time.time(),
            "processes": [
                {
                    "name": name,
                    **self.ends.get(name, unknown),
                    "host": host,
                    "first": name == self.first_failure,
                    "tolerated": name in self.tolerated,
                }
                for name in (process["name"] for process in self.spec["processes"])
            ],
        }

    def _start(self) -> None:
        values = self._values()
        for process in self.spec["processes"]:
            argv = [_replace(word, values) for word in process["argv"]]
            # The supervisor's own environment is the job's base: it holds the secrets, which no file does.
            env = {**os.environ, **{name: _replace(value, values) for name, value in process["env"].items()}}
            log = os.open(self._path("logs", f"{process['name']}.log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            child = subprocess.Popen(
                argv,
                env=env,
                cwd=process["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=self._in_child,  # this process has one thread  # noqa: PLW1509
            )
            os.close(log)
            self.children[child.pid] = process["name"]
            child.returncode = 0  # this loop reaps it, not Popen

    def _values(self) -> dict[str, str]:
        """Return what only this moment knows: free ports, and where the gang's nodes are.

        Where the nodes learn of each other through a shared folder, the first one picks the ports and says so in a
        file; the others wait for it.
        """
        names, meeting = self.spec["ports"], self.spec.get("meeting")
        address = self.spec.get("address") or os.environ.get(variables.ADDRESS, "")
        if meeting is None or meeting["leads"]:
            ports = dict(zip(names, free_ports(len(names), EVERYWHERE if meeting else address), strict=True))
            found: dict[str, Any] = {"v": 1, "host": address, "ports": ports}
            if meeting is not None:
                write_json(meeting["file"], found)
        else:
            found = self._met(meeting)
        return {
            "${rallypoint:host}": str(found["host"]),
            "${rallypoint:address}": address,
            **{f"${{rallypoint:port.{name}}}": str(found["ports"][name]) for name in names},
        }

    def _met(self, meeting: dict[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + float(meeting["timeout"])
        while (found := read_json(meeting["file"])) is None:
            self._beat()
            if cancel := self._cancelled():
                raise _GivenUpError(cancel.get("reason", "cancelled"))
            if time.monotonic() > deadline:
                msg = f"the first node did not say where it is within {float(meeting['timeout']):g} s"
                raise ValueError(msg)
            received = signal.sigtimedwait({signal.SIGTERM, signal.SIGINT, signal.SIGHUP}, TICK)
            if received:
                raise _GivenUpError("terminated")
        return found

    def _left(self) -> list[int]:
        """Return every descendant that belongs to the attempt."""
        return [pid for pid in hostprocs.descendants(os.getpid()) if pid != self._uploader]

    def _in_child(self) -> None:
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        if os.getppid() != self._pid:  # the supervisor died before the first line here
            os._exit(1)

    def _watch(self) -> tuple[str, str]:
        # Every process has been started: from here on this one may have further threads.
        lease = _watch_lease(**self.spec["lease"]) if self.spec.get("lease") else None
        while True:
            faults.reach("supervisor-running")
            self._beat()
            self._reap()
            if not self.children:
                return ("failed", "") if self.first_failure else ("completed", "")
            if self.first_failure:
                self._terminate(float(self.spec["grace"]))
                return "failed", ""
            received = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}, TICK)
            if cancel := self._cancelled():
                reason, message = str(cancel.get("reason", "cancelled")), str(cancel.get("message", ""))
                if reason == "stalled":
                    message += f"; every process on {socket.gethostname()} was doing this:\n\n{self._stacks()}"
                self._terminate(float(cancel.get("grace", self.spec["grace"])))
                return reason, message
            if received and received.si_signo != signal.SIGCHLD:
                self._terminate(float(self.spec["grace"]))
                return "terminated", f"the supervisor received {signal.Signals(received.si_signo).name}"
            if lease is not None and lease.expired:
                self._terminate(float(self.spec["grace"]))
                return "lease expired", f"nobody renewed its lease for {lease.seconds:g} s"
            if stalled := self._silence.too_long():
                message = (
                    f"no event and no output from any process for {stalled:.0f} s (stall_timeout="
                    f"{self.spec['stall_timeout']:g}); every process was doing this:\n\n" + self._stacks()
                )
                self._terminate(min(5.0, float(self.spec["grace"])))
                return "stalled", message

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            name = self.children.pop(pid, None)
            if name is None:
                continue  # a grandchild that this process inherited
            code = os.waitstatus_to_exitcode(status)
            self.ends[name] = {
                "exit_code": code if code >= 0 else None,
                "signal": signal_name(-code) if code < 0 else None,
                "t": time.time(),
            }
            if code != 0 and self.first_failure is None and not self._tolerates(name):
                self.first_failure = name

    def _tolerates(self, name: str) -> bool:
        """Return whether the gang goes on without a process that failed, and count it."""
        role = self._roles[name]
        if self._may_lose.get(role, 0) < 1:
            return False
        self._may_lose[role] -= 1
        self.tolerated.add(name)
        return True

    def _terminate(self, grace: float) -> None:
        """Ask the gang's processes to end, which forward it to theirs, and kill what is left after the grace."""
        for pid in self.children:
            _signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while self.children and time.monotonic() < deadline:
            signal.sigtimedwait({signal.SIGCHLD}, TICK)
            self._beat()
            self._reap()
        self._end_all()

    def _end_all(self) -> None:
        """Kill every descendant; a gang leaves nothing behind."""
        deadline, empty = time.monotonic() + 10, 0
        while time.monotonic() < deadline:
            left = self._left()
            for pid in left:
                _signal(pid, signal.SIGKILL)
            self._reap()
            # One look may miss a process whose parent ends while /proc is read: it is nobody's child for that moment.
            empty = 0 if left else empty + 1
            if empty > 1:
                return
            signal.sigtimedwait({signal.SIGCHLD}, 0.02)

    def _cancelled(self) -> dict[str, Any] | None:
        return read_json(self._path("cancel.json"))

    def _stacks(self) -> str:
        """Write every process's stacks to a file, and return what fits on a screen: equal ones once, ranks first."""
        texts = []
        alike: dict[str, list[str]] = {}
        for pid in self._left():
            label = hostprocs.label(pid)
            stack = hostprocs.stack(pid, self.spec["py_spy"], self._path("logs", f".stack-{pid}.txt"))
            if stack:
                texts.append(f"{label} (pid {pid}):\n{stack}")
                alike.setdefault(hostprocs.innermost(stack), []).append(f"{label} (pid {pid})")
        if not texts:
            return "(no Python stack could be read)"
        with contextlib.suppress(OSError), open(self._path("stacks.txt"), "w", encoding="utf-8") as file:
            file.write("\n\n".join(texts))
        short = sorted(alike.items(), key=lambda item: not item[1][0].startswith("rank "))
        shown = [f"{', '.join(who[:8])}{' …' if len(who) > 8 else ''}:\n{frames}" for frames, who in short]  # noqa: PLR2004
        return "\n".join([*shown, f"whole stacks: {self._path('stacks.txt')}"])

    def _beat(self) -> None:
        if time.monotonic() - self._last_beat >= HEARTBEAT:
            self._last_beat = time.monotonic()
            with contextlib.suppress(OSError):  # a full disk is no reason to end a gang that works
                write_json(self._path("heartbeat.json"), {"v": 1, "t": time.time()}, durable=False)

    def _path(self, *parts: str) -> str:
        return os.path.join(self.run_dir, *parts)


class _GivenUpError(Exception):
    """It was asked to end before it had started anything; the text is the reason for the record."""


def _start_uploader(run_dir: str, logs: dict[str, Any]) -> int | None:
    from rallypoint.worker import log_upload  # noqa: PLC0415 - every start waits for imports

    return log_upload.start(run_dir, logs)


def _watch_lease(uri: str, seconds: float) -> LeaseWatch:
    # Few gangs have one, and every start waits for imports.
    import site  # noqa: PLC0415

    from rallypoint.worker.lease import LeaseWatch  # noqa: PLC0415

    if sys.flags.no_site:
        site.main()  # a bucket's client is in site-packages
    return LeaseWatch(uri, seconds)


def signal_name(number: int) -> str:
    """Return a signal's name; most real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def write_json(path: str, value: dict[str, Any], *, exclusive: bool = False, durable: bool = True) -> None:
    """Write a file whole or not at all.

    Raises:
        FileExistsError: `exclusive` was asked for and the file is there.
    """
    draft = f"{path}.{os.getpid()}.{threading.get_ident()}.tmp"
    with open(draft, "w", encoding="utf-8") as file:
        json.dump(value, file)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    if exclusive:
        try:
            os.link(draft, path)
        finally:
            os.unlink(draft)
    else:
        os.replace(draft, path)


def read_json(path: str) -> dict[str, Any] | None:
    """Return a file's JSON object; None if there is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            value: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return None
    return value


def _replace(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def main(run_dir: str) -> int:
    """Supervise a run, once: a second call for the same folder does nothing."""
    lock = os.open(os.path.join(run_dir, "supervisor.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    if os.path.exists(os.path.join(run_dir, "started.json")):
        return 0
    if os.fork():
        # The one who started this process waits for it, and needs to wait no longer. `_exit` keeps the lock, which
        # the child holds too.
        os._exit(0)
    Supervisor(run_dir).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
