"""Flight delays: Dask preprocessing, elastic PyTorch training, a Ray Tune sweep, evaluation, and Ray Serve.

Thin on purpose: the stage functions are in `rallypoint.examples.flights`, which a Prefect flow shares. Only small JSON
goes through XCom; data and models go by URI. The Ray cluster lives for this run: its teardown ends it, and the model
that is served with it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import Asset, Param, dag, task

from rallypoint.airflow.operators import RayServeOperator
from rallypoint.airflow.operators.ray_cluster import ray_cluster
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
        "trials": Param(12, type="integer", minimum=1, description="Trials of the sweep, at most six epochs each"),
        "launcher": Param(
            None,
            type=["null", "string"],
            description="Connection that says where the jobs of this run run, such as one of the type ssh or slurm; by "
            "default where the Rallypoint connection says",
        ),
        "serve_port": Param(
            8000, type="integer", minimum=1, description="Port of the served model on the host that it runs on"
        ),
    },
)
def flights() -> None:
    """Predict which flights arrive more than 15 minutes late."""
    place = {"launcher_conn_id": "{{ params.launcher or '' }}"}
    retry = {"retries": 1, "retry_delay": timedelta(seconds=5), "deferrable": True, **place}

    preprocess = task.dask(task_id="preprocess", **retry)(stages.preprocess)
    train = task.torch(
        task_id="train", nproc_per_node="{{ params.processes }}", max_restarts=1, outlets=[MODEL], **retry
    )(stages.train)
    better = task(task_id="better")(stages.better)
    evaluate = task.torch(task_id="evaluate", nproc_per_node=1, deferrable=True, **place)(stages.evaluate)
    smoke = task.python_job(task_id="smoke", **retry)(stages.smoke)

    data = preprocess(fraction="{{ params.fraction }}")
    trained = train(data["train"], epochs="{{ params.epochs }}")
    with ray_cluster(workers=0, head_cpus=2, object_store_memory="200MiB", **place) as ray:
        tune = task.ray_tune(
            task_id="tune", address=ray.address, num_samples="{{ params.trials }}", **stages.SWEEP, **retry
        )
        tuned = tune(stages.train)(data["train"], epochs="{{ params.epochs }}")
        model = better(trained, tuned)
        evaluated = evaluate(model, data["train"], data["test"])
        serve = RayServeOperator(
            task_id="serve",
            name="flights",
            dashboard_url=ray.address,
            import_path="rallypoint.examples.flights.serving:app",
            app_args={"model": model},
            ship_rallypoint=True,
            http_host="127.0.0.1",
            http_port="{{ params.serve_port }}",
            multiple_outputs=True,
            **retry,
        )
        evaluated >> serve
        smoke(serve.output["url"], model, data["test"])
    trained >> ray.start


flights()
