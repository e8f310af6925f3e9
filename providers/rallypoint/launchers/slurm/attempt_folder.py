"""What an attempt's shared folder says: which job it is, how its nodes stand, and how it ended. Everything blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rallypoint.errors import LaunchError
from rallypoint.launchers.base import Phase, ProcessEnd, Status
from rallypoint.launchers.nodes import FOLLOWED, NodeState, Shape, Verdict, merge
from rallypoint.launchers.run_folder import read_record
from rallypoint.launchers.slurm.states import Meaning
from rallypoint.launchers.supervised import GRACE, ask_end, status_of, write_whole
from rallypoint.worker import slurm_folder as slurm

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_LOG = 2_000  # bytes of the batch script's own log that a report repeats
_NO_PYTHON = "slurm_script: line 5:"  # the batch script could not become the Python of the job

# What Slurm's word means for a gang whose own half in the job said no last word.
_WORDS = {
    Meaning.COMPLETED: "it ended without a record",
    Meaning.FAILED: "its batch script failed",
    Meaning.CANCELLED: "somebody cancelled it in Slurm (scancel)",
    Meaning.TIME_LIMIT: "it reached its time limit",
    Meaning.PREEMPTED: "Slurm preempted it",
    Meaning.NODE_LOST: "Slurm lost a node of it",
    Meaning.OUT_OF_MEMORY: "it used more memory than it had asked for",
    Meaning.DEADLINE: "its deadline passed",
}


class AttemptFolder:
    """One attempt's folder.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self, files: Mapping[str, bytes]) -> None:
        """Fill it, unless it is whole: with its last file it is.

        Args:
            files: Its files.

        Raises:
            LaunchError: It cannot be written.
        """
        if (self.path / [*files][-1]).exists():
            return
        try:
            for name in ("logs", "work"):
                (self.path / name).mkdir(exist_ok=True)
            for name, data in files.items():
                write_whole(self.path / name, data)
        except OSError as error:
            msg = f"could not prepare the run folder {self.path}: {error}"
            raise LaunchError(msg) from error

    def job(self) -> int | None:
        """Return the id of the job that runs, or ran, the attempt; None if none has begun."""
        claim = read_record(self.path, slurm.JOB)
        number = claim.get("job") if claim else None
        return number if isinstance(number, int) else None

    def cancelled(self) -> bool:
        """Return whether the attempt's end was asked for."""
        return (self.path / slurm.CANCEL).exists()

    def ended(self) -> Status | None:
        """Return how the attempt ended; None if its half in the job has not said so, or a node of it still runs."""
        last = read_record(self.path, slurm.END)
        if last is None:
            return None
        verdict = self._verdict(int(last.get("run", 0)))
        reason, message = str(last.get("reason") or ""), str(last.get("message") or "")
        if verdict is None:
            return Status(Phase.ENDED, reason or "error", message=message)
        if verdict.status.phase is Phase.RUNNING:
            self.fence()
            return None
        if reason:
            phase = Phase.LOST if reason == slurm.HOST_LOST else Phase.ENDED
            return self._as_asked(Status(phase, reason, verdict.status.processes, message))
        return self._as_asked(verdict.status)

    def judge(self, found: Meaning | None, words: str) -> Status:
        """Return where a gang stands whose job Slurm calls ended, or does not know.

        Args:
            found: What its state means; None if Slurm does not know the job.
            words: Slurm's own.
        """
        last = self._last_run()
        verdict = self._verdict(last) if last is not None else None
        ended = verdict.status if verdict else None
        if ended is not None and ended.phase is Phase.RUNNING:
            self.fence()
            return ended  # what is called lost may be launched anew
        if ended is not None and (ended.reason == slurm.COMPLETED or found in {Meaning.FAILED, Meaning.COMPLETED}):
            return self._as_asked(ended)
        ends = ended.processes if ended else ()
        if self.cancelled():
            return Status(Phase.ENDED, "cancelled", ends)
        if found is None:
            return Status(Phase.LOST, "", ends, "Slurm does not know its job any more, and it left no last word")
        return _by_slurm(found, ends, f"{_WORDS.get(found, '')}: {words}{self._log()}")

    def stop_if_broken(self) -> None:
        """End the nodes of a gang that may lose some, once it has lost too many."""
        last = self._last_run()
        verdict = self._verdict(last, young=True) if last is not None else None
        if verdict is not None and verdict.stop:
            self.fence(message=verdict.stop)

    def fence(self, *, message: str = "") -> None:
        """Ask every node of the newest run to end."""
        last = self._last_run()
        if last is not None:
            for record in self._records(last).values():
                if record.is_dir() and not (record / "final.json").exists():
                    ask_end(record, grace=GRACE, reason=FOLLOWED, message=message)

    def _as_asked(self, status: Status) -> Status:
        if not self.cancelled() or status.reason == slurm.COMPLETED:
            return status
        return replace(status, phase=Phase.ENDED, reason="cancelled")

    def _last_run(self) -> int | None:
        numbers = [int(path.name[1:]) for path in self.path.glob("i*") if path.name[1:].isdigit()]
        return max(numbers, default=None)

    def _records(self, run: int) -> dict[int, Path]:
        """Return the record of each node of a run: the job's own nodes, and those that joined it and have begun."""
        folder = slurm.run_folder(str(self.path), run)
        nodes = (read_record(Path(folder), slurm.RUN) or {}).get("nodes")
        if not isinstance(nodes, int):
            return {}
        found = {number: Path(slurm.node_folder(folder, number)) for number in range(nodes)}
        for number, starts in slurm.records(folder).items():
            begun = [path for path in starts if slurm.has_begun(path)]
            found |= {number: Path(begun[-1])} if begun else {}
        return dict(sorted(found.items()))

    def _verdict(self, run: int, *, young: bool = False) -> Verdict | None:
        """Return what the nodes' records say of a run; None if it has none.

        Args:
            run: Its number.
            young: Whether a node that has not begun may still come.
        """
        records, known = self._records(run), read_record(self.path, slurm.SHAPE)
        if not records or known is None:
            return None
        shape = Shape.from_json(known)
        states = {
            number: NodeState(host=f"node {number}", status=_status(each, young=young))
            for number, each in records.items()
            if number < len(shape.nodes)
        }
        # A node that joined and was ended with the others, or came too late to do anything, has no say.
        nodes = {number: each for number, each in states.items() if not _joined(records[number]) or not _followed(each)}
        return merge(shape.part([*nodes]), [*nodes.values()])

    def _log(self) -> str:
        """Return the end of the batch script's own log, for what went wrong before anything of ours ran."""
        for path in sorted(self.path.glob("slurm-*.log")):
            text = path.read_bytes()[-_MAX_LOG:].decode(errors="replace").strip()
            if text:
                return f"\n{text}"
        return ""


def _by_slurm(found: Meaning, ends: tuple[ProcessEnd, ...], message: str) -> Status:
    """Return the end of a gang of which only Slurm says something."""
    if found is Meaning.NODE_LOST:
        return Status(Phase.LOST, found.value, ends, message)
    if found in {Meaning.FAILED, Meaning.COMPLETED}:
        return Status(Phase.ENDED, "preflight" if _NO_PYTHON in message else "error", ends, message)
    return Status(Phase.ENDED, found.value, ends, message)


def _joined(record: Path) -> bool:
    return "." in record.name


def _followed(node: NodeState) -> bool:
    return node.status.phase is Phase.ENDED and node.status.reason == FOLLOWED


def _status(record: Path, *, young: bool) -> Status:
    if (record / "started.json").exists():
        return status_of(record)
    return Status(Phase.RUNNING) if young else Status(Phase.LOST, message="nothing started there")
