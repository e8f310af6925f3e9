"""Where Ray Train and Ray Tune keep a generation's state: beside the stage's own checkpoints, in the same store."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

FOLDER = "ray"  # below the generation's data


@dataclass(frozen=True)
class RayStorage:
    """A place as Ray takes it.

    Args:
        uri: Its URI.
        path: What Ray calls ``storage_path``: a folder, or bucket and prefix.
        filesystem: A ``pyarrow.fs`` file system; None for a folder.
    """

    uri: str
    path: str
    filesystem: Any = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, where a killed process may tear a file that it writes."""
        return self.filesystem is None

    def child_uri(self, path: str) -> str:
        """Return the URI of what Ray calls `path`."""
        if self.is_folder:
            return f"file://{quote(path)}"
        return self.uri.partition("://")[0] + "://" + path

    def names(self) -> list[str]:
        """Return the names of the folders directly below."""
        if self.is_folder:
            return sorted(entry.name for entry in Path(self.path).iterdir() if entry.is_dir())
        fs = importlib.import_module("pyarrow.fs")
        found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == fs.FileType.Directory)


def open_ray_storage(data_uri: str) -> RayStorage:
    """Return Ray's part of a generation's data.

    Args:
        data_uri: The root of the generation's data. Of a bucket, the credentials come from the environment.

    Raises:
        ValueError: It is no folder and no bucket.
    """
    uri = f"{data_uri}/{FOLDER}"
    scheme, _, rest = uri.partition("://")
    if scheme == "file":
        folder = unquote(rest)
        Path(folder).mkdir(parents=True, exist_ok=True)
        return RayStorage(uri, folder)
    fs = importlib.import_module("pyarrow.fs")
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        options = {"endpoint_override": endpoint, "region": region}
        made = fs.S3FileSystem(**{name: value for name, value in options.items() if value})
    elif scheme == "gs":
        made = fs.GcsFileSystem()
    elif scheme == "az":
        made = fs.AzureFileSystem(account_name=os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", ""))
    else:
        msg = f"got the store {data_uri!r}, expected file:///folder, s3://, gs:// or az://; correct the store's URI"
        raise ValueError(msg)
    return RayStorage(uri, rest, made)
