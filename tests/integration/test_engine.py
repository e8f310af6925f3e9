"""A stage's attempts on the real engine and launcher: never twice, a retry continues, no green lies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from rallypoint import PythonJob
from rallypoint.errors import LaunchError, StageCancelledError, StageFailedError, StageUserError
from rallypoint.launchers.base import Phase
from rallypoint.launchers.local import LocalLauncher
from rallypoint.spec.entry import Script
from rallypoint.spec.failure import Kind
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import _BELIEVED, Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.ledger import Ledger
from rallypoint.stages.outcome import raise_for
from rallypoint.stages.rule import Action, Intent, Resume, State
from rallypoint.stages.store import Store
from rallypoint.worker import hostprocs

pytestmark = pytest.mark.engine

KEY = StageKey(("flights", "r1", "train"))
INTERVAL = timedelta(seconds=0.05)


# Four epochs with a checkpoint after each. What a file called `do` says happens after the second one.
TRAIN = """
    import os, sys, time
    from pathlib import Path
    import rallypoint

    stage, here = rallypoint.stage(), Path(sys.argv[1])
    checkpoint = stage.latest_checkpoint()
    start = int(Path(checkpoint, "epoch").read_text()) if checkpoint else 0
    with open(here / "started_from", "a") as file:
        file.write(f"{start}\\n")
    for epoch in range(start + 1, 5):
        stage.save_checkpoint(lambda folder: Path(folder, "epoch").write_text(str(epoch)), step=epoch)
        stage.report(step=epoch, total=4, loss=1 / epoch)
        print(f"epoch {epoch}")
        do = (here / "do").read_text()
        if epoch == 2 and do == "fail":
            raise ValueError("loss is NaN")
        if epoch == 2 and do == "wait":
            (here / "waits").touch()
            while (here / "do").read_text() == "wait":
                time.sleep(0.05)
    stage.result({"epochs": 4, "from": start})
"""


class Witness:
    """What the training saw and what it is to do."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.do("finish")

    def do(self, what):
        draft = self.folder / "draft"
        draft.write_text(what)
        draft.replace(self.folder / "do")

    @property
    def waits(self):
        return (self.folder / "waits").exists()

    @property
    def started_from(self):
        path = self.folder / "started_from"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture
def witness(tmp_path):
    return Witness(tmp_path / "witness")


@pytest.fixture
def job(script, witness):
    return PythonJob(Script(script(TRAIN), [str(witness.folder)]))


@pytest.fixture(params=["folder", "bucket"])
def any_store(request, tmp_path):
    if request.param == "folder":
        return Store.open(tmp_path / "store")
    uri, options = request.getfixturevalue("s3_store_uri")
    return Store.open(uri, options=options)


async def finish(engine, started):
    """Watch an attempt to its end and return how it ended."""
    updates = [update async for update in engine.watch(started.attempt, interval=INTERVAL)]
    assert all(update.outcome is None for update in updates[:-1])
    return updates[-1].outcome


def asks(owner="try-1", **more):
    return Request(owner=owner, **more)


class CrashError(BaseException):
    """The orchestrator's process ends here."""


class CrashesBefore(LocalLauncher):
    async def launch(self, gang, attempt):
        raise CrashError


class CrashesAfter(LocalLauncher):
    async def launch(self, gang, attempt):
        await super().launch(gang, attempt)
        raise CrashError


class LosesTheAnswer(LocalLauncher):
    async def launch(self, gang, attempt):
        await super().launch(gang, attempt)
        raise LaunchError("no answer within 30 s")


class CannotLaunch(LocalLauncher):
    async def launch(self, gang, attempt):
        raise LaunchError("no room on this host")


@pytest.fixture
def with_launcher(store, launcher):
    return lambda kind: Engine(store, KEY, kind(launcher.root))


@pytest.fixture
def bring_to(engine, job, witness, until, with_launcher):
    """Brings the stage's first attempt to a state."""

    async def live():
        witness.do("wait")
        started = await engine.start(job, asks())
        await until(lambda: witness.waits)
        return started

    async def bring(state):
        if state is State.PENDING:
            with pytest.raises(CrashError):
                await with_launcher(CrashesBefore).start(job, asks())
        elif state is State.SUCCEEDED:
            assert (await finish(engine, await engine.start(job, asks()))).state is State.SUCCEEDED
        elif state is State.FAILED:
            witness.do("fail")
            assert (await finish(engine, await engine.start(job, asks()))).state is State.FAILED
        elif state is State.LIVE:
            await live()
        elif state is State.CANCELLED:
            await live()
            assert await engine.cancel(1, owner=None, why="a person", grace=timedelta(0))
        elif state is State.LOST:
            started = await live()
            record = Path(started.attempt.handle.details["run_dir"], "started.json")
            pid = json.loads(record.read_text())["pid"]
            os.kill(pid, signal.SIGKILL)
            await until(lambda: hostprocs.start_time(pid) is None)  # on a busy machine it lives a little longer

    return bring


