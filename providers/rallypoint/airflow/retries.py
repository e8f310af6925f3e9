"""How long to wait before a retry: at once after a preemption, longer after an out-of-memory kill."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import RetryPolicy
from airflow.sdk.definitions.retry_policy import RetryDecision

from rallypoint.errors import StageFailedError
from rallypoint.spec.failure import Kind

if TYPE_CHECKING:
    from airflow.sdk import Context

LONGEST = timedelta(hours=1)


class StageRetryPolicy(RetryPolicy):
    """Retries a retryable failure after the time that its rule names, doubled with every try.

    Everything else follows the task's own ``retries`` and ``retry_delay``; user errors never come here, because
    `AirflowFailException` ends the task before. A rule's time is `rallypoint.FailureRule.retry_after`.

    Args:
        longest: The longest time to wait.
    """

    def __init__(self, longest: timedelta = LONGEST) -> None:
        self.longest = longest

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Return what to do after a failure."""
        del max_tries, context
        if not isinstance(exception, StageFailedError):
            return RetryDecision.default()
        report = exception.report
        if report.kind is not Kind.RETRYABLE or report.retry_after is None:
            return RetryDecision.default()
        seconds = min(report.retry_after * 2 ** min(try_number - 1, 20), self.longest.total_seconds())
        return RetryDecision.retry(timedelta(seconds=seconds), reason=report.headline)

    def serialize(self) -> dict[str, Any]:
        """Return the policy as JSON, for the serialised DAG."""
        return {"longest": self.longest.total_seconds()}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> StageRetryPolicy:
        """Return the policy that `serialize` described."""
        return cls(timedelta(seconds=data["longest"]))
