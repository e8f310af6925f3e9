"""One node's run folder and its supervisor, on the node itself: the local launcher, and what others run on their hosts.

Everything blocks, and none of it needs more than the standard library: the SSH launcher ships this module to hosts that
have no Rallypoint.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.base import Cursor, LogChunk, Phase, ProcessEnd, Status
from rallypoint.launchers.interpreters import ORCHESTRATORS, look_at
from rallypoint.launchers.run_folder import is_log, log_names, open_inside, read_record, unreadable
from rallypoint.spec.shipment import ARCHIVE
from rallypoint.worker import hostprocs, variables
from rallypoint.worker.supervisor import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STRAGGLERS = 5.0  # seconds that killed processes have for their end within one look
STALE_HEARTBEAT = 60.0  # seconds after which a supervisor on another host counts as gone
GRACE = 10.0  # seconds between SIGTERM and SIGKILL for the rest of a gang that failed
CHUNK = 1 << 18  # bytes of one log chunk
# From the package as it is installed here, which is compiled, and without site-packages: its start delays every launch.
_SUPERVISE = (
    "import sys; sys.path[:1] = []; sys.path.append(sys.argv[1]); from rallypoint.worker.supervisor import main; "
    "sys.exit(main(sys.argv[2]))"
)
# By the last one a process that had a nanny of Dask's gives a job's scheduler a title of Dask's, which overwrites the
# environment that an attempt's processes are found by.
_WITHHELD = (*ORCHESTRATORS, "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "RALLYPOINT_", "__DASK_PARENT_PID")


def check_python(
    python: str, *, job: str, requires: tuple[str, ...], pickled_by: str | None, needs_files: Sequence[str]
) -> dict[str, Any]:
    """Raise if an interpreter of this host cannot run a job; return its version, and those of what it requires.

    Args:
        python: The interpreter.
        job: What the job is called.
        requires: Modules that it must have.
        pickled_by: The minor version that it must be; None for any.
        needs_files: Files that must exist here.

    Raises:
        PreflightError: It cannot.
    """
    found = look_at(python, requires)
    if found["missing"]:
        names = ", ".join(found["missing"])
        msg = (
            f"the job's Python {python} does not have {names}, which a {job} job needs: install it there, or "
            "name another interpreter with python= on the job or in the connection"
        )
        raise PreflightError(msg)
    if pickled_by and pickled_by != found["python"]:
        msg = (
            f"the job's Python {python} is {found['python']}, and the function was pickled by {pickled_by}: "
            "use the same minor version for both, or give the code as a script"
        )
        raise PreflightError(msg)
    for path in needs_files:
        if not Path(path).is_absolute() or not Path(path).is_file():
            msg = (
                f"got the script {path!r}, expected the absolute path of a file on {socket.gethostname()}: "
                "correct the path, or put the script there"
            )
            raise PreflightError(msg)
    return found


def write_folder(folder: Path, spec: Mapping[str, Any], *, files: Mapping[str, bytes], gang: Mapping[str, Any]) -> None:
    """Fill a run folder; with ``processes.json``, which is written last, it is whole.

    Nothing in it is ever moved or removed: others prepare it, or cancel the attempt, at the same time.

    Raises:
        LaunchError: It cannot be written.
    """
    try:
        for name in ("logs", "work"):
            (folder / name).mkdir(exist_ok=True)
        for name, data in files.items():
            write_whole(folder / name, data)
        write_whole(folder / "gang.json", json.dumps(gang, indent=1).encode())
        archive = {"PYTHONPATH": str(folder / ARCHIVE)}
        processes = [{**process, "env": {**archive, **process["env"]}} for process in spec["processes"]]
        whole = {**spec, "processes": processes, "grace": GRACE, "py_spy": _py_spy()}
        if spec.get("logs"):
            whole["logs"] = {**spec["logs"], "env": archive}
        write_whole(folder / "processes.json", json.dumps(whole).encode())
    except OSError as error:
        msg = f"could not prepare the run folder {folder}: {error}"
        raise LaunchError(msg) from error


def start_supervisor(folder: Path, *, attempt: str, python: str, secrets: Mapping[str, str]) -> None:
    """Start the supervisor of a run folder; one that has been there before starts nothing.

    Args:
        folder: The folder.
        attempt: The attempt's id.
        python: The job's interpreter.
        secrets: Variables of the environment that are written down nowhere.

    Raises:
        LaunchError: It could not be started.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_WITHHELD)}
    environment |= secrets
    environment["PATH"] = os.pathsep.join([str(Path(python).parent), environment.get("PATH", os.defpath)])
    environment[variables.ATTEMPT_ID] = attempt
    environment[variables.RUN_DIR] = str(folder)
    package = Path(__file__).parents[2]
    source = package if package.is_dir() else folder / ARCHIVE  # a zip of this module may be replaced by another's
    try:
        with (folder / "supervisor.log").open("ab") as log:
            # It forks and the first process ends at once, so nothing here has a child to wait for later.
            done = subprocess.run(
                [sys.executable, "-S", "-c", _SUPERVISE, str(source), str(folder)],
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,
            )
    except OSError as error:
        msg = f"the supervisor of {attempt} could not be started: {error.strerror}"
        raise LaunchError(msg) from error
    if done.returncode != 0:
        msg = f"the supervisor of {attempt} ended with exit code {done.returncode}: see {folder}/supervisor.log"
        raise LaunchError(msg)


