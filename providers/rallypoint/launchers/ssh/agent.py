"""The launcher's half on a host: answers requests about run folders until its connection ends.

It holds nothing and decides nothing. What it starts are supervisors, which outlive it, so a connection that drops ends
no job. It is shipped and needs the standard library only.

``<root>/<attempt>/plan.json``        which hosts have which nodes; written once, the first one counts
``<root>/<attempt>/cancel.json``      the attempt is not to start any more
``<root>/<attempt>/nodes/<n>-<k>/``   the k-th start of node n: a run folder as the local launcher's
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from rallypoint.errors import LaunchError, PreflightError
from rallypoint.launchers.base import Cursor, LogChunk, Phase, Status
from rallypoint.launchers.interpreters import look_at
from rallypoint.launchers.removal import left_in, remove_folder, remove_output
from rallypoint.launchers.run_folder import check_folder, folder_of, log_names, make_folder, read_record
from rallypoint.launchers.ssh.frames import frame, read_frame
from rallypoint.launchers.supervised import (
    ask_end,
    check_python,
    new_output,
    start_supervisor,
    status_of,
    write_folder,
)
from rallypoint.spec.gang import fill
from rallypoint.worker import hostprocs
from rallypoint.worker.ports import EVERYWHERE, free_ports
from rallypoint.worker.silence import silent_for
from rallypoint.worker.supervisor import write_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

NEVER_STARTED = "it was never started"
START_DEADLINE = 30.0  # seconds until a supervisor has to have said that it started
OLDER_DEADLINE = 40.0  # seconds that what is left of an older attempt has for its end
_AT_ONCE = 8  # requests
_NODE = re.compile(r"(\d{1,6})-(\d{1,6})")
_ATTEMPT = re.compile(r"(.+-a)(\d+)")
_LISTENERS: dict[int, socket.socket] = {}


class Agent:
    """Answers requests.

    Args:
        root: The folder of the run folders.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def about(self, _data: bytes) -> dict[str, Any]:
        """Say what this host is."""
        return {
            "host": socket.gethostname(),
            "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
            "time": time.time(),
            "cpus": os.cpu_count() or 0,
            "gpus": hostprocs.gpus(),
        }

    def check(  # noqa: D417 - `wanted` is what `check_python` takes
        self, _data: bytes, *, python: str, requires: list[str], events: str | None, **wanted: Any
    ) -> dict[str, Any]:
        """Check that this host can run a job, and say what it has.

        Args:
            python: The job's interpreter.
            requires: Modules that it must have.
            events: The folder of the attempt's events; None if they go to a bucket.
        """
        if events is not None and not Path(events).parent.is_dir():
            msg = (
                f"the store's folder {Path(events).parent} of the orchestrator is not on {socket.gethostname()}: have "
                "the store in a folder that all hosts share, or in a bucket"
            )
            raise PreflightError(msg)
        facts = check_python(python, requires=tuple(requires), **wanted)
        return {**facts, "time": time.time(), "gpus": hostprocs.gpus(), "cpus": os.cpu_count() or 0}

    def facts(self, _data: bytes, *, python: str, requires: list[str]) -> dict[str, Any]:
        """Say what an interpreter has, whether that suffices or not."""
        return {
            **look_at(python, tuple(requires)),
            "time": time.time(),
            "gpus": hostprocs.gpus(),
            "cpus": os.cpu_count() or 0,
        }

    def slurm(self, data: bytes, *, call: str, values: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Answer for the Slurm launcher, whose login node this host is."""
        from rallypoint.launchers.slurm.host import Host  # noqa: PLC0415 - other hosts need none of it

        return Host(self.root).answer(call, data, **values)

    def ports(self, _data: bytes, *, count: int) -> dict[str, Any]:
        """Return free ports."""
        return {"ports": free_ports(count, EVERYWHERE)}

    def listen(self, _data: bytes, *, address: str) -> dict[str, Any]:
        """Listen at an address, so that other hosts can try to reach this one; until `unlisten`."""
        listener = socket.create_server((address, 0))
        port = int(listener.getsockname()[1])
        _LISTENERS[port] = listener
        return {"port": port}

    def unlisten(self, _data: bytes, *, port: int) -> dict[str, Any]:
        """End `listen`."""
        if listener := _LISTENERS.pop(port, None):
            listener.close()
        return {}

    def reach(self, _data: bytes, *, host: str, port: int, timeout: float) -> dict[str, Any]:
        """Try to reach a port of another host."""
        try:
            with closing(socket.create_connection((host, port), timeout=timeout)):
                return {"error": ""}
        except OSError as error:
            return {"error": str(error)}

    def attempt(self, _data: bytes, *, attempt: str) -> dict[str, Any]:
        """Say what is known of an attempt here."""
        folder = folder_of(self.root, attempt)
        cancelled = read_record(folder, "cancel.json") is not None if folder.is_dir() else False
        return {"plan": read_record(folder, "plan.json") if folder.is_dir() else None, "cancelled": cancelled}

    def claim(self, _data: bytes, *, attempt: str, plan: dict[str, Any]) -> dict[str, Any]:
        """Write down which hosts the attempt uses; return the plan that counts, which may be an earlier one."""
        folder = make_folder(self.root, attempt)
        with suppress(FileExistsError):
            write_json(str(folder / "plan.json"), plan, exclusive=True)
        return self.attempt(b"", attempt=attempt)

    def end_older(self, _data: bytes, *, attempt: str) -> dict[str, Any]:
        """End what is left of older attempts of the same stage: one that was given up while this host was away."""
        match = _ATTEMPT.fullmatch(attempt)
        ended = []
        for folder in self.root.glob(f"{match[1]}*") if match and self.root.is_dir() else ():
            other = _ATTEMPT.fullmatch(folder.name)
            if match and other and other[1] == match[1] and int(other[2]) < int(match[2]):
                left = [node for node in self._folders(folder) if status_of(node).phase is Phase.RUNNING]
                if left:
                    self.cancel(b"", attempt=folder.name, grace=5.0)
                    ended.append(folder.name)
                    _until(partial(_have_ended, left), OLDER_DEADLINE)
        return {"ended": ended}

    def prepare(self, data: bytes, *, attempt: str, node: str, spec: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Fill the run folder of a node's start; `more` is ``python``, ``address``, ``files`` and ``gang``."""
        folder = make_folder(self.root, attempt)
        run_dir = folder / "nodes" / _checked(node)
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # After the folder was made: a cancel first says so, and then looks for folders.
        if read_record(folder, "cancel.json") is not None:
            ask_end(run_dir, grace=0.0)
        if not (run_dir / "processes.json").exists():
            files, at = {}, 0
            for name, size in more["files"]:
                files[name], at = data[at : at + size], at + size
            values = {"run_dir": str(run_dir), "python": more["python"], "address": more["address"]}
            write_folder(run_dir, _filled(spec, values), files=files, gang=more["gang"])
        return {}

    def start(self, _data: bytes, *, attempt: str, node: str, python: str, secrets: dict[str, str]) -> dict[str, Any]:
        """Start a node's supervisor, and return when it has said so."""
        run_dir = folder_of(self.root, attempt) / "nodes" / _checked(node)
        if not (run_dir / "cancel.json").exists():
            start_supervisor(run_dir, attempt=attempt, python=python, secrets=secrets)
        started = [run_dir / "started.json", run_dir / "cancel.json"]
        if not _until(lambda: any(file.exists() for file in started), START_DEADLINE):
            msg = f"the supervisor did not start within {START_DEADLINE:g} s: see {run_dir}/supervisor.log"
            raise LaunchError(msg)
        return {"status": _json(status_of(run_dir))}

    def status(self, _data: bytes, *, attempt: str, node: int, stall: bool = False) -> dict[str, Any]:
        """Return the status of a node's newest start; with `stall` also for how long its processes have been silent."""
        folder = folder_of(self.root, attempt)
        newest = self._newest(folder, node)
        if newest is not None and (newest / "started.json").exists():
            status = status_of(newest)
            silent = _silent(newest) if stall and status.phase is Phase.RUNNING else 0.0
            return {"start": _start_of(newest), "status": _json(status), "silent": silent}
        forbidden = folder.is_dir() and read_record(folder, "cancel.json") is not None
        status = Status(Phase.ENDED, "cancelled") if forbidden else Status(Phase.LOST, message=NEVER_STARTED)
        return {"start": -1, "status": _json(status)}

    def cancel(self, _data: bytes, *, attempt: str, grace: float) -> dict[str, Any]:
        """Forbid every further start of the attempt here, and ask what runs to end."""
        folder = make_folder(self.root, attempt)
        ask_end(folder, grace=grace)
        for run_dir in self._folders(folder):
            ask_end(run_dir, grace=grace)
        return {}

    def end(  # noqa: D417 - the grace is in seconds everywhere
        self, _data: bytes, *, attempt: str, node: int, grace: float, reason: str, why: str
    ) -> dict[str, Any]:
        """Ask a node to end.

        Args:
            attempt: The attempt.
            node: The node.
            reason: ``followed`` because another one has ended, or ``stalled`` because all of them are silent.
            why: In words.
        """
        newest = self._newest(folder_of(self.root, attempt), node)
        if newest is not None:
            ask_end(newest, grace=grace, reason=reason, message=why)
        return {}

    def logs(self, _data: bytes, *, attempt: str, node: int, cursor: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Return what a node's processes have written."""
        mine = [run_dir for run_dir in self._folders(folder_of(self.root, attempt)) if _node_of(run_dir) == node]
        chunks: list[LogChunk] = []
        shown: set[str] = set()
        for run_dir in sorted(
            mine, key=_start_of, reverse=True
        ):  # a log of an older start, unless there is a newer one
            offsets = {name: offset for name, offset in cursor["offsets"].items() if name not in shown}
            found = new_output(run_dir, Cursor(**{**cursor, "offsets": offsets}))
            chunks += [chunk for chunk in found if chunk.process not in shown]
            shown |= set(log_names(run_dir))
        heads = [[chunk.process, len(chunk.data), chunk.offset, chunk.skipped] for chunk in chunks]
        return {"chunks": heads}, b"".join(chunk.data for chunk in chunks)

    def copy(self, _data: bytes, *, attempt: str, node: int, secrets: list[str]) -> tuple[dict[str, Any], bytes]:
        """Return the files and secrets of a node that runs, for another one that starts late.

        The secrets are in its supervisor's environment alone; only the same user can read it.
        """
        folder = folder_of(self.root, attempt)
        run_dir = self._newest(folder, node)
        started = read_record(run_dir, "started.json") if run_dir else None
        gang = read_record(run_dir, "gang.json") if run_dir else None
        cancelled = read_record(folder, "cancel.json") is not None
        if cancelled or not (run_dir and started and gang) or status_of(run_dir).phase is not Phase.RUNNING:
            msg = f"node {node} of {attempt} does not run here"
            raise LaunchError(msg)
        environment = hostprocs.environment(started["pid"])
        if missing := [name for name in secrets if name not in environment]:
            msg = f"the environment of the supervisor of {attempt} has no {', '.join(missing)}"
            raise LaunchError(msg)
        files = {name: (run_dir / name).read_bytes() for name in gang["files"]}
        heads = [[name, len(data)] for name, data in files.items()]
        return {
            "files": heads,
            "gang": gang,
            "secrets": {name: environment[name] for name in secrets},
        }, b"".join(files.values())

    def left(self, _data: bytes, *, attempt: str) -> dict[str, Any]:
        """Return the bytes that an attempt has left here."""
        return {"bytes": left_in(folder_of(self.root, attempt))}

    def clean(self, _data: bytes, *, attempt: str, forget: bool) -> dict[str, Any]:
        """Remove what an ended attempt has left here."""
        folder = folder_of(self.root, attempt)
        if not folder.exists():
            return {}
        if any(status_of(run_dir).phase is Phase.RUNNING for run_dir in self._folders(folder)):
            msg = f"{attempt} is still running on {socket.gethostname()}: stop it before its folder is removed"
            raise LaunchError(msg)
        try:
            with suppress(FileNotFoundError):  # hosts that share the folder remove it at the same time
                check_folder(self.root, attempt)
                if forget:
                    remove_folder(folder)
                else:
                    ask_end(folder, grace=0.0)  # its last word: a late submitter starts nothing
                    remove_output(folder)
        except OSError as error:
            msg = f"cannot remove {folder}: {error}"
            raise LaunchError(msg) from error
        return {}

    def _newest(self, folder: Path, node: int) -> Path | None:
        mine = [run_dir for run_dir in self._folders(folder) if _node_of(run_dir) == node]
        return max(mine, key=_start_of, default=None)

    def _folders(self, folder: Path) -> list[Path]:
        """Return the run folders of an attempt that were filled."""
        with suppress(OSError):
            return [
                run_dir
                for run_dir in (folder / "nodes").iterdir()
                if _NODE.fullmatch(run_dir.name) and (run_dir / "processes.json").exists()
            ]
        return []


def _silent(run_dir: Path) -> float:
    spec = read_record(run_dir, "processes.json") or {}
    return silent_for(str(run_dir), spec.get("events_dir"))


def _have_ended(run_dirs: list[Path]) -> bool:
    return all(status_of(run_dir).phase is not Phase.RUNNING for run_dir in run_dirs)


def _node_of(run_dir: Path) -> int:
    return int(run_dir.name.partition("-")[0])


def _start_of(run_dir: Path) -> int:
    return int(run_dir.name.partition("-")[2])


def _checked(node: str) -> str:
    if not _NODE.fullmatch(node):
        msg = f"got the node {node!r}, expected a number and that of its start, such as '0-0'"
        raise LaunchError(msg)
    return node


def _filled(value: Any, values: dict[str, str]) -> Any:
    if isinstance(value, str):
        return fill(value, values)
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    return [_filled(item, values) for item in value] if isinstance(value, list) else value


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _json(status: Status) -> dict[str, Any]:
    return asdict(status)


def serve(root: Path, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until their stream ends."""
    agent, writing = Agent(root), Lock()

    def answer(request: dict[str, Any], data: bytes) -> None:
        number, name = request.pop("id"), request.pop("op")
        try:
            found = getattr(agent, name)(data, **request)
            value, more = found if isinstance(found, tuple) else (found, b"")
        except (LaunchError, PreflightError) as error:
            value, more = {"failed": str(error), "fatal": isinstance(error, PreflightError)}, b""
        except Exception as error:  # noqa: BLE001 - the launcher is told, and decides
            value, more = {"failed": f"{type(error).__name__}: {error}", "fatal": False}, b""
        with writing, suppress(BrokenPipeError, ValueError):
            answers.write(frame({**value, "id": number}, more))
            answers.flush()

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while (found := read_frame(requests)) is not None:
            pool.submit(answer, *found)


def main(root: str, hello: dict[str, Any]) -> None:
    """Serve on this process's stdin and stdout.

    Args:
        root: The folder of the run folders.
        hello: What the launcher sent first.
    """
    for name, value in hello["env"].items():
        os.environ[name] = value
    # What is printed by mistake must not end up between the frames.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(Path(root), sys.stdin.buffer, answers)
