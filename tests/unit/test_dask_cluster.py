"""A temporary Dask cluster as data: its gang, and how jobs name it."""

from __future__ import annotations

import json

import pytest

from rallypoint import DaskCluster, DaskJob, Script
from rallypoint.errors import InvalidJobError
from rallypoint.spec.gang import Macro

SCRIPT = Script("/jobs/a.py")
REF = {"store": "file:///store", "stage": ["d", "r", "dask_cluster"], "attempt": 1, "lease": 900}
ADDRESS = {"address": "tcp://10.0.0.1:8786", "dashboard_url": "http://10.0.0.1:1", "service": REF, "uses": []}


def _settings(role):
    return json.loads(role.argv[-1])


def test_a_cluster_is_a_scheduler_and_workers_that_know_where_it_is():
    gang = DaskCluster(workers=3, threads_per_worker=2, memory_per_worker="1GiB").plan()
    scheduler, worker = gang.roles
    assert (gang.service, gang.lease, gang.stall_timeout) == (True, 900, None)
    assert (scheduler.replicas, scheduler.ports, worker.replicas) == (1, ("scheduler",), 3)
    assert _settings(scheduler)["workers"] == ["worker-0", "worker-1", "worker-2"]
    settings = _settings(worker)
    assert settings["scheduler"] == f"tcp://{Macro.HOST}:{Macro.port('scheduler')}"
    assert (settings["threads"], settings["memory"], settings["host"]) == (2, 1 << 30, Macro.ADDRESS)
    assert (worker.resources.cpus, worker.resources.memory_bytes) == (2, 1 << 30)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "DaskCluster(workers=…): got 0, expected a whole number, 1 or more"),
        ({"threads_per_worker": True}, "DaskCluster(threads_per_worker=…): got True"),
        ({"memory_per_worker": "lots"}, "DaskCluster(memory_per_worker=…): got 'lots'"),
        ({"start_timeout": 0}, "DaskCluster(start_timeout=…): got 0, expected seconds above 0"),
        ({"lease": 0}, "DaskCluster(lease=…): got 0"),
    ],
)
def test_a_wrong_value_is_named(options, words):
    with pytest.raises(InvalidJobError) as error:
        DaskCluster(**options)
    assert words in str(error.value)


@pytest.mark.parametrize("given", [ADDRESS, json.dumps(ADDRESS), str(ADDRESS)])
def test_a_job_runs_on_it_and_keeps_it_alive(given):
    job = DaskJob(SCRIPT, cluster=given)
    (role,) = job.roles()
    assert json.loads(role.argv[3])["address"] == "tcp://10.0.0.1:8786"
    assert [ref.stage for ref in job.services()] == [("d", "r", "dask_cluster")]


def test_another_address_object_is_refused():
    with pytest.raises(InvalidJobError, match="the result of a DaskCluster stage"):
        DaskJob(SCRIPT, cluster={"master": "spark://10.0.0.1:7077"})
