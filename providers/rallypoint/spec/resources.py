"""What one process of a gang asks of its host."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from rallypoint.errors import InvalidJobError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_MEMORY = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one process of a gang asks of its host.

    Args:
        cpus: Cores; None leaves it to the launcher.
        memory: Bytes, or text such as ``"16GiB"``; None leaves it to the launcher.
        gpus: Accelerators.

    Raises:
        InvalidJobError: A value is negative or no size.
    """

    cpus: float | None = None
    memory: str | int | None = None
    gpus: int = 0

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus <= 0:
            raise InvalidJobError("Resources", "cpus", got=self.cpus, expected="a number above 0, or None")
        if self.gpus < 0:
            raise InvalidJobError("Resources", "gpus", got=self.gpus, expected="0 or more")
        self.memory_bytes  # noqa: B018 - reading it checks it

    @property
    def memory_bytes(self) -> int | None:
        """The memory in bytes."""
        if self.memory is None:
            return None
        match = _MEMORY.match(str(self.memory))
        if not match:
            raise InvalidJobError("Resources", "memory", got=self.memory, expected='bytes or a size such as "16GiB"')
        return int(float(match[1]) * _UNITS[(match[2] or "").upper()])

    def to_json(self) -> dict[str, Any]:
        """Return the values as a JSON object."""
        return asdict(self)
