"""Runs gangs of one process as jobs of a Ray cluster, through its Jobs REST API."""

from rallypoint.launchers.ray_jobs.launcher import RayJobsLauncher

__all__ = ["RayJobsLauncher"]