def ask_end(folder: Path, *, grace: float, reason: str = "cancelled", message: str = "") -> None:
    """Ask a supervisor to end its processes, or forbid its start. Who asks first is the one who is heard.

    Args:
        folder: The run folder.
        grace: Seconds between SIGTERM and SIGKILL.
        reason: ``cancelled``, or ``followed`` if it only follows another node's end.
        message: More words for the record.
    """
    request = {
        "v": 1,
        "t": time.time(),
        "grace": grace,
        "by_host": socket.gethostname(),
        "reason": reason,
        "message": message,
    }
    with suppress(FileExistsError):
        write_json(str(folder / "cancel.json"), request, exclusive=True)


def status_of(folder: Path) -> Status:
    """Return where the processes of a run folder stand, from three small files."""
    if ended := _ended(folder):
        return ended
    started = read_record(folder, "started.json")
    if started is None:
        forbidden = read_record(folder, "cancel.json")
        return Status(Phase.LOST) if forbidden is None else Status(Phase.ENDED, forbidden.get("reason", "cancelled"))
    if not (isinstance(started.get("pid"), int) and isinstance(started.get("host"), str)):
        raise unreadable(folder / "started.json")
    if _alive(folder, started):
        return Status(Phase.RUNNING)
    if ended := _ended(folder):  # it ended between the two looks
        return ended
    if started["host"] == socket.gethostname() and not _end_stragglers(folder):
        return Status(Phase.RUNNING)  # what is called lost may be launched anew
    message = f"its supervisor (pid {started['pid']} on {started['host']}) is gone and left no final record"
    # It may have been killed between its last two records, and then how everything ended is known.
    return _ended(folder, "ended.json") or Status(Phase.LOST, message=message)


def new_output(folder: Path, cursor: Cursor) -> list[LogChunk]:
    """Return what processes have written since the cursor; at most one chunk per process."""
    chunks = []
    for name in log_names(folder) if cursor.others is not None else filter(is_log, cursor.offsets):
        start = cursor.offsets.get(name, cursor.others)
        if start is None or _is_no_longer_than(folder / "logs" / f"{name}.log", start):
            continue
        try:
            log = os.fdopen(open_inside(folder, "logs", f"{name}.log"), "rb")
        except OSError:  # a link, or no longer there
            continue
        with log:
            size, wanted, from_end = os.fstat(log.fileno()).st_size, CHUNK, start < 0
            if from_end:
                start, wanted = max(0, size + start), -start
            if size <= start:
                continue
            first = start
            if cursor.max_behind is not None and size - start > cursor.max_behind:
                start = size - min(CHUNK, cursor.max_behind)
            log.seek(start)
            data = log.read(wanted)
        if start > first:  # begin with a whole line
            cut = data.find(b"\n") + 1
            start, data = start + cut, data[cut:]
        if b"\n" in data and not from_end:  # the end of a log is wanted with its unfinished line
            data = data[: data.rindex(b"\n") + 1]
        chunks.append(LogChunk(name, data, start + len(data), skipped=start - first))
    return chunks


def _alive(folder: Path, started: dict[str, Any]) -> bool:
    if started["host"] == socket.gethostname():
        same_boot = started.get("boot_id") == hostprocs.boot_id()
        return bool(same_boot and hostprocs.start_time(started["pid"]) == started.get("start_time"))
    beat = read_record(folder, "heartbeat.json") or started
    said = beat.get("t")
    return isinstance(said, int | float) and time.time() - said < STALE_HEARTBEAT


def _ended(folder: Path, record: str = "final.json") -> Status | None:
    """Return how a gang ended; None if there is no such record, or what the job put in its place."""
    try:
        final = read_record(folder, record)
        if final is None:
            return None
        processes = tuple(
            ProcessEnd(
                str(end["name"]),
                end["exit_code"],
                end["signal"],
                str(end["host"]),
                bool(end["first"]),
                tolerated=bool(end.get("tolerated")),
                ended=end.get("t") if isinstance(end.get("t"), int | float) else None,
            )
            for end in final["processes"]
        )
        return Status(Phase.ENDED, str(final["reason"]), processes, str(final["message"]))
    except (LaunchError, KeyError, TypeError):
        return None


def _is_no_longer_than(log: Path, start: int) -> bool:
    """Return whether a log has nothing to read from there, without opening it: most logs have not at most looks."""
    try:
        return start >= 0 and log.lstat().st_size <= start
    except OSError:
        return True


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and its folders where they are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    draft.write_bytes(data)
    draft.replace(path)


def _end_stragglers(folder: Path) -> bool:
    """Kill what is left of a gang whose supervisor is gone, and wait for its end; return whether nothing is left.

    The kernel kills what the supervisor started, only not in the same moment, and not their grandchildren.
    """
    deadline = time.monotonic() + STRAGGLERS
    while left := hostprocs.of_run(str(folder)):
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, 9)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@lru_cache(maxsize=1)
def _py_spy() -> str | None:
    return shutil.which("py-spy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
