"""An elastic gang on Slurm: it starts on the nodes it needs, and an array beside its job lets it grow."""

from __future__ import annotations

from contextlib import ExitStack, closing
from datetime import timedelta

import pytest
from elastic_training import SLOW, training
from gate import Gate

from rallypoint.launchers.base import Cursor, Phase
from rallypoint.launchers.slurm import SlurmLauncher
from rallypoint.launchers.slurm.states import Meaning
from rallypoint.spec.gang import Gang, Macro, Role
from rallypoint.spec.shipment import ARCHIVE, archive
from rallypoint.stages.rule import State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

# Each start leaves a line: which process, on which node. It ends with 0 when all are told to, or with what it is told.
WAIT = """
    import os, select, sys
    from pathlib import Path

    here, name = Path(sys.argv[1]), os.environ["RALLYPOINT_PROCESS"]
    with open(here / "starts", "a") as file:
        file.write(f"{name} {os.environ['SLURMD_NODENAME']}\\n")
    all_end, it_ends = (os.open(here / gate, os.O_RDONLY | os.O_NONBLOCK) for gate in ("go", f"end-{name}"))
    told, _, _ = select.select([all_end, it_ends], [], [], 600)
    sys.exit(0 if all_end in told else int(os.read(it_ends, 8)) if told else "nobody said that it may end")
"""


@pytest.fixture
def ends(tmp_path):
    """The gate of each process, which is opened with its exit code."""
    with ExitStack() as stack:
        names = ("p-0", "p-1", "p-2")
        yield {name: stack.enter_context(closing(Gate(tmp_path / f"end-{name}"))) for name in names}


@pytest.fixture
def elastic(script, gate, ends, tmp_path):
    """Makes an elastic gang of processes that wait to be told."""

    def make(least, most):
        argv = (Macro.PYTHON, "-m", "rallypoint.worker", "script", script(WAIT), str(tmp_path))
        role = Role(name="p", argv=argv, replicas=most, min_replicas=least)
        return Gang(name="test", roles=(role,), files={ARCHIVE: archive()})

    return make


@pytest.fixture
def starts(tmp_path):
    path = tmp_path / "starts"
    return lambda: path.read_text().splitlines() if path.exists() else []


def drain(slurm, node):
    slurm.command("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=kept for others")


async def ended(launcher, handle, until, deadline=SLOW):
    async def look():
        status = await launcher.poll(handle)
        return status if status.phase is not Phase.RUNNING else None

    return await until(look, deadline=deadline)


async def test_a_training_grows_when_there_is_a_node_loses_it_and_grows_again(
    engine_on, launcher, until, slurm, tmp_path
):
    drain(slurm, "n2")
    engine = engine_on(launcher)
    try:
        async with training(engine, tmp_path) as one:

            def states():
                return sorted(slurm.jobs(tmp_path / "runs" / one.attempt.record.id))

            await until(lambda: one.trains(1), deadline=SLOW)
            await until(lambda: states() == ["PENDING", "RUNNING"])
            slurm.command("scontrol", "update", "NodeName=n2", "State=RESUME")
            await until(lambda: one.trains(2), deadline=SLOW)
            slurm.kill_node("n2")
            slurm.command("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=it died")
            await until(lambda: one.trains(1), deadline=SLOW)
            await until(lambda: states() == ["PENDING", "RUNNING"])
            slurm.ensure_node("n2")
            await until(lambda: one.trains(2), deadline=SLOW)
            one.enough()
            await until(lambda: one.outcome, deadline=SLOW)
    finally:
        if "drain" in slurm.node_state("n2"):
            slurm.command("scontrol", "update", "NodeName=n2", "State=RESUME")
    assert one.outcome.state is State.SUCCEEDED, one.outcome.failure.render()
    assert one.outcome.result["world"] == 2
    assert [line.partition(" (")[0] for line in one.said if line.startswith("world size")] == [
        "world size 1 → 2",
        "world size 2 → 1",
        "world size 1 → 2",
    ]
    assert (await engine.ledger.last()).record.number == 1
    await until(lambda: states() == ["COMPLETED", "COMPLETED"])


