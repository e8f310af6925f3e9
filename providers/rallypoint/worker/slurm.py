"""The half of the Slurm launcher that runs in the job: ``python -m rallypoint.worker.slurm batch FOLDER``.

The batch script ends in `Batch` on the job's first node. It starts a supervisor on every node with srun, and ends all
of them when one has failed, when somebody cancels the attempt, or shortly before the job's time is over. Then, and
after a node was lost, it puts the job back into the queue; Slurm does so itself with a job that it preempts. An elastic
gang has further nodes from an array of jobs beside it: see `rallypoint.worker.slurm_growth`, and for what everybody
writes down, `rallypoint.worker.slurm_folder`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

from rallypoint.worker import context, probe
from rallypoint.worker import slurm_folder as shared
from rallypoint.worker.network import address_towards
from rallypoint.worker.slurm_folder import (
    CANCEL,
    COMPLETED,
    END,
    FOLLOWED,
    HOST_LOST,
    JOB,
    TERMINATED,
    TICK,
    TIME_LIMIT,
)
from rallypoint.worker.slurm_growth import Growth, Joining, cancel_waiting, close, submitted, unblocked
from rallypoint.worker.supervisor import Supervisor, read_json, write_json

LAST_WAIT = 300.0  # seconds in which Slurm has to end a job that it or this one has given up
REFUSED_WAIT = 30.0  # seconds, likewise, where it does not take the job back
_WARNING, _WAKE = signal.SIGUSR1, signal.SIGUSR2
_SIGNALS = {signal.SIGTERM, _WARNING, _WAKE}
_NODE = [sys.executable, "-m", "rallypoint.worker.slurm", "node"]
_RANK_LOG = re.compile(r"rank-\d+\.r(\d+)\.log")


class Batch:
    """The job's own end of the launcher, on its first node.

    Args:
        folder: The attempt's folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.job = os.environ["SLURM_JOB_ID"]
        self.number = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self.settings: dict[str, Any] = read_json(self._path(shared.SETTINGS)) or {}
        self.components: list[dict[str, int]] = self.settings["components"]
        self.nodes = sum(each["nodes"] for each in self.components)
        self.run_dir = shared.run_folder(folder, self.number)
        self._growth: Growth | None = None
        self._asked = ""  # why the nodes were asked to end
        self._ending = False  # whether Slurm itself ends this job

    def run(self) -> int:
        """Run the gang, once, and say how this run of the job ends."""
        if not self._claim() or os.path.exists(self._path(END)):
            return 0
        if self._cancelled():
            return self._end("cancelled", "it was cancelled before it started")
        if self.number > self.settings["requeue"]:
            words = f"the job was put back into the queue {self.number} times, and requeue={self.settings['requeue']}"
            return self._end("requeued too often", words)
        if self.number:
            self._end_earlier(shared.run_folder(self.folder, self.number - 1))
        elif reason := _lacks(self.settings):
            return self._end("preflight", f"on {context.host()} {reason}")
        os.makedirs(self.run_dir, exist_ok=True)
        rounds = max(self.number, 1 + _last_round(self._path("logs"))) if self.number else 0
        run = {"v": 1, "nodes": self.nodes, "hosts": self._hosts(), "rounds": rounds, "t": time.time()}
        write_json(os.path.join(self.run_dir, shared.RUN), run)
        if request := self.settings.get("grows"):
            self._growth = Growth(self.folder, self.number, nodes=self.nodes, **request)
        self._watch(self._start())
        if self._growth:
            good = all(reason == COMPLETED for reason in self._reasons())
            self._growth.close(good=good, wait=not self._ending)
        return self._conclude()

    def _claim(self) -> bool:
        """Take the attempt for this job; False if it is another job's."""
        try:
            write_json(self._path(JOB), {"v": 1, "job": int(self.job), "t": time.time()}, exclusive=True)
        except FileExistsError:
            owner = read_json(self._path(JOB)) or {}
            if str(owner.get("job")) != self.job:
                shared.say(f"the job {owner.get('job')} runs this attempt already: nothing is left to do")
                return False
        return True

    def _end_earlier(self, run: str) -> None:
        """Wait until nothing of the run before lives: a node that Slurm lost may still compute."""
        close(run, good=False)
        cancel_waiting(submitted(run))
        shared.end_all([record for starts in shared.records(run).values() for record in starts])

    def _start(self) -> subprocess.Popen[bytes]:
        more = [] if self.settings["together"] else ["--no-kill"]
        words = _srun(self.components, [*more, *_NODE, self.folder, str(self.number)])
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, preexec_fn=unblocked)  # one thread  # noqa: PLW1509

    def _watch(self, srun: subprocess.Popen[bytes]) -> None:
        while srun.poll() is None:
            received = signal.sigtimedwait(_SIGNALS, TICK)
            self._ending = self._ending or bool(received and received.si_signo == signal.SIGTERM)
            if cancel := self._cancelled():
                self._ask("cancelled", cancel)
            elif received and received.si_signo == _WARNING:
                shared.say("the job's time is nearly over: the processes are asked to save their state and end")
                self._ask(TIME_LIMIT, {"grace": float(self.settings["grace"])})
            elif self.settings["together"] and any(reason not in {None, COMPLETED} for reason in self._reasons()):
                self._ask(FOLLOWED, {"grace": float(self.settings["failed_grace"])})
            elif self._growth and not self._asked and not self._ending:
                self._growth.look()

    def _ask(self, reason: str, request: dict[str, Any]) -> None:
        """Ask every node to end; the first reason counts."""
        if self._asked:
            return
        self._asked = reason
        for node in range(self.nodes):
            record = shared.node_folder(self.run_dir, node)
            if shared.reason_of(record) is None:
                os.makedirs(record, exist_ok=True)
                shared.ask_end(record, {**request, "reason": reason})
        for record in self._growth.joined() if self._growth else []:
            shared.ask_end(record, {**request, "reason": reason})

    def _conclude(self) -> int:
        """Put the job back into the queue where a further run helps; else say the last word."""
        reasons = self._reasons()
        if all(reason == COMPLETED for reason in reasons):
            return self._end("", "")
        if self._cancelled():
            return self._end("cancelled", str((self._cancelled() or {}).get("message", "")))
        if self._ending or (self._asked in {"", FOLLOWED} and TERMINATED in reasons):
            # Slurm preempts the job, or somebody ends it. How, it says itself, and only of a job that is still there.
            shared.say("Slurm has asked the processes to end: waiting for the job's end")
            self._wait_for_the_end()
            return self._end("", "")
        # A node without a last word was lost. What a gang can do without, the orchestrator's side knows.
        lost = None in reasons and (self.settings["together"] or COMPLETED not in reasons)
        if (self._asked == TIME_LIMIT or lost) and self.number < self.settings["requeue"]:
            done = subprocess.run(["scontrol", "requeue", self.job], capture_output=True, text=True, check=False)
            # Where it is refused, Slurm may be about to do it itself.
            self._wait_for_the_end(LAST_WAIT if done.returncode == 0 else REFUSED_WAIT)
            shared.say(f"the job could not be put back into the queue: {done.stderr.strip()}")
        if lost and self._asked != TIME_LIMIT:
            numbers = ", ".join(str(number) for number, reason in enumerate(reasons) if reason is None)
            return self._end(HOST_LOST, f"node {numbers} of {self._hosts()} left no last word")
        return self._end("", "")

    def _wait_for_the_end(self, seconds: float = LAST_WAIT) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._cancelled():
            if self._ending:
                sys.exit(1)  # without a last word: Slurm has the last one
            received = signal.sigtimedwait(_SIGNALS, TICK)
            self._ending = bool(received and received.si_signo == signal.SIGTERM)

    def _end(self, reason: str, message: str) -> int:
        last = {"v": 1, "run": self.number, "nodes": self.nodes, "reason": reason, "message": message, "t": time.time()}
        with contextlib.suppress(FileExistsError):
            write_json(self._path(END), last, exclusive=True)
        good = not reason and all(found == COMPLETED for found in self._reasons())
        return 0 if good or reason == "cancelled" else 1

    def _reasons(self) -> list[str | None]:
        return [shared.reason_of(shared.node_folder(self.run_dir, node)) for node in range(self.nodes)]

    def _hosts(self) -> str:
        """Return the job's nodes, as Slurm writes them."""
        several = [f"_HET_GROUP_{number}" for number in range(len(self.components))]
        names = several if len(self.components) > 1 else [""]
        return ",".join(os.environ.get(f"SLURM_JOB_NODELIST{name}", "") for name in names)

    def _cancelled(self) -> dict[str, Any] | None:
        return read_json(self._path(CANCEL))

    def _path(self, *parts: str) -> str:
        return os.path.join(self.folder, *parts)


