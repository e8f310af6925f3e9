"""Runs gangs as jobs of a Slurm cluster, by its own commands."""

from rallypoint.launchers.slurm.launcher import SlurmLauncher

__all__ = ["SlurmLauncher"]
