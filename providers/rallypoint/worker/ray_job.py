"""Runs a gang's process as a Ray job: ``python -m rallypoint.worker.ray_job``, the job's entrypoint.

Ray unpacks the attempt's package on the node and puts it on the path. This starter takes the secrets out of their own
package and deletes it, makes the run folder that every launcher has, and runs `rallypoint.worker.supervisor` in it, in
a child. Meanwhile it publishes the logs in Ray's log folder, where the dashboard can read them: cut into pieces of one
size, with an index of how long each log is, so that a reader gets what is new and no more. The first process's output
also goes to the job's own log, where Ray's users look for it.

Nothing is left of the run folder at the end. What was published stays as long as Ray's logs do.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from typing import Any

from rallypoint.worker import context
from rallypoint.worker.supervisor import Supervisor, write_json

SPEC = "rallypoint-run.json"  # in the attempt's package: the processes, as placed
FILES = "rallypoint-files"  # in the attempt's package: the gang's files
SECRETS = "rallypoint-secrets.json"  # alone in its package
PUBLISHED = "rallypoint"  # the folder in Ray's log folder; one folder in it for each job
INDEX = "index.json"
FINAL = "final.json"
PIECE = 1 << 16  # bytes
TICK = 0.5  # seconds
_READ = 8 << 20  # bytes of a log that are published at once
_STOP = {signal.SIGTERM, signal.SIGINT}
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's own variable: what a driver's workers get
_PR_SET_PDEATHSIG = 1
_LOG = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}\.log")


def piece_name(log: str, number: int) -> str:
    """Return the file name of a log's piece."""
    return f"{log}.{number:06d}"


