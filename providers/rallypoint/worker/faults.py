"""Named points at which a test may have this process killed; without the variable they do nothing.

``RALLYPOINT_FAULT=after-intent=/folder/armed`` kills (SIGKILL) the first process that reaches the point while the file
is there. The file is removed before, so the next process passes. Several points are separated by commas.

In the orchestrator's process:

``before-intent``   it was decided to launch, and nothing is written
``after-intent``    the number is claimed, and nothing is launched
``after-launch``    the gang is there, and the ledger does not know its handle
``after-handle``    the handle is recorded, and nobody watches
``after-end``       the gang has ended, and the outcome is not recorded
``after-outcome``   the outcome is recorded, and not delivered

In the supervisor:

``supervisor-before-started``  it holds the lock, and has not said that it started
``supervisor-after-started``   it has said so, and no process of the gang was started
``supervisor-running``         the gang runs; reached several times a second
``supervisor-before-ended``    every process has ended, and no record says how
``supervisor-before-final``    how they ended is recorded, and the final record is not written

A launcher gives a job none of the orchestrator's RALLYPOINT_ variables. A test reaches the supervisor through the
gang's environment.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "RALLYPOINT_FAULT"
ORCHESTRATOR = ("before-intent", "after-intent", "after-launch", "after-handle", "after-end", "after-outcome")
SUPERVISOR = (
    "supervisor-before-started",
    "supervisor-after-started",
    "supervisor-running",
    "supervisor-before-ended",
    "supervisor-before-final",
)


def reach(point: str) -> None:
    """Kill this process if a test wants that here, once."""
    points = dict(pair.split("=", 1) for pair in os.environ.get(VARIABLE, "").split(",") if "=" in pair)
    armed = points.get(point)
    if armed is None:
        return
    try:
        os.unlink(armed)  # of several processes one succeeds
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
