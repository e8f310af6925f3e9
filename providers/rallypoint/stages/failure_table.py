"""The one table that classifies failures; a job's own ``failure_rules`` come before it.

The order matters: the first rule that matches counts. Back-offs fit the cause: at once where a host was taken away,
slower where memory or a disk has to become free first.
"""

from __future__ import annotations

from rallypoint.spec.failure import FailureRule, Kind

RULES: tuple[FailureRule, ...] = (
    FailureRule(
        "out of memory", Kind.RETRYABLE, "give the job more memory, or make the batches smaller",
        exception=r"(^|\.)(MemoryError|OutOfMemoryError|ResourceExhaustedError)$", retry_after=60,
        message=r"due to the node running low on memory|killed by the (raylet|memory monitor)",
    ),
    FailureRule(
        "out of GPU memory", Kind.RETRYABLE, "make the batches smaller, or use a larger GPU",
        message=r"CUDA out of memory|HIP out of memory", retry_after=60,
    ),
    FailureRule(
        "disk full", Kind.RETRYABLE, "free space in the store or on the host, then retry",
        exception=r"^ray\.exceptions\.OutOfDiskError$",
        message=r"No space left on device|Disk quota exceeded", retry_after=300,
    ),
    FailureRule(
        "a port was taken", Kind.RETRYABLE, "the retry picks another; one that you named yourself has to be free",
        message=r"[Aa]ddress already in use|EADDRINUSE", retry_after=0,
    ),
    FailureRule(
        "another process was lost", Kind.RETRYABLE, "look at the process that ended first", echo=True, retry_after=0,
        message=r"Connection (closed by peer|reset by peer|refused)|Broken pipe|heartbeat monitor|Socket closed"
        r"|NCCL (error|communicator was aborted)|remote process exited|DistNetworkError|Timed out waiting",
        exception=r"^tensorflow\..*\.(UnavailableError|AbortedError|CancelledError)$",
    ),
    FailureRule(
        "a collective timed out", Kind.RETRYABLE, "look for a rank that is slower than the rest or was lost",
        message=r"(collective|Watchdog caught|ProcessGroup).*time(d ?)?out|Timed out after \d+ms waiting",
        exception=r"^tensorflow\..*\.DeadlineExceededError$",
        retry_after=30,
    ),
    FailureRule(
        "the entry cannot be loaded", Kind.USER, "correct the entry, or install what it imports in the job's Python",
        exception=r"(^|\.)(EntryLoadError|ImportError|ModuleNotFoundError|SyntaxError|IndentationError)$",
    ),
    FailureRule(
        "the result is not JSON", Kind.USER,
        "return JSON, or save an artifact and return its URI; the retry continues from the last checkpoint",
        exception=r"(^|\.)NotJSONError$",
    ),
    FailureRule(
        "an error in the user's code", Kind.USER,
        "correct the code, then retry the stage: it continues from the last checkpoint",
        exception=r"(^|\.)(TypeError|NameError|AttributeError|UnboundLocalError|NotImplementedError)$",
    ),
    FailureRule(
        "too many trials failed", Kind.UNKNOWN, "read why the first trial failed", echo=True,
        exception=r"^rallypoint\.frameworks\.ray\..*SweepFailedError$",
    ),
    FailureRule(
        "no trial has a result", Kind.USER, "report the metric that the search optimises",
        exception=r"^rallypoint\.frameworks\.ray\..*NoResultError$",
        message=r"did not include the specified metric",
    ),
    FailureRule(
        "the Ray cluster cannot be reached", Kind.RETRYABLE, "look whether the cluster runs, and correct the address",
        exception=r"^rallypoint\.frameworks\.ray\..*ClusterUnreachableError$", retry_after=30,
    ),
    FailureRule(
        "Ray is of another version there", Kind.USER, "install the cluster's versions of Ray and Python for the job",
        message=r"Version mismatch: The cluster was started with",
    ),
    FailureRule(
        "a Ray worker's environment could not be made", Kind.USER, "correct what the message names",
        exception=r"^ray\.exceptions\.RuntimeEnvSetupError$",
    ),
    FailureRule(
        "a Ray node was lost", Kind.RETRYABLE, "look at the node's end; the retry continues from the last checkpoint",
        exception=r"^ray\.exceptions\.(NodeDiedError|LocalRayletDiedError|OwnerDiedError)$", retry_after=0,
        message=r"\bnode (it was running on )?(has|was) (died|terminated)|marked dead because",
    ),
    FailureRule(
        "a Ray worker was lost", Kind.RETRYABLE,
        "the kernel kills what uses too much memory: look at the node's log, or give the workers more memory",
        exception=r"^ray\.exceptions\.(ActorDiedError|ActorUnavailableError|RayActorError|WorkerCrashedError)$"
        r"|^ray\.train\..*(WorkerHealthCheck(Failed|Timeout)|WorkerGroupStartup(Failed|Timeout))Error$", retry_after=10,
    ),
    FailureRule(
        "Ray has too few resources", Kind.RETRYABLE, "add nodes, or ask for less", retry_after=60,
        exception=r"(^|\.)(InsufficientClusterResourcesError|(Task|Actor)UnschedulableError|ObjectStoreFullError)$",
    ),
    FailureRule(
        "the Ray cluster was lost", Kind.RETRYABLE, "look at the head's end; the retry continues", retry_after=30,
        exception=r"^ray\.exceptions\.(RpcError|RaySystemError|ObjectLostError)$",
        message=r"Failed to connect to GCS|GCS (server )?(has|is) (died|dead|unavailable)",
    ),
    FailureRule(
        "killed", Kind.RETRYABLE,
        "the kernel kills what uses too much memory: look at the host's log, or give the job more memory",
        signals=("SIGKILL",), retry_after=60,
    ),
    FailureRule(
        "terminated from outside", Kind.RETRYABLE,
        "the host was shut down or the job preempted; the retry continues",
        echo=True, exception=r"(^|\.)SignalException$", signals=("SIGTERM", "SIGINT", "SIGHUP"), retry_after=0,
    ),
    FailureRule(
        "crashed in native code", Kind.UNKNOWN, "set faulthandler or a core dump to see where",
        signals=("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"),
    ),
)  # fmt: skip

