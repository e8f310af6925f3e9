"""Secrets of a job by reference: read when the job is started, and stored in no parameter, artifact or log."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from prefect.blocks.core import Block
from pydantic import SecretStr

from rallypoint.errors import InvalidJobError
from rallypoint.spec.gang import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXPECTED = (
    '"block:secret/NAME", "block:TYPE/NAME/FIELD", "env:NAME" or a Secret block: a reference to something that exists'
)
_PARTS = 2  # of a block's reference, without a field


def check_references(references: Mapping[str, Any]) -> None:
    """Raise for a secret that is no reference, without reading any.

    Raises:
        InvalidJobError: One of them is a value, or of another kind.
    """
    for name, reference in references.items():
        if isinstance(reference, Block | Secret):
            continue
        kind, _, rest = str(reference).partition(":")
        if kind not in {"block", "env"} or not rest or (kind == "block" and rest.count("/") not in {1, _PARTS}):
            raise _bad(name, "a value that is no reference")


async def resolve_secrets(references: Mapping[str, Any]) -> dict[str, Secret]:
    """Return the values of secrets.

    Args:
        references: ``block:secret/NAME`` (a Secret block), ``block:TYPE/NAME/FIELD`` (a field of any block),
            ``env:NAME`` (of this process) or a Secret block itself, by the environment variable that the job gets.

    Raises:
        InvalidJobError: A reference is of another kind, or names nothing.
    """
    check_references(references)
    return {name: await _read(name, reference) for name, reference in references.items()}


async def _read(name: str, reference: Any) -> Secret:
    if isinstance(reference, Secret):
        return reference
    if isinstance(reference, Block):
        return _value(name, reference, "value")
    kind, _, where = str(reference).partition(":")
    if kind == "env":
        if where not in os.environ:
            raise _bad(name, f"env:{where}, which is not set")
        return Secret(os.environ[where])
    block, _, field = (where, "", "value") if where.count("/") == 1 else where.rpartition("/")
    try:
        return _value(name, await Block.aload(block), field)
    except ValueError as error:  # Prefect's for a block that does not exist; the text may hold what is in it
        raise _bad(name, f"block:{block}, which cannot be loaded ({type(error).__name__})") from None


def _value(name: str, block: Block, field: str) -> Secret:
    value: Any = getattr(block, field, None)
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    if not isinstance(value, str) or not value:
        raise _bad(name, f"the field {field!r} of {type(block).__name__}, which holds no text")
    return Secret(value)


def plain(value: SecretStr | str | None) -> str | None:
    """Return the text of a block's field."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _bad(name: str, got: str) -> InvalidJobError:
    return InvalidJobError("secrets", name, got=got, expected=_EXPECTED)