async def test_a_cancel_ends_the_job_what_joined_it_and_what_waits(
    uri, elastic, starts, until, slurm, tmp_path, jobs_left
):
    launcher = SlurmLauncher.from_uri(uri(sbatch="--exclusive"))
    handle = await launcher.launch(elastic(1, 3), "rp-parts-1")
    await until(lambda: sorted(starts()) == ["p-0 n1", "p-1 n2"], deadline=SLOW)
    assert (await launcher.find("rp-parts-1")).details["job"] == handle.details["job"]
    logs = {chunk.process async for chunk in launcher.logs(handle, Cursor())}
    assert logs <= {"p-0", "p-1"}
    await until(lambda: "PENDING" in slurm.jobs(tmp_path / "runs" / "rp-parts-1"))
    await launcher.cancel(handle, timedelta(seconds=5))
    assert (await launcher.poll(handle)).reason == "cancelled"
    await until(lambda: not jobs_left())
    await until(lambda: nothing_is_there(launcher, "rp-parts-1"))


async def nothing_is_there(launcher, attempt):
    return all(job.meaning is not Meaning.THERE for job in await launcher._jobs_of(attempt))


async def test_a_node_that_joined_and_failed_joins_again(launcher, elastic, starts, until, gate, ends):
    handle = await launcher.launch(elastic(1, 2), "rp-again-1")
    await until(lambda: sorted(starts()) == ["p-0 n1", "p-1 n2"], deadline=SLOW)
    ends["p-1"].open("1")
    await until(lambda: starts().count("p-1 n2") == 2, deadline=SLOW)
    assert (await launcher.poll(handle)).phase is Phase.RUNNING
    gate.open()
    status = await ended(launcher, handle, until)
    assert status.reason == "completed", status
    assert [(end.name, end.exit_code) for end in status.processes] == [("p-0", 0), ("p-1", 0)]


async def test_a_node_that_joined_and_is_preempted_joins_again(uri, elastic, starts, until, slurm, gate):
    launcher = SlurmLauncher.from_uri(uri("low"))
    handle = await launcher.launch(elastic(1, 2), "rp-low-1")
    await until(lambda: sorted(starts()) == ["p-0 n1", "p-1 n2"], deadline=SLOW)
    argv = ("--partition=high", "--nodelist=n2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 2")
    slurm.command("sbatch", *argv)
    await until(lambda: starts().count("p-1 n2") == 2, deadline=SLOW)
    assert (await launcher.poll(handle)).phase is Phase.RUNNING
    gate.open()
    status = await ended(launcher, handle, until)
    assert status.reason == "completed", status
    assert starts().count("p-0 n1") == 1


async def test_a_gang_that_fails_ends_what_joined_it(launcher, elastic, starts, until, ends, jobs_left):
    handle = await launcher.launch(elastic(1, 2), "rp-first-1")
    await until(lambda: len(starts()) == 2, deadline=SLOW)
    ends["p-0"].open("3")
    status = await ended(launcher, handle, until)
    assert (status.reason, [end.name for end in status.processes if end.first]) == ("failed", ["p-0"]), status
    await until(lambda: not jobs_left())
    await until(lambda: nothing_is_there(launcher, "rp-first-1"))


async def test_after_the_first_node_died_the_job_starts_on_the_one_that_had_joined_it(
    uri, elastic, starts, until, slurm, gate
):
    """The job waits for a node, and what had joined it gives its own back."""
    launcher = SlurmLauncher.from_uri(uri(sbatch="--exclusive"))
    handle = await launcher.launch(elastic(1, 2), "rp-head-1")
    await until(lambda: sorted(starts()) == ["p-0 n1", "p-1 n2"], deadline=SLOW)
    slurm.kill_node("n1")
    slurm.command("scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=it died")
    await until(lambda: "p-0 n2" in starts(), deadline=SLOW)
    slurm.ensure_node("n1")
    await until(lambda: "p-1 n1" in starts(), deadline=SLOW)
    gate.open()
    status = await ended(launcher, handle, until)
    assert status.reason == "completed", status
    assert [(end.name, end.exit_code) for end in status.processes] == [("p-0", 0), ("p-1", 0)]
    assert sorted(starts()) == ["p-0 n1", "p-0 n2", "p-1 n1", "p-1 n2"]
