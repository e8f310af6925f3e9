"""The name of a stage: one step of one pipeline run, the same over every kind of retry."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_PART = 80  # characters; a path component holds 255 bytes


@dataclass(frozen=True)
class StageKey:
    """A stage's key.

    Airflow's is dag id / run id / task id (/ map index); Prefect's is root flow run id / flow name / job name (/ map
    index or input hash).

    Args:
        parts: The parts, none empty.

    Raises:
        ValueError: There are no parts, or one is empty.
    """

    parts: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.parts or not all(self.parts):
            msg = f"got the stage key {self.parts!r}, expected one or more parts, none of them empty"
            raise ValueError(msg)

    @property
    def text(self) -> str:
        """The key for people: ``flights/manual__2026-11-23T00:00:00+00:00/train``."""
        return "/".join(self.parts)

    @property
    def path(self) -> str:
        """The key as a path in the store: readable, safe in every store, and different for different keys."""
        return "stages/" + "/".join(_component(part) for part in self.parts)

    @property
    def digest(self) -> str:
        """A short name of the key that is different for different keys."""
        return _digest("/".join(map(_component, self.parts)))

    def attempt_id(self, number: int) -> str:
        """Return the id of an attempt, known before it is launched and good as a job name on every cluster.

        Args:
            number: The attempt's number, from 1.

        Returns:
            At most 63 characters of ``[a-z0-9-]``.
        """
        name = re.sub(r"[^a-z0-9]+", "-", self.parts[-1].lower()).strip("-")[:24] or "stage"
        return f"rp-{name}-{self.digest}-a{number}"


def _component(part: str) -> str:
    safe = _UNSAFE.sub("-", part)
    if safe == part and len(part) <= _MAX_PART and not part.startswith("."):
        return part
    return f"{safe[:_MAX_PART].lstrip('.-') or 'x'}={_digest(part)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
