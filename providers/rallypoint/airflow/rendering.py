"""What of a task's fields is known while the DAG file is read, and what a template made of them."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any


def without_templates(values: Any) -> dict[str, Any]:
    """Return what of a field is known while the DAG file is read: no Jinja, nothing that an earlier task returns."""
    if not isinstance(values, Mapping):
        return {}
    return {key: value for key, value in values.items() if not (is_jinja(value) or hasattr(value, "resolve"))}


def is_rendered_later(value: Any) -> bool:
    """Return whether a value, or one inside of it, is known only when the task runs."""
    if isinstance(value, Mapping):
        return any(map(is_rendered_later, value.values()))
    if isinstance(value, list | tuple):
        return any(map(is_rendered_later, value))
    return is_jinja(value) or hasattr(value, "resolve")


def rendered_object(value: Any) -> Any:
    """Return the object that a template without native types has rendered to text."""
    for read in (json.loads, ast.literal_eval) if isinstance(value, str) else ():
        with suppress(ValueError, SyntaxError):
            return read(value)
    return value


def is_jinja(value: Any) -> bool:
    """Return whether a value is text with something for Jinja in it."""
    return isinstance(value, str) and any(mark in value for mark in ("{{", "{%", "{#"))
