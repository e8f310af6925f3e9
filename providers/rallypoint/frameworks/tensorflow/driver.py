"""Inside the job: one task of TensorFlow's cluster, from the import to the agreed end.

``SETTINGS KIND WHERE ARG…``: the settings are the JSON of `TensorFlowJob.roles`, the rest is the entry.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.tensorflow import devices, keras_guard, session
from rallypoint.frameworks.tensorflow.cluster import CHIEF, EVALUATOR, SERVER, WORKER, Cluster, Task, rank_variables
from rallypoint.frameworks.tensorflow.rendezvous import Leader, Membership
from rallypoint.worker import context, process
from rallypoint.worker.entry import run_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


_NO_PROXY = "no_grpc_proxy"  # the name that gRPC reads
_HUNG = 3.0  # join timeouts after which a process that has not started is as silent as any other


class _WorkOverError(BaseException):
    """Ends the code of an evaluator that would evaluate for ever; no handler of ``Exception`` catches it."""


def main(argv: list[str]) -> int:
    """Run one task and report on it."""
    settings = json.loads(argv[0])
    name = os.environ.get(context.PROCESS, f"{WORKER}-0")
    os.environ |= rank_variables(name, settings["ranks"])
    return process.run(lambda: _run(settings, Task.parse(name), argv[1:]), name=name, primary=os.environ["RANK"] == "0")


def _run(settings: Mapping[str, Any], task: Task, entry: list[str]) -> Any:
    if len(settings["members"]) == 1:
        with process.starting_up(_HUNG * settings["join_timeout"]):
            tf = session.tensorflow()
        devices.prepare(tf, settings, position=0, sharing=1)
        return _user_code(session.Session(settings, task), entry)
    where, attempt, leader = settings["rendezvous"], os.environ[context.ATTEMPT_ID], settings["members"][0]
    host = None
    if task.name == leader:
        host = Leader(
            where,
            attempt=attempt,
            members=settings["members"],
            deciding=settings["ranks"],
            timeout=settings["join_timeout"],
        )
    membership = Membership(where, attempt=attempt, name=task.name, leader=leader, timeout=settings["join_timeout"])
    try:
        return _take_part(settings, task, entry, membership)
    finally:
        if membership.over:  # otherwise what went wrong is told first, and the end of the process tells the others
            membership.close()
            if host is not None:
                host.close()


def _take_part(settings: Mapping[str, Any], task: Task, entry: list[str], membership: Membership) -> Any:
    """Join the others, do this task's part, and return when all agree that it is over."""
    with process.starting_up(_HUNG * settings["join_timeout"]):
        tf = session.tensorflow()  # first: it takes its time, and the address is of use only after it
        cluster = Cluster(membership.join(), settings["ranks"])
    _set_environment(cluster, settings, task)
    position, sharing = _gpu_place(cluster, settings, task)
    devices.prepare(tf, settings, position=position, sharing=sharing)
    if _serves(settings, task):
        server = _serve(tf, cluster, task, membership)
        membership.wait_over()
        del server  # it takes requests until here
        return None
    membership.ready()
    if task.type == EVALUATOR:
        return _evaluate(settings, task, entry, membership)
    mine = session.Session(settings, task, on_connected=membership.release)
    return _until_over(lambda: _user_code(mine, entry), membership)


def _set_environment(cluster: Cluster, settings: Mapping[str, Any], task: Task) -> None:
    os.environ["TF_CONFIG"] = cluster.config(task)
    among = settings["ranks"] if task.name in settings["ranks"] else [task.name]
    os.environ["LOCAL_RANK"] = str(cluster.on_host_of(task.name, among)[0])
    # Between the processes there is no proxy, whatever the host's environment says of the world outside.
    hosts = {member.address.rpartition(":")[0] for member in cluster.members.values()}
    known = os.environ.get(_NO_PROXY, os.environ.get("no_proxy", ""))
    os.environ[_NO_PROXY] = ",".join(filter(None, [known, *sorted(hosts)]))


def _gpu_place(cluster: Cluster, settings: Mapping[str, Any], task: Task) -> tuple[int | None, int]:
    """Return which one this task is of those on its host that compute on GPUs, and how many those are."""
    computing = (WORKER, EVALUATOR) if settings["strategy"] == "parameter_server" else (CHIEF, WORKER, EVALUATOR)
    if task.type not in computing:
        return None, 1
    return cluster.on_host_of(task.name, [name for name in cluster.members if Task.parse(name).type in computing])


def _serves(settings: Mapping[str, Any], task: Task) -> bool:
    """Whether a task only does what the chief sends it, and runs none of the user's code."""
    return settings["strategy"] == "parameter_server" and task.type in (SERVER, WORKER)


def _serve(tf: Any, cluster: Cluster, task: Task, membership: Membership) -> Any:
    spec = json.loads(cluster.config(task))["cluster"]
    server = tf.distribute.Server(
        tf.train.ClusterSpec(spec), job_name=task.type, task_index=task.index, protocol="grpc"
    )
    membership.release()
    membership.ready()
    print(f"{task.name} serves at {cluster.members[task.name].address}", flush=True)  # noqa: T201 - the process's log
    return server


def _user_code(mine: session.Session, entry: list[str]) -> Any:
    session.install(mine)
    keras_guard.install(mine.settings)
    if mine.settings["strategy"] == "tpu":
        mine.strategy()  # without one the user's code need not begin
    return run_entry(entry, inject=session.Injected())


def _until_over(work: Callable[[], Any], membership: Membership) -> Any:
    """Return what the work does when the others are done too: they may need this process until then."""
    try:
        value = work()
    except SystemExit as error:
        if not error.code:
            _agree(membership)
        raise
    _agree(membership)
    return value


def _agree(membership: Membership) -> None:
    membership.done()
    membership.wait_over()


def _evaluate(settings: Mapping[str, Any], task: Task, entry: list[str], membership: Membership) -> None:
    """Run the user's code as the evaluator; once the work is over, it has some time for its own end."""
    main_thread, ended = threading.get_ident(), threading.Event()
    lost: list[BaseException] = []

    def end() -> None:
        try:
            membership.wait_over()
        except ConnectionError as error:
            lost.append(error)
        if lost or not ended.wait(settings["evaluator_grace"]):
            signal.pthread_kill(main_thread, signal.SIGUSR1)

    def interrupt(*_: object) -> None:
        if not ended.is_set():
            raise _WorkOverError

    signal.signal(signal.SIGUSR1, interrupt)
    threading.Thread(target=end, name="evaluator-end", daemon=True).start()
    try:
        # Its strategy is TensorFlow's default one: it computes alone.
        _user_code(session.Session({**settings, "strategy": "default"}, task), entry)
        ended.set()
        membership.done()
    except SystemExit:
        ended.set()
        raise
    except _WorkOverError:
        if lost:
            raise lost[0] from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