# The table -----------------------------------------------------------------------------------------------------------

CONTINUE, RERUN = Intent.CONTINUE, Intent.RERUN


@pytest.mark.parametrize(
    ("last", "intent", "number", "generation", "started_from"),
    [
        (State.NONE, CONTINUE, 1, 1, [0]),
        (State.NONE, RERUN, 1, 1, [0]),
        (State.PENDING, CONTINUE, 1, 1, [0]),
        (State.PENDING, RERUN, 2, 1, [0]),
        (State.LIVE, CONTINUE, 1, 1, [0]),
        (State.LIVE, RERUN, 2, 1, [0, 2]),
        (State.SUCCEEDED, CONTINUE, 1, 1, [0]),
        (State.SUCCEEDED, RERUN, 2, 2, [0, 0]),
        (State.FAILED, CONTINUE, 2, 1, [0, 2]),
        (State.FAILED, RERUN, 2, 1, [0, 2]),
        (State.CANCELLED, CONTINUE, 2, 1, [0, 2]),
        (State.CANCELLED, RERUN, 2, 1, [0, 2]),
        (State.LOST, CONTINUE, 2, 1, [0, 2]),
        (State.LOST, RERUN, 2, 1, [0, 2]),
    ],
    ids=str,
)
async def test_the_retry_table(
    engine, job, witness, bring_to, jobs_left, last, intent, number, generation, started_from
):
    await bring_to(last)
    if last is not State.LIVE:
        witness.do("finish")
    started = await engine.start(job, asks("try-2", intent=intent))
    witness.do("finish")
    outcome = await finish(engine, started)
    assert (started.attempt.record.number, started.attempt.record.generation) == (number, generation)
    assert witness.started_from == started_from
    assert outcome.state is State.SUCCEEDED
    assert outcome.result == {"epochs": 4, "from": started_from[-1]}
    assert jobs_left() == {}


async def test_a_result_that_is_there_is_returned_and_nothing_runs(engine, job, bring_to, witness, store, launcher):
    await bring_to(State.SUCCEEDED)
    later = Engine(Store.open(store.uri), KEY, launcher)
    started = await later.start(job, asks("try-2"))
    assert started.decision.action is Action.RETURN
    assert started.attempt.outcome.result == {"epochs": 4, "from": 0}
    assert (await finish(later, started)).result == {"epochs": 4, "from": 0}
    assert witness.started_from == [0]


async def test_a_success_closes_its_generation(engine, job, bring_to, witness):
    """What ran again after a success, and failed, continues its own checkpoints and not the old ones."""
    await bring_to(State.SUCCEEDED)
    witness.do("fail")
    await finish(engine, await engine.start(job, asks("try-2", intent=RERUN)))
    witness.do("finish")
    outcome = await finish(engine, await engine.start(job, asks("try-3")))
    assert witness.started_from == [0, 0, 2]
    assert outcome.result["from"] == 2


async def test_who_asked_for_a_rerun_gets_one(engine, job, bring_to, witness):
    await bring_to(State.SUCCEEDED)
    await engine.ledger.ask_rerun(1)
    await finish(engine, await engine.start(job, asks("try-2")))
    assert witness.started_from == [0, 0]
    await engine.start(job, asks("try-3"))
    assert witness.started_from == [0, 0]


@pytest.mark.parametrize(
    ("before", "now", "runs_again"), [(1, 1, False), (1, 2, True), (2, 1, False), (None, 2, False), (1, None, False)]
)
async def test_a_larger_marker_is_a_persons_clear(engine, job, witness, before, now, runs_again):
    await finish(engine, await engine.start(job, asks(marker=before)))
    started = await engine.start(job, asks("try-2", marker=now))
    assert (started.decision.action is Action.LAUNCH) is runs_again
    await finish(engine, started)
    # The clear is spent: the next try of the same count continues.
    assert (await engine.start(job, asks("try-3", marker=now))).decision.action is Action.RETURN


# The same work -------------------------------------------------------------------------------------------------------


