"""One private Airflow for all end-to-end tests, and the records of the stages that run in it."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from airflow_api import AirflowApi
from airflow_instance import AirflowInstance

from rallypoint.launchers.registry import open_launcher
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.store import Store
from rallypoint.worker import faults, hostprocs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rallypoint.stages.attempt import Snapshot

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class RealAirflow:
    """A running Airflow, and what Rallypoint has on record in it."""

    instance: AirflowInstance
    api: AirflowApi

    def engine(self, dag_id: str, run_id: str, task_id: str) -> Engine:
        store = Store.open(self.instance.home / "rallypoint")
        return Engine(store, StageKey((dag_id, run_id, task_id)), open_launcher(f"local://{store.local_path}/runs"))

    def attempts(self, dag_id: str, run_id: str, task_id: str) -> list[Snapshot]:
        async def read() -> list[Snapshot]:
            engine = self.engine(dag_id, run_id, task_id)
            return [await engine.inspect(number) for number in await engine.ledger.numbers()]

        return asyncio.run(read())

    def wait_for_step(self, dag_id: str, run_id: str, task_id: str, step: int, *, attempt: int = 1) -> Snapshot:
        """Wait until an attempt has reported a step; the newest snapshot is returned."""

        def reached() -> Snapshot | None:
            found = [one for one in self.attempts(dag_id, run_id, task_id) if one.entry.record.number == attempt]
            return found[0] if found and (found[0].view.step or 0) >= step else None

        what = f"step {step} of attempt {attempt} of {dag_id}.{task_id}"
        return self.api.wait_until(reached, what, timeout=120, explain=lambda: self.api.describe(dag_id, run_id))

    def jobs_alive(self, attempt: str) -> list[int]:
        """Return the living processes of an attempt."""
        return hostprocs.of_run(str(self.instance.home / "rallypoint" / "runs" / attempt))

    def wait_alone(self, dag_id: str, run_id: str) -> None:
        """Wait until a run has begun, and end the one that the DAG's own schedule makes beside it."""

        def begun() -> bool | None:
            self.api.end_other_runs(dag_id, run_id)
            return self.api.dag_run(dag_id, run_id).state != "queued" or None

        self.api.wait_until(begun, f"{run_id} of {dag_id} to begin", timeout=60)

    def start(self, dag_id: str, conf: dict[str, object] | None = None) -> str:
        self.api.wait_until_parsed(dag_id)
        run = self.api.trigger(dag_id, conf or {})
        self.api.unpause(dag_id)
        return run


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealAirflow]:
    home = tmp_path_factory.mktemp("airflow")
    dags = home / "dags"
    shutil.copytree(ROOT / "dags", dags)
    shutil.copytree(ROOT / "tests" / "e2e" / "dags", dags, dirs_exist_ok=True)
    # The example's own schedule must not start runs beside the ones that a test triggers.
    env = {"AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True"}
    env[faults.VARIABLE] = ",".join(f"{point}={home}/{point}" for point in faults.ORCHESTRATOR)
    instance = AirflowInstance(home / "home", dags, env=env, fast=True)
    try:
        instance.start()
        with AirflowApi(instance.url) as api:
            yield RealAirflow(instance, api)
    finally:
        strays = instance.stop()
    assert not strays, f"these jobs outlived the tests: {strays}"


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """The file to which a job appends a line at the start of every process."""
    return tmp_path / "witness.txt"
