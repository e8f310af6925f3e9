"""What has to be done on a host that sees the shared folder and has Slurm's commands: this one, or a login node.

Everything blocks. A login node gets this module with the agent of the SSH launcher.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rallypoint.errors import LaunchError
from rallypoint.launchers.base import Cursor
from rallypoint.launchers.removal import left_in, remove_folder, remove_output
from rallypoint.launchers.run_folder import check_folder, folder_of, make_folder
from rallypoint.launchers.slurm.attempt_folder import AttemptFolder
from rallypoint.launchers.slurm.commands import TIMEOUT, check_conf, environment, no_command
from rallypoint.launchers.slurm.states import Meaning
from rallypoint.launchers.supervised import ask_end, new_output

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Answer = tuple[dict[str, Any], bytes]


class Host:
    """Answers questions about attempts' folders.

    Args:
        root: The folder of the run folders.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def answer(self, call: str, data: bytes, **values: Any) -> Answer:
        """Return what a call of that name returns: JSON, and bytes."""
        found = getattr(self, f"do_{call}")(data, **values)
        return found if isinstance(found, tuple) else (found, b"")

    def do_about(self, _data: bytes) -> dict[str, Any]:
        """Say whether the folder can be written, and where commands are looked for."""
        return {"writable": os.access(self.root, os.W_OK), "path": os.environ.get("PATH", os.defpath)}

    def do_run(self, _data: bytes, *, argv: list[str], env: dict[str, str], conf: str) -> Answer:
        """Run a command of Slurm's."""
        check_conf(conf)
        try:
            done = subprocess.run(
                argv,
                env={**environment(conf), **env},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIMEOUT,
                check=False,
            )
        except FileNotFoundError:
            raise no_command(argv[0]) from None
        except subprocess.TimeoutExpired:
            return {"code": 1, "output": 0}, f"no answer within {TIMEOUT:g} s".encode()
        return {"code": done.returncode, "output": len(done.stdout)}, done.stdout + done.stderr

    def do_prepare(self, data: bytes, *, attempt: str, files: Sequence[tuple[str, int]]) -> dict[str, Any]:
        """Make an attempt's folder, and fill it."""
        content, at = {}, 0
        for name, size in files:
            content[name], at = data[at : at + size], at + size
        AttemptFolder(make_folder(self.root, attempt)).prepare(content)
        return {}

    def do_look(self, _data: bytes, *, attempt: str) -> dict[str, Any]:
        """Say which job the attempt is, whether it was cancelled, and how it ended."""
        folder = self._folder(attempt)
        ended = folder.ended()
        return {
            "job": folder.job(),
            "cancelled": folder.cancelled(),
            "ended": asdict(ended) if ended else None,
        }

    def do_judge(self, _data: bytes, *, attempt: str, found: str | None, words: str) -> dict[str, Any]:
        """Say where a gang stands whose job has ended, as Slurm says."""
        return asdict(self._folder(attempt).judge(Meaning(found) if found else None, words))

    def do_stop_if_broken(self, _data: bytes, *, attempt: str) -> dict[str, Any]:
        """End a gang that has lost more than it can do without."""
        self._folder(attempt).stop_if_broken()
        return {}

    def do_cancel(self, _data: bytes, *, attempt: str, grace: float) -> dict[str, Any]:
        """Forbid the start, and ask what runs to end."""
        ask_end(make_folder(self.root, attempt), grace=grace)
        return {}

    def do_logs(self, _data: bytes, *, attempt: str, cursor: dict[str, Any]) -> Answer:
        """Return what processes have written since a cursor."""
        chunks = new_output(folder_of(self.root, attempt), Cursor(**cursor))
        heads = [[chunk.process, len(chunk.data), chunk.offset, chunk.skipped] for chunk in chunks]
        return {"chunks": heads}, b"".join(chunk.data for chunk in chunks)

    def do_left(self, _data: bytes, *, attempt: str) -> dict[str, Any]:
        """Say how many bytes an attempt has left."""
        if not self.root.is_dir():
            msg = f"got the folder {self.root}, expected one on this host: prune where it is mounted"
            raise LaunchError(msg)
        return {"bytes": left_in(folder_of(self.root, attempt))}

    def do_clean(self, _data: bytes, *, attempt: str, forget: bool) -> dict[str, Any]:
        """Remove what an ended attempt has left."""
        folder = folder_of(self.root, attempt)
        try:
            with suppress(FileNotFoundError):
                check_folder(self.root, attempt)
            remove_folder(folder) if forget else remove_output(folder)
        except OSError as error:
            msg = f"cannot remove {folder}: {error}"
            raise LaunchError(msg) from error
        return {}

    def _folder(self, attempt: str) -> AttemptFolder:
        return AttemptFolder(folder_of(self.root, attempt))
