"""How an elastic gang grows on Slurm: a job array beside its job, one element for each node that it could have more.

The job itself has the least number of nodes. Once it runs, its first node submits the array (`Growth`): only the job
that owns the attempt does so, so there are never two. An element waits in Slurm's queue until there is a node for it;
then it joins the run (`Joining`), by the number of its node. Slurm puts it back into the queue when its node is lost or
it is preempted; after a failure, such as a cut network, it goes back itself. It belongs to one run of the job: when
that is over, or the job's first node falls silent, it ends, and gives its node back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import Any

from rallypoint.worker import slurm_folder as shared
from rallypoint.worker.supervisor import read_json, write_json

SUBMITTED = "more.json"  # in a run's folder: the arrays that were submitted for it
COMMAND_SECONDS = 60.0
LAST_WORDS = 30.0  # seconds that a node has to complete by itself once the first one has
END_SECONDS = 10.0  # seconds for which the end of a node that was asked to end is waited for
SETTLING = 15.0  # seconds after a node's failure in which the whole gang may turn out to be failing
_LOOK = 5.0  # seconds between two looks at what is missing
_LOOK_OF_ONE = 2.0  # likewise, of each that joined at whether its run is over: there may be hundreds
_EXCLUDE = "--exclude="
_FAILURES = {None, "failed", "error", "stalled"}  # how a node ends that may join again
_PAUSE, _LONGEST_PAUSE = 30.0, 600.0  # seconds until a submission that failed is tried again


class Growth:
    """The array of one run of an elastic gang's job, as the job's first node cares for it.

    Args:
        folder: The attempt's folder.
        number: The number of the run.
        nodes: How many nodes the job itself has.
        most: How many nodes the gang may have.
        request: The command that submits an element, without its array and its arguments.
    """

    def __init__(self, folder: str, number: int, *, nodes: int, most: int, request: dict[str, list[str]]) -> None:
        self.run_dir = shared.run_folder(folder, number)
        self._wanted = set(range(nodes, most))
        self._arguments = [*request["job"], "join", folder, str(number)]
        self._options = request["options"]
        self._own = {node: shared.Pulse(shared.node_folder(self.run_dir, node)) for node in range(1, nodes)}
        self._jobs: list[str] = []
        self._trying: set[int] = set()
        self._asked: set[int] = set()  # the nodes whose elements have been submitted
        self._sbatch: subprocess.Popen[str] | None = None
        self._next, self._pause = 0.0, _PAUSE

    def look(self) -> None:
        """Submit what is missing; never waits."""
        if self._sbatch is not None:
            if self._sbatch.poll() is not None:
                self._submitted(self._sbatch)
            return
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LOOK
        missing = sorted((self._wanted | self._lost()) - self._asked)
        if missing and os.path.exists(os.path.join(self.run_dir, shared.MEETING)):
            self._submit(missing)

    def joined(self) -> list[str]:
        """Return the records of the nodes that joined and left no last word."""
        newest = [starts[-1] for starts in shared.records(self.run_dir).values()]
        return [path for path in newest if "." in os.path.basename(path) and shared.reason_of(path) is None]

    def close(self, *, good: bool, wait: bool) -> None:
        """Let nothing start in this run any more, and have what joined it end.

        What takes longer, or cannot be seen to live, is no danger: nobody calls the attempt ended while it may live.

        Args:
            good: Whether the job's own nodes have completed; those that joined are about to.
            wait: Whether there is time to wait for their end.
        """
        close(self.run_dir, good=good)
        if self._sbatch is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._sbatch.wait(END_SECONDS if wait else 1.0)
                self._submitted(self._sbatch)
        cancel_waiting(self._jobs)
        pulses: dict[str, shared.Pulse] = {}
        deadline = time.monotonic() + (LAST_WORDS if good else 0.0) + END_SECONDS
        while wait and time.monotonic() < deadline:
            pulses = {path: pulses.get(path) or shared.Pulse(path) for path in self.joined()}
            if all(pulse.silent > END_SECONDS for pulse in pulses.values()):
                return
            time.sleep(shared.TICK)

    def _lost(self) -> set[int]:
        """Return the nodes of the job itself that fell silent without a last word."""
        return {
            node
            for node, pulse in self._own.items()
            if pulse.silent >= shared.STALE and shared.reason_of(shared.node_folder(self.run_dir, node)) is None
        }

    def _submit(self, missing: list[int]) -> None:
        # A node that is free in part could take an element beside the job itself.
        taken = [] if self._lost() else [os.environ.get("SLURM_JOB_NODELIST", "")]
        options = [word for word in self._options if not word.startswith(_EXCLUDE)]
        taken += [word.removeprefix(_EXCLUDE) for word in self._options if word.startswith(_EXCLUDE)]
        options += [f"{_EXCLUDE}{','.join(taken)}"] if any(taken) else []
        words = ["sbatch", "--parsable", f"--array={','.join(map(str, missing))}", *options, *self._arguments]
        # What Slurm said of this job would be taken for options of the next one.
        env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH_", "SRUN_"))}
        env |= {"SLURM_CONF": os.environ["SLURM_CONF"]} if "SLURM_CONF" in os.environ else {}
        self._trying = set(missing)
        try:
            self._sbatch = subprocess.Popen(
                words, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        except OSError as error:
            self._failed(str(error))
        else:
            self._asked |= self._trying

    def _submitted(self, sbatch: subprocess.Popen[str]) -> None:
        said = (sbatch.communicate()[0] or "").strip()
        words = [line.strip().partition(";")[0] for line in said.splitlines()]  # warnings among them
        job = next((word for word in words if word.isdigit()), "")
        self._sbatch = None
        if sbatch.returncode == 0 and job:
            self._jobs.append(job)
            write_json(os.path.join(self.run_dir, SUBMITTED), {"v": 1, "jobs": self._jobs})
            shared.say(f"job {job} waits for nodes {', '.join(map(str, sorted(self._trying)))} of this gang")
            self._pause = _PAUSE
        else:
            self._asked -= self._trying
            self._failed(said)

    def _failed(self, said: str) -> None:
        shared.say(f"no job for further nodes could be submitted, will try again in {self._pause:g} s: {said}")
        self._next, self._pause = time.monotonic() + self._pause, min(self._pause * 2, _LONGEST_PAUSE)


def close(run_dir: str, *, good: bool) -> None:
    """Let nothing start in a run any more."""
    write_json(os.path.join(run_dir, shared.OVER), {"v": 1, "good": good, "t": time.time()})


def cancel_waiting(jobs: list[str]) -> None:
    """Take arrays out of the queue as far as they have not started; what starts all the same ends by itself."""
    if jobs:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            words = ["scancel", "--quiet", "--state=PENDING", *jobs]
            subprocess.run(words, capture_output=True, check=False, timeout=COMMAND_SECONDS)


def submitted(run_dir: str) -> list[str]:
    """Return the arrays that were submitted for a run."""
    return [str(job) for job in (read_json(os.path.join(run_dir, SUBMITTED)) or {}).get("jobs", [])]


class Joining:
    """An element of the array: one more node of a run, on that node.

    Args:
        folder: The attempt's folder.
        number: The number of the run.
        signals: Those that are blocked, and waited for.
    """

    def __init__(self, folder: str, number: int, signals: set[signal.Signals]) -> None:
        self.folder = folder
        self.number = number
        self.run_dir = shared.run_folder(folder, number)
        self.node = int(os.environ["SLURM_ARRAY_TASK_ID"])
        self.start = 1 + int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self.record = shared.node_folder(self.run_dir, self.node, self.start)
        self.job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{self.node}"
        self.settings: dict[str, Any] = read_json(os.path.join(folder, shared.SETTINGS)) or {}
        self._signals = signals
        self._first = shared.Pulse(shared.node_folder(self.run_dir, 0))
        self._ending = False  # whether Slurm itself ends this job

    def run(self, command: list[str]) -> int:
        """Join the run, unless it is over, and return the exit code of this job.

        Args:
            command: Starts this node's supervisor.
        """
        if not self._claim() or not self._meets_the_first():
            shared.say("the run that this job belongs to is over: nothing is left to do")
            return 0
        earlier = shared.records(self.run_dir).get(self.node, [])
        shared.end_all([path for path in earlier if path != self.record])
        os.makedirs(self.record)
        if self._over():  # who closes the run waits for the records that it finds
            os.rmdir(self.record)
            return 0
        words = [*command, self.folder, str(self.number), str(self.node), str(self.start)]
        self._watch(subprocess.Popen(words, stdin=subprocess.DEVNULL, preexec_fn=unblocked))  # noqa: PLW1509 - one thread
        return self._conclude()

    def _claim(self) -> bool:
        """Take the node for this job; False if it is another job's, since the answer to a submission was lost."""
        path = f"{shared.node_folder(self.run_dir, self.node)}.json"
        with contextlib.suppress(FileExistsError):
            write_json(path, {"v": 1, "job": self.job}, exclusive=True)
        return (read_json(path) or {}).get("job") == self.job

    def _meets_the_first(self) -> bool:
        """Wait until the first node is seen to live; False if it does not."""
        while not self._over():
            if self._first.beats:
                return True
            time.sleep(shared.TICK)
        return False

    def _over(self) -> dict[str, Any] | None:
        """Return how this node is to end, if it is to; ``good`` says that it is about to complete by itself."""
        grace = float(self.settings["failed_grace"])
        if cancel := read_json(os.path.join(self.folder, shared.CANCEL)):
            return {"grace": cancel.get("grace", grace)}
        if over := read_json(os.path.join(self.run_dir, shared.OVER)):
            return {"grace": grace, "good": over["good"]}
        ended = os.path.exists(os.path.join(self.folder, shared.END))
        return {"grace": grace} if ended or self._first.silent >= shared.STALE else None

    def _watch(self, srun: subprocess.Popen[bytes]) -> None:
        since: float | None = None
        due = time.monotonic()
        while srun.poll() is None:
            self._wait()
            if time.monotonic() < due:
                continue
            due = time.monotonic() + _LOOK_OF_ONE
            if over := self._over():
                since = time.monotonic() if since is None else since
                if not over.get("good") or time.monotonic() - since > LAST_WORDS:
                    shared.ask_end(self.record, {"reason": shared.FOLLOWED, "grace": over["grace"]})

    def _conclude(self) -> int:
        reason = shared.reason_of(self.record)
        if reason in _FAILURES:  # perhaps all of the gang fails
            deadline = time.monotonic() + SETTLING
            while not (self._over() or self._ending) and time.monotonic() < deadline:
                self._wait()
        if reason not in {*_FAILURES, shared.TERMINATED} or self._over():
            return 0
        if reason in _FAILURES and not self._ending and self.start <= int(self.settings["requeue"]):
            shared.say(f"this node ended ({reason}) and the gang goes on: it joins again when Slurm gives it a node")
            subprocess.run(["scontrol", "requeue", self.job], capture_output=True, check=False)
        deadline = time.monotonic() + COMMAND_SECONDS
        while not self._ending and time.monotonic() < deadline:
            self._wait()
        return 1  # Slurm has the last word

    def _wait(self) -> None:
        received = signal.sigtimedwait(self._signals, shared.TICK)
        self._ending = self._ending or bool(received and received.si_signo == signal.SIGTERM)


def unblocked() -> None:
    """Let a child have the signals that this process waits for."""
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
