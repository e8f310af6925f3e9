"""The environment variables of a gang's processes. A module that imports nothing: every start waits for its imports."""

from __future__ import annotations

STAGE_FILE = "RALLYPOINT_STAGE_FILE"  # path of the JSON file below
STAGE = "RALLYPOINT_STAGE"  # its text instead, for processes on hosts that do not see the attempt's folder
EVENTS_URI = "RALLYPOINT_EVENTS"  # where event files go: a file:// folder or a bucket prefix
LOGS_URI = "RALLYPOINT_LOG_STORE"  # the bucket prefix that keeps the logs; unset where the store is a folder
LEASE_URI = "RALLYPOINT_LEASE"  # a service's lease: the file:// path or the bucket's object that is renewed
LOGS_DIR = "RALLYPOINT_LOGS"  # where a process keeps its own output; unset where the platform captures it
ATTEMPT_ID = "RALLYPOINT_ATTEMPT"  # the attempt's id
# The attempt's folder on this host: it marks every process of an attempt, so that a straggler can be told. The id alone
# would not do: two Airflows on one host may run the same DAG for the same date.
RUN_DIR = "RALLYPOINT_RUN_DIR"
PROCESS = "RALLYPOINT_PROCESS"  # the name of the gang's process, such as "agent-0"
ADDRESS = "RALLYPOINT_ADDRESS"  # of a node's supervisor: this host as the others reach it, where the spec cannot say
# How many rounds of its ranks an attempt has had before a batch system put its job back into the queue.
ROUNDS = "RALLYPOINT_ROUNDS"
INCARNATION = "RALLYPOINT_INCARNATION"  # how often this process was started before in the same attempt
RESTART = "RALLYPOINT_RESTART"  # how often a rank's world was started anew, where it is not torchrun that counts