async def test_changed_arguments_start_over_and_say_which(engine, job, bring_to, witness):
    await bring_to(State.FAILED)
    witness.do("finish")
    other = replace(job, entry=Script(job.code.path, [*job.code.args, "--lr=0.2"]), params={"epochs": 4})
    started = await engine.start(other, asks("try-2"))
    assert started.decision.why == (
        "the last attempt failed; from scratch, because the work changed: argument #2 was added, param epochs was added"
    )
    assert (await finish(engine, started)).result == {"epochs": 4, "from": 0}
    assert started.attempt.record.generation == 2


@pytest.mark.parametrize(
    ("resume", "args", "started_from"),
    [
        (Resume.ALWAYS, ["--lr=0.2"], [0, 2]),
        (Resume.IF_SAME_WORK, ["--lr=0.2"], [0, 0]),
        (Resume.NEVER, [], [0, 0]),
    ],
)
async def test_resume_says_when_checkpoints_are_used(engine, job, bring_to, witness, resume, args, started_from):
    await bring_to(State.FAILED)
    witness.do("finish")
    other = replace(job, entry=Script(job.code.path, [*job.code.args, *args]))
    await finish(engine, await engine.start(other, asks("try-2", resume=resume)))
    assert witness.started_from == started_from


async def test_fixed_code_and_more_memory_continue(engine, job, bring_to, witness, script):
    await bring_to(State.FAILED)
    script(textwrap.dedent(TRAIN).replace('raise ValueError("loss is NaN")', "pass"))  # `do` still says: fail
    outcome = await finish(engine, await engine.start(replace(job, env={"OMP_NUM_THREADS": "1"}), asks("try-2")))
    assert outcome.result == {"epochs": 4, "from": 2}


# Never twice ---------------------------------------------------------------------------------------------------------


async def test_a_crash_after_the_launch_leaves_one_job_and_the_next_try_finds_it(
    engine, job, witness, until, with_launcher
):
    witness.do("wait")
    with pytest.raises(CrashError):
        await with_launcher(CrashesAfter).start(job, asks())
    await until(lambda: witness.waits)
    assert (await engine.read(1)).handle is None  # the ledger does not know that it was launched
    started = await engine.start(job, asks("try-2"))
    assert started.decision.action is Action.REATTACH
    witness.do("finish")
    assert (await finish(engine, started)).result == {"epochs": 4, "from": 0}
    assert witness.started_from == [0]


async def test_a_job_that_ended_while_nobody_watched_is_a_result(engine, job, witness, until, launcher, jobs_left):
    started = await engine.start(job, asks())

    async def ended():
        return (await launcher.poll(started.attempt.handle)).phase is Phase.ENDED

    await until(ended)
    assert jobs_left() == {}
    again = await engine.start(job, asks("try-2"))
    assert again.decision.action is Action.RETURN
    assert again.attempt.outcome.result == {"epochs": 4, "from": 0}
    assert again.attempt.record == started.attempt.record


async def test_many_tries_at_once_start_one_job(store, launcher, job, witness, until):
    witness.do("wait")
    engines = [Engine(Store.open(store.uri), KEY, LocalLauncher(launcher.root)) for _ in range(5)]
    all_started = await asyncio.gather(*(one.start(job, asks(f"try-{n}")) for n, one in enumerate(engines)))
    assert {started.attempt.record.id for started in all_started} == {KEY.attempt_id(1)}
    await until(lambda: witness.waits)
    witness.do("finish")
    outcomes = await asyncio.gather(*(finish(one, s) for one, s in zip(engines, all_started, strict=True)))
    assert [outcome.result for outcome in outcomes] == [{"epochs": 4, "from": 0}] * 5
    assert witness.started_from == [0]


