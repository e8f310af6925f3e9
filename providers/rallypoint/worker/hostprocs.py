"""What Linux says of the processes of this host: identity, descent, environment, stacks. Standard library only."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from functools import lru_cache

from rallypoint.worker import variables

_STACK_TIMEOUT = 15.0  # seconds


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return the id of this boot of this host: process ids mean nothing beyond it."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _stat(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()  # the command's name, in parentheses, may hold anything


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it is gone or a zombie.

    A pid is reused, a pid with its start time is not.
    """
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def descendants(root: int) -> list[int]:
    """Return the living processes below `root`, parents before their children."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))) and fields[0] not in "ZX":
            children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def environment(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with; empty if it may not be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            data = file.read().decode(errors="replace")
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in data.split("\0") if "=" in line)


def of_run(run_dir: str) -> list[int]:
    """Return the living processes of this host that belong to the attempt of a run folder."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return [pid for pid in pids if environment(pid).get(variables.RUN_DIR) == run_dir and start_time(pid) is not None]


def gpus() -> int:
    """Return how many NVIDIA GPUs this host has."""
    try:
        return len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return 0


def label(pid: int) -> str:
    """Return what to call a process of a gang: its rank, or its name in the gang."""
    values = environment(pid)
    return f"rank {values['RANK']}" if values.get("RANK", "").isdigit() else values.get(variables.PROCESS, "process")


def innermost(stack_text: str, frames: int = 6) -> str:
    """Return the innermost frames of the main thread, from a stack that `stack` returned."""
    threads = [thread.splitlines() for thread in stack_text.split("\n\n") if "hread " in thread.splitlines()[0]]
    main = [lines for lines in threads if "MainThread" in lines[0]] or threads[-1:]
    return "\n".join(main[0][1 : frames + 1]) if main else stack_text[:500]


def stack(pid: int, py_spy: str | None, faulthandler_file: str) -> str:
    """Return the Python stacks of a process, by py-spy or else by the handler that `process.run` installed.

    py-spy needs the right to read another process's memory, which containers often withhold.
    """
    if py_spy:
        try:
            done = subprocess.run(
                [py_spy, "dump", "--pid", str(pid)],
                capture_output=True,
                text=True,
                timeout=_STACK_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            pass
        else:
            if done.returncode == 0:
                return done.stdout.strip()
    if not os.path.exists(faulthandler_file):
        return ""  # without the handler the signal would end the process
    try:
        os.kill(pid, signal.SIGUSR2)
    except ProcessLookupError:
        return ""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and not os.path.getsize(faulthandler_file):
        time.sleep(0.05)
    with open(faulthandler_file, encoding="utf-8", errors="replace") as file:
        return file.read().strip()
