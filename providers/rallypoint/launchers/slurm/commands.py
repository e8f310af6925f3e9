"""Runs Slurm's commands: argument lists, a small environment, and a clear error."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from rallypoint.errors import LaunchError, PreflightError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TIMEOUT = 60.0  # seconds that one command may take: a busy controller is slow
_KEPT = ("HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PATH", "SLURM_CONF")
_MAX_WORDS = 500  # characters of an error
# What sbatch says of a request that will not do later either. Everything else may be tried again.
_REFUSED = (
    "invalid account",
    "invalid partition",
    "invalid qos",
    "invalid feature",
    "invalid generic resource",
    "invalid reservation",
    "invalid time limit",
    "invalid license",
    "unrecognized option",
    "invalid option",
    "requested node configuration is not available",
    "node count specification invalid",
    "more processors requested than permitted",
    "requested time limit is invalid",
    "requested partition configuration not available",
    "user's group not permitted",
    "access/permission denied",
    "memory specification can not be satisfied",
)


def environment(conf: str) -> dict[str, str]:
    """Return the environment of the commands, and of jobs: nothing of the orchestrator's own, nothing of a job's.

    ``SBATCH_`` and ``SLURM_`` variables would be options of the commands.

    Args:
        conf: The path of ``slurm.conf``; empty for the machine's own.
    """
    found = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return found | ({"SLURM_CONF": conf} if conf else {})


class Commands:
    """The commands of one Slurm, run on this machine.

    Args:
        conf: The path of ``slurm.conf``; empty for the machine's own.
    """

    def __init__(self, conf: str) -> None:
        self._conf = conf

    async def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> str:
        """Run a command and return what it printed.

        Args:
            argv: The command and its arguments.
            env: Further variables.

        Raises:
            CommandError: It failed, or took too long.
            PreflightError: There is no such command here, or the configuration may be anybody's.
        """
        await asyncio.to_thread(check_conf, self._conf)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                env={**environment(self._conf), **(env or {})},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError:
            raise no_command(argv[0]) from None
        except OSError as error:
            raise CommandError(argv[0], error.strerror or str(error)) from error
        try:
            async with asyncio.timeout(TIMEOUT):
                output, errors = await process.communicate()
        except TimeoutError:
            raise CommandError(argv[0], f"no answer within {TIMEOUT:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
        return printed(argv[0], process.returncode or 0, output, errors)


def printed(command: str, code: int, output: bytes, errors: bytes) -> str:
    """Return what a command printed.

    Raises:
        CommandError: It failed.
    """
    if code:
        words = (errors or output).decode(errors="replace").strip()
        raise CommandError(command, words[-_MAX_WORDS:] or f"exit code {code}")
    return output.decode(errors="replace")


def no_command(name: str) -> PreflightError:
    """Return the error of a machine without Slurm."""
    return PreflightError(
        f"got no command {name!r} on this machine, expected Slurm's commands on the PATH: install Slurm's client where "
        "workers and triggerers run, or name a login node with login="
    )


def check_conf(conf: str) -> None:
    """Raise for a configuration that an attempt's record may have named, and somebody made: it names plugins to load.

    Raises:
        PreflightError: It is not root's.
    """
    if not conf:
        return
    try:
        found = Path(conf).stat()
    except OSError as error:
        msg = f"got conf={conf!r} for a Slurm launcher, which cannot be read: {error.strerror}"
        raise PreflightError(msg) from error
    if found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        msg = (
            f"got conf={conf!r} for a Slurm launcher, expected a file that root owns and nobody else can write, since "
            "Slurm's commands load the plugins that it names: set SLURM_CONF in the environment instead"
        )
        raise PreflightError(msg)


class CommandError(LaunchError):
    """A command of Slurm's failed.

    Args:
        command: Its name.
        words: What it said.
    """

    def __init__(self, command: str, words: str) -> None:
        self.words = words
        super().__init__(f"{command} failed: {words}")

    @property
    def refused(self) -> bool:
        """Whether Slurm will say the same of the same request later."""
        said = self.words.lower()
        return any(words in said for words in _REFUSED)