async def test_many_processes_at_once_start_one_job(store, launcher, job, witness):
    code = """
        import asyncio, sys
        from dataclasses import dataclass
        from datetime import timedelta
        from pathlib import Path
        from rallypoint.frameworks.python.job import PythonJob
        from rallypoint.launchers.local import LocalLauncher
        from rallypoint.spec.entry import Script
        from rallypoint.stages.attempt import Request
        from rallypoint.stages.engine import _BELIEVED, Engine
        from rallypoint.stages.key import StageKey
        from rallypoint.stages.store import Store

        async def main(owner, uri, root, path, folder):
            engine = Engine(Store.open(uri), StageKey(("flights", "r1", "train")), LocalLauncher(Path(root)))
            started = await engine.start(PythonJob(Script(path, [folder])), Request(owner=owner))
            async for update in engine.watch(started.attempt, interval=timedelta(seconds=0.05)):
                pass
            print(update.outcome.result)

        print("ready", flush=True)
        sys.stdin.readline()
        asyncio.run(main(*sys.argv[1:]))
    """
    rest = [store.uri, str(launcher.root), job.code.path, str(witness.folder)]
    tries = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), f"try-{n}", *rest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
    ]
    for one in tries:
        assert one.stdout.readline() == "ready\n"
    for one in tries:
        one.stdin.write("go\n")
        one.stdin.flush()
    said = [await asyncio.to_thread(one.communicate) for one in tries]
    assert [out for out, _ in said] == ["{'epochs': 4, 'from': 0}\n"] * 4
    assert witness.started_from == [0]
    assert await Ledger(store, KEY).numbers() == [1]


async def test_a_launch_that_failed_is_recorded_and_the_next_try_launches(engine, job, with_launcher):
    with pytest.raises(StageFailedError, match="no room on this host") as raised:
        await with_launcher(CannotLaunch).start(job, asks())
    assert raised.value.report.kind is Kind.RETRYABLE
    assert (await engine.read(1)).outcome.state is State.FAILED
    started = await engine.start(job, asks("try-2"))
    assert started.attempt.record.number == 2
    assert (await finish(engine, started)).state is State.SUCCEEDED


async def test_a_launch_without_an_answer_leaves_nothing_running(engine, job, witness, with_launcher, jobs_left):
    witness.do("wait")
    with pytest.raises(StageFailedError, match="no answer within 30 s"):
        await with_launcher(LosesTheAnswer).start(job, asks())
    assert jobs_left() == {}
    witness.do("finish")
    started = await engine.start(job, asks("try-2"))
    assert started.attempt.record.number == 2
    assert (await finish(engine, started)).state is State.SUCCEEDED


async def test_what_can_never_run_here_is_no_matter_of_retries(engine, job):
    with pytest.raises(StageUserError, match="expected the path of a Python interpreter") as raised:
        await engine.start(replace(job, python="/nowhere/python"), asks())
    assert raised.value.report.kind is Kind.USER


# Ownership and cancelling --------------------------------------------------------------------------------------------


async def test_only_the_owner_may_cancel(engine, job, bring_to, witness, jobs_left):
    await bring_to(State.LIVE)
    await engine.start(job, asks("try-2"))
    assert not await engine.cancel(1, owner="try-1", why="on_kill of the old trigger")
    assert (await engine.inspect(1)).state is State.LIVE
    assert await engine.cancel(1, owner="try-2", why="on_kill", grace=timedelta(0))
    outcome = (await engine.read(1)).outcome
    assert (outcome.state, outcome.failure.message) == (State.CANCELLED, "on_kill")
    assert jobs_left() == {}
    with pytest.raises(StageCancelledError):
        raise_for(outcome)


async def test_a_person_may_cancel_any_attempt(engine, job, bring_to):
    await bring_to(State.LIVE)
    assert await engine.cancel(1, owner=None, why="rallypoint cancel", grace=timedelta(0))
    assert (await engine.read(1)).outcome.state is State.CANCELLED


async def test_what_has_ended_stays_as_it_is(engine, bring_to):
    await bring_to(State.SUCCEEDED)
    assert await engine.cancel(1, owner=None, why="too late")
    assert (await engine.read(1)).outcome.state is State.SUCCEEDED


async def test_an_attempt_that_is_not_there_cannot_be_cancelled(engine):
    assert not await engine.cancel(1, owner=None, why="x")


async def test_a_launcher_that_knows_that_a_gang_runs_is_not_asked_at_every_look(store, tmp_path, job, witness, until):
    class Counting(LocalLauncher):
        polls = waits = 0

        async def poll(self, handle):
            self.polls += 1
            return await super().poll(handle)

        async def wait(self, handle, seconds):
            self.waits += 1
            return await super().wait(handle, seconds)

    launcher = Counting(tmp_path / "runs")
    engine = Engine(store, KEY, launcher)
    witness.do("wait")
    started = await engine.start(job, Request(owner="try-1"))
    before, clock = launcher.polls, asyncio.get_running_loop().time()
    watching = asyncio.create_task(finish(engine, started))
    await until(lambda: launcher.waits >= 20)
    asked, waited = launcher.polls - before, asyncio.get_running_loop().time() - clock
    assert asked <= 1 + waited / _BELIEVED
    witness.do("finish")
    assert (await watching).state is State.SUCCEEDED


