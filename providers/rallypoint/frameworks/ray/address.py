"""Where a Ray driver finds its cluster, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from rallypoint.spec.service import as_object

Address: TypeAlias = str | Mapping[str, Any] | None

AUTO = "auto"
EXPECTED = (
    'None for a Ray that is made for the attempt, "auto", the "host:port" of a cluster\'s GCS, or the result of a '
    "RayCluster stage"
)
_GCS = re.compile(r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})$")


def as_address(value: object) -> str | None:
    """Return an address as ``ray.init`` takes it; None for a Ray that is made for the attempt.

    Args:
        value: Text, None, or a mapping with ``address``, such as a RayCluster's result. A mapping that a template
            rendered to text is read too.

    Raises:
        ValueError: It is none; the message says what was got.
    """
    found = as_object(value)
    if found is not None:
        value = found.get("address")
        if value is None:
            msg = 'a mapping without "address"'
            raise ValueError(msg)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        msg = repr(value)[:200]
        raise ValueError(msg)  # noqa: TRY004 - a wrong address, whatever its type
    text = value.strip()
    match = _GCS.match(text)
    if text != AUTO and (not match or not 0 < int(match[2]) <= 65_535):  # noqa: PLR2004 - the last port
        msg = repr(text)[:200]
        raise ValueError(msg)
    return text


def is_client(value: object) -> bool:
    """Return whether an address is Ray Client's, over which a driver runs outside of the cluster."""
    return "ray://" in str(value)
