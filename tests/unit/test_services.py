"""Services report that they are ready, are named by who uses them, and live while somebody renews their lease."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.ray.cluster import RayCluster, RayWorkers
from rallypoint.launchers.base import Handle, Phase, ProcessEnd, Status
from rallypoint.launchers.placement import place
from rallypoint.spec.entry import Script
from rallypoint.spec.gang import Role
from rallypoint.spec.job import Job
from rallypoint.spec.service import ServiceRef, services_of
from rallypoint.spec.service_job import ServiceJob
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.events import Event
from rallypoint.stages.key import StageKey
from rallypoint.stages.rule import Action, State
from rallypoint.stages.store import Store
from rallypoint.stages.view import AttemptView
from rallypoint.worker import context
from rallypoint.worker.lease import LeaseWatch

INTERVAL = timedelta(seconds=0.01)
ADDRESS = {"address": "here:1"}


@dataclass(frozen=True, kw_only=True)
class Cluster(ServiceJob):
    kind: ClassVar[str] = "cluster"

    workers: int = 2

    def roles(self):
        return (Role(name="p", argv=("serve",)),)


@dataclass(frozen=True, kw_only=True)
class Train(Job):
    kind: ClassVar[str] = "train"

    def roles(self):
        return (Role(name="p", argv=("train",)),)


@dataclass
class MemoryLauncher:
    """`Launcher`'s contract, where what happens to a gang is said by the test."""

    uri = "memory://here"
    gangs: dict[str, Any] = field(default_factory=dict)
    ends: dict[str, Status] = field(default_factory=dict)

    async def launch(self, gang, attempt):
        self.gangs.setdefault(attempt, gang)
        return Handle(self.uri, attempt)

    async def find(self, attempt):
        return Handle(self.uri, attempt) if attempt in self.gangs else None

    async def poll(self, handle):
        return self.ends.get(handle.attempt, Status(Phase.RUNNING))

    async def cancel(self, handle, grace):
        self.ends.setdefault(handle.attempt, Status(Phase.ENDED, "cancelled"))

    async def logs(self, handle, cursor):
        for chunk in ():
            yield chunk

    def say(self, attempt, event, **data):
        """Let the gang's process write an event."""
        folder = Path(self.gangs[attempt].roles[0].env[context.EVENTS_URI].removeprefix("file://"))
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "p-0.jsonl").open("a") as file:
            file.write(json.dumps({"v": 1, "t": time.time(), "event": event, "process": "p-0", **data}) + "\n")


@pytest.fixture
def launcher():
    return MemoryLauncher()


@pytest.fixture
def stage(tmp_path, launcher):
    store = Store.open(tmp_path / "store")
    return lambda name: Engine(store, StageKey(("flights", "r1", name)), launcher)


async def start(engine, job=None, **request):
    return await engine.start(job or Cluster(), Request(**{"owner": "try-1", **request}))


async def last_of(engine, started, **more):
    async for update in engine.watch(started.attempt, interval=INTERVAL, **more):
        last = update
    return last


async def a_ready_one(engine, launcher, job=None, **request):
    started = await start(engine, job, **request)
    launcher.say(started.attempt.record.id, "ready", address=ADDRESS)
    return started, (await last_of(engine, started)).ready


# Ready ---------------------------------------------------------------------------------------------------------------


async def test_a_stage_of_a_service_ends_with_its_address_while_it_lives_on(stage, launcher):
    engine = stage("cluster")
    started, ready = await a_ready_one(engine, launcher)
    ref = {"store": engine.store.uri, "stage": ["flights", "r1", "cluster"], "attempt": 1, "lease": 900.0}
    assert ready == {**ADDRESS, "service": ref, "uses": []}
    assert (await engine.read(1)).outcome is None
    shown = await engine.inspect(1)
    assert (shown.state, shown.ready) == (State.LIVE, ready)
    assert started.attempt.record.service


async def test_a_service_that_ends_before_it_is_ready_has_failed(stage, launcher):
    engine = stage("cluster")
    started = await start(engine)
    attempt = started.attempt.record.id
    launcher.say(attempt, "opened", kind="process", host="here", pid=1)
    launcher.say(attempt, "closed", exit_code=0)
    launcher.ends[attempt] = Status(Phase.ENDED, "completed", (ProcessEnd("p-0", 0),))
    last = await last_of(engine, started)
    assert last.ready is None
    assert (last.outcome.state, last.outcome.failure.title) == (State.FAILED, "the service ended by itself")


