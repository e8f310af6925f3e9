"""Stages on a real Ray cluster in a real Airflow: the promises hold, and what a user sees is true."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
from ray_head import RayHead

from rallypoint.worker.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SOON = 180.0  # seconds that a job may take to start, stop or be found again on a busy machine


@pytest.fixture(scope="module")
def ray() -> Iterator[RayHead]:
    """A Ray cluster, for as long as these tests take."""
    with RayHead(num_cpus=4) as cluster:
        yield cluster
    assert not cluster.left(), "processes of the Ray cluster outlived the tests"


@dataclass
class Run:
    """A DAG run whose one stage is a job on the cluster."""

    airflow: Any
    ray: RayHead
    dag_id: str
    run_id: str
    task_id: str
    witness: Path

    @property
    def names(self) -> tuple[str, str, str]:
        return self.dag_id, self.run_id, self.task_id

    @property
    def hold(self) -> Path:
        """The file while which the job waits."""
        return Path(f"{self.witness}.hold")

    def lines(self) -> list[str]:
        return self.witness.read_text().splitlines() if self.witness.exists() else []

    def wait_for_line(self, line: str) -> None:
        self.wait(lambda: line in self.lines() or None, f"{line!r} in the witness file of {self.dag_id}")

    def wait(self, condition: Any, what: str) -> Any:
        explain = lambda: self.airflow.api.describe(self.dag_id, self.run_id)  # noqa: E731 - an argument with a name
        return self.airflow.api.wait_until(condition, what, timeout=SOON, explain=explain)

    def wait_for_end(self, state: str = "success") -> None:
        self.airflow.api.wait_for_run(self.dag_id, self.run_id, state=state, timeout=SOON)

    def attempts(self) -> list[Any]:
        return self.airflow.attempts(*self.names)

    def jobs(self) -> dict[str, str]:
        """Return the stage's jobs as Ray knows them: their states by submission id."""
        attempt = self.attempts()[0].entry.record.id.removesuffix("-a1")
        jobs = {job["submission_id"]: job["status"] for job in self.ray.get("/api/jobs/", timeout=30)}
        return {name: status for name, status in jobs.items() if name and name.startswith(f"{attempt}-a")}

    def wait_for_jobs(self, *statuses: str) -> None:
        """Wait until Ray says of the stage's jobs, in the order of their attempts, where they stand."""
        what = f"the jobs of {self.dag_id} to be {', '.join(statuses)}"
        self.wait(lambda: tuple(status for _, status in sorted(self.jobs().items())) == statuses or None, what)


@pytest.fixture(scope="module")
def runs(airflow, ray, tmp_path_factory) -> dict[str, Run]:
    """One run for each test, all of them started at once: most of their time is Airflow's and Ray's waiting."""
    where = urlsplit(ray.dashboard_url)
    body = {"connection_id": "ray_cluster", "conn_type": "ray", "host": where.hostname, "port": where.port}
    airflow.api.request("POST", "/connections", json=body)
    folder = tmp_path_factory.mktemp("ray")

    def start(name: str, dag_id: str, task_id: str = "work", *, fail: bool = False) -> Run:
        witness = folder / name
        Path(f"{witness}.{'fail' if fail else 'hold'}").touch()
        return Run(airflow, ray, dag_id, airflow.start(dag_id, {"witness": str(witness)}), task_id, witness)

    served = Run(airflow, ray, "ray_served", airflow.start("ray_served", {"port": free_ports(1)[0]}), "back", folder)
    return {
        "served": served,
        "killed": start("killed", "ray_synchronous"),
        "cleared": start("cleared", "ray_sweep", "tune"),
        "marked": start("marked", "ray_deferred"),
        "failing": start("failing", "ray_deferred", fail=True),
    }


