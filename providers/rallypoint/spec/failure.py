"""What a kind of failure looks like, as data: one rule of the table that classifies failures."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from rallypoint.errors import InvalidJobError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Kind(StrEnum):
    """Whether a retry can help."""

    USER = "user error"  # the code or its configuration has to change first
    RETRYABLE = "retryable"  # it was the machine, the network or the cluster
    UNKNOWN = "unknown"  # it may have been either: the orchestrator's retries decide
    CANCELLED = "cancelled"  # somebody stopped it


@dataclass(frozen=True)
class FailureRule:
    """What a failure looks like, and what it means. A rule matches if any of what it names does.

    Args:
        name: What happened, in a few words.
        kind: Whether a retry can help.
        advice: What to do next.
        exception: A regular expression that is searched in the exception's qualified name.
        message: A regular expression that is searched in its message.
        signals: Names of signals that ended the process, such as ``SIGKILL``.
        exit_codes: Exit codes of the process.
        echo: Whether it follows from another process's end, and so never is the first cause if there is another.
        retry_after: Seconds to wait before the first retry, doubled with every further one; None leaves it to the task.

    Raises:
        InvalidJobError: An expression is none, or the rule matches nothing.
    """

    name: str
    kind: Kind
    advice: str
    exception: str = ""
    message: str = ""
    signals: tuple[str, ...] = ()
    exit_codes: tuple[int, ...] = ()
    echo: bool = False
    retry_after: float | None = None

    def __post_init__(self) -> None:
        for field in ("exception", "message"):
            try:
                re.compile(getattr(self, field))
            except re.error as error:
                expected = f"a regular expression ({error})"
                raise InvalidJobError("FailureRule", field, got=getattr(self, field), expected=expected) from error

    def matches(self, *, exception: str, message: str, signal: str | None, exit_code: int | None) -> bool:
        """Return whether a process's end looks like this."""
        return (
            (signal is not None and signal in self.signals)
            or (exit_code is not None and exit_code in self.exit_codes)
            or bool(self.exception and re.search(self.exception, exception))
            or bool(self.message and re.search(self.message, message))
        )

    def to_json(self) -> dict[str, Any]:
        """Return the rule as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FailureRule:
        """Return the rule that `to_json` described."""
        lists = {name: tuple(value[name]) for name in ("signals", "exit_codes")}
        return cls(**{**value, **lists, "kind": Kind(value["kind"])})
