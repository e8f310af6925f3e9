"""Every state of a Slurm job, and what it means for its gang.

From "JOB STATE CODES" in Slurm's manual pages of squeue and sacct.

One table. A state that it does not have, of a newer Slurm, means that the job is still there: nothing is ever called
ended, and started anew, because of a word that nobody understood.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Meaning(StrEnum):
    """What a state means; the values of those that end a job are the reasons in a gang's status."""

    THERE = "there"  # it waits, runs, or will run again
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIME_LIMIT = "time limit"
    PREEMPTED = "preempted"
    NODE_LOST = "host lost"
    OUT_OF_MEMORY = "out of memory"
    DEADLINE = "deadline"


STATES: Mapping[str, Meaning] = MappingProxyType(
    {
        "BOOT_FAIL": Meaning.NODE_LOST,
        "CANCELLED": Meaning.CANCELLED,
        "COMPLETED": Meaning.COMPLETED,
        "COMPLETING": Meaning.THERE,  # processes may still run
        "CONFIGURING": Meaning.THERE,
        "DEADLINE": Meaning.DEADLINE,
        "FAILED": Meaning.FAILED,
        "LAUNCH_FAILED": Meaning.NODE_LOST,
        "NODE_FAIL": Meaning.NODE_LOST,
        "OUT_OF_MEMORY": Meaning.OUT_OF_MEMORY,
        "PENDING": Meaning.THERE,
        "POWER_UP_NODE": Meaning.THERE,
        "PREEMPTED": Meaning.PREEMPTED,
        "RECONFIG_FAIL": Meaning.NODE_LOST,
        "REQUEUED": Meaning.THERE,
        "REQUEUE_FED": Meaning.THERE,
        "REQUEUE_HOLD": Meaning.THERE,
        "RESIZING": Meaning.THERE,
        "RESV_DEL_HOLD": Meaning.THERE,
        "REVOKED": Meaning.THERE,  # another cluster of the federation runs it
        "RUNNING": Meaning.THERE,
        "SIGNALING": Meaning.THERE,
        "SPECIAL_EXIT": Meaning.THERE,  # requeued, and held for a person
        "STAGE_OUT": Meaning.THERE,
        "STOPPED": Meaning.THERE,
        "SUSPENDED": Meaning.THERE,
        "TIMEOUT": Meaning.TIME_LIMIT,
        "UPDATE_DB": Meaning.THERE,
    }
)


def meaning(state: str) -> Meaning:
    """Return what a state means, as squeue or sacct write it: ``RUNNING``, ``CANCELLED by 1000``, ``COMPLETED+``."""
    word = (state.split() or [""])[0].rstrip("+").upper()
    return STATES.get(word, Meaning.THERE)
