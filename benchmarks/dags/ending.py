"""Stages and bare deferrable tasks that all end at times which are known beforehand."""

from airflow.sdk import dag, task
from sleeping import AlarmOperator

from rallypoint.airflow.operators import PythonJobOperator


def wait_until(due: float) -> None:
    """Wait."""
    import time

    time.sleep(max(0.0, float(due) - time.time()))


@dag(schedule=None, render_template_as_native_obj=True)
def ending() -> None:
    """The ends of a stage and of a bare task take turns, so both meet the same load."""

    @task
    def stages(dag_run: object = None) -> list[dict[str, float]]:
        return [{"due": due} for due in dag_run.conf["stages"]]

    @task
    def alarms(dag_run: object = None) -> list[float]:
        return list(dag_run.conf["alarms"])

    PythonJobOperator.partial(task_id="stage", python_callable=wait_until, deferrable=True).expand(op_kwargs=stages())
    AlarmOperator.partial(task_id="alarm").expand(due=alarms())


ending()
