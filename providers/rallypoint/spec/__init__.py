"""WHAT to run, as pure data: entry, resources, gang and the base class of every job.

Nothing here starts a process, reads a store or imports a framework, so it is cheap in a DAG file.
"""
