"""The commands and their options."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import uuid
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.filesize import decimal

import rallypoint
from rallypoint.cli.check import hosts_json, show_hosts
from rallypoint.cli.logs import Selection, print_logs
from rallypoint.cli.place import find_stage, launcher_uri, open_store, pick_attempt
from rallypoint.cli.plan import show_gang, show_placed
from rallypoint.cli.prune import parse_age, remove_all, show_going
from rallypoint.cli.run import run_stage
from rallypoint.cli.serve import serve_app
from rallypoint.cli.status import all_attempts, last_attempts, show_stage, show_stages, stage_json, stages_json
from rallypoint.cli.target import load_target
from rallypoint.cli.tensorboard import NoTensorBoardError, open_tensorboard
from rallypoint.cli.terminal import complain, output, say
from rallypoint.launchers.base import Surveyable
from rallypoint.launchers.local import LocalLauncher
from rallypoint.launchers.placement import place
from rallypoint.launchers.registry import open_launcher
from rallypoint.spec.service_job import ServiceJob
from rallypoint.stages.attempt import Request
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.prune import survey
from rallypoint.stages.retention import Policy
from rallypoint.stages.rule import Intent, Resume, State, decide
from rallypoint.stages.text import printable

if TYPE_CHECKING:
    from rallypoint.stages.attempt import Snapshot

_Target = Annotated[str, typer.Argument(metavar="FILE.py:NAME", help="A job in a Python file.")]
_Stage = Annotated[
    str, typer.Argument(metavar="STAGE", help="A stage's key or the end of it, an attempt's id, or a run folder.")
]
_AnyStage = Annotated[
    str | None,
    typer.Argument(metavar="STAGE", help="A stage's key or its end, an attempt's id, or a run folder; all if omitted."),
]
_Store = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        help="The store. Default: RALLYPOINT_STORE, else AIRFLOW_HOME/rallypoint, else ~/.rallypoint/store.",
    ),
]
_Launcher = Annotated[
    str | None,
    typer.Option(metavar="URI", help="Where it runs. Default: RALLYPOINT_LAUNCHER, else this machine."),
]
_Name = Annotated[str | None, typer.Option(metavar="NAME", help="The stage's name. Default: file and job, 'file.job'.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Placed = Annotated[bool, typer.Option("--placed", help="Also show the processes as this machine would run them.")]
_Resume = Annotated[Resume, typer.Option(help="When an earlier attempt's checkpoints are used.")]
_Rerun = Annotated[bool, typer.Option("--rerun", help="Run it again, as if a person had cleared it.")]
_Attempt = Annotated[int | None, typer.Option(metavar="N", help="The attempt's number. Default: the newest.")]
_Rank = Annotated[int | None, typer.Option(metavar="N", help="Only this rank.")]
_Process = Annotated[str | None, typer.Option(metavar="NAME", help="Only this process, such as agent-0.")]
_Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port. Default: a free one.")]
_Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the attempt has ended.")]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_Age = Annotated[str, typer.Option(metavar="AGE", help="How long ago it must have ended: 30d, 12h, 90m, 45s, 2w.")]
_Keep = Annotated[int, typer.Option(metavar="N", min=1, help="Keep this many of a stage's newest generations.")]
_Forget = Annotated[
    bool,
    typer.Option(
        "--forget-stages",
        help="Remove a stage with result and last checkpoint if all of it is older, and the history of applications on "
        "clusters that were made for a run.",
    ),
]
_Only = Annotated[str, typer.Option("--stage", metavar="KEY", help="Only stages of this key, or with this end of it.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would go, and remove nothing.")]
_Version = Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")]

_USAGE = 2  # exit code of wrong input
_INTERRUPTED = 130  # exit code after Ctrl-C

app = typer.Typer(
    name="rallypoint",
    help="Distributed ML jobs as stages: run them without an orchestrator, and look at those of one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(serve_app)


@app.callback(invoke_without_command=True)
def _root(*, version: _Version = False) -> None:
    if version:
        typer.echo(f"rallypoint {rallypoint.__version__}")
        raise typer.Exit


@app.command()
def plan(
    target: _Target,
    *,
    placed: _Placed = False,
    as_json: _Json = False,
    store: _Store = None,
    launcher: _Launcher = None,
) -> None:
    """Show what a job compiles to: every process, without starting anything."""
    found = load_target(target)
    gang = found.job.plan()
    processes: dict[str, Any] | None = None
    if placed:
        here = open_launcher(launcher_uri(launcher, open_store(store)))
        if not isinstance(here, LocalLauncher):
            _refuse(f"got --placed with the launcher {here.uri}, expected a local:// one; leave --placed out")
        attempt = StageKey(("cli", found.stage)).attempt_id(1)
        python = gang.python or here.python
        processes = place(gang, attempt=attempt, run_dir=str(here.root / attempt), python=python)
    if as_json:
        _print_json({**gang.to_json(), "placed": processes} if processes else gang.to_json())
        return
    output().print(show_gang(gang))
    if processes:
        output().print(show_placed(processes))


@app.command()
def check(
    launcher: Annotated[str | None, typer.Argument(metavar="[LAUNCHER]", help="Its URI. Default: as for run.")] = None,
    *,
    requires: Annotated[
        list[str] | None,
        typer.Option("--requires", metavar="MODULE", help="A module that its Python needs; repeat it."),
    ] = None,
    python: Annotated[
        str | None, typer.Option(metavar="PATH", help="The interpreter. Default: the launcher's.")
    ] = None,
    as_json: _Json = False,
    store: _Store = None,
) -> None:
    """Look at a launcher's hosts: which answer, and how their Pythons, clocks and networks fit together."""
    where = open_launcher(launcher_uri(launcher, open_store(store)))
    if not isinstance(where, Surveyable):
        _refuse(f"got the launcher {where.uri}, expected one with hosts of its own, such as ssh:// or local://")
    reports = asyncio.run(where.survey(python=python, requires=tuple(requires or ())))
    if as_json:
        _print_json(hosts_json(reports))
    else:
        output().print(show_hosts(reports))
    if any(report.problems for report in reports):
        raise typer.Exit(1)


