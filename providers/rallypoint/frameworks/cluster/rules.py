"""What the errors of a temporary cluster's processes mean: whether a retry can help, and what to do."""

from __future__ import annotations

from rallypoint.spec.failure import FailureRule, Kind

_OURS = r"^rallypoint\.frameworks\.cluster\."


def daemon_rules(what: str) -> tuple[FailureRule, ...]:
    """Return the rules for `DaemonLostError` and `DaemonStartError`.

    Args:
        what: What is lost or does not start, in words.
    """
    return (
        FailureRule(
            f"{what} was lost", Kind.RETRYABLE, "look at its last lines; a retry starts a new one",
            exception=rf"{_OURS}.*DaemonLostError$", retry_after=10,
        ),
        FailureRule(
            f"{what} did not start", Kind.RETRYABLE, "look at its last lines, or raise start_timeout",
            exception=rf"{_OURS}.*DaemonStartError$", retry_after=30,
        ),
    )  # fmt: skip
