"""Turns what Spark raises in a driver into the failure behind it: the user's exception in a task, Java's root cause."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

from rallypoint.frameworks.spark.environment import spark_home
from rallypoint.frameworks.spark.s3a import missing_connector
from rallypoint.worker import context, process
from rallypoint.worker.supervisor import signal_name

_JAVA_CLASS = r"(?:[a-z_]\w*\.)+[A-Z][\w$]*"
_ROOT = re.compile(rf"^\s*Caused by: ({_JAVA_CLASS})(?:: (.*))?$", re.MULTILINE)
_FIRST = re.compile(rf"^(?:: |Exception in thread \"[^\"]*\" )?({_JAVA_CLASS})(?:: (.*))?$", re.MULTILINE)
_TASK = re.compile(r"Lost task (\S+) in stage (\S+) \(TID \d+\) \((\S+) executor (\S+)\):")
_TRACEBACK = "Traceback (most recent call last):"
# What Spark adds below a Python traceback: an error code of SQL, and its own frames.
_JAVA_FRAMES = re.compile(
    r"\n\s*(?:SQLSTATE: \w{5}|at [\w.$/]+\(|\t?at [\w.$/]+\(|Driver stacktrace|JVM stacktrace)|\n\n\n"
)
_EXCEPTION_LINE = re.compile(r"^([A-Za-z_][\w.]*)(?:: (.*))?$", re.DOTALL)
_S3A = "org.apache.hadoop.fs.s3a.S3AFileSystem"
_ENDING = 1.0  # seconds between the end of a JVM's connections and its own
_SHOWN = 4_000  # characters of a message
_LOG_TAIL = 32_000  # bytes of the log in which the reason of a JVM's early end is looked for


class DriverLostError(RuntimeError):
    """The JVM of Spark's driver has ended although nobody stopped it.

    Args:
        code: Its exit code, negative for a signal; None if it is not known.
    """

    def __init__(self, code: int | None) -> None:
        how = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit code {code})"
        super().__init__(f"the JVM of Spark's driver on {context.host()} has ended{how}")
        self.code = code


class JarFailedError(RuntimeError):
    """A jar's ``main`` has failed.

    Args:
        code: The exit code of spark-submit, negative for a signal.
        output: The end of what it printed.
    """

    def __init__(self, code: int, output: str) -> None:
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        super().__init__(f"spark-submit ended {how}")
        self.code = code
        self.output = output


def causes(error: BaseException) -> list[dict[str, Any]]:
    """Return a ``failed`` event for the failure that an exception of Spark stands for; none for any other exception."""
    if isinstance(error, DriverLostError):
        return [{"kind": "process", **process.describe(error), **_ended(error.code)}]
    if isinstance(error, JarFailedError):
        output = _told(error.output, error) or process.describe(error)
        return [{"kind": "process", **output, **_ended(error.code)}]
    if "JAVA_GATEWAY_EXITED" in str(getattr(error, "_errorClass", "") or error)[:200]:
        told = _told(_own_log(), error)
    else:
        told = _told(_java_text(error), error)
    return [{"kind": "process", **told}] if told else []


def find_lost_driver(error: BaseException) -> DriverLostError | None:
    """Return the error of a driver whose JVM is gone, if an exception came from that."""
    if not (isinstance(error, ConnectionError) or type(error).__module__.startswith(("py4j.", "pyspark."))):
        return None
    import pyspark

    gateway = getattr(getattr(pyspark, "SparkContext", None), "_gateway", None)
    jvm: Any = getattr(gateway, "proc", None)
    if jvm is None:
        return None
    try:
        # What Java itself raised came from a JVM that lives; a torn connection may come before the end that tore it.
        alive = hasattr(error, "java_exception") or hasattr(error, "_stackTrace")
        return DriverLostError(jvm.wait(0 if alive else _ENDING))
    except subprocess.TimeoutExpired:
        return None


def _told(text: str, error: BaseException) -> dict[str, Any] | None:
    """Return what a text of Java's says of the failure; None if there is nothing of Java or a Python worker in it."""
    where = _TASK.findall(text)
    place = _place(where[-1]) if where else {}
    worker = _python_worker(text)
    if worker:
        name, message, block = worker
        told = process.describe(_named(name, message, error))
        text = f"{told['traceback']}\nin the Python worker{place.get('of', '')}:\n{block}"
        return {**told, "traceback": text[-process.MAX_TRACEBACK :], **_host(place)}
    roots, first = _ROOT.findall(text), _FIRST.search(text)
    if first is None and not roots:
        return None
    name, _ = roots[-1] if roots else (first[1], "") if first else ("", "")
    message = "\n".join(dict.fromkeys(_messages(text, first, roots)))[:_SHOWN]
    return {**process.describe(_named(name, message, error)), **_host(place)}


