"""The promises hold when things die: the real `Engine`, crashed and interleaved between any two of its steps.

The engine runs over a store and a launcher in memory that keep the contracts of the real ones; each of their operations
waits until the test lets it go on. So a try is a coroutine that can be dropped (its process was killed) or left waiting
while others run (it is slow, a zombie, or late). What the job did is witnessed by the world, not by the ledger.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from rallypoint.errors import LaunchError, PreflightError, StageFailedError
from rallypoint.launchers.base import Handle, Phase, ProcessEnd, Status
from rallypoint.spec.entry import Script
from rallypoint.spec.gang import Gang, Role
from rallypoint.spec.job import Job
from rallypoint.spec.service_job import ServiceJob
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.outcome import raise_for
from rallypoint.stages.rule import Intent
from rallypoint.worker import context

KEY = StageKey(("flights", "r1", "train"))
ATTEMPTS = f"{KEY.path}/attempts"
EPOCHS = 2
LOST_ANSWER, REFUSED, PREFLIGHT = LaunchError("no answer"), LaunchError("no room"), PreflightError("no such Python")


class _Step:
    """A point where whoever runs the coroutine decides what happens next."""

    def __init__(self, name):
        self.name = name

    def __await__(self):
        error = yield self
        return error


@dataclass(frozen=True, kw_only=True)
class TwoProcesses(Job):
    """A gang of two."""

    kind: ClassVar[str] = "two"

    def roles(self):
        return (Role(name="p", argv=("train",), replicas=2),)

    def plan(self):
        return Gang(name=self.kind, roles=self.roles())


@dataclass(frozen=True, kw_only=True)
class TwoNodes(ServiceJob):
    """A service of two processes."""

    kind: ClassVar[str] = "nodes"

    size: int = 2

    def roles(self):
        return (Role(name="p", argv=("serve",), replicas=2),)

    def plan(self):
        return Gang(name=self.kind, roles=self.roles(), service=True, lease=self.lease)


JOB = TwoProcesses(Script("/train.py"))
SERVICE, LARGER_SERVICE = TwoNodes(), TwoNodes(size=3)
OTHER_JOB = replace(JOB, params={"epochs": 3})


# The world -----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One start of the user's code, as a bystander sees it."""

    attempt: str
    number: int
    generation: int
    data: str
    events: str
    started_from: int
    todo: dict[str, list[str]] = field(default_factory=dict)
    ends: dict[str, ProcessEnd] = field(default_factory=dict)
    supervised: bool = True
    final: str = ""
    closed: set[str] = field(default_factory=set)
    stop_asked: bool = False
    service: bool = False

    @property
    def alive(self):
        return not self.final and self.supervised

    @property
    def completed(self):
        return self.final == "completed" and self.closed == {"p-0", "p-1"}

    @property
    def result(self):
        return {"attempt": self.attempt, "from": self.started_from}


class MemoryStore:
    """`Store`'s contract, in memory. A write that is torn by a crash leaves a folder without the object."""

    uri = "memory://store"
    local_path = Path("/store")  # a folder's, of which nothing is read: logs stay where jobs run

    def __init__(self, world):
        self.world = world
        self.objects = {}
        self.folders = set()

    def child_uri(self, path):
        return f"{self.uri}/{path}"

    def job_env(self):
        return {}

    async def create(self, path, data):
        await _Step(f"create {path}")
        self.folders.add(path.rpartition("/")[0])
        if path in self.objects:
            return False
        self.objects[path] = data
        self.world.on_write(path)
        return True

    async def put(self, path, data):
        await _Step(f"put {path}")
        self.objects[path] = data
        self.world.on_write(path)

    async def get(self, path):
        await _Step(f"get {path}")
        return self.objects.get(path)

    async def read_from(self, path, start, limit):
        await _Step(f"read {path}")
        return self.objects.get(path, b"")[start : start + limit]

    async def list(self, prefix):
        await _Step(f"list {prefix}")
        return sorted((path, len(data)) for path, data in self.objects.items() if path.startswith(f"{prefix}/"))

    async def children(self, prefix):
        await _Step(f"children {prefix}")
        found = [path for path in (*self.objects, *self.folders) if path.startswith(f"{prefix}/")]
        return sorted({path.removeprefix(f"{prefix}/").partition("/")[0] for path in found})