async def test_what_a_job_says_of_its_address_does_not_name_other_services(stage, launcher):
    engine = stage("cluster")
    started = await start(engine)
    forged = {"store": "file:///etc", "stage": ["x"], "attempt": 1, "lease": 1}
    launcher.say(started.attempt.record.id, "ready", address={**ADDRESS, "service": forged, "uses": [forged]})
    ready = (await last_of(engine, started)).ready
    assert (ready["service"]["store"], ready["uses"]) == (engine.store.uri, [])


@pytest.mark.parametrize("address", [None, "here:1", ["here"], {"address": "x" * 20_000}])
def test_an_address_that_is_no_small_object_is_none(address):
    view = AttemptView()
    view.apply([Event("ready", "p-0", 1.0, {"address": address})])
    assert view.ready is None


async def test_a_job_that_is_no_service_is_not_ready_whatever_it_says(stage, launcher):
    engine = stage("train")
    started = await start(engine, Train(Script("/train.py")))
    launcher.say(started.attempt.record.id, "ready", address=ADDRESS)
    launcher.ends[started.attempt.record.id] = Status(Phase.ENDED, "cancelled")
    assert (await last_of(engine, started)).ready is None


# Again ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marker", [0, 1], ids=["retry", "clear"])
async def test_a_live_service_is_reattached_also_when_a_task_that_uses_it_was_cleared(stage, launcher, marker):
    engine = stage("cluster")
    _, ready = await a_ready_one(engine, launcher, marker=0)
    again = await start(engine, owner="try-2", marker=marker)
    assert again.decision.action is Action.REATTACH
    assert (await last_of(engine, again)).ready == ready
    assert len(launcher.gangs) == 1


async def test_a_cleared_service_of_another_size_is_a_new_one(stage, launcher):
    engine = stage("cluster")
    await a_ready_one(engine, launcher, marker=0)
    again, ready = await a_ready_one(engine, launcher, Cluster(workers=3), owner="try-2", marker=1)
    assert "workers changed" in again.decision.why
    assert ready["service"]["attempt"] == 2
    assert (await engine.read(1)).outcome.state is State.CANCELLED


async def test_after_its_teardown_the_next_try_starts_a_new_one(stage, launcher):
    engine = stage("cluster")
    await a_ready_one(engine, launcher, marker=0)
    assert await engine.cancel(1, owner=None, why="its teardown task ran")
    _, ready = await a_ready_one(engine, launcher, owner="try-2", marker=1)
    assert ready["service"]["attempt"] == 2


async def test_the_owner_of_a_ready_service_may_still_stop_it_and_nobody_else(stage, launcher):
    engine = stage("cluster")
    await a_ready_one(engine, launcher)
    assert not await engine.cancel(1, owner="try-0", why="an old trigger")
    assert await engine.cancel(1, owner="try-1", why="its task was marked")


def test_a_services_fingerprint_is_its_parameters_and_not_its_lease():
    one = RayCluster(workers=2)
    assert one.fingerprint() == RayCluster(workers=2, lease=60).fingerprint()
    assert one.fingerprint() != RayCluster(workers=2, cpus_per_worker=4).fingerprint()


# Leases --------------------------------------------------------------------------------------------------------------


async def renewal(engine, number=1):
    return (await engine.store.get(engine.ledger.lease_path(number))) or b""


async def changes(engine, before, deadline=20):
    end = time.monotonic() + deadline
    while await renewal(engine) == before:
        assert time.monotonic() < end, f"the lease was not renewed within {deadline} s"
        await asyncio.sleep(0.02)


async def test_who_waits_for_a_service_renews_its_lease_until_it_is_ready(stage, launcher):
    engine = stage("cluster")
    started = await start(engine, Cluster(lease=1))
    waiting = asyncio.create_task(last_of(engine, started))
    for _ in range(2):
        await changes(engine, await renewal(engine))
    launcher.say(started.attempt.record.id, "ready", address=ADDRESS)
    await waiting
    holding = asyncio.create_task(last_of(engine, started, hold=True))
    for _ in range(2):
        await changes(engine, await renewal(engine))
    assert not holding.done()
    await engine.cancel(1, owner=None, why="Ctrl-C")
    assert (await holding).outcome.state is State.CANCELLED


