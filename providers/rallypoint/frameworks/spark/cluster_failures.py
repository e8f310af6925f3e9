"""What the errors of temporary clusters and of cluster mode mean: whether a retry can help, and what to do."""

from __future__ import annotations

from rallypoint.frameworks.cluster.rules import daemon_rules
from rallypoint.spec.failure import FailureRule, Kind

_OURS = r"^rallypoint\.frameworks\.spark\."

CLUSTER_RULES: tuple[FailureRule, ...] = (
    FailureRule(
        "the Spark master was lost", Kind.RETRYABLE, "look at the cluster's stage; a retry needs a master again",
        exception=rf"{_OURS}.*MasterLostError$", retry_after=30,
    ),
    *daemon_rules("Spark's service"),
    FailureRule(
        "the cluster cannot be asked", Kind.USER, "correct what the message names, then retry the stage",
        exception=rf"{_OURS}.*(SetupError|ManagerRefusedError)$",
    ),
    FailureRule(
        "the cluster's manager cannot be reached", Kind.RETRYABLE, "look whether it runs, and correct its address",
        exception=rf"{_OURS}.*ManagerUnreachableError$", retry_after=30,
    ),
    FailureRule(
        "an older application still lives", Kind.RETRYABLE, "end what the message names", retry_after=60,
        exception=rf"{_OURS}.*OlderApplicationError$",
    ),
    FailureRule(
        "the application was lost", Kind.RETRYABLE, "look at the cluster's own log; a retry submits it again",
        exception=rf"{_OURS}.*ApplicationLostError$", retry_after=30,
    ),
    FailureRule(
        "the application was ended with its stage", Kind.RETRYABLE, "the retry submits it again", echo=True,
        exception=rf"{_OURS}.*StoppedError$", retry_after=0,
    ),
)  # fmt: skip
"""They come first: the messages of these errors hold last lines of logs, in which anything may stand."""

APPLICATION_RULES: tuple[FailureRule, ...] = (
    FailureRule(
        "the application was not accepted", Kind.UNKNOWN, "read what spark-submit or the master said",
        exception=rf"{_OURS}.*SubmissionError$",
    ),
    FailureRule(
        "the application failed", Kind.UNKNOWN, "read the driver's log on the cluster, which the links lead to",
        exception=rf"{_OURS}.*ApplicationFailedError$",
    ),
)  # fmt: skip
"""They come last: what the message says of the cause is worth more."""
