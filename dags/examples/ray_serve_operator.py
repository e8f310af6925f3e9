"""`RayServeOperator`: deploy to a running Ray cluster, ask the application, and keep what ran before if it fails."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param, dag, task

from rallypoint import ServeProbe
from rallypoint.airflow.operators import RayServeOperator


@dag(
    schedule=None,
    tags=["rallypoint", "example"],
    doc_md=__doc__,
    params={
        "dashboard_url": Param("http://127.0.0.1:8265", type="string", description="The Ray dashboard"),
        "text": Param("hello", type="string", description="What the application answers"),
    },
)
def example_ray_serve_operator() -> None:
    """Deploy an echo with two replicas at most; run it again with another text, and roll back from the CLI."""
    deployed = RayServeOperator(
        task_id="deploy",
        name="echo",
        dashboard_url="{{ params.dashboard_url }}",
        import_path="rallypoint.examples.echo:app",
        ship_rallypoint=True,  # the cluster needs no installation of it
        route_prefix="/echo",
        app_args={"text": "{{ params.text }}"},
        deployments=[{"name": "Echo", "autoscaling_config": {"min_replicas": 1, "max_replicas": 2}}],
        probe=ServeProbe(expect={"ok": True}),
        http_host="127.0.0.1",  # where Serve listens, if this is the first deploy on the cluster
        deferrable=True,
        retries=1,
    )

    @task
    def show(application: dict[str, Any]) -> None:
        print(f"version {application['version']} answers at {application['url']}")

    show(deployed.output)


example_ray_serve_operator()
