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
from rallypoint.worker.network import interface_of

_HOSTED_BY_FIRST = "is_host=first"


def agent(argv: list[str]) -> int:
    """Run torchrun's agent on this node and report the ranks that it saw die."""
    argv = [_hosted(word) for word in argv]
    address = next((word.partition("=")[2] for word in argv if word.startswith("--local-addr=")), "")
    if name := interface_of(address):
        # A host name may resolve to an address that the other ranks do not reach while gloo takes the first interface:
        # the process group then hangs in its set-up without a word.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("TP_SOCKET_IFNAME", name)
    # Ranks that share the store of the rendezvous can hang in their set-up after a restart (pytorch#135712), and an
    # agent that joins later waits in vain for an address that the first one published for an earlier round.
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


def _hosted(word: str) -> str:
    """Say in the rendezvous' settings whether this agent holds its store."""
    if not word.startswith("--rdzv-conf="):
        return word
    first = os.environ.get(context.PROCESS, "agent-0").endswith("-0")
    return word.replace(_HOSTED_BY_FIRST, f"is_host={str(first).lower()}")


def _torchrun(argv: list[str]) -> None:
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as torchrun

    _count_rounds()
    torchrun(parse_args(argv))


def _count_rounds() -> None:
    """Have the ranks know the round of the rendezvous that they belong to.

    torchrun's own count of restarts is each agent's own, and stays the same when a node comes or goes: the ranks of two
    worlds would have the same names. The round is the same on every node. Where a torch keeps it elsewhere, its count
    of restarts is what remains.
    """
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

    join = DynamicRendezvousHandler.next_rendezvous

    def next_rendezvous(self: Any) -> Any:
        found = join(self)
        number = getattr(getattr(getattr(self, "_state_holder", None), "state", None), "round", None)
        if isinstance(number, int):
            os.environ[context.RESTART] = str(number)  # the ranks that the agent starts next inherit it
        return found

    DynamicRendezvousHandler.next_rendezvous = next_rendezvous  # type: ignore[method-assign]


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