async def test_after_a_cancel_whose_asker_died_the_next_try_waits_for_the_end_and_continues(
    engine, job, bring_to, witness, jobs_left
):
    await bring_to(State.LIVE)
    await engine.ledger.ask_cancel(1, "on_kill")
    started = await engine.start(job, asks("try-2"))
    assert (started.attempt.record.number, started.attempt.record.generation) == (2, 1)
    assert (await engine.read(1)).outcome.state is State.CANCELLED
    witness.do("finish")
    assert (await finish(engine, started)).result == {"epochs": 4, "from": 2}
    assert witness.started_from == [0, 2]


async def test_what_was_cancelled_before_its_launch_is_not_launched_later(engine, job, bring_to, witness):
    await bring_to(State.PENDING)
    await engine.ledger.ask_cancel(1, "on_kill")
    started = await engine.start(job, asks("try-2"))
    assert started.attempt.record.number == 2
    assert (await engine.read(1)).outcome.state is State.CANCELLED
    assert (await finish(engine, started)).state is State.SUCCEEDED
    assert witness.started_from == [0]


async def test_a_submitter_that_comes_late_starts_nothing(engine, job, witness, store, launcher, bring_to, jobs_left):
    """A try stopped between its intent and its launch; another one took its place meanwhile."""
    await bring_to(State.PENDING)
    record = (await engine.read(1)).record
    second = await engine.start(job, asks("try-2", intent=RERUN))
    late = await engine._launch(job.plan(), job, record, owner=record.owner)
    assert late.outcome.state is State.CANCELLED
    assert (await finish(engine, second)).state is State.SUCCEEDED
    assert witness.started_from == [0]


# No green lies, and a cause ------------------------------------------------------------------------------------------


async def _end_of(engine, script, code):
    return await finish(engine, await engine.start(PythonJob(script(code)), asks()))


async def test_leaving_without_a_word_is_a_failure(engine, script):
    outcome = await _end_of(engine, script, "import os; os._exit(0)")
    assert outcome.state is State.FAILED
    assert outcome.failure.title == "ended without a word"
    assert "main-0 ended with exit code 0 but never reported its end" in outcome.failure.message


async def test_an_exit_code_is_a_failure_and_named(engine, script):
    outcome = await _end_of(engine, script, "import sys; sys.exit(3)")
    assert outcome.state is State.FAILED
    assert "sys.exit(3)" in outcome.failure.render()
    assert "line 1" in outcome.failure.traceback


@pytest.mark.parametrize("code", ["import sys; sys.exit()", "import sys; sys.exit(0)", "raise SystemExit"])
async def test_an_exit_with_0_is_a_success(engine, script, code):
    assert (await _end_of(engine, script, code)).state is State.SUCCEEDED


async def test_an_exception_is_shown_with_its_line_and_the_last_output(engine, script):
    code = """
        def train():
            print("epoch 1")
            print("epoch 2", end="")
            raise ValueError("loss is NaN")
        train()
    """
    failure = (await _end_of(engine, script, code)).failure
    assert (failure.process, failure.exception, failure.message) == ("main-0", "ValueError", "loss is NaN")
    shown = failure.render()
    assert "in train" in shown
    assert "raise ValueError" in shown
    assert "runpy" not in shown
    assert failure.last_lines == ("epoch 1", "epoch 2")
    assert shown.count("raise ValueError") == 1


async def test_a_long_chain_of_exceptions_does_not_hide_the_last_output(engine, script):
    code = """
        def deep(n):
            if n:
                return deep(n - 1)
            raise KeyError("lr")
        print("epoch 1")
        try:
            deep(40)
        except KeyError as error:
            raise RuntimeError("no learning rate") from error
    """
    failure = (await _end_of(engine, script, code)).failure
    assert failure.last_lines == ("epoch 1",)
    assert "KeyError: 'lr'" in failure.traceback


@pytest.mark.parametrize(
    ("code", "title"),
    [
        ("import no_such_module", "the entry cannot be loaded"),
        ("def f(:", "the entry cannot be loaded"),
        ("import rallypoint; rallypoint.stage().result(object())", "the result is not JSON"),
        ("None.fit()", "an error in the user's code"),
    ],
)
async def test_what_a_retry_cannot_help_is_a_user_error(engine, script, code, title):
    outcome = await _end_of(engine, script, code)
    assert (outcome.failure.kind, outcome.failure.title) == (Kind.USER, title)
    with pytest.raises(StageUserError):
        raise_for(outcome)


