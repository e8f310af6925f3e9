"""Gangs on hosts that are reached by SSH."""

from rallypoint.launchers.ssh.launcher import SSHLauncher

__all__ = ["SSHLauncher"]