@app.command()
def run(  # noqa: PLR0913 - the options of a command are its parameters
    target: _Target,
    *,
    stage: _Name = None,
    resume: _Resume = Resume.IF_SAME_WORK,
    rerun: _Rerun = False,
    store: _Store = None,
    launcher: _Launcher = None,
) -> None:
    """Run a job as a stage and print its result as JSON.

    A stage that has succeeded returns its result, one that is still running is reattached to, and one that failed
    continues from its last checkpoint. Ctrl-C stops the job; any other end of this command leaves it running.
    Of a service, such as a RayCluster, it prints the address as soon as it is ready, and holds it until it is stopped.
    """
    found = load_target(target)
    if stage is not None and not stage.strip():
        _refuse(f"got --stage {stage!r}, expected a name")
    opened = open_store(store)
    key = StageKey(("cli", stage or found.stage))
    engine = Engine(opened, key, open_launcher(launcher_uri(launcher, opened)))
    owner = f"cli:{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    request = Request(owner=owner, intent=Intent.RERUN if rerun else Intent.CONTINUE, resume=resume)
    try:
        result = asyncio.run(
            run_stage(engine, found.job, request, on_ready=lambda address: _print_json(address, indent=None))
        )
    except InterruptedError as error:
        say(f"interrupted: {error}")
        raise typer.Exit(_INTERRUPTED) from None
    except KeyboardInterrupt:
        say(f"interrupted again: the job ends without this command; see rallypoint status {key.text}")
        raise typer.Exit(_INTERRUPTED) from None
    if not isinstance(found.job, ServiceJob):
        _print_json(result, indent=None)


@app.command()
def status(stage: _AnyStage = None, *, as_json: _Json = False, store: _Store = None) -> None:
    """Show all stages, or one stage's attempts, processes, progress and failure."""
    if stage is None:
        opened = open_store(store)
        stages = asyncio.run(last_attempts(opened))
        _print_json(stages_json(stages)) if as_json else output().print(show_stages(opened, stages))
        return
    key, attempts, shown = asyncio.run(_look(stage, store))
    if as_json:
        _print_json(stage_json(key, attempts, shown))
    else:
        output().print(show_stage(key, attempts, shown))


@app.command()
def logs(  # noqa: PLR0913 - the options of a command are its parameters
    stage: _Stage,
    *,
    attempt: _Attempt = None,
    rank: _Rank = None,
    process: _Process = None,
    follow: _Follow = False,
    store: _Store = None,
) -> None:
    """Print what an attempt's processes wrote."""
    if rank is not None and process is not None:
        _refuse("got --rank and --process, expected one of them")

    async def show() -> None:
        engine, named = await find_stage(stage, store)
        number = await pick_attempt(engine, named if attempt is None else attempt)
        await print_logs(engine, number, Selection(rank, process), follow=follow)

    try:
        asyncio.run(show())
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None


@app.command()
def tensorboard(stage: _Stage, *, attempt: _Attempt = None, port: _Port = 0, store: _Store = None) -> None:
    """Open a TensorBoard on what a stage wrote for it, on 127.0.0.1, until Ctrl-C."""

    async def show() -> int:
        engine, named = await find_stage(stage, store)
        number = await pick_attempt(engine, named if attempt is None else attempt)
        return await open_tensorboard(engine, number, port=port)

    try:
        code = asyncio.run(show())
    except NoTensorBoardError as error:
        _refuse(str(error))
    if code:
        raise typer.Exit(code)


