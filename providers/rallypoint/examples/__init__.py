"""Stage functions that the example DAGs and flows share."""
