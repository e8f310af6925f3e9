"""Spark: a function, script, module or jar with Spark's driver in the job, as a stage."""