async def test_who_waits_for_a_stage_that_uses_services_renews_theirs_and_those_they_build_on(stage, launcher):
    cluster, more, train = stage("cluster"), stage("more"), stage("train")
    _, address = await a_ready_one(cluster, launcher, Cluster(lease=1))
    _, more_address = await a_ready_one(more, launcher, Cluster(lease=1, uses=[address]))
    assert [ref["stage"][-1] for ref in more_address["uses"]] == ["cluster"]
    started = await start(train, Train(Script("/train.py"), uses=[more_address]))
    waiting = asyncio.create_task(last_of(train, started))
    for engine in (cluster, more):
        await changes(engine, await renewal(engine))
    launcher.ends[started.attempt.record.id] = Status(Phase.ENDED, "cancelled")
    await waiting


async def test_the_lease_of_a_service_that_has_ended_is_not_written_again(stage, launcher):
    cluster, train = stage("cluster"), stage("train")
    _, address = await a_ready_one(cluster, launcher)
    await cluster.cancel(1, owner=None, why="its teardown task ran")
    await cluster.store.delete(cluster.ledger.lease_path(1))
    started = await start(train, Train(Script("/train.py"), uses=[address]))
    launcher.ends[started.attempt.record.id] = Status(Phase.ENDED, "cancelled")
    await last_of(train, started)
    assert await renewal(cluster) == b""


async def test_a_service_in_a_store_that_is_out_of_reach_does_not_fail_the_stage_that_uses_it(stage, launcher, caplog):
    train = stage("train")
    ref = ServiceRef(store="file:///proc/nowhere", stage=("a",), attempt=1, lease=10)
    started = await start(train, Train(Script("/train.py"), uses=[{"service": ref.to_json()}]))
    launcher.ends[started.attempt.record.id] = Status(Phase.ENDED, "cancelled")
    assert (await last_of(train, started)).outcome.state is State.CANCELLED
    assert "service a (attempt 1) has ended" in caplog.text or "could not be renewed" in caplog.text


def test_a_supervisor_is_told_where_the_lease_is(stage, launcher, tmp_path):
    started = asyncio.run(start(stage("cluster"), Cluster(lease=7)))
    gang = launcher.gangs[started.attempt.record.id]
    spec = place(gang, attempt="rp-x-1-a1", run_dir=str(tmp_path), python="python")
    uri = f"file://{tmp_path}/store/stages/flights/r1/cluster/attempts/000001/lease.json"
    assert spec["lease"] == {"uri": uri, "seconds": 7}


def test_a_gang_without_a_lease_has_none_to_watch(stage, launcher, tmp_path):
    started = asyncio.run(start(stage("cluster"), Cluster(lease=None)))
    gang = launcher.gangs[started.attempt.record.id]
    assert place(gang, attempt="rp-x-1-a1", run_dir=str(tmp_path), python="python")["lease"] is None


def until(condition, deadline=20):
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_lease_expires_when_its_file_stops_changing(tmp_path):
    file = tmp_path / "lease.json"
    file.write_text("1")
    watch = LeaseWatch(f"file://{file}", 1.0)
    for number in range(15):  # longer than the lease in all
        file.write_text(str(number))
        time.sleep(0.1)
        assert not watch.expired
    until(lambda: watch.expired)


def test_a_lease_that_was_never_written_expires(tmp_path):
    watch = LeaseWatch(f"file://{tmp_path}/lease.json", 0.2)
    until(lambda: watch.expired)


