"""Runs a jar by ``spark-submit``, as a child that does not outlive the driver, and keeps what it said last."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.spark import environment, properties
from rallypoint.frameworks.spark.causes import JarFailedError
from rallypoint.frameworks.spark.progress import Progress, only_application
from rallypoint.frameworks.spark.stopping import Stopping
from rallypoint.worker import reaper
from rallypoint.worker.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_KEPT = 400  # lines: a Java stack with its causes
_BY_SIGNAL = 128  # what a reaper adds to a signal's number
_LAST_SIGNAL = 64


def run_jar(settings: Mapping[str, Any], entry: Sequence[str]) -> None:
    """Run ``jar PATH CLASS ARG…`` and wait for its end.

    Raises:
        JarFailedError: It failed.
        FileMissingError: The jar is not on this host; so do the errors of `environment.prepare`.
    """
    _, jar, main_class, *args = entry
    environment.check_files({"spark.jars": jar if jar != "spark-internal" else ""})
    asked = settings.get("conf", {}).get("spark.ui.port")
    port = int(asked) if asked else free_ports(1)[0]
    path = environment.prepare({**settings, "conf": {**settings.get("conf", {}), "spark.ui.port": str(port)}})
    words = [str(Path(environment.spark_home(), "bin", "spark-submit")), *environment.submit_words(settings, path)]
    argv = reaper.command([*words, "--class", main_class, jar, *args])
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    stopping = Stopping(lambda: _stop(child))
    progress = Progress(
        lambda: only_application(port),
        history=settings.get("history_server"),
        found=lambda: properties.remove(path),
    )
    try:
        kept = _pass_on(child)
        code = child.wait()
    finally:
        stopping.settle()
        progress.finish()
        properties.remove(path)
    if code:
        raise JarFailedError(_BY_SIGNAL - code if _BY_SIGNAL < code <= _BY_SIGNAL + _LAST_SIGNAL else code, kept)


def _pass_on(child: subprocess.Popen[bytes]) -> str:
    """Write what a child prints to this process's log, and return its last lines."""
    kept: deque[str] = deque(maxlen=_KEPT)
    for line in child.stdout or ():
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        kept.append(line.decode(errors="replace"))
    return "".join(kept)


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    child.wait()
