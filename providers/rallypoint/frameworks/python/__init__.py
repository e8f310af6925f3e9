"""Plain Python: one process, no framework."""