class MemoryLauncher:
    """`Launcher`'s contract: an id runs once; it is found by its id; what was cancelled first never starts."""

    uri = "memory://launcher"

    def __init__(self, world):
        self.world = world

    def _handle(self, attempt):
        return Handle(self.uri, attempt)

    async def launch(self, gang, attempt):
        error = await _Step("launch")
        if error in (REFUSED, PREFLIGHT):
            raise error
        self.world.start(gang, attempt)
        error = await _Step("launched")
        if error is LOST_ANSWER:
            raise error
        return self._handle(attempt)

    async def find(self, attempt):
        await _Step("find")
        known = attempt in self.world.runs or attempt in self.world.forbidden
        return self._handle(attempt) if known else None

    async def poll(self, handle):
        await _Step("poll")
        run = self.world.runs.get(handle.attempt)
        if run is None:
            forbidden = handle.attempt in self.world.forbidden
            return Status(Phase.ENDED, "cancelled") if forbidden else Status(Phase.LOST)
        if run.final:
            return Status(Phase.ENDED, run.final, tuple(run.ends[name] for name in sorted(run.ends)))
        return Status(Phase.RUNNING if run.supervised else Phase.LOST)

    async def cancel(self, handle, grace):
        await _Step("cancel")
        run = self.world.runs.get(handle.attempt)
        self.world.on_cancel(handle.attempt)
        if run is None:
            self.world.forbidden.add(handle.attempt)
            return
        run.stop_asked = True
        while run.alive:
            await _Step("cancel: wait for the end")
            self.world.supervise(run)

    async def logs(self, handle, cursor):
        await _Step("logs")
        for chunk in ():
            yield chunk


class Actor:
    """One coroutine of the engine in a process of its own."""

    def __init__(self, world, name, coroutine, **about):
        self.world, self.name, self.about = world, name, about
        self.coroutine = coroutine
        self.waits_at = None
        self.done = False
        self.value = self.error = None
        self.advance()

    def advance(self, error=None):
        """Let it do its next operation."""
        self.world.acting = self
        try:
            self.waits_at = self.coroutine.send(error if self.waits_at else None)
        except StopIteration as stop:
            self.done, self.value = True, stop.value
        except (StageFailedError, LaunchError) as problem:
            self.done, self.error = True, problem
        finally:
            self.world.acting = None

    def kill(self, *, torn=False):
        """Kill its process; a write that was under way may leave a folder."""
        step = self.waits_at.name if self.waits_at else ""
        if torn and step.startswith("create "):
            self.world.store.folders.add(step.removeprefix("create ").rpartition("/")[0])
        self.coroutine.close()
        self.done = True


