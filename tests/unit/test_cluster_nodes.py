"""What a process of a temporary cluster does, whichever framework's it is; its daemons here are small programs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from rallypoint.frameworks.cluster import nodes
from rallypoint.frameworks.cluster.addresses import answers, wait_for
from rallypoint.frameworks.cluster.daemon import Daemon, DaemonLostError, DaemonStartError
from rallypoint.frameworks.cluster.nodes import Chief, Node
from rallypoint.frameworks.dask.cluster import DaskCluster
from rallypoint.frameworks.ray.cluster import RayCluster
from rallypoint.frameworks.spark.cluster import SparkCluster
from rallypoint.spec.failure import Kind
from rallypoint.stages.failure_table import classify
from rallypoint.worker import context

STAYS = "import time; print('up', flush=True); time.sleep(600)"
ENDS = "print('no licence'); raise SystemExit(3)"
NOBODY = Chief("head", ("127.0.0.1:9",))


@pytest.fixture
def chief():
    """One that answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield Chief("head", (*NOBODY.addresses, f"127.0.0.1:{listening.getsockname()[1]}"))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Starts a program as a daemon, which is stopped with the test."""
    monkeypatch.setenv(context.LOGS_DIR, str(tmp_path))
    started = []

    def start(code, **options):
        started.append(Daemon([sys.executable, "-c", code], log="daemon", **{"env": {}, **options}))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def node(**settings):
    return Node({"start_timeout": 0.1, "max_restarts": 0, **settings}, "worker-0", "node")


def until(condition, deadline=30.0):
    over = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < over
        time.sleep(0.02)


def ended(daemon):
    return daemon.wait(threading.Event())


def test_a_daemon_has_a_log_of_its_own_and_nothing_that_makes_it_a_process_of_the_stage(run, tmp_path, monkeypatch):
    monkeypatch.setenv(context.PROCESS, "worker-0")
    monkeypatch.setenv(context.RUN_DIR, "/attempt")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    daemon = run(code, env={"OWN": "yes"}, without=("RAY_ADDRESS",))
    assert ended(daemon) == 0
    found = json.loads((tmp_path / "daemon.log").read_text())
    assert found["OWN"] == "yes"
    assert found[context.RUN_DIR] == "/attempt"  # by which it is found again
    assert not {context.PROCESS, context.LOGS_DIR, "RAY_ADDRESS"} & found.keys()


def test_a_daemon_that_does_not_end_when_it_is_asked_to_is_killed(run, tmp_path):
    code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {STAYS}"
    daemon = run(code, stop_seconds=0.2)
    until(lambda: "up" in (tmp_path / "daemon.log").read_text())
    daemon.stop()
    assert daemon.ended() is not None


def test_an_address_is_waited_for_until_something_listens_there():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        assert not wait_for([address], 0.1)
        threading.Timer(0.3, listening.listen).start()
        assert wait_for([address], 30)


def test_an_ipv6_address_may_be_in_brackets():
    with socket.socket(socket.AF_INET6) as listening:
        try:
            listening.bind(("::1", 0))
        except OSError:
            pytest.skip("this host has no IPv6")
        listening.listen()
        assert answers(f"[::1]:{listening.getsockname()[1]}")


def test_a_node_waits_for_any_of_its_chiefs_addresses(chief):
    node(start_timeout=30).wait_for_chief(chief)


def test_a_chief_that_does_not_answer_in_time_is_named_with_its_address():
    with pytest.raises(DaemonStartError, match=r"at the head's address 127\.0\.0\.1:9 within 0\.1 s"):
        node().wait_for_chief(NOBODY)


def test_the_members_are_returned_when_all_have_joined(run):
    asked = []

    def joined():
        asked.append(None)
        return {"worker-0": 1, "worker-1": 2, "other": 3} if len(asked) > 1 else {"worker-0": 1}

    waiting = node(start_timeout=30)
    found = waiting.wait_for_members(["worker-0", "worker-1"], joined, run(STAYS), deadline=waiting.deadline())
    assert found == [1, 2]


def test_members_that_have_not_joined_in_time_are_named(run):
    waiting = node()
    with pytest.raises(DaemonStartError, match=r"1 of 3 nodes joined within 0\.1 s, without worker-1, worker-2: look"):
        waiting.wait_for_members(
            ["worker-0", "worker-1", "worker-2"], lambda: {"worker-0": 1}, run(STAYS), deadline=waiting.deadline()
        )


def test_nobody_is_waited_for_when_the_nodes_own_daemon_has_ended(run):
    daemon = run(ENDS, called="ray start")
    assert ended(daemon) == 3
    waiting = node(start_timeout=30)
    with pytest.raises(DaemonStartError, match=r"^ray start ended with exit code 3 while .*; it printed:\nno licence$"):
        waiting.wait_for_members(["worker-0"], dict, daemon, deadline=waiting.deadline())


def test_a_node_that_is_asked_to_end_waits_for_nobody_and_stops_its_daemon(run):
    asked, daemon = node(start_timeout=30), run(STAYS)
    asked.stop.set()
    asked.wait_for_chief(NOBODY)
    assert asked.wait_for_members(["worker-0"], dict, daemon, deadline=asked.deadline()) == []
    asked.hold(daemon, "the cluster's head")
    assert daemon.ended() is not None


def test_a_chief_that_ends_by_itself_is_lost_and_its_last_lines_are_told(run):
    with pytest.raises(DaemonLostError) as caught:
        node().hold(run(ENDS), "the cluster's head", logs="/logs")
    assert str(caught.value) == (
        "the cluster's head ended with exit code 3; what it wrote is in /logs, and it printed:\nno licence"
    )


def test_a_worker_that_dies_is_started_anew_until_it_has_been_too_often(run, chief, capfd):
    first = []
    with pytest.raises(DaemonLostError, match=r"^this node ended with exit code 3, after 1 restarts \(max_restarts\)"):
        node(max_restarts=1).keep(lambda: run(ENDS), chief, started=first.append)
    assert len(first) == 1
    assert "the node ended with exit code 3: restart 1 of 1" in capfd.readouterr().out


def test_a_worker_whose_chief_is_gone_is_not_started_anew(run, monkeypatch):
    monkeypatch.setattr(nodes, "ORPHANED", 0.1)
    with pytest.raises(DaemonLostError, match=r"^the cluster's head at 127\.0\.0\.1:9 is gone$"):
        node(max_restarts=3).keep(lambda: run(ENDS), NOBODY)


def test_a_worker_that_is_stopped_together_with_its_chief_has_not_failed(run):
    stopped = node(max_restarts=3)
    threading.Timer(0.5, stopped.stop.set).start()
    stopped.keep(lambda: run(ENDS), NOBODY)  # much sooner than the chief counts as gone


def test_a_process_runs_its_role_until_a_signal_asks_it_to_end():
    code = """
        import sys
        from rallypoint.frameworks.cluster import nodes

        def worker(node):
            print(node.name, node.settings, flush=True)
            assert node.stop.wait(60)

        sys.exit(nodes.run(["worker", '{"a": 1}'], {"worker": worker}, member="node"))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=os.environ | {context.PROCESS: "worker-7"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "worker-7 {'a': 1}\n"
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0


# What a failure means -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "what"),
    [
        (RayCluster(), "a Ray node"),
        (SparkCluster(), "Spark's service"),
        (DaskCluster(), "a process of the Dask cluster"),
    ],
)
@pytest.mark.parametrize(("error", "happened"), [(DaemonLostError, "was lost"), (DaemonStartError, "did not start")])
def test_a_clusters_process_that_is_lost_or_does_not_start_is_worth_a_retry(job, what, error, happened):
    name = f"{error.__module__}.{error.__qualname__}"
    rule = classify(job.rules, exception=name, message="it printed:\nTypeError", signal=None, exit_code=1)
    assert (rule.name, rule.kind) == (f"{what} {happened}", Kind.RETRYABLE)