def test_a_killed_worker_leads_to_reattachment_to_the_ray_job_by_its_submission_id(airflow, runs):
    run = runs["killed"]
    run.wait_for_line("attempt 1")
    process = airflow.instance.task_process(airflow.api.task_instance(*run.names).id)
    for victim in (process.parent(), process):
        os.kill(victim.pid, signal.SIGKILL)
    airflow.api.wait_for_task(*run.names, "running", timeout=SOON, try_number=2)
    run.wait(lambda: "reattached" in airflow.api.log(*run.names, 2) or None, "the second try to reattach")
    run.wait_for_jobs("RUNNING")
    run.hold.unlink()
    run.wait_for_end()
    assert airflow.api.xcom(*run.names) == {"attempt": 1, "connected": True}
    assert run.lines() == ["attempt 1"]
    assert run.jobs() == {run.attempts()[0].entry.record.id: "SUCCEEDED"}


def test_the_link_to_a_jobs_page_is_there_from_the_start_and_marking_its_task_failed_stops_the_job(airflow, runs, ray):
    run = runs["marked"]
    run.wait_for_line("attempt 1")
    links = airflow.api.links(*run.names)
    assert links.keys() == {"Rallypoint stage", "Ray dashboard", "Ray job"}
    gone_to = httpx.get(airflow.instance.url + links["Ray job"], timeout=30).headers["Location"]
    (job,) = run.jobs()
    assert gone_to == f"{ray.dashboard_url}/#/jobs/{job}"
    run.wait_for_jobs("RUNNING")
    airflow.api.mark(*run.names, "failed")
    run.wait_for_jobs("STOPPED")
    run.wait(lambda: run.attempts()[0].state == "cancelled" or None, "the attempt to be cancelled")
    assert run.lines() == ["attempt 1"]


def test_a_failed_job_is_a_red_task_whose_log_names_the_first_cause(airflow, runs):
    run = runs["failing"]
    run.wait_for_end("failed")
    log = airflow.api.log(*run.names)
    assert "ValueError: the loss is NaN" in log
    assert "what to do:" in log
    assert airflow.api.task_instance(*run.names).state == "failed"
    run.wait_for_jobs("FAILED")


def test_clearing_a_deferred_sweep_stops_its_job_and_runs_no_finished_trial_again(airflow, runs):
    run = runs["cleared"]
    run.wait_for_line("attempt 1 width 2")
    store = airflow.instance.home / "rallypoint"
    records = lambda: list(store.glob("stages/ray_sweep/**/experiment_state*.json"))  # noqa: E731 - said twice
    mark = run.witness.stat().st_mtime + 3  # Ray Tune's record may be so late
    run.wait(lambda: any(path.stat().st_mtime > mark for path in records()) or None, "the record of the first trial")
    airflow.api.clear(run.dag_id, run.run_id, [run.task_id])
    run.wait(lambda: run.attempts()[0].state == "cancelled" or None, "the first attempt to be cancelled")
    run.wait_for_line("attempt 2 width 2")
    run.wait_for_jobs("STOPPED", "RUNNING")
    run.hold.unlink()
    run.wait_for_end()
    assert run.lines() == [
        *("attempt 1 width 1", "attempt 1 width 2", "attempt 2 width 2", "attempt 2 width 3"),
    ]
    result = airflow.api.xcom(*run.names)
    assert (result["config"], result["trials"]["finished"]) == ({"width": 1}, 3)
    run.wait_for_jobs("STOPPED", "SUCCEEDED")


def test_an_application_is_deployed_rolled_back_by_its_name_and_removed(airflow, runs, ray):
    run = runs["served"]
    run.wait_for_end()
    first, second, back, gone = (
        airflow.api.xcom(run.dag_id, run.run_id, task) for task in ("first", "second", "back", "gone")
    )
    assert [each["version"] for each in (first, second, back, gone)] == [1, 2, 3, 4]  # each had its probe answered
    assert (back["url"], gone["removed"]) == (first["url"], True)
    assert ray.get("/api/serve/applications/", timeout=30)["applications"] == {}