class World:
    """A store, a place where gangs run, and who acts on them."""

    def __init__(self):
        self.store = MemoryStore(self)
        self.runs = {}
        self.forbidden = set()
        self.acting = None
        self.clock = itertools.count(1)
        self.names = itertools.count(1)
        self.marker = 0
        self.first_words = {}
        self.ending = set()
        self.attached = {}  # the owners of each attempt in the order in which they took it, by number

    # Who acts ......................................................................................................

    def engine(self):
        return Engine(self.store, KEY, MemoryLauncher(self))

    def a_try(self, *, clear=False, intent=Intent.CONTINUE, job=JOB):
        """An orchestrator's try that starts the stage, watches it, and delivers how it ended."""
        self.marker += clear
        name = f"try-{next(self.names)}"
        request = Request(owner=name, marker=self.marker, intent=intent)

        async def work():
            engine = self.engine()
            started = await engine.start(job, request)
            async for update in engine.watch(started.attempt, interval=timedelta(0)):
                last = update
            if last.ready is not None:
                return last.ready
            raise_for(last.outcome)
            return last.outcome.result

        return Actor(self, name, work(), what="try", request=request, job=job)

    def a_cancel(self, number, owner):
        """What an old try's ``on_kill``, or a person (no owner), asks."""
        work = self.engine().cancel(number, owner=owner, why=f"asked by {owner}")
        return Actor(self, f"cancel-{next(self.names)}", work, what="cancel", owner=owner)

    def ask_rerun(self, number):
        self.store.objects[f"{ATTEMPTS}/{number:06d}/rerun.json"] = b'{"v": 1}'

    def finish(self, actor, *, limit=3000):
        """Let one act until it is done, while the job goes on."""
        for _ in range(limit):
            if actor.done:
                return actor
            actor.advance()
            for run in self.runs.values():
                self.go_on(run)
            self.check()
        msg = f"{actor.name} goes on for ever at {actor.waits_at.name}"
        raise AssertionError(msg)

    # The job .......................................................................................................

    def start(self, gang, attempt):
        if attempt in self.runs or attempt in self.forbidden:
            return
        stage = json.loads(gang.files["stage.json"])
        data = stage["data_uri"].removeprefix(f"{MemoryStore.uri}/")
        events = gang.roles[0].env[context.EVENTS_URI].removeprefix(f"{MemoryStore.uri}/")
        saved = self.saved(data)
        run = Run(attempt, stage["number"], stage["generation"], data, events, started_from=saved)
        work = [f"checkpoint {epoch}" for epoch in range(saved + 1, EPOCHS + 1)]
        run.todo = {"p-0": ["opened", *work, "result", "closed"], "p-1": ["opened", "closed"]}
        if gang.service:
            run.service, run.todo = True, {"p-0": ["opened", "ready"], "p-1": ["opened"]}
        self.runs[attempt] = run
        assert stage["resumed"] or saved == 0

    def saved(self, data):
        return max((int(path[-1]) for path in self.store.objects if path.startswith(f"{data}/checkpoints/")), default=0)

    def go_on(self, run, process=None):
        """Let each process of a gang, or one, do its next thing."""
        for name in [process] if process else list(run.todo):
            if run.alive and name not in run.ends:
                self._next(run, name)
        self.supervise(run)

    def _next(self, run, name):
        if not run.todo[name]:
            if not run.service:
                run.ends[name] = ProcessEnd(name, 0)
            return
        word, _, number = run.todo[name].pop(0).partition(" ")
        if word == "checkpoint":
            self.store.objects[f"{run.data}/checkpoints/step-{number}"] = b""
            self._say(run, name, "artifact", kind="checkpoint", step=int(number))
        elif word == "ready":
            self._say(run, name, "ready", address={"of": run.attempt})
        elif word == "result":
            self._say(run, name, "result", value=run.result)
        elif word == "closed":
            run.closed.add(name)
            self._say(run, name, "closed", kind="process", exit_code=0)
        else:
            self._say(run, name, word, kind="process", host="here", pid=1)

    def _say(self, run, name, event, **data):
        path = f"{run.events}/{name}.jsonl"
        line = json.dumps({"v": 1, "t": next(self.clock), "event": event, "process": name, **data}).encode() + b"\n"
        self.store.objects[path] = self.store.objects.get(path, b"") + line

    def end(self, run, name, how):
        """End one process in a bad way."""
        if not run.alive or name in run.ends:
            return
        if how == "raise":
            self._say(run, name, "failed", exception="ValueError", message="loss is NaN")
            self._say(run, name, "closed", kind="process", exit_code=1)
        ends = {"os._exit(0)": (0, None), "raise": (1, None), "killed": (None, "SIGKILL")}
        run.ends[name] = ProcessEnd(name, *ends[how], first=True)
        self.supervise(run)

    def supervise(self, run):
        """What the supervisor does when it looks: the gang ends together, and its end is written down last."""
        if not run.alive:
            return
        failed = any(end.exit_code != 0 for end in run.ends.values())
        if not (run.stop_asked or failed or len(run.ends) == len(run.todo)):
            return
        whole = len(run.ends) == len(run.todo) and not failed
        for name in run.todo:
            run.ends.setdefault(name, ProcessEnd(name, None, "SIGTERM"))
        run.final = "completed" if whole else "failed" if failed else "cancelled"

    # What has to hold ..............................................................................................

    def read(self, number, name):
        data = self.store.objects.get(f"{ATTEMPTS}/{number:06d}/{name}.json")
        return None if data is None else json.loads(data)

    def numbers(self):
        return sorted(int(p.split("/")[-2]) for p in self.store.objects if p.endswith("/intent.json"))

    def on_write(self, path):
        if not path.startswith(ATTEMPTS):
            return
        number, name = int(path.split("/")[-3 if "/turns/" in path else -2]), path.rpartition("/")[2]
        if name == "intent.json":
            self._on_intent(number)
        elif "/turns/" in path:
            self._on_turn(number, json.loads(self.store.objects[path]))

    def _on_intent(self, number):
        new, who = self.read(number, "intent"), self.acting.about
        assert (new["number"], new["owner"]) == (number, self.acting.name)
        self.attached[number] = [self.acting.name]
        if number == 1:
            assert (new["generation"], new["resumed"]) == (1, False)
            return
        old, outcome = self.read(number - 1, "intent"), self.read(number - 1, "outcome")
        assert outcome, "a new attempt while it is not known how the last one ended"
        cleared = who["request"].marker > old["marker"] or who["request"].intent is Intent.RERUN
        if outcome["state"] == "succeeded":
            assert cleared or self.read(number - 1, "rerun"), "what had succeeded runs again and nobody asked for it"
        same = new["fingerprint"] == old["fingerprint"]
        goes_on = outcome["state"] != "succeeded" and same and not new["service"]
        assert (new["generation"], new["resumed"]) == (old["generation"] + (not goes_on), goes_on)

    def _on_turn(self, number, turn):
        owners = self.attached[number]
        assert number not in self.ending, "an attempt was taken over although its end was asked for"
        if turn["cancel"] is None:
            assert turn["owner"] == self.acting.name
            owners.append(turn["owner"])
            return
        self.ending.add(number)
        if self.acting.about["what"] == "cancel":
            assert self.acting.about["owner"] in (None, owners[-1]), "somebody else's attempt was cancelled"

    def on_cancel(self, attempt):
        number = int(attempt.rpartition("a")[2])
        turns = [path for path in self.store.objects if path.startswith(f"{ATTEMPTS}/{number:06d}/turns/")]
        asked = turns and json.loads(self.store.objects[max(turns)])["cancel"]
        assert asked or self.read(number, "outcome"), "an attempt was ended before its end was on record"

    def check(self):
        alive = [run.attempt for run in self.runs.values() if run.alive]
        assert len(alive) <= 1, f"{alive} run at the same time"
        numbers = self.numbers()
        assert numbers == list(range(1, len(numbers) + 1))
        for number in numbers:
            self._check_outcome(number)
        for generation in {run.generation for run in self.runs.values()}:
            done = [r.attempt for r in self.runs.values() if r.generation == generation and r.completed]
            assert len(done) <= 1, f"{done} did the same work to its end"

    def _check_outcome(self, number):
        outcome, run = self.read(number, "outcome"), self.runs.get(KEY.attempt_id(number))
        assert self.first_words.setdefault(number, outcome) in (None, outcome), "how an attempt ended was rewritten"
        self.first_words[number] = outcome
        if outcome is None:
            return
        assert not (run and run.alive), "an attempt runs although it is on record that it ended"
        assert (outcome["state"] == "succeeded") == bool(run and run.completed)
        if outcome["state"] == "succeeded":
            assert outcome["result"] == run.result

    def settle_service(self, job):
        """Everybody dies; the next try has the service ready, and the ones after it have the same one."""
        for _ in range(3):  # the first may find that its launch had failed
            last = self.finish(self.a_try(job=job))
            if last.error is None:
                break
        assert last.error is None, last.error
        (alive,) = (run for run in self.runs.values() if run.alive)
        assert (last.value["of"], last.value["service"]["attempt"]) == (alive.attempt, alive.number)
        assert self.finish(self.a_try(job=job)).value == last.value
        assert [run for run in self.runs.values() if run.alive] == [alive]

    def settle(self):
        """Everybody dies; the next tries, one after the other, end with one completed run, and its result stays."""
        before = len(self.runs)
        for _ in range(3):  # the first may find what had failed unseen: that is its failure to tell
            last = self.finish(self.a_try())
            if last.error is None:
                break
        assert last.error is None, last.error
        number = self.numbers()[-1]
        run = self.runs[KEY.attempt_id(number)]
        assert run.completed
        assert [r for r in self.runs.values() if r.generation == run.generation and r.completed] == [run]
        assert len(self.runs) <= before + 1
        assert last.value == run.result
        assert self.finish(self.a_try()).value == run.result
        assert (self.numbers()[-1], len(self.runs)) == (number, len(self.runs))


