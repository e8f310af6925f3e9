"""Inside the job: torchrun's agent and its ranks, each wrapped so that it reports its start, failure and end.

``agent ARG…`` takes torchrun's own arguments; ``rank KIND WHERE ARG…`` is what the agent starts for every rank.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from rallypoint.worker import context, process
from rallypoint.worker.entry import run_entry

_LOOPBACK = "127.0.0.1"


def agent(argv: list[str]) -> int:
    """Run torchrun's agent on this node and report the ranks that it saw die."""
    if f"--local-addr={_LOOPBACK}" in argv and sys.platform == "linux":
        # A host name may resolve to loopback while gloo's first interface does not: the process group then hangs in
        # its set-up without a word. A gang on one host needs no other interface.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # Ranks that share the rendezvous' store can hang in their set-up after a restart (pytorch#135712).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    if "--nproc-per-node=1" not in argv:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's own choice, without its warning
    return process.run(
        lambda: _torchrun(argv), name=os.environ.get(context.PROCESS, "agent-0"), primary=False, explain=_dead_ranks
    )


def rank(argv: list[str]) -> int:
    """Run the user's code as one rank; rank 0's return value is the stage's result."""
    place = context.Placement.from_environment()
    return process.run(
        lambda: _recorded(argv),
        name=f"rank-{place.rank}.r{place.restart}",
        kind="rank",
        primary=place.rank == 0,
        own_log=True,
    )


def _torchrun(argv: list[str]) -> None:
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as torchrun

    torchrun(parse_args(argv))


def _recorded(argv: list[str]) -> Any:
    # `record` writes TORCHELASTIC_ERROR_FILE, through which the agent learns what ended the rank.
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(run_entry)(argv)


def _dead_ranks(error: BaseException) -> list[dict[str, Any]]:
    """Return a ``failed`` event for every rank that torchrun saw die, with what its error file says."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not isinstance(error, ChildFailedError):
        return []
    # A rank that the agent itself ended (SIGTERM) comes after the ones for which it did so.
    dead = sorted(error.failures.items(), key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].timestamp))
    return [
        {
            "kind": "rank",
            "rank": number,
            "pid": failure.pid,
            "exit_code": failure.exitcode if failure.exitcode >= 0 else None,
            "signal": _signal_name(failure.exitcode),
            "host": context.host(),
            "seen_by": os.environ.get(context.PROCESS, "agent-0"),
            **_error_file(failure.error_file_data),
        }
        for number, failure in dead
    ]


def _signal_name(exit_code: int) -> str | None:
    if exit_code >= 0:
        return None
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def _error_file(data: dict[str, Any]) -> dict[str, Any]:
    message = data.get("message")
    if not isinstance(message, dict):
        return {}  # torchrun's own words for "no error file"
    extra = message.get("extraInfo") or {}
    return {
        "message": str(message.get("message", ""))[: process.MAX_TRACEBACK],
        "traceback": str(extra.get("py_callstack", ""))[-process.MAX_TRACEBACK :],
    }


if __name__ == "__main__":
    sys.exit({"agent": agent, "rank": rank}[sys.argv[1]](sys.argv[2:]))
