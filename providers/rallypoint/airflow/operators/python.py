"""Plain Python as a task that runs outside of Airflow's worker."""

from __future__ import annotations

from rallypoint.airflow.operators.base import StageOperator
from rallypoint.frameworks.python.job import PythonJob


class PythonJobOperator(StageOperator):
    """Runs a script, a module or a function in one Python process as a stage; the parameters are `StageOperator`'s."""

    job_class = PythonJob