# One crash, at each step there is ------------------------------------------------------------------------------------


def _play(prepare, victim, after, *, torn=False, service=None):
    """Stop an actor at its first step, its second, and so on, each in a new world; then let something happen.

    Args:
        prepare: Brings the world to where the actor begins.
        victim: Makes the actor.
        after: What happens while it is stopped; it is killed if this returns nothing, else the others are let go on.
        torn: Whether a write under way leaves a folder.
        service: What the stage runs in the end, where that is a service.
    """
    for steps in itertools.count():
        world = World()
        prepare(world)
        actor = victim(world)
        for _ in range(steps):
            if actor.done:
                break
            actor.advance()
            for run in world.runs.values():
                world.go_on(run)
            world.check()
        was_done = actor.done
        if after is None:
            actor.kill(torn=torn)
        else:
            after(world)
            world.finish(actor)
        world.check()
        world.settle_service(service) if service else world.settle()
        if was_done:
            assert steps > 1, "it never was in the middle of anything"
            return


def _nothing(_):
    pass


def _live(world):
    first = world.a_try()
    while not world.runs:
        first.advance()
    first.kill()


def _pending(world):
    first = world.a_try()
    while not world.numbers():
        first.advance()
    first.kill()


def _failed(world):
    _live(world)
    (run,) = world.runs.values()
    world.go_on(run)
    world.go_on(run)
    world.end(run, "p-0", "raise")


