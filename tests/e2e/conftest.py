"""One private Airflow for all end-to-end tests, and the records of the stages that run in it."""

from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from rallypoint.worker.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rallypoint.stages.attempt import Snapshot

ROOT = Path(__file__).resolve().parents[2]
MODES = ("in_worker", "in_triggerer")  # where a stage waits for its job: synchronous, and deferred


@dataclass
class RealAirflow:
    """A running Airflow, and what Rallypoint has on record in it."""

    instance: AirflowInstance
    api: AirflowApi
    tensorboard_port: int  # where a test may run the TensorBoard that the tasks' links lead to

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

    def wait_for_words(self, dag_id: str, run_id: str, task_id: str, *words: str) -> None:
        """Wait until the log of the first try has one of some words."""

        def log() -> str:
            return self.api.log(dag_id, run_id, task_id, 1)

        what = f"one of {words} in the log of {dag_id}.{task_id}"
        self.api.wait_until(lambda: any(word in log() for word in words) or None, what, timeout=120, explain=log)

    def jobs_alive(self, attempt: str) -> list[int]:
        """Return the living processes of an attempt."""
        return hostprocs.of_run(str(self.instance.home / "rallypoint" / "runs" / attempt))

    def start(self, dag_id: str, conf: dict[str, object] | None = None) -> str:
        self.api.wait_until_parsed(dag_id)
        run = self.api.trigger(dag_id, conf or {})
        self.api.unpause(dag_id)
        return run

    @contextmanager
    def alone(self, dag_id: str, conf: dict[str, object]) -> Iterator[str]:
        """Start a run of a DAG with a schedule, without one of the schedule's beside it, and pause the DAG at the end.

        A schedule makes a run as soon as its DAG is no longer paused, and others while Airflow lives.
        """
        run = self.start(dag_id, conf)

        def begun() -> bool | None:
            self.api.end_other_runs(dag_id, run)
            return self.api.dag_run(dag_id, run).state != "queued" or None

        try:
            self.api.wait_until(begun, f"{run} of {dag_id} to begin", timeout=60)
            yield run
        finally:
            self.api.pause(dag_id)

    @contextmanager
    def told(self, witness: Path, word: str) -> Iterator[None]:
        """Tell the code of a run to ``fail`` or to ``hold`` at some epoch, for as long as this lasts."""
        file = witness.with_name(f"{witness.name}.{word}")
        file.touch()
        try:
            yield
        finally:
            file.unlink()

    def wait_until_gone(self, snapshot: Snapshot) -> None:
        """Wait until no process of an attempt is alive."""
        attempt = snapshot.entry.record.id
        self.api.wait_until(lambda: not self.jobs_alive(attempt) or None, f"the end of {attempt}", timeout=40)


@pytest.fixture(scope="package")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealAirflow]:
    home = tmp_path_factory.mktemp("airflow")
    dags = home / "dags"
    shutil.copytree(ROOT / "dags", dags)
    shutil.copytree(ROOT / "tests" / "e2e" / "dags", dags, dirs_exist_ok=True)
    # The example's own schedule must not start runs beside the ones that a test triggers.
    env = {"AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True"}
    (tensorboard_port,) = free_ports(1)
    env["AIRFLOW__RALLYPOINT__TENSORBOARD_URL"] = f"http://127.0.0.1:{tensorboard_port}"
    env[faults.VARIABLE] = ",".join(f"{point}={home}/{point}" for point in faults.ORCHESTRATOR)
    instance = AirflowInstance(home / "home", dags, env=env, fast=True)
    try:
        instance.start()
        with AirflowApi(instance.url) as api:
            yield RealAirflow(instance, api, tensorboard_port)
    finally:
        strays = instance.stop()
    assert not strays, f"these jobs outlived the tests: {strays}"


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Where the stage waits for its job; the names of its DAGs begin with it."""
    mode: str = request.param
    return mode


@pytest.fixture(scope="session")
def in_both_modes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[str, Path], None]], None]:
    """Runs a check for a stage that waits in a worker and for one that is deferred, both at the same time.

    The check is called with the mode, and with the file to which its jobs append a line at the start of a process.
    """

    def run(check: Callable[[str, Path], None]) -> None:
        folder = tmp_path_factory.mktemp("witnesses")
        with ThreadPoolExecutor(len(MODES)) as pool:
            running = {mode: pool.submit(check, mode, folder / mode) for mode in MODES}
        for mode, done in running.items():
            if error := done.exception():
                error.add_note(f"the stage waited {mode}")
                raise error

    return run


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """The file to which a job appends a line at the start of every process."""
    return tmp_path / "witness.txt"
