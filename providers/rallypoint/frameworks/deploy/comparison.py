"""Where the answer of what was deployed differs from the expected one."""

from __future__ import annotations

import json
from typing import Any

_SHOWN = 1_000  # characters of a value in a message


class ProbeMismatchError(AssertionError):
    """What was deployed answered, and not as expected."""


def difference(got: Any, expected: Any, *, tolerance: float = 0.0, at: str = "") -> str:  # noqa: PLR0911 - a case each
    """Return where an answer differs from the expected one, the empty string if it does not.

    Args:
        got: The answer. Of an object, keys that are not expected are not looked at.
        expected: What it should be.
        tolerance: How far numbers may be apart.
        at: Where in the answer this is.
    """
    where = f"the answer{at}"
    if isinstance(expected, dict) and isinstance(got, dict):
        for key, value in expected.items():
            if key not in got:
                return f"{where} has no {key!r}, but {_short(sorted(got))}"
            if found := difference(got[key], value, tolerance=tolerance, at=f"{at}[{key!r}]"):
                return found
        return ""
    if isinstance(expected, list) and isinstance(got, list):
        if len(got) != len(expected):
            return f"{where} has {len(got)} items, expected {len(expected)}"
        pairs = enumerate(zip(got, expected, strict=True))
        each = (difference(one, other, tolerance=tolerance, at=f"{at}[{index}]") for index, (one, other) in pairs)
        return next(filter(None, each), "")
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (got, expected))
    if numbers and abs(got - expected) <= tolerance:
        return ""
    equal = type(got) is type(expected) or numbers
    return "" if equal and got == expected else f"{where} is {_short(got)}, expected {_short(expected)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