def _lost(world):
    _live(world)
    (run,) = world.runs.values()
    world.go_on(run)
    world.go_on(run)
    run.supervised = False


def _cancel_asked(world):
    _live(world)
    asker = world.a_cancel(1, None)
    while not any("/turns/" in path for path in world.store.objects):
        asker.advance()
    asker.kill()


def _succeeded(world):
    assert world.finish(world.a_try()).value


BEFORE = [_nothing, _pending, _live, _failed, _lost, _cancel_asked, _succeeded]
WANTS = {
    "continue": {},
    "clear": {"clear": True},
    "rerun": {"intent": Intent.RERUN},
    "other work": {"job": OTHER_JOB},
}


@pytest.mark.parametrize("torn", [False, True], ids=["", "torn"])
@pytest.mark.parametrize("wants", WANTS)
@pytest.mark.parametrize("before", BEFORE)
def test_a_crash_at_any_step_leaves_what_the_next_try_goes_on_with(before, wants, torn):
    _play(before, lambda world: world.a_try(**WANTS[wants]), None, torn=torn)


@pytest.mark.parametrize("later", WANTS)
@pytest.mark.parametrize("wants", WANTS)
@pytest.mark.parametrize("before", BEFORE)
def test_a_slow_try_that_wakes_after_another_one_came_does_no_harm(before, wants, later):
    _play(before, lambda world: world.a_try(**WANTS[wants]), lambda world: world.finish(world.a_try(**WANTS[later])))