class Publisher:
    """Copies growing logs into a folder, piece by piece.

    Args:
        logs: The folder of the logs.
        folder: Where the pieces go; None publishes nothing.
        shown: The log that is copied to standard output, too.
    """

    def __init__(self, logs: str, folder: str | None, shown: str) -> None:
        self._logs = logs
        self._folder = folder
        self._shown = shown
        self._sizes: dict[str, int] = {}
        if folder:
            shutil.rmtree(folder, ignore_errors=True)  # of a job that Ray was told to forget
            os.makedirs(folder)

    def publish(self) -> bool:
        """Publish what is new; return whether a log has still more."""
        before, more = dict(self._sizes), False
        for name in sorted(os.listdir(self._logs)):
            if _LOG.fullmatch(name) and not os.path.islink(os.path.join(self._logs, name)):
                more |= self._copy(name)
        if self._folder and self._sizes != before:
            index = {"v": 1, "piece": PIECE, "logs": self._sizes}
            write_json(os.path.join(self._folder, INDEX), index, durable=False)
        return more

    def end(self, final: str) -> None:
        """Publish the rest, and the final record."""
        while self.publish():
            pass
        if self._folder:
            draft = os.path.join(self._folder, f".{FINAL}")
            shutil.copyfile(final, draft)
            os.replace(draft, os.path.join(self._folder, FINAL))

    def _copy(self, name: str) -> bool:
        log = name.removesuffix(".log")
        with open(os.path.join(self._logs, name), "rb") as file:
            file.seek(self._sizes.get(log, 0))
            for _ in range(_READ // PIECE):
                size = self._sizes.get(log, 0)
                data = file.read(PIECE - size % PIECE)
                if not data:
                    return False
                if self._folder:
                    path = os.path.join(self._folder, piece_name(log, size // PIECE))
                    # At its place, so that a write that a full disk cut off is repeated, not continued.
                    piece = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
                    try:
                        if os.pwrite(piece, data, size % PIECE) < len(data):
                            return False
                    finally:
                        os.close(piece)
                if log == self._shown:
                    with contextlib.suppress(OSError):
                        sys.stdout.buffer.write(data)
                        sys.stdout.buffer.flush()
                self._sizes[log] = size + len(data)
        return True


def take_secrets(uri: str) -> dict[str, str]:
    """Return the secrets of a package, and remove every trace of it from this process's environment and this node.

    Raises:
        FileNotFoundError: The package is not here.
    """
    name = uri.rpartition("/")[2].removesuffix(".zip")
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    mine = [folder for folder in folders if os.path.basename(folder.rstrip("/")) == name]
    if not mine:
        msg = "the package of the job's secrets is not on this node"
        raise FileNotFoundError(msg)
    path = os.path.join(mine[0], SECRETS)
    with open(path, encoding="utf-8") as file:
        values: dict[str, str] = json.load(file)
    os.unlink(path)
    os.environ["PYTHONPATH"] = os.pathsep.join(folder for folder in folders if folder not in mine)
    # The driver's tasks and actors on other nodes would else fetch it, too.
    config = json.loads(os.environ.get(_JOB_CONFIG, "{}"))
    modules = (config.get("runtime_env") or {}).get("py_modules")
    if modules:
        config["runtime_env"]["py_modules"] = [module for module in modules if module != uri]
        os.environ[_JOB_CONFIG] = json.dumps(config)
    return values


def prepare(package: str, run_dir: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make the run folder from the unpacked package; return what is in it, and the processes for the supervisor."""
    with open(os.path.join(package, SPEC), encoding="utf-8") as file:
        spec: dict[str, Any] = json.load(file)
    if spec["secrets"]:
        os.environ.update(take_secrets(spec["secrets"]))
    for name in spec["files"]:
        target = os.path.join(run_dir, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(os.path.join(package, FILES, name), target)
    for name in ("logs", "work"):
        os.mkdir(os.path.join(run_dir, name))
    known = {"${rallypoint:run_dir}": run_dir, "${rallypoint:python}": sys.executable}
    processes: dict[str, Any] = _filled(spec["processes"], known)
    for process in processes["processes"]:
        if _has_working_dir():
            process["cwd"] = os.getcwd()
        # Ray's own path has the user's modules; a process's PYTHONPATH would hide it.
        path = (process["env"].get("PYTHONPATH", ""), os.environ.get("PYTHONPATH", ""))
        process["env"]["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    processes["py_spy"] = shutil.which("py-spy")
    write_json(os.path.join(run_dir, "processes.json"), processes)
    return spec, processes


def supervise(run_dir: str) -> int:
    """Run the supervisor in a child that dies with this process, and return the child's process id."""
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            Supervisor(run_dir).run()
            code = 0
    except BaseException as error:  # noqa: BLE001 - a fork must not go on as its parent
        print(f"rallypoint: the supervisor failed: {error!r}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(code)


def log_folder(job: str) -> str | None:
    """Return where to publish: beside the job's own log, to which Ray redirected standard output."""
    try:
        own = os.readlink("/proc/self/fd/1")
    except OSError:
        return None
    here = os.path.basename(own) == f"job-driver-{job}.log"
    return os.path.join(os.path.dirname(own), PUBLISHED, job) if here else None


def exit_code(final: dict[str, Any]) -> int:
    """Return the exit code that says how a gang ended."""
    if final["reason"] == "completed":
        return 0
    for end in sorted(final["processes"], key=lambda end: not end["first"]):
        if end["exit_code"]:
            return int(end["exit_code"]) & 0xFF or 1
    return 1


def main() -> int:
    """Run the job."""
    # Ray sends one signal to every process of the job that it sees. It is held back here until there is a supervisor to
    # pass it on to; that ends the processes, and this one stays until their end is published.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    run_dir = tempfile.mkdtemp(prefix="rallypoint-")
    try:
        os.environ[context.RUN_DIR] = run_dir
        spec, processes = prepare(package, run_dir)
        os.environ[context.ATTEMPT_ID] = processes["attempt"]
        shown = processes["processes"][0]["name"]
        publisher = Publisher(os.path.join(run_dir, "logs"), log_folder(spec["job"]), shown)
        child, more = supervise(run_dir), False
        while not os.waitpid(child, os.WNOHANG)[0]:
            if signal.sigtimedwait(_STOP, 0 if more else TICK):
                os.kill(child, signal.SIGTERM)
            with contextlib.suppress(OSError):  # a full disk is no reason to end a gang that works
                more = publisher.publish()
        path = os.path.join(run_dir, "final.json")
        with contextlib.suppress(OSError):
            publisher.end(path)
        with open(path, encoding="utf-8") as file:
            return exit_code(json.load(file))
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


def _has_working_dir() -> bool:
    config = json.loads(os.environ.get(_JOB_CONFIG, "{}"))
    return bool((config.get("runtime_env") or {}).get("working_dir"))


def _filled(value: Any, known: dict[str, str]) -> Any:
    if isinstance(value, str):
        for name, text in known.items():
            value = value.replace(name, text)
        return value
    if isinstance(value, dict):
        return {key: _filled(item, known) for key, item in value.items()}
    return [_filled(item, known) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
