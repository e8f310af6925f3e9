"""The one table that classifies failures; a job's own ``failure_rules`` come before it.

The order matters: the first rule that matches counts. Back-offs fit the cause: at once where a host was taken away,
slower where memory or a disk has to become free first.
"""

from __future__ import annotations

from rallypoint.spec.failure import FailureRule, Kind

RULES: tuple[FailureRule, ...] = (
    FailureRule(
        "out of memory", Kind.RETRYABLE, "give the job more memory, or make the batches smaller",
        exception=r"(^|\.)(MemoryError|OutOfMemoryError)$", retry_after=60,
    ),
    FailureRule(
        "out of GPU memory", Kind.RETRYABLE, "make the batches smaller, or use a larger GPU",
        message=r"CUDA out of memory|HIP out of memory", retry_after=60,
    ),
    FailureRule(
        "disk full", Kind.RETRYABLE, "free space in the store or on the host, then retry",
        message=r"No space left on device|Disk quota exceeded", retry_after=300,
    ),
    FailureRule(
        "another process was lost", Kind.RETRYABLE, "look at the process that ended first", echo=True, retry_after=0,
        message=r"Connection (closed by peer|reset by peer|refused)|Broken pipe|heartbeat monitor|Socket closed"
        r"|NCCL (error|communicator was aborted)|remote process exited|DistNetworkError|Timed out waiting",
    ),
    FailureRule(
        "a collective timed out", Kind.RETRYABLE, "look for a rank that is slower than the rest or was lost",
        message=r"(collective|Watchdog caught|ProcessGroup).*time(d ?)?out|Timed out after \d+ms waiting",
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
        "correct the code, then clear the task: it continues from the last checkpoint",
        exception=r"(^|\.)(TypeError|NameError|AttributeError|UnboundLocalError|NotImplementedError)$",
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
PREFLIGHT = FailureRule("cannot run here", Kind.USER, "correct what the message names, then clear the task")
LAUNCH = FailureRule("could not be launched", Kind.RETRYABLE, "see the message", retry_after=30)
BY_REASON = {
    "cancelled": FailureRule("cancelled", Kind.CANCELLED, "clear the task to continue from the last checkpoint"),
    "stalled": FailureRule(
        "stalled",
        Kind.RETRYABLE,
        "look at what the processes were waiting in; raise stall_timeout if it was busy",
        retry_after=0,
    ),
    "error": LAUNCH,
}


def classify(
    own: tuple[FailureRule, ...], *, exception: str, message: str, signal: str | None, exit_code: int | None
) -> FailureRule:
    """Return the first rule that matches, the job's own before the table's."""
    for rule in (*own, *RULES):
        if rule.matches(exception=exception, message=message, signal=signal, exit_code=exit_code):
            return rule
    return UNKNOWN
