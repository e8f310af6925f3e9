"""What a deployed application is asked before its deploy counts as done, as pure data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rallypoint.errors import InvalidJobError


@dataclass(frozen=True, kw_only=True)
class ServeProbe:
    """One request that an application has to answer before its deploy counts as done.

    Args:
        path: Below the application's route.
        body: JSON to ``POST``; None sends a ``GET``.
        expect: The answer's JSON; None takes any answer with a status below 400. Of an object, keys that are not named
            are not looked at.
        tolerance: How far numbers may be from the expected ones.
        timeout: Seconds until the route has to answer.

    Raises:
        InvalidJobError: A value is wrong.
    """

    path: str = "/"
    body: Any = None
    expect: Any = None
    tolerance: float = 0.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        def invalid(name: str, expected: str) -> InvalidJobError:
            return InvalidJobError("ServeProbe", name, got=getattr(self, name), expected=expected)

        if not self.path.startswith("/"):
            raise invalid("path", 'a path that starts with "/"')
        if self.tolerance < 0:
            raise invalid("tolerance", "0 or more")
        if self.timeout <= 0:
            raise invalid("timeout", "seconds above 0")
        for name in ("body", "expect"):
            try:
                json.dumps(getattr(self, name))
            except (TypeError, ValueError) as error:
                raise invalid(name, f"JSON ({error})") from error

    def to_json(self) -> dict[str, Any]:
        """Return the probe as a JSON object."""
        return {
            "path": self.path,
            "body": self.body,
            "expect": self.expect,
            "tolerance": self.tolerance,
            "timeout": self.timeout,
        }
