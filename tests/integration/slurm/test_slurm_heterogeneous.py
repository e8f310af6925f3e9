"""Gangs whose nodes need different things, on a real Slurm: a job of components that live and die together."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from rallypoint import Resources
from rallypoint.launchers.base import Phase
from rallypoint.launchers.slurm import SlurmLauncher
from rallypoint.spec.gang import Gang, Macro, Role
from rallypoint.spec.shipment import ARCHIVE, archive

pytestmark = pytest.mark.engine

# Each start leaves a line; a process stays until it is told to go.
CODE = """
    import json, os, select, sys
    from pathlib import Path
    here = Path(sys.argv[1])
    with open(here / os.environ["RALLYPOINT_PROCESS"], "a") as file:
        print(json.dumps([os.environ["SLURMD_NODENAME"], os.environ["SLURM_JOB_ID"], sys.argv[2]]), file=file)
    select.select([os.open(here / "go", os.O_RDONLY | os.O_NONBLOCK)], [], [], 600)
"""


@pytest.fixture
def gang(script, gate, tmp_path):
    """A head of one CPU that says its port, and a worker that needs more."""
    argv = (Macro.PYTHON, "-m", "rallypoint.worker", "script", script(CODE), str(tmp_path), Macro.port("head"))
    head = Role(name="head", argv=argv, ports=("head",))
    worker = Role(name="worker", argv=argv, resources=Resources(cpus=2, memory="200MiB"))
    return Gang(name="cluster", roles=(head, worker), files={ARCHIVE: archive()})


def starts(tmp_path, name):
    path = tmp_path / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def components(slurm, name):
    """Return the CPUs, memory and node of each component of a job."""
    said = slurm.command("squeue", "--noheader", f"--name={name}", "--sort=i", "--format=%C %m %N")
    return [line.split() for line in said.splitlines()]


async def ended(launcher, handle, until):
    async def look():
        status = await launcher.poll(handle)
        return status if status.phase is not Phase.RUNNING else None

    return await until(look, deadline=120)


async def test_each_node_has_what_its_process_asks_for_and_all_belong_together(
    launcher, gang, until, slurm, gate, tmp_path, jobs_left
):
    handle = await launcher.launch(gang, "rp-cluster-1")
    await until(lambda: len(starts(tmp_path, "head-0") + starts(tmp_path, "worker-0")) == 2)
    assert [(cpus, node) for cpus, _, node in components(slurm, "rp-cluster-1")] == [("1", "n1"), ("2", "n2")]
    job = str(handle.details["job"])
    ((_, _, port),) = starts(tmp_path, "head-0")
    assert starts(tmp_path, "head-0") == [["n1", job, port]]
    assert starts(tmp_path, "worker-0") == [["n2", job, port]]
    assert (await launcher.find("rp-cluster-1")).details["job"] == handle.details["job"]
    gate.open()
    status = await ended(launcher, handle, until)
    assert status.reason == "completed", status
    assert [(end.name, end.exit_code) for end in status.processes] == [("head-0", 0), ("worker-0", 0)]
    await until(lambda: not jobs_left())


async def test_a_node_of_one_component_that_is_lost_puts_the_whole_job_back_into_the_queue(
    launcher, gang, until, slurm, gate, tmp_path
):
    handle = await launcher.launch(gang, "rp-cluster-2")
    await until(lambda: len(starts(tmp_path, "head-0") + starts(tmp_path, "worker-0")) == 2)
    slurm.kill_node("n2")
    slurm.command("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=it died")
    gate.open()
    slurm.ensure_node("n2")
    status = await ended(launcher, handle, until)
    assert status.reason == "completed", status
    assert (len(starts(tmp_path, "head-0")), len(starts(tmp_path, "worker-0"))) == (2, 2)


async def test_who_says_how_many_nodes_there_are_gets_equal_ones(uri, gang, until, slurm, tmp_path):
    launcher = SlurmLauncher.from_uri(uri(nodes=2))
    handle = await launcher.launch(gang, "rp-cluster-3")
    await until(lambda: components(slurm, "rp-cluster-3") == [["4", "200M", "n[1-2]"]])
    await launcher.cancel(handle, timedelta(seconds=1))
