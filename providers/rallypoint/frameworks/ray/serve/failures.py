"""What the errors of a deploy mean: whether a retry can help, and what to do."""

from __future__ import annotations

from rallypoint.spec.failure import FailureRule, Kind

FAILURE_RULES = (
    FailureRule(
        "the application did not answer as expected", Kind.USER, "compare the answer with probe=, correct one of them",
        exception=r"(^|\.)ProbeMismatchError$",
    ),
    FailureRule(
        "Ray Serve refused the config", Kind.USER, "correct the config as the message says",
        exception=r"(^|\.)(RefusedError|NotOursError|VersionError)$",
    ),
    FailureRule(
        "the application cannot be built", Kind.USER,
        "correct import_path=, args= or the code, or put what it imports into runtime_env=",
        exception=r"(^|\.)BuildFailedError$",
    ),
    FailureRule(
        "the application did not start", Kind.UNKNOWN, "read the replica's traceback and log lines",
        exception=r"(^|\.)DeployFailedError$",
    ),
    FailureRule(
        "the cluster does not answer", Kind.RETRYABLE, "start the Ray cluster, or correct dashboard_url=",
        exception=r"(^|\.)UnreachableError$", retry_after=30,
    ),
    FailureRule(
        "another deploy came in between", Kind.RETRYABLE, "let one pipeline deploy an application at a time",
        exception=r"(^|\.)(ConflictError|LeaseTimeoutError)$", retry_after=30,
    ),
)  # fmt: skip
"""What the driver's errors mean; they come after a job's own ``failure_rules``."""