def test_a_lease_in_a_bucket_is_read_there(s3_store_uri, monkeypatch):
    uri, options = s3_store_uri
    store = Store.open(uri, options=options)
    for name, value in {**store.job_env(), "AWS_ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(name, value)
    watch = LeaseWatch(f"{uri}/a/lease.json", 2.0)
    began = time.monotonic()
    while time.monotonic() - began < 3:
        asyncio.run(store.put("a/lease.json", str(time.monotonic()).encode()))
        assert not watch.expired
    until(lambda: watch.expired)


# Who names a service -------------------------------------------------------------------------------------------------

REF = {"store": "file:///store", "stage": ["d", "r", "cluster"], "attempt": 1, "lease": 900}


def test_a_reference_is_the_same_after_json():
    ref = ServiceRef.from_json(REF)
    assert ServiceRef.from_json(json.loads(json.dumps(ref.to_json()))) == ref


@pytest.mark.parametrize(
    "wrong",
    [
        None, "cluster", {}, {"service": None}, {"service": {}}, {"service": {**REF, "attempt": 0}},
        {"service": {**REF, "attempt": True}}, {"service": {**REF, "stage": []}}, {"service": {**REF, "stage": "d"}},
        {"service": {**REF, "stage": ["d", 1]}}, {"service": {**REF, "lease": -1}}, {"service": {**REF, "store": 1}},
        {"service": REF, "uses": [{}]}, {"service": REF, "uses": 1},
    ],
)  # fmt: skip
def test_what_is_no_address_object_is_refused_when_the_job_is_made(wrong):
    with pytest.raises(InvalidJobError, match="the address object that a service's stage returned"):
        Train(Script("/train.py"), uses=[wrong])


@pytest.mark.parametrize("wrong", ["{}", {"service": REF}, 3])
def test_uses_is_a_list(wrong):
    with pytest.raises(InvalidJobError, match="expected a list of address objects"):
        Train(Script("/train.py"), uses=wrong)


def test_each_service_is_named_once():
    job = Train(Script("/train.py"), uses=[{"service": REF}, {"service": {**REF, "attempt": 2}, "uses": [REF]}])
    assert [ref.attempt for ref in job.services()] == [1, 2]


# Ray's ---------------------------------------------------------------------------------------------------------------

CLUSTER = {"address": "127.0.0.1:6379", "dashboard_url": "http://127.0.0.1:8265", "service": REF, "uses": []}


def test_a_ray_cluster_is_a_head_and_its_workers():
    gang = RayCluster(workers=3, cpus_per_worker=2, lease=60).plan()
    assert [(role.name, role.replicas) for role in gang.roles] == [("head", 1), ("worker", 3)]
    assert (gang.service, gang.lease, gang.stall_timeout, gang.requires) == (True, 60, None, ("ray",))
    assert gang.roles[0].ports == ("gcs",)
    assert gang.roles[1].resources.cpus == 2


def test_a_head_that_works_needs_no_workers():
    assert [role.name for role in RayCluster(workers=0, head_cpus=2).plan().roles] == ["head"]


def test_workers_keep_the_cluster_that_they_joined():
    assert services_of(CLUSTER, job="x") == RayWorkers(cluster=CLUSTER).services()
    permanent = {"address": "ray.example.org:6379", "dashboard_url": "https://ray.example.org"}
    assert RayWorkers(cluster=permanent).services() == ()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: RayCluster(workers=0), "workers"),
        (lambda: RayCluster(workers=-1), "workers"),
        (lambda: RayCluster(workers=1.5), "workers"),
        (lambda: RayCluster(cpus_per_worker=-1), "cpus_per_worker"),
        (lambda: RayCluster(gpus_per_worker=-1), "gpus_per_worker"),
        (lambda: RayCluster(head_cpus=True), "head_cpus"),
        (lambda: RayCluster(memory="lots"), "memory"),
        (lambda: RayCluster(object_store_memory="10MiB"), "object_store_memory"),
        (lambda: RayCluster(custom_resources={"disk": 0}), "custom_resources"),
        (lambda: RayCluster(labels={"a": "b,c=d"}), "labels"),
        (lambda: RayCluster(start_timeout=0), "start_timeout"),
        (lambda: RayCluster(max_restarts=-1), "max_restarts"),
        (lambda: RayCluster(lease=0), "lease"),
        (lambda: RayCluster(lease=True), "lease"),
        (lambda: RayWorkers(cluster={}), "cluster"),
        (lambda: RayWorkers(cluster="127.0.0.1:6379"), "cluster"),
        (lambda: RayWorkers(cluster={**CLUSTER, "address": "ray://x:1"}), "cluster"),
        (lambda: RayWorkers(cluster={**CLUSTER, "service": 1}), "cluster"),
        (lambda: RayWorkers(cluster=CLUSTER, workers=0), "workers"),
        (lambda: RayWorkers(cluster=CLUSTER, drain=60), "drain"),
    ],
)
def test_bad_input_is_answered_when_the_job_is_made(make, name):
    with pytest.raises(InvalidJobError, match=name) as caught:
        make()
    assert "expected" in str(caught.value)


def test_a_job_with_uses_stays_the_same_work():
    job = Train(Script("/train.py"))
    assert replace(job, uses=[CLUSTER]).fingerprint() == job.fingerprint()