@pytest.mark.parametrize("later", WANTS)
@pytest.mark.parametrize("before", [_live, _pending])
def test_an_old_owner_that_cancels_while_a_new_one_takes_over_ends_nothing_of_the_new_one(before, later):
    """Stopped at any of its steps: either its cancel came first and the new try waits for it, or it is refused."""
    _play(
        before,
        lambda world: world.a_cancel(1, "try-1"),
        lambda world: world.finish(world.a_try(**WANTS[later])),
    )


@pytest.mark.parametrize("before", [_live, _pending])
def test_a_new_owner_that_is_slow_to_take_over_sees_the_cancel_of_the_old_one(before):
    _play(before, lambda world: world.a_try(), lambda world: world.finish(world.a_cancel(1, "try-1")))


def _ready_service(world):
    assert world.finish(world.a_try(job=SERVICE)).value


def _starting_service(world):
    first = world.a_try(job=SERVICE)
    while not world.runs:
        first.advance()
    first.kill()


def _stopped_service(world):
    _ready_service(world)
    world.finish(world.a_cancel(1, None))


def _lost_service(world):
    _ready_service(world)
    world.runs[KEY.attempt_id(1)].supervised = False


SERVICES = [_nothing, _starting_service, _ready_service, _stopped_service, _lost_service]
SERVICE_WANTS = {
    "continue": {"job": SERVICE},
    "clear": {"job": SERVICE, "clear": True},
    "rerun": {"job": SERVICE, "intent": Intent.RERUN},
    "clear of another size": {"job": LARGER_SERVICE, "clear": True},
}


@pytest.mark.parametrize("wants", SERVICE_WANTS)
@pytest.mark.parametrize("before", SERVICES)
def test_a_crash_at_any_step_leaves_one_service_or_none_and_the_next_try_has_it_ready(before, wants):
    _play(before, lambda world: world.a_try(**SERVICE_WANTS[wants]), None, service=SERVICE_WANTS[wants]["job"])


@pytest.mark.parametrize("wants", SERVICE_WANTS)
@pytest.mark.parametrize("before", [_ready_service, _starting_service])
def test_a_teardown_that_died_at_any_step_is_finished_or_undone_by_the_next_try(before, wants):
    job = SERVICE_WANTS[wants]["job"]
    _play(before, lambda world: world.a_cancel(1, None), None, service=job)
    _play(
        before,
        lambda world: world.a_cancel(1, None),
        lambda world: world.finish(world.a_try(**SERVICE_WANTS[wants])),
        service=job,
    )


@pytest.mark.parametrize("meanwhile", ["nothing", "the job ends", "another try takes over"])
@pytest.mark.parametrize("answer", [LOST_ANSWER, REFUSED, PREFLIGHT], ids=str)
@pytest.mark.parametrize("crash", [True, False])
def test_a_launch_that_failed_leaves_nothing_that_runs_unknown(answer, meanwhile, crash):
    def fails(world):
        actor = world.a_try()
        point = "launched" if answer is LOST_ANSWER else "launch"
        while not (actor.waits_at and actor.waits_at.name == point):
            actor.advance()
        if meanwhile == "another try takes over":
            other = world.a_try()
            while not (world.runs and len(world.attached[1]) == 2):
                other.advance()
        for run in world.runs.values() if meanwhile == "the job ends" else ():
            while run.alive:
                world.go_on(run)
        actor.advance(answer)
        return actor

    def another_launches_the_same(world):
        world.finish(world.a_try())

    _play(_nothing, fails, None if crash else another_launches_the_same)