async def test_a_killed_process_is_named_with_its_signal_and_a_retry_helps(engine, script):
    failure = (
        await _end_of(engine, script, "import os; print('last words', flush=True); os.kill(os.getpid(), 9)")
    ).failure
    assert (failure.process, failure.signal, failure.kind) == ("main-0", "SIGKILL", Kind.RETRYABLE)
    assert failure.last_lines == ("last words",)


async def test_a_result_that_is_too_large_is_a_failure_that_says_what_to_do(engine, script):
    outcome = await _end_of(engine, script, "import rallypoint; rallypoint.stage().result('x' * 2**21)")
    assert outcome.state is State.FAILED
    assert "save_artifact" in outcome.failure.message


# Watching ------------------------------------------------------------------------------------------------------------


async def test_progress_and_output_are_seen_while_it_runs(engine, job, witness, until):
    witness.do("wait")
    started = await engine.start(job, asks())
    output, steps = b"", []
    async for update in engine.watch(started.attempt, interval=INTERVAL):
        output += b"".join(chunk.data for chunk in update.output)
        steps.append(update.view.step)
        if update.view.step == 2 and b"epoch 2" in output:
            assert update.view.progress_line == "step 2/4 loss=0.5"
            witness.do("finish")
    assert steps[-1] == 4
    assert update.outcome.metrics == {"loss": 0.25}
    assert output.decode().split("\n") == [f"epoch {n}" for n in range(1, 5)] + [""]


async def test_what_ran_is_seen_afterwards(engine, bring_to):
    await bring_to(State.SUCCEEDED)
    snapshot = await engine.inspect(1)
    assert (snapshot.state, snapshot.view.step, snapshot.view.checkpoint["step"]) == (State.SUCCEEDED, 4, 4)
    assert await engine.tail(1, "main-0", 16) == "epoch 3\nepoch 4\n"


async def test_a_look_at_what_ended_unseen_tells_how_and_changes_nothing(engine, job, witness, until, jobs_left):
    await engine.start(job, asks())
    await until(lambda: witness.started_from and not jobs_left())

    async def ended():
        return (await engine.inspect(1)).state is not State.LIVE

    await until(ended)
    assert (await engine.inspect(1)).state is State.SUCCEEDED
    assert (await engine.read(1)).outcome is None


async def test_an_attempt_that_is_not_there_says_so(engine):
    for call in (engine.read(3), engine.inspect(3), engine.tail(3, "main-0", 10)):
        with pytest.raises(LookupError, match="flights/r1/train has no attempt 3"):
            await call


# In a folder and in a bucket -----------------------------------------------------------------------------------------


async def test_a_retry_continues_in_any_store(any_store, launcher, job, witness, jobs_left, tmp_path):
    engine = Engine(any_store, KEY, launcher)
    witness.do("fail")
    failed = await finish(engine, await engine.start(job, asks()))
    assert (failed.state, failed.failure.exception) == (State.FAILED, "ValueError")
    witness.do("finish")
    outcome = await finish(engine, await engine.start(job, asks("try-2")))
    assert outcome.state is State.SUCCEEDED
    assert outcome.result == {"epochs": 4, "from": 2}
    assert outcome.metrics == {"loss": 0.25}
    again = await Engine(any_store, KEY, launcher).start(job, asks("try-3"))
    assert again.attempt.outcome.result == outcome.result
    assert witness.started_from == [0, 2]
    for path in (tmp_path / "runs").rglob("*"):
        assert not path.is_file() or b"testing-secret-key" not in path.read_bytes()


async def test_a_live_job_is_found_again_in_any_store(any_store, launcher, job, witness, until):
    witness.do("wait")
    await Engine(any_store, KEY, launcher).start(job, asks())
    await until(lambda: witness.waits)
    engine = Engine(any_store, KEY, launcher)
    started = await engine.start(job, asks("try-2"))
    assert started.decision.action is Action.REATTACH
    witness.do("finish")
    assert (await finish(engine, started)).result == {"epochs": 4, "from": 0}
    assert witness.started_from == [0]


async def test_a_killed_job_is_explained_in_any_store(any_store, launcher, script):
    engine = Engine(any_store, KEY, launcher)
    outcome = await _end_of(engine, script, "import os; os.kill(os.getpid(), 9)")
    assert (outcome.failure.process, outcome.failure.signal) == ("main-0", "SIGKILL")
