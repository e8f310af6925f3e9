"""What goes of old attempts, and that a prune killed anywhere leaves stages that work."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest

from rallypoint.errors import LaunchError, StageNotFoundError
from rallypoint.launchers import supervised
from rallypoint.launchers.local import LocalLauncher
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.ledger import Ledger, Record, list_stages
from rallypoint.stages.outcome import Outcome
from rallypoint.stages.retention import Choice, Past, Policy, What, choose, remove, survey
from rallypoint.stages.rule import State
from rallypoint.stages.store import Store

DAY = 86_400.0
NOW = 1_000 * DAY
OLD, NEW, OPEN = NOW - 40 * DAY, NOW - 2 * DAY, None
MONTH = timedelta(days=30)


def policy(**more):
    return Policy(older_than=MONTH, **more)


def past(*attempts):
    return [Past(number, generation, ended) for number, (generation, ended) in enumerate(attempts, 1)]


# The decision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attempts", "attempts_that_go", "generations_that_go"),
    [
        ([], (), ()),
        ([(1, NEW)], (), ()),
        ([(1, OLD)], (1,), ()),
        ([(1, OLD), (1, NEW)], (1,), ()),
        ([(1, OLD), (1, OPEN)], (), ()),
        ([(1, OLD), (2, OLD)], (1, 2), ()),
        ([(1, OLD), (2, OLD), (3, OLD)], (1, 2, 3), (1,)),
        ([(1, OLD), (2, OLD), (3, NEW)], (1, 2), (1,)),
        ([(1, OLD), (2, OLD), (3, OPEN)], (), ()),
        ([(1, OLD), (1, NEW), (2, NEW), (3, NEW)], (1,), ()),
        ([(1, OPEN), (2, OLD), (3, OLD)], (2, 3), ()),
        ([(1, OLD), (2, OLD), (3, OLD), (4, OLD)], (1, 2, 3, 4), (1, 2)),
    ],
)
def test_what_goes(attempts, attempts_that_go, generations_that_go):
    assert choose(past(*attempts), policy(), NOW) == Choice(attempts_that_go, generations_that_go)


@pytest.mark.parametrize(
    ("attempts", "whole"),
    [([(1, OLD)], True), ([(1, OLD), (2, OLD)], True), ([(1, OLD), (2, NEW)], False), ([(1, OLD), (2, OPEN)], False)],
)
def test_a_stage_is_forgotten_only_if_all_of_it_is_old(attempts, whole):
    assert choose(past(*attempts), policy(forget_stages=True), NOW).whole is whole
    assert not choose(past(*attempts), policy(), NOW).whole


def test_more_generations_are_kept_if_that_is_wanted():
    stage = past((1, OLD), (2, OLD), (3, OLD))
    assert choose(stage, policy(keep_generations=3), NOW).generations == ()
    assert choose(stage, policy(keep_generations=1), NOW).generations == (1, 2)


@pytest.mark.parametrize("wrong", [{"keep_generations": 0}, {"older_than": timedelta(seconds=-1)}])
def test_a_policy_that_would_remove_the_newest_is_refused(wrong):
    with pytest.raises(ValueError, match=r"got .*, expected"):
        Policy(**{"older_than": MONTH, **wrong})


# The doing -----------------------------------------------------------------------------------------------------------


class World:
    """A store and run folders of attempts that ended when they were told to."""

    def __init__(self, folder):
        self.store = Store.open(folder / "store")
        self.launcher = LocalLauncher(folder / "runs")
        self.launcher.root.mkdir()

    async def attempt(self, key, number, generation, ended, *, run=True):
        ledger = Ledger(self.store, key)
        record = Record(
            number=number,
            id=key.attempt_id(number),
            generation=generation,
            resumed=False,
            kind="plain",
            fingerprint={},
            launcher=self.launcher.uri,
            owner="try",
            created=OLD - 1,
        )
        assert await ledger.claim(record)
        await self.store.put(f"{ledger.events_prefix(number)}/p-0.jsonl", b"x" * 1000)
        for name in ("checkpoints/step-1/state", "artifacts/odd #1 name/data"):
            path = self.store.local_path / ledger.data_prefix(generation) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * 1000)
        if run:
            logs = self.launcher.root / record.id / "logs"
            logs.mkdir(parents=True)
            (logs / "p-0.log").write_bytes(b"x" * 1000)
            for name in ("started.json", "final.json"):
                value = {"reason": "completed", "message": "", "processes": [], "pid": 1, "host": "elsewhere"}
                (logs.parent / name).write_text(json.dumps(value))
        if ended is not None:
            outcome = Outcome(state=State.SUCCEEDED, result={"n": number}, metrics={"loss": 0.5}, ended=ended)
            await ledger.conclude(number, outcome)

    async def stage(self, *attempts, name="train"):
        key = StageKey(("flights", "r1", name))
        for number, (generation, ended) in enumerate(attempts, 1):
            await self.attempt(key, number, generation, ended)
        return key

    async def prune(self, **more):
        chosen = Policy(**{"older_than": MONTH, **more})
        return sum([await remove(self.store, going) for going in await survey(self.store, chosen, now=NOW)])

    def files(self):
        roots = (self.store.local_path, self.launcher.root)
        return {str(file) for root in roots for file in root.rglob("*") if file.is_file()}

    def generations(self, key):
        return sorted(path.name for path in (self.store.local_path / key.path / "generations").glob("*"))


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


async def test_logs_events_and_old_generations_go_and_the_record_stays(world):
    key = await world.stage((1, OLD), (2, OLD), (3, NEW))
    assert await world.prune() == 2000 + 2 * 2000
    assert world.generations(key) == ["000002", "000003"]
    assert (world.launcher.root / key.attempt_id(3) / "logs/p-0.log").exists()
    for number in (1, 2):
        left = sorted(path.name for path in (world.launcher.root / key.attempt_id(number)).iterdir())
        assert left == ["final.json", "started.json"]
    entry = await Ledger(world.store, key).read(1)
    assert entry.outcome.result == {"n": 1}
    assert await world.prune() == 0


async def test_what_would_go_is_shown_with_its_size_and_stays(world):
    key = await world.stage((1, OLD), (2, OLD), (3, OLD))
    before = world.files()
    (going,) = await survey(world.store, policy(), now=NOW)
    assert (going.key, going.size) == (key, 2000 + 3 * 2000)
    assert {(part.what, part.number) for part in going.parts} == {
        (What.GENERATION, 1),
        *((what, number) for what in (What.RUN, What.EVENTS) for number in (1, 2, 3)),
    }
    assert world.files() == before


async def test_a_pruned_stage_still_returns_its_result_and_shows_its_metrics(world):
    key = await world.stage((1, OLD))
    await world.prune()
    snapshot = await Engine(world.store, key).inspect(1)
    assert (snapshot.state, snapshot.view.metrics) == (State.SUCCEEDED, {"loss": 0.5})
    assert (await Engine(world.store, key).read(1)).outcome.result == {"n": 1}


async def test_nothing_goes_of_a_stage_that_is_running_or_unknown(world):
    await world.stage((1, OLD), (2, OLD), (3, OPEN))
    before = world.files()
    assert await world.prune(keep_generations=1, forget_stages=True) == 0
    assert world.files() == before


async def test_an_attempt_that_was_pruned_cannot_start_again(world):
    key = await world.stage((1, OLD))
    await world.prune()
    handle = await world.launcher.find(key.attempt_id(1))
    assert (await world.launcher.poll(handle)).reason == "completed"


async def test_a_forgotten_stage_leaves_nothing(world):
    await world.stage((1, OLD), (2, OLD))
    other = await world.stage((1, NEW), name="evaluate")
    await world.prune(forget_stages=True)
    assert await list_stages(world.store) == [other]
    assert not [file for file in world.files() if "train" in file]


async def test_a_stage_that_was_started_again_is_not_forgotten(world):
    key = await world.stage((1, OLD))
    (going,) = await survey(world.store, policy(forget_stages=True), now=NOW)
    await world.attempt(key, 2, 2, OPEN)
    before = world.files()
    assert await remove(world.store, going) == 0
    assert world.files() == before


async def test_only_the_stages_that_are_named(world):
    await world.stage((1, OLD))
    other = await world.stage((1, OLD), name="evaluate")
    for name in ("evaluate", "r1/evaluate", other.text):
        assert [going.key for going in await survey(world.store, policy(), stage=name, now=NOW)] == [other]
    with pytest.raises(StageNotFoundError, match="names no stage"):
        await survey(world.store, policy(), stage="valuate", now=NOW)


async def test_runs_of_another_host_are_a_problem_that_is_said_and_keeps_the_stage(world, tmp_path):
    await world.stage((1, OLD), (2, OLD), (3, OLD))
    world.launcher.root.rename(tmp_path / "elsewhere")
    (going,) = await survey(world.store, policy(forget_stages=True), now=NOW)
    assert "prune on the host" in going.problem
    assert await remove(world.store, going) == 0
    (going,) = await survey(world.store, policy(), now=NOW)
    assert [part.what for part in going.parts] == [What.GENERATION]


async def test_a_damaged_stage_does_not_keep_the_others(world):
    damaged = await world.stage((1, OLD))
    await world.stage((1, OLD), name="evaluate")
    (world.store.local_path / damaged.path / "attempts/000001/intent.json").write_text("{}")
    found = {going.key: going for going in await survey(world.store, policy(), now=NOW)}
    assert found[damaged].problem
    assert not found[damaged].parts
    assert len(found) == 2


async def test_a_running_gang_keeps_its_folder(world, monkeypatch):
    key = await world.stage((1, OLD))
    folder = world.launcher.root / key.attempt_id(1)
    (folder / "final.json").unlink()
    me = {"pid": os.getpid(), "host": os.uname().nodename}
    (folder / "started.json").write_text(json.dumps(me))
    monkeypatch.setattr(supervised, "_alive", lambda *_: True)
    with pytest.raises(LaunchError, match="still running"):
        await world.prune()
    assert (folder / "logs/p-0.log").exists()


async def test_what_a_link_points_to_stays(world, tmp_path):
    key = await world.stage((1, OLD))
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").touch()
    (world.launcher.root / key.attempt_id(1) / "link").symlink_to(precious)
    await world.prune(forget_stages=True)
    assert (precious / "data").exists()


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("operations", range(12))
async def test_a_prune_that_is_killed_leaves_a_stage_that_works_and_the_next_one_finishes(
    world, monkeypatch, operations, forget
):
    """Killed before any operation on the store or a run folder."""
    key = await world.stage((1, OLD), (2, OLD), (3, OLD))

    class KilledError(BaseException):
        pass

    left = [operations]

    def counted(function):
        async def call(*args, **more):
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
            return await function(*args, **more)

        return call

    with monkeypatch.context() as patched:
        for kind, name in ((Store, "remove"), (Store, "delete"), (LocalLauncher, "clean")):
            patched.setattr(kind, name, counted(getattr(kind, name)))
        try:
            await world.prune(forget_stages=forget)
        except KilledError:
            assert key in await list_stages(world.store)
    entry = await Ledger(world.store, key).last()
    if not forget:
        assert (entry.record.number, entry.outcome.result) == (3, {"n": 3})
        assert world.generations(key)[-2:] == ["000002", "000003"]
        assert Path(world.store.local_path, key.path, "generations/000003/checkpoints/step-1/state").exists()
    else:
        assert entry is None or entry.record.number == 3
    await world.prune(forget_stages=forget)
    assert not [file for file in world.files() if "events" in file or "logs" in file or "generations/000001" in file]
    if forget and (entry is None or entry.outcome):
        assert await Ledger(world.store, key).numbers() == []


async def test_in_a_bucket_a_forgotten_stage_leaves_nothing(s3_store_uri, world):
    uri, options = s3_store_uri
    world.store = Store.open(uri, options=options)
    key = StageKey(("flights", "r1", "train"))
    ledger = Ledger(world.store, key)
    record = Record(
        number=1,
        id=key.attempt_id(1),
        generation=1,
        resumed=False,
        kind="plain",
        fingerprint={},
        launcher=world.launcher.uri,
        owner="try",
    )
    await ledger.claim(record)
    await ledger.conclude(1, Outcome(state=State.SUCCEEDED, ended=OLD))
    await world.store.put(f"{ledger.data_prefix(1)}/checkpoints/step-1/v-1/state", b"x" * 1000)
    await world.store.put(f"{ledger.data_prefix(1)}/checkpoints/step-1.manifest.json", b"{}")
    assert await world.prune() == 0
    assert await world.prune(forget_stages=True) > 1000
    assert await world.store.list("") == []


async def test_of_a_bucket_manifests_go_first(s3_store_uri, monkeypatch):
    import obstore

    from rallypoint.worker.storage_names import MANIFEST

    uri, options = s3_store_uri
    store = Store.open(uri, options=options)
    for name in ("g/a/v-1/data", f"g/a{MANIFEST}", "g/b/v-1/data", f"g/b{MANIFEST}"):
        await store.put(name, b"x")
    deleted = []
    real = obstore.delete

    def noted(backend, paths):
        deleted.append(paths)
        real(backend, paths)

    monkeypatch.setattr(obstore, "delete", noted)
    await store.remove("g")
    assert deleted == [[f"g/a{MANIFEST}", f"g/b{MANIFEST}"], ["g/a/v-1/data", "g/b/v-1/data"]]
    assert await store.list("g") == []
