"""Flight delays as a Prefect flow: the pipeline of `dags/flights.py`, over the same functions.

``python flows/flights.py`` serves it as a deployment that an event starts: new data have arrived. Retrying a failed run
from the UI returns what had succeeded, and continues what had not.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, serve
from prefect.events import DeploymentEventTrigger

from rallypoint import RayCluster, RayServe
from rallypoint.examples import flights as stages
from rallypoint.prefect import dask_task, python_task, ray_tune_task, reaper_deployment, run_stage, service, torch_task

MODEL = "rallypoint://flights/model"
ARRIVED = "flights.data.arrived"  # the event; its payload may set the flow's parameters

preprocess = dask_task(name="preprocess", retries=1)(stages.preprocess)
train = torch_task(name="train", nproc_per_node=2, max_restarts=1, retries=1, assets=[MODEL])(stages.train)
tune = ray_tune_task(name="tune", retries=1, **stages.SWEEP)(stages.train)
evaluate = torch_task(name="evaluate", nproc_per_node=1)(stages.evaluate)
smoke = python_task(name="smoke", retries=1)(stages.smoke)


@flow(name="flights")
def flights(  # noqa: PLR0913, PLR0917 - the form of a run
    fraction: float = 1.0,
    epochs: int = 6,
    processes: int = 2,
    trials: int = 12,
    serve_port: int = 8000,
    launcher: str | None = None,
) -> dict[str, Any]:
    """Predict which flights arrive more than 15 minutes late.

    Args:
        fraction: Share of the flights to use.
        epochs: Passes over the training months.
        processes: Processes of the distributed training.
        trials: Trials of the sweep.
        serve_port: Port of the served model on the host that it runs on.
        launcher: Where the stages run: a block such as ``"rallypoint-ssh-hosts/gpus"``, or a URI; by default where the
            environment says.
    """
    data = preprocess.with_options(launcher=launcher)(fraction=fraction)
    trained = train.with_options(nproc_per_node=processes, launcher=launcher)(data["train"], epochs=epochs)
    cluster = RayCluster(workers=0, head_cpus=2, object_store_memory="200MiB")
    with service(cluster, name="ray-cluster", launcher=launcher) as ray:
        tuned = tune.with_options(address=ray, num_samples=trials, launcher=launcher)(data["train"], epochs=epochs)
        model = stages.better(trained, tuned)
        metrics = evaluate.with_options(launcher=launcher)(model, data["train"], data["test"])
        application = RayServe(
            name="flights",
            dashboard_url=ray,
            import_path="rallypoint.examples.flights.serving:app",
            args={"model": model},
            ship_rallypoint=True,
            http_host="127.0.0.1",
            http_port=serve_port,
        )
        served = run_stage(application, name="serve", launcher=launcher)
        answers = smoke.with_options(launcher=launcher)(served["url"], model, data["test"])
    return {"metrics": metrics, "answers": answers}


def _of_payload(name: str, default: float) -> dict[str, Any]:
    """Return the template of a parameter: the event's payload may leave it out, and a number stays one."""
    template = f"{{{{ event.payload.{name} | default({default}) | tojson }}}}"
    return {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": template}}


DEFAULTS = {"fraction": 1.0, "epochs": 6, "processes": 2, "trials": 12, "serve_port": 8000}
NEW_DATA = DeploymentEventTrigger(
    name="flights: new data",
    expect={ARRIVED},
    parameters={name: _of_payload(name, default) for name, default in DEFAULTS.items()},
)


if __name__ == "__main__":
    serve(flights.to_deployment("on-new-data", triggers=[NEW_DATA]), reaper_deployment())