@app.command()
def cancel(stage: _Stage, *, yes: _Yes = False, store: _Store = None) -> None:
    """Stop a stage's running attempt; a later run continues from its last checkpoint."""
    engine, shown = asyncio.run(_newest(stage, store, any_attempt=True))
    if shown is None or shown.state not in (State.LIVE, State.PENDING):
        last = f": {shown.entry.record.id} is {shown.state.value}" if shown else ""
        say(f"nothing of {engine.key.text} is running{last}")
        return
    record = shown.entry.record
    _confirm(f"stop {record.id}, attempt {record.number} of {engine.key.text}?", yes=yes)
    asyncio.run(engine.cancel(record.number, owner=None, why="cancelled with rallypoint cancel"))
    outcome = asyncio.run(engine.read(record.number)).outcome
    if outcome is None or outcome.state is State.CANCELLED:
        then = "starts a new one" if record.service else "continues from its last checkpoint"
        say(f"{record.id} is cancelled; the next try {then}")
    else:
        say(f"{record.id} had ended before it was cancelled: {outcome.state.value}")


@app.command()
def forget(stage: _Stage, *, yes: _Yes = False, store: _Store = None) -> None:
    """Have the next try run a stage again, as if a person had cleared it; nothing is deleted."""
    engine, shown = asyncio.run(_newest(stage, store, any_attempt=False))
    if shown is None:
        say(f"{engine.key.text} has no attempt: the next try runs it anyway")
        return
    record = shown.entry.record
    decision = decide(shown.state, Intent.RERUN, service=record.service)
    if record.service:
        effect = "stops it, then starts a new one" if decision.stop_first else "starts a new one, as without this"
    elif decision.stop_first:
        effect = "stops it, then launches it again from its last checkpoint"
    elif decision.from_checkpoint:
        effect = "launches it again from its last checkpoint, as it would have without this"
    else:
        effect = f"runs it from scratch, in generation {record.generation + 1}, instead of returning its result"
    expected = f"the last attempt, {record.id}, is {shown.state.value}: the next try {effect}"
    _confirm(f"{expected}. Forget {engine.key.text}?", yes=yes)
    asyncio.run(engine.ledger.ask_rerun(record.number))
    say(f"forgot {engine.key.text}; {expected}")
    if decision.from_checkpoint:
        say('(if the work has not changed; resume="never" starts from scratch)')


@app.command()
def prune(  # noqa: PLR0913 - the options of a command are its parameters
    *,
    older_than: _Age = "30d",
    keep_generations: _Keep = 2,
    stage: _Only = "",
    forget_stages: _Forget = False,
    dry_run: _DryRun = False,
    yes: _Yes = False,
    store: _Store = None,
) -> None:
    """Remove logs, events and generations (checkpoints, artifacts) of old attempts, and old configs of applications.

    A stage whose last attempt is running or unknown is left alone, and so are every stage's newest generation and the
    record of its attempts. Of a Ray Serve application its newest configs stay, as many as its keep_versions says.
    """
    try:
        age = parse_age(older_than)
    except ValueError as error:
        _refuse(f"--older-than: {error}")
    opened = open_store(store)
    policy = Policy(older_than=age, keep_generations=keep_generations, forget_stages=forget_stages)
    found = asyncio.run(survey(opened, policy, stage=stage))
    show_going(found)
    count = sum(bool(going.parts) for going in found)
    what = f"{decimal(sum(going.size for going in found))} of {count} {'entry' if count == 1 else 'entries'}"
    if dry_run or not count:
        say(f"{what} would be removed" if count else f"nothing in {opened.uri} is to be removed")
    else:
        _confirm(f"remove {what}?", yes=yes)
    if count and not dry_run and not remove_all(opened, found):
        raise typer.Exit(_USAGE)


async def _look(stage: str, store: str | None) -> tuple[StageKey, list[Snapshot], Snapshot]:
    engine, named = await find_stage(stage, store)
    number = await pick_attempt(engine, named)
    attempts = await all_attempts(engine)
    return engine.key, attempts, next(shown for shown in attempts if shown.entry.record.number == number)


async def _newest(stage: str, store: str | None, *, any_attempt: bool) -> tuple[Engine, Snapshot | None]:
    """Return a stage's newest attempt, or where `any_attempt` is allowed the one that was named."""
    engine, named = await find_stage(stage, store)
    numbers = await engine.ledger.numbers()
    number = await pick_attempt(engine, named if any_attempt else None) if numbers else None
    return engine, None if number is None else await engine.inspect(number)


def _confirm(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        _refuse("nobody can be asked here: give --yes")
    if not typer.confirm(printable(question), err=True):
        say("nothing was done")
        raise typer.Exit(1)


def _refuse(message: str) -> NoReturn:
    complain(message)
    raise typer.Exit(_USAGE)


def _print_json(value: Any, *, indent: int | None = 2) -> None:
    typer.echo(json.dumps(value, indent=indent))  # escapes everything that a terminal would obey