def _messages(text: str, first: re.Match[str] | None, roots: list[tuple[str, str]]) -> list[str]:
    lines = []
    if first is not None:
        lines.append(f"{first[1]}: {first[2] or ''}".rstrip(": "))
    lines += [f"caused by {name}: {message}".rstrip(": ") for name, message in roots[-3:]]
    if _S3A in text:
        lines.append(missing_connector(spark_home()))
    return lines


def _python_worker(text: str) -> tuple[str, str, str] | None:
    """Return name, message and traceback of an exception that was raised in a Python worker."""
    if "PythonException" not in text and "Python worker" not in text:
        return None
    start = text.find(_TRACEBACK)
    if start < 0:
        return None
    end = _JAVA_FRAMES.search(text, start)
    block = text[start : end.start() if end else len(text)].rstrip()
    lines = block.splitlines()
    last = next((at for at in range(len(lines) - 1, 0, -1) if _is_exception(lines, at)), None)
    if last is None:
        return None
    match = _EXCEPTION_LINE.match("\n".join(lines[last:]))
    return (match[1], match[2] or "", block) if match else None


def _is_exception(lines: list[str], at: int) -> bool:
    """Return whether a line is that of an exception: it follows the frames, which are indented."""
    return bool(_EXCEPTION_LINE.match(lines[at])) and lines[at - 1].startswith(" ") and lines[at] != _TRACEBACK


def _named(name: str, message: str, error: BaseException) -> BaseException:
    """Return an exception of another name with the traceback of `error`, for what only text tells of."""
    module, _, short = name.rpartition(".")
    kind = type(short, (Exception,), {"__module__": module or "builtins"})
    made: BaseException = kind(message)
    return made.with_traceback(error.__traceback__)


def _place(found: tuple[str, str, str, str]) -> dict[str, str]:
    task, stage, host, executor = found
    return {"host": host, "of": f" (task {task} of stage {stage}, executor {executor} on {host})"}


def _host(place: dict[str, str]) -> dict[str, str]:
    return {"host": place["host"]} if place else {}


def _ended(code: int | None) -> dict[str, Any]:
    if code is None:
        return {}
    return {"signal": signal_name(-code)} if code < 0 else {"exit_code": code}


def _java_text(error: BaseException) -> str:
    """Return what Java says in an exception of py4j's, pyspark's or Spark Connect's; empty for any other."""
    module = type(error).__module__
    if not module.startswith(("py4j.", "pyspark.")):
        return ""
    described, trace = getattr(error, "_desc", None), getattr(error, "_stackTrace", None)
    if isinstance(described, str) and isinstance(trace, str):
        # An analysis error says it all, and its own name is the best one.
        return trace if "Caused by:" in trace or _TRACEBACK in trace else ""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the text of some is fetched from the JVM, which may be gone
        return ""
    return text if module.startswith("py4j.") or _TRACEBACK in text else ""


def _own_log() -> str:
    """Return the end of this process's log: a JVM that could not start has said why there, and nowhere else."""
    folder, name = os.environ.get(context.LOGS_DIR), os.environ.get(context.PROCESS)
    if not folder or not name:
        return ""
    try:
        with Path(folder, f"{name}.log").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
