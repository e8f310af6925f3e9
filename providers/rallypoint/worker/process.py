"""Wraps one process of a gang: says that it opened, what failed, and that it closed.

The orchestrator believes a success only when every process has closed with exit code 0, so whatever ends a process
without this module's word (a SIGKILL, `os._exit`, a lost host) is a failure.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import math
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any

from rallypoint.worker import context
from rallypoint.worker.entry import EntryLoadError
from rallypoint.worker.events import EventWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_TRACEBACK = 16_000  # characters: one screen shows fewer
_PR_SET_PDEATHSIG = 1
_writer: EventWriter | None = None


class NotJSONError(TypeError):
    """A result that JSON cannot hold."""


def writer() -> EventWriter:
    """Return this process's event writer; one that writes nothing outside of a stage."""
    return _writer or EventWriter(None, "none")


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it dies, so that no rank outlives its agent."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def starting_up(limit: float) -> Iterator[None]:
    """Let silence not count as a stall meanwhile: for what is slow and says nothing, such as a large import.

    Args:
        limit: Seconds after which silence counts again.
    """
    writer().excuse(limit)
    try:
        yield
    finally:
        writer().excuse(0.0)


def run(  # noqa: PLR0913 - each names one thing that differs between the drivers
    body: Callable[[], Any],
    *,
    name: str,
    kind: str = "process",
    primary: bool = True,
    own_log: bool = False,
    own_parent: bool = True,
    explain: Callable[[BaseException], list[dict[str, Any]]] | None = None,
) -> int:
    """Run `body` as a process of the gang and report on it.

    Args:
        body: The work. What it returns is the stage's result if this is the primary process.
        name: The process's name, such as ``rank-0``; it names its event file and log.
        kind: ``process`` for one that the launcher started, ``rank`` for one started inside the job.
        primary: Whether this process's return value is the stage's result.
        own_log: Redirect standard output and error into a log file of this name.
        own_parent: Have the kernel kill this process when its parent dies; not where a framework starts its workers.
        explain: Turns an exception into further ``failed`` events, such as one per dead rank.

    Returns:
        The exit code for `sys.exit`.
    """
    global _writer  # noqa: PLW0603 - a process has one writer, and `stage()` needs it
    if own_parent:
        die_with_parent()
    if own_log:
        _redirect_output(name)
    _listen_for_stack_dumps()
    _writer = EventWriter(os.environ.get(context.EVENTS_URI), name)
    placement = context.Placement.from_environment()
    _writer.write(
        "opened",
        kind=kind,
        pid=os.getpid(),
        host=context.host(),
        python=sys.version.split()[0],
        log=name if own_log else os.environ.get(context.PROCESS, name),
        **(placement.__dict__ if kind == "rank" else {}),
    )
    exit_code = 1
    try:
        exit_code = _run_reported(body, _writer, kind=kind, primary=primary, explain=explain)
    finally:
        _flush_output()
        with contextlib.suppress(OSError):
            _writer.write("closed", kind=kind, exit_code=exit_code)
        _writer.flush()
    return exit_code


def _run_reported(
    body: Callable[[], Any],
    events: EventWriter,
    *,
    kind: str,
    primary: bool,
    explain: Callable[[BaseException], list[dict[str, Any]]] | None,
) -> int:
    try:
        value = body()
        if primary and value is not None:
            events.write("result", value=to_json_value(value))
    except SystemExit as error:
        code = _exit_code(error.code)
        if code:
            events.write("failed", kind=kind, **describe(error, message=f"the code called sys.exit({error.code!r})"))
        return code
    except BaseException as error:  # noqa: BLE001 - whatever ends the user's code is reported, then ends the process
        causes = explain(error) if explain else []
        for cause in causes:
            events.write("failed", **cause)
        events.write("failed", kind=kind, secondary=bool(causes), **describe(error))
        text = f"{type(error).__name__}: the causes are in the log of each process" if causes else _traceback(error)
        print(text, file=sys.stderr)  # noqa: T201 - the process's own log
        return 1
    return 0


def to_json_value(value: Any) -> Any:
    """Return `value` as plain JSON: numbers of one element become Python numbers, and NaN and infinities null.

    Raises:
        NotJSONError: It holds something that JSON cannot.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_json_key(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]
    if hasattr(value, "item") and _elements(value) == 1:  # numpy scalars and one-element tensors
        return to_json_value(value.item())
    msg = (
        f"got a result with a {type(value).__module__}.{type(value).__qualname__}, expected JSON (numbers, strings, "
        "booleans, lists, dicts): save it with stage().save_artifact() and return the URI"
    )
    raise NotJSONError(msg)


def _elements(value: Any) -> int:
    size: Any = getattr(value, "numel", None) or getattr(value, "size", 0)
    return int(size() if callable(size) else size)


def _json_key(key: Any) -> str:
    if not isinstance(key, str):
        msg = f"got a result with the key {key!r} in a dict, expected only strings as keys"
        raise NotJSONError(msg)
    return key


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    return code if isinstance(code, int) else 1


def describe(error: BaseException, *, message: str | None = None) -> dict[str, Any]:
    """Return what a ``failed`` event says of an exception: its name, message and traceback, and where it was raised."""
    kind = type(error)
    where = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    text = _traceback(error)
    if len(text) > MAX_TRACEBACK:
        text = (
            f"{text[: MAX_TRACEBACK // 4]}\n[… {len(text) - MAX_TRACEBACK:,} characters left out …]\n"
            + (text[-MAX_TRACEBACK * 3 // 4 :])
        )
    return {
        "exception": f"{where}{kind.__qualname__}",
        "message": (message or str(error))[:MAX_TRACEBACK],
        "traceback": text,
        "load": isinstance(error, EntryLoadError | ImportError | SyntaxError | NotJSONError),
        "host": context.host(),
    }


def _traceback(error: BaseException) -> str:
    """Return the traceback from the user's first line on: what started that line is the same for every failure."""
    frames = error.__traceback__
    first = frames
    while frames is not None:
        name = frames.tb_frame.f_code.co_filename
        if name.endswith("rallypoint/worker/entry.py") or (first is frames and name.startswith("<frozen ")):
            first = frames.tb_next
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, first or error.__traceback__))


def _redirect_output(name: str) -> None:
    folder = os.environ.get(context.LOGS_DIR)
    if not folder:
        return
    _flush_output()
    log = os.open(os.path.join(folder, f"{name}.log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _listen_for_stack_dumps() -> None:
    # The fallback where py-spy may not read another process's memory, as in most containers.
    folder = os.environ.get(context.LOGS_DIR)
    if folder and hasattr(signal, "SIGUSR2"):
        path = os.path.join(folder, f".stack-{os.getpid()}.txt")
        faulthandler.register(signal.SIGUSR2, file=open(path, "w"), all_threads=True)  # noqa: SIM115 - kept open
