"""Dask: a function or script with a connected `Client`, as a stage."""
