"""Addresses as Hadoop reads them, which are no URIs: a ``%20`` in one is these three letters, not a space."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from pathlib import Path


def of_folder(folder: Path) -> str:
    """Return the address of a folder of this host; a bare path is one of HDFS where that is the default."""
    return f"file://{folder}"


def of_uri(uri: str) -> str:
    """Return the address of what Rallypoint's URIs, or a user's, name.

    Args:
        uri: A ``file://`` URI; ``s3://``, which Spark knows as ``s3a://``; or anything else, which stays as it is.
    """
    scheme, mark, rest = uri.partition("://")
    if scheme == "file" and mark:
        return f"file://{unquote(rest)}"
    return f"s3a://{rest}" if scheme == "s3" and mark else uri
