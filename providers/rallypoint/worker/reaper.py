"""Runs a command and leaves nothing of it behind: ``python -m rallypoint.worker.reaper PARENT_PID COMMAND…``.

Daemons detach from what started them, and some outlive it by minutes: two agents of Ray wait for a cluster that is gone
before they notice. This process adopts whatever its command leaves behind, and kills it when the command ends or when
the process that started this one dies, which no signal handler of that process can do after a SIGKILL.

SIGTERM and SIGINT are passed on to the command. SIGUSR1 kills everything at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

from rallypoint.worker import hostprocs

KILL = signal.SIGUSR1
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, KILL}
_TICK = 1.0  # seconds
_PATIENCE = 10.0  # seconds that killed processes have for their end
_BY_SIGNAL = 128  # what a shell adds to a signal's number


def command(argv: list[str]) -> list[str]:
    """Return the command line that runs `argv` under a reaper whose parent is this process."""
    return [sys.executable, "-m", "rallypoint.worker.reaper", str(os.getpid()), *argv]


def run(parent: int, argv: list[str]) -> int:
    """Run a command and return its exit code, when nothing is left of it.

    Args:
        parent: The process whose end is this one's, too.
        argv: The command.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    libc.prctl(_PR_SET_PDEATHSIG, KILL)

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())

    if os.getppid() != parent:  # it died before the kernel was told
        return 1
    child = subprocess.Popen(argv, preexec_fn=in_child).pid  # this process has one thread  # noqa: PLW1509
    code = None
    while code is None:
        received = signal.sigtimedwait(_SIGNALS, _TICK)
        code = _reap(child)
        if os.getppid() != parent or (received and received.si_signo == KILL):
            code = code or 1
        elif received and received.si_signo != signal.SIGCHLD and code is None:
            with suppress(ProcessLookupError):
                os.kill(child, received.si_signo)
    _end_all()
    return code


def _reap(child: int) -> int | None:
    """Bury what has ended, and return the exit code of the command if it is among it."""
    code = None
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
    return code if code is None or code >= 0 else _BY_SIGNAL - code


def _end_all() -> None:
    deadline = time.monotonic() + _PATIENCE
    while (left := hostprocs.descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap(0)
        signal.sigtimedwait({signal.SIGCHLD}, 0.05)


if __name__ == "__main__":
    sys.exit(run(int(sys.argv[1]), sys.argv[2:]))