def test_whose_launch_failed_does_not_end_what_another_try_has_launched():
    world = World()
    first = world.a_try()
    while not (first.waits_at and first.waits_at.name == "launch"):
        first.advance()
    second = world.a_try()
    while not world.runs:
        second.advance()
    first.advance(REFUSED)
    world.finish(first)
    assert first.error is REFUSED
    assert world.finish(second).value == {"attempt": KEY.attempt_id(1), "from": 0}


@pytest.mark.parametrize("process", ["p-0", "p-1"])
@pytest.mark.parametrize("how", ["killed", "raise", "os._exit(0)"])
def test_a_process_that_ends_without_its_last_word_is_no_success(process, how):
    for steps in range(1, 6):
        world = World()
        _live(world)
        (run,) = world.runs.values()
        for _ in range(steps):
            world.go_on(run)
        world.end(run, process, how)
        ended = process in run.ends and process not in run.closed
        world.finish(world.a_try())
        if ended and how == "os._exit(0)":
            assert world.read(1, "outcome")["failure"]["title"] == "ended without a word"
        world.settle()


# Anything in any order -----------------------------------------------------------------------------------------------


class Promises(RuleBasedStateMachine):
    """Tries, cancels, people and the job, in any order, each stopped or killed at any step."""

    actors = Bundle("actors")

    @initialize()
    def begin(self):
        self.world = World()

    @property
    def _live(self):
        return [run for run in self.world.runs.values() if run.alive]

    @rule(target=actors, wants=st.sampled_from([*WANTS, "continue", "continue"]))
    def a_try(self, wants):
        return self.world.a_try(**WANTS[wants])

    @precondition(lambda self: self.world.numbers())
    @rule(target=actors, data=st.data())
    def a_cancel(self, data):
        number = data.draw(st.sampled_from(self.world.numbers()[-2:]), label="attempt")
        owner = data.draw(st.sampled_from([None, *dict.fromkeys(self.world.attached[number])]), label="owner")
        return self.world.a_cancel(number, owner)

    @precondition(lambda self: self.world.numbers())
    @rule()
    def a_person_asks_for_a_rerun(self):
        self.world.ask_rerun(self.world.numbers()[-1])

    @rule(
        target=actors,
        actor=consumes(actors),
        steps=st.sampled_from([1, 2, 3, 6, 12, 25, 50]),
        answer=st.sampled_from([None, None, None, LOST_ANSWER, REFUSED, PREFLIGHT]),
        job_too=st.booleans(),
    )
    def goes_on(self, actor, steps, answer, job_too):
        for _ in range(steps):
            if actor.done:
                return multiple()
            asked = actor.waits_at.name if actor.waits_at else ""
            actor.advance(answer if asked in ("launch", "launched") else None)
            for run in self._live if job_too else ():
                self.world.go_on(run)
            self.world.check()
        return actor

    @rule(actor=consumes(actors), torn=st.booleans())
    def is_killed(self, actor, torn):
        actor.kill(torn=torn)

    @precondition(lambda self: self._live)
    @rule(process=st.sampled_from(["p-0", "p-1", None]), steps=st.integers(1, 6))
    def the_job_goes_on(self, process, steps):
        for run in self._live:
            for _ in range(steps):
                self.world.go_on(run, process)

    @precondition(lambda self: self._live)
    @rule(process=st.sampled_from(["p-0", "p-1"]), how=st.sampled_from(["killed", "raise", "os._exit(0)"]))
    def a_process_ends(self, process, how):
        for run in self._live:
            self.world.end(run, process, how)

    @precondition(lambda self: self._live)
    @rule()
    def the_supervisor_is_killed(self):
        for run in self._live:
            run.supervised = False

    @invariant()
    def the_promises_hold(self):
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self):
        if hasattr(self, "world"):
            self.world.settle()


TestPromises = Promises.TestCase
TestPromises.settings = settings(
    max_examples=400, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