def join(folder: str, number: int) -> int:
    """Be one more node of a run, in a job of its own."""
    if reason := _lacks(read_json(os.path.join(folder, shared.SETTINGS)) or {}):
        shared.say(f"{context.host()} cannot join: {reason}")
        return 1
    return Joining(folder, number, _SIGNALS).run(_srun([{"nodes": 1, "cpus": 0}], _NODE))


def node(folder: str, number: int, mine: int, start: int = 0) -> int:
    """Supervise this node's processes in one run of the job.

    Args:
        folder: The attempt's folder.
        number: The number of the run.
        mine: The node's number.
        start: Which start it is, of a node that joined the run; 0 for a node of the job itself.
    """
    run = shared.run_folder(folder, number)
    record = shared.node_folder(run, mine, start)
    earlier = sum(len(shared.records(shared.run_folder(folder, each)).get(mine, [])) for each in range(number + 1))
    os.environ[context.INCARNATION] = str(earlier - os.path.isdir(record))
    os.makedirs(record, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.symlink(os.path.join(folder, "logs"), os.path.join(record, "logs"))
    settings = read_json(os.path.join(folder, shared.SETTINGS)) or {}
    spec = (read_json(os.path.join(folder, shared.PLACEMENTS)) or {})["nodes"][mine]
    meeting = {"file": os.path.join(run, shared.MEETING), "leads": mine == 0, "timeout": settings["meeting_timeout"]}
    more = {"meeting": meeting, "grace": settings["failed_grace"], "py_spy": _py_spy()}
    write_json(os.path.join(record, "processes.json"), {**spec, **more})
    os.environ[context.ROUNDS] = str((read_json(os.path.join(run, shared.RUN)) or {})["rounds"])
    os.environ[context.ADDRESS] = _address((read_json(meeting["file"]) or {}).get("host") if start else None)
    os.environ[context.RUN_DIR] = record
    lock = os.open(os.path.join(record, "supervisor.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    Supervisor(record).run()
    return 0 if shared.reason_of(record) == COMPLETED else 1


def _srun(components: list[dict[str, int]], program: list[str]) -> list[str]:
    """Return the command that starts a program once on each of a job's nodes.

    Args:
        components: How many nodes each component has, and how many CPUs these; a heterogeneous job has more than one.
        program: The program, behind further options of srun.
    """
    words = ["srun"]
    for number, component in enumerate(components):
        nodes, cpus = component["nodes"], os.environ.get("SLURM_CPUS_PER_TASK")
        if number:
            words.append(":")
        if len(components) > 1:  # srun would ask of every component the memory that the first one has
            words += [f"--het-group={number}", "--mem=0"]
            cpus = str(component["cpus"] or "")
        words += [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
        words += ["--kill-on-bad-exit=0", "--wait=0", "--export=ALL", "--input=none"]
        if cpus:
            words.append(f"--cpus-per-task={cpus}")  # srun no longer takes it from its job
        words += program
    return words


def _address(first: str | None) -> str:
    """Return this node's address as the others reach it: where it sends what is for the first node.

    Args:
        first: The first node's address, for a node that joined; the others are told by srun, which runs there.
    """
    try:
        return address_towards(first or os.environ.get("SLURM_LAUNCH_NODE_IPADDR", ""))
    except OSError:
        return context.host()


def _py_spy() -> str | None:
    path = os.path.join(os.path.dirname(sys.executable), "py-spy")
    return path if os.access(path, os.X_OK) else None


def _last_round(logs: str) -> int:
    """Return the newest round of ranks that have a log; -1 if none has."""
    with contextlib.suppress(FileNotFoundError):
        return max((int(match[1]) for name in os.listdir(logs) if (match := _RANK_LOG.fullmatch(name))), default=-1)
    return -1


def _lacks(settings: dict[str, Any]) -> str:
    """Return what this node lacks for the job, in words; empty if nothing."""
    if missing := probe.absent(settings["requires"]):
        return f"the Python {sys.executable} does not have {', '.join(missing)}: install it there, or name another one"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if settings["pickled_by"] not in {None, version}:
        return (
            f"the Python {sys.executable} is {version}, and the function was pickled by {settings['pickled_by']}: use "
            "the same minor version for both, or give the code as a script"
        )
    files = [path for path in settings["needs_files"] if not os.path.isfile(path)]
    return f"there is no file {files[0]}: put the script where all nodes see it" if files else ""


def main(command: str, folder: str, *numbers: str) -> int:
    """Be what a job, an element of its array or a node of it starts, and return the exit code."""
    if command == "node":
        run, *mine = map(int, numbers)
        return node(folder, run, *(mine or [int(os.environ["SLURM_PROCID"])]))
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for number in (_WARNING, _WAKE):
        signal.signal(number, signal.SIG_DFL)  # the script ignores them; what this one starts does not
    return Batch(folder).run() if command == "batch" else join(folder, int(numbers[0]))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
