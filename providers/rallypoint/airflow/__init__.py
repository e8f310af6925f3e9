"""Face 1, Airflow 3.3 and later: operators, decorators, one hook, one trigger, links and a page in the UI.

========================  =========================================================================
``operators``             `TorchElasticOperator`, `DaskOperator`, on one base `StageOperator`
``decorators``            ``@task.torch``, ``@task.dask``
``triggers``              `StageTrigger`: waits for an attempt without a worker
``hooks``                 `RallypointHook`: the connection type ``rallypoint``
``ray_hook``              `RayHook`: the connection type ``ray``
``launcher_connections``  connections that say where jobs run, such as ``ray``
``spark_connections``     connections of the apache-spark provider, as options of a Spark job
``place``                 which store and launcher a task uses
``retention``             `prune_store`, for a DAG that cleans up every day
``links``                 the buttons of a task in the UI
``plugin``                the page that the links show
========================  =========================================================================
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_LEAST = (3, 3)


def _check_version() -> None:
    try:
        found = version("apache-airflow-core")
    except PackageNotFoundError:
        msg = "rallypoint.airflow needs Apache Airflow 3.3 or later: pip install 'rallypoint[airflow]'"
        raise ImportError(msg) from None
    if tuple(int(part) for part in found.split(".")[:2]) < _LEAST:
        msg = (
            f"rallypoint.airflow: got Apache Airflow {found}, expected 3.3 or later, whose triggers can stop a job as "
            "its task is cleared: upgrade"
        )
        raise ImportError(msg)


_check_version()
