"""Flight delays: Dask preprocessing, elastic PyTorch training, and an evaluation that can fail the run.

Thin on purpose: the stage functions are in `rallypoint.examples.flights`, which a Prefect flow shares. Only small JSON
goes through XCom; data and models go by URI.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import Asset, Param, dag, task

from rallypoint.examples import flights as stages

MODEL = Asset("flights_model", uri="rallypoint://flights/model")


@dag(
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    render_template_as_native_obj=True,  # the numbers of the form below stay numbers
    tags=["rallypoint", "example"],
    doc_md=__doc__,
    params={
        "epochs": Param(6, type="integer", minimum=1, description="Passes over the training months"),
        "processes": Param(2, type="integer", minimum=1, description="Processes of the distributed training"),
        "fraction": Param(1.0, type="number", exclusiveMinimum=0, maximum=1, description="Share of the flights to use"),
    },
)
def flights() -> None:
    """Predict which flights arrive more than 15 minutes late."""
    retry = {"retries": 1, "retry_delay": timedelta(seconds=5), "deferrable": True}

    preprocess = task.dask(task_id="preprocess", **retry)(stages.preprocess)
    train = task.torch(
        task_id="train", nproc_per_node="{{ params.processes }}", max_restarts=1, outlets=[MODEL], **retry
    )(stages.train)
    evaluate = task.torch(task_id="evaluate", nproc_per_node=1, deferrable=True)(stages.evaluate)

    data = preprocess(fraction="{{ params.fraction }}")
    model = train(data["train"], epochs="{{ params.epochs }}")
    evaluate(model["model"], data["train"], data["test"])


flights()