UNKNOWN = FailureRule("failed", Kind.UNKNOWN, "read the traceback; the retry continues from the last checkpoint")
LOST = FailureRule(
    "lost", Kind.RETRYABLE, "the host was restarted or its processes killed; the retry continues", retry_after=0
)
SILENT = FailureRule("ended without a word", Kind.UNKNOWN, "look for os._exit or a native crash at exit")
PREFLIGHT = FailureRule("cannot run here", Kind.USER, "correct what the message names, then retry the stage")
LAUNCH = FailureRule("could not be launched", Kind.RETRYABLE, "see the message", retry_after=30)
STOPPED = FailureRule("stopped", Kind.CANCELLED, "retry the stage to start a new one")
SERVICE_ENDED = FailureRule(
    "the service ended by itself", Kind.RETRYABLE, "look at its last lines; a retry starts a new one", retry_after=0
)
BY_REASON = {
    "cancelled": FailureRule("cancelled", Kind.CANCELLED, "retry the stage to continue from the last checkpoint"),
    "stalled": FailureRule(
        "stalled",
        Kind.RETRYABLE,
        "look at what the processes were waiting in; raise stall_timeout if it was busy",
        retry_after=0,
    ),
    "lease expired": FailureRule(
        "lease expired",
        Kind.RETRYABLE,
        "nobody waited for it or used it for that long: raise lease=, or see why the orchestrator was away",
        retry_after=0,
    ),
    "error": LAUNCH,
    "preflight": PREFLIGHT,
    "preempted": FailureRule(
        "preempted",
        Kind.RETRYABLE,
        "another job took its place; the retry continues from the last checkpoint",
        retry_after=0,
    ),
    "time limit": FailureRule(
        "the job's time limit was reached",
        Kind.RETRYABLE,
        "the retry continues from the last checkpoint; give the job more time, or more runs with requeue=",
        retry_after=0,
    ),
    "requeued too often": FailureRule(
        "it was put back into the queue too often",
        Kind.RETRYABLE,
        "see why its runs end early; requeue= says how many there may be",
        retry_after=60,
    ),
    "out of memory": FailureRule(
        "out of memory", Kind.RETRYABLE, "give the job more memory, or make the batches smaller", retry_after=60
    ),
    "deadline": FailureRule(
        "its deadline passed", Kind.USER, "the cluster runs it no more: submit it with a later deadline"
    ),
    "host lost": FailureRule(
        "a host was lost",
        Kind.RETRYABLE,
        "look at the host; the retry continues from the last checkpoint on those that answer",
        retry_after=0,
    ),
}


def classify(
    own: tuple[FailureRule, ...], *, exception: str, message: str, signal: str | None, exit_code: int | None
) -> FailureRule:
    """Return the first rule that matches, the job's own before the table's."""
    for rule in (*own, *RULES):
        if rule.matches(exception=exception, message=message, signal=signal, exit_code=exit_code):
            return rule
    return UNKNOWN
