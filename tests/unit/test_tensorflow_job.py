"""A TensorFlow job is data: its processes, what each is told, and wrong values that are answered at once."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from rallypoint import CloudTPU, Resources, Script, TensorFlowJob
from rallypoint.errors import InvalidJobError
from rallypoint.frameworks.tensorflow import strategy, task
from rallypoint.frameworks.tensorflow.cluster import Cluster, Member, Task, rank_variables
from rallypoint.frameworks.tensorflow.devices import DeviceError, choose, prepare
from rallypoint.frameworks.tensorflow.rendezvous import (
    JoinTimeoutError,
    Leader,
    LeaderLostError,
    Membership,
    as_all_reach,
    interface,
)
from rallypoint.launchers.base import Phase, ProcessEnd, Status
from rallypoint.launchers.placement import place
from rallypoint.spec.failure import FailureRule, Kind
from rallypoint.stages.events import Event
from rallypoint.stages.failure_table import classify
from rallypoint.stages.outcome import judge
from rallypoint.stages.rule import State
from rallypoint.stages.view import AttemptView


def job(**options):
    return TensorFlowJob(Script("/train.py"), **options)


def sizes(**options):
    return {role.name: role.replicas for role in job(**options).roles()}


# The processes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        ({}, {"worker": 1}),
        ({"strategy": "mirrored", "logical_devices": "2"}, {"worker": 1}),
        ({"strategy": "tpu"}, {"worker": 1}),
        ({"strategy": "multi_worker_mirrored"}, {"worker": 2}),
        ({"strategy": "multi_worker_mirrored", "workers": "3", "chief": True}, {"chief": 1, "worker": 3}),
        ({"strategy": "multi_worker_mirrored", "evaluator": True}, {"worker": 2, "evaluator": 1}),
        ({"strategy": "parameter_server"}, {"chief": 1, "worker": 2, "ps": 1}),
        (
            {"strategy": "parameter_server", "workers": 4, "parameter_servers": 2, "evaluator": True},
            {"chief": 1, "worker": 4, "ps": 2, "evaluator": 1},
        ),
    ],
)
def test_each_strategy_has_its_processes_and_the_leader_comes_first(options, processes):
    assert sizes(**options) == processes
    assert list(sizes(**options)) == list(processes)


def test_only_workers_of_parameter_servers_may_be_lost_and_one_of_them_has_to_stay():
    def may_lose(**options):
        return {role.name: role.may_lose for role in job(**options).roles()}

    assert may_lose(strategy="parameter_server", workers=3) == {"chief": 0, "worker": 2, "ps": 0}
    assert may_lose(strategy="parameter_server", workers=1) == {"chief": 0, "worker": 0, "ps": 0}
    assert may_lose(strategy="multi_worker_mirrored", workers=3) == {"worker": 0}


def test_each_type_asks_for_what_it_needs_and_what_gets_no_gpu_asks_for_none():
    asked = {"resources": Resources(cpus=8, gpus=1), "strategy": "parameter_server", "evaluator": True}
    big = Resources(cpus=4, memory="64GiB")
    without_gpu = Resources(cpus=8)

    def resources(**options):
        return {role.name: role.resources for role in job(**options).roles()}

    workers = {"worker": asked["resources"], "evaluator": asked["resources"]}
    assert resources(**asked) == {"chief": without_gpu, "ps": without_gpu, **workers}
    assert resources(**asked, task_resources={"ps": big}) == {"chief": without_gpu, "ps": big, **workers}
    with pytest.raises(InvalidJobError, match=r"task_resources.*chief, worker, ps, evaluator"):
        job(**asked, task_resources={"server": big})
    with pytest.raises(InvalidJobError, match="task_resources"):
        job(**asked, task_resources={"ps": {"cpus": 4}})


def test_all_processes_meet_at_a_port_of_the_first_host():
    gang = job(strategy="parameter_server").plan()
    spec = place(gang, attempt="rp-x-a1", run_dir="/run", python="/py")
    told = {process["name"]: json.loads(process["argv"][3]) for process in spec["processes"]}
    assert list(told) == told["ps-0"]["members"] == ["chief-0", "worker-0", "worker-1", "ps-0"]
    assert {each["rendezvous"] for each in told.values()} == {"127.0.0.1:${rallypoint:port.rendezvous}"}
    assert spec["ports"] == ["rendezvous"]
    assert spec["may_lose"] == {"worker": 1}


def test_one_process_meets_nobody():
    for options in ({}, {"strategy": "multi_worker_mirrored", "workers": 1}):
        spec = place(job(**options).plan(), attempt="rp-x-a1", run_dir="/run", python="/py")
        assert (len(spec["processes"]), spec["ports"]) == (1, [])


def test_the_ranks_are_those_that_train():
    def ranks(**options):
        return job(**options).settings()["ranks"]

    assert ranks(strategy="multi_worker_mirrored", chief=True, evaluator=True) == ["chief-0", "worker-0", "worker-1"]
    assert ranks(strategy="parameter_server", evaluator=True) == ["chief-0"]
    assert ranks() == ["worker-0"]


def test_the_environment_is_the_users_where_both_say_something():
    env = job(keras="legacy", env={"TF_CPP_MIN_LOG_LEVEL": "0", "A": "1"}, xla_flags=["--a=1", "--b"]).environment()
    assert env["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert (env["TF_USE_LEGACY_KERAS"], env["XLA_FLAGS"], env["A"]) == ("1", "--a=1 --b", "1")
    assert job().environment()["TF_USE_LEGACY_KERAS"] == "0"
    assert "TF_ENABLE_ONEDNN_OPTS" not in job().environment()


def test_keras_2_is_looked_for_before_the_launch():
    assert job(keras="legacy").plan().requires == ("tensorflow", "tf_keras")
    assert job().plan().requires == ("tensorflow",)


def test_the_jobs_own_failure_rules_come_first():
    own = FailureRule("mine", Kind.USER, "x", exception="JoinTimeoutError")
    rules = job(failure_rules=[own]).rules
    assert classify(rules, exception="a.JoinTimeoutError", message="", signal=None, exit_code=None) is own


# Wrong values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "horovod"}, "one of default, mirrored, multi_worker_mirrored, parameter_server, tpu"),
        ({"keras": "2"}, "one of 3, legacy"),
        ({"strategy": "multi_worker_mirrored", "communication": "mpi"}, "one of auto, ring, nccl"),
        ({"strategy": "multi_worker_mirrored", "workers": 0}, "1 or more"),
        ({"strategy": "multi_worker_mirrored", "workers": True}, "1 or more"),
        ({"strategy": "multi_worker_mirrored", "workers": "two"}, "1 or more"),
        ({"strategy": "mirrored", "workers": 2}, "one process for 'mirrored'"),
        ({"chief": True}, "one process for 'default'"),
        ({"strategy": "tpu", "evaluator": True}, "one process for 'tpu'"),
        ({"strategy": "parameter_server", "chief": False}, "the chief runs the code"),
        ({"strategy": "multi_worker_mirrored", "parameter_servers": 1}, "take 'parameter_server'"),
        ({"logical_devices": 2}, "None for 'default'"),
        ({"gpus": -1}, "how many, or a list"),
        ({"gpus": [0, 0]}, "how many, or a list"),
        ({"gpus": "0"}, "how many, or a list"),
        ({"tpu": CloudTPU()}, "a CloudTPU, with strategy"),
        ({"strategy": "tpu", "tpu": "local"}, "a CloudTPU, with strategy"),
        ({"xla_flags": "--a"}, "a list of flags"),
        ({"xla_flags": ["a"]}, "a list of flags"),
        ({"xla_flags": ["--a"], "env": {"XLA_FLAGS": "--b"}}, "either"),
        ({"join_timeout": 0}, "seconds above 0"),
        ({"join_timeout": None}, "seconds above 0"),
        ({"collective_timeout": -1}, "seconds above 0, or None"),
        ({"evaluator_grace": "1"}, "seconds above 0"),
    ],
)
def test_a_wrong_value_is_answered_at_once(options, words):
    with pytest.raises(InvalidJobError, match=words.replace("'", ".")) as raised:
        job(**options)
    assert raised.value.field in {*options, "chief"}


@pytest.mark.parametrize("values", [{"name": ""}, {"zone": 1}, {"project": "${rallypoint:run_dir}"}])
def test_a_wrong_name_of_a_tpu_is_answered_at_once(values):
    with pytest.raises(InvalidJobError, match="expected a name"):
        CloudTPU(**values)


# TF_CONFIG and ranks --------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster():
    places = {"chief-0": ("a:1", "a"), "worker-0": ("a:2", "a"), "worker-1": ("b:1", "b"), "ps-0": ("b:2", "b")}
    places["evaluator-0"] = ("b:3", "b")
    return Cluster({name: Member(*place) for name, place in places.items()}, ["chief-0"])


def test_tf_config_names_every_address_and_an_evaluator_is_in_nobodys_cluster(cluster):
    addresses = {"chief": ["a:1"], "worker": ["a:2", "b:1"], "ps": ["b:2"]}
    for name in cluster.members:
        config = json.loads(cluster.config(Task.parse(name)))
        assert config["cluster"] == addresses
        assert Task(**config["task"]).name == name


def test_processes_are_counted_on_their_host(cluster):
    workers = ["worker-0", "worker-1", "evaluator-0"]
    assert cluster.on_host_of("worker-1", workers) == (0, 2)
    assert cluster.on_host_of("evaluator-0", workers) == (1, 2)
    assert cluster.on_host_of("worker-0", workers) == (0, 1)


def test_no_process_beside_the_world_is_taken_for_rank_0():
    assert rank_variables("worker-0", ["chief-0", "worker-0"]) == {"RANK": "1", "WORLD_SIZE": "2"}
    assert rank_variables("evaluator-0", ["chief-0", "worker-0"]) == {"RANK": "2", "WORLD_SIZE": "3"}


def test_outside_of_a_job_a_process_is_the_only_worker():
    assert task() == Task("worker", 0)
    assert callable(strategy)


# GPUs: none is needed to tell which ones a process uses ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "found", "place_", "chosen"),
    [
        (None, 0, (0, 1), []),
        (None, 4, (0, 1), [0, 1, 2, 3]),
        (None, 4, (1, 2), [2, 3]),
        (None, 0, (1, 2), []),
        (None, 5, (1, 2), [2, 3]),
        (0, 4, (1, 2), []),
        (1, 4, (1, 2), [1]),
        (2, 4, (1, 2), [2, 3]),
        ([3, 1], 4, (0, 1), [3, 1]),
        ([3, 1], 4, (1, 2), [1]),
    ],
)
def test_processes_of_one_host_share_its_gpus_and_never_the_same_one(asked, found, place_, chosen):
    assert choose(asked, found=found, position=place_[0], sharing=place_[1]) == chosen


@pytest.mark.parametrize(
    ("asked", "found", "sharing", "words"),
    [
        (1, 0, 1, "shows TensorFlow 0 GPU"),
        (2, 3, 2, "gpus=2 for each of 2"),
        ([4], 4, 1, "none of number 4"),
        (None, 1, 2, "one each"),
    ],
)
def test_too_few_gpus_are_an_error_that_says_so(asked, found, sharing, words):
    with pytest.raises(DeviceError, match=words):
        choose(asked, found=found, position=0, sharing=sharing)


class FakeConfig:
    """``tf.config`` of a host with so many GPUs; it keeps what was set."""

    def __init__(self, gpus):
        self._devices = {"GPU": [f"GPU:{number}" for number in range(gpus)], "CPU": ["CPU:0"]}
        self.visible, self.growing, self.logical = None, [], None
        self.experimental = self.optimizer = self
        self.jit = None

    def list_physical_devices(self, kind):
        return self._devices[kind]

    def set_visible_devices(self, devices, kind):
        self.visible = (kind, devices)

    def set_memory_growth(self, device, growing):
        self.growing.append((device, growing))

    def set_logical_device_configuration(self, device, parts):
        self.logical = (device, len(parts))

    def LogicalDeviceConfiguration(self):  # noqa: N802 - TensorFlow's name
        return object()

    def set_jit(self, how):
        self.jit = how


def prepared(found, *, position=0, sharing=1, **options):
    tf = type("tf", (), {"config": FakeConfig(found)})
    prepare(tf, job(**options).settings(), position=position, sharing=sharing)
    return tf.config


def test_tensorflow_is_shown_only_the_gpus_of_this_process():
    config = prepared(4, gpus=2, position=1, sharing=2)
    assert config.visible == ("GPU", ["GPU:2", "GPU:3"])
    assert config.growing == [("GPU:2", True), ("GPU:3", True)]
    assert prepared(2, position=None).visible == ("GPU", [])  # a parameter server
    assert prepared(0).visible is None


def test_a_cpu_is_split_into_logical_devices_and_xla_is_asked_for():
    assert prepared(0, strategy="mirrored", logical_devices=3).logical == ("CPU:0", 3)
    assert prepared(0, jit_compile=True).jit == "autoclustering"
    assert prepared(0).jit is None


# The rendezvous, over real sockets ------------------------------------------------------------------------------------


@pytest.fixture
def endpoint():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return f"127.0.0.1:{port}"


NAMES = ("chief-0", "worker-0", "ps-0")


def leader(endpoint, *, timeout=30.0, deciding=("chief-0",)):
    return Leader(endpoint, attempt="rp-x-a1", members=NAMES, deciding=deciding, timeout=timeout)


def member(endpoint, name, *, attempt="rp-x-a1", timeout=30.0):
    return Membership(endpoint, attempt=attempt, name=name, leader="chief-0", timeout=timeout)


def together(*calls):
    """Run calls at the same time; return what each returned or raised."""
    found = [None] * len(calls)

    def run(index, call):
        try:
            found[index] = call()
        except Exception as error:  # noqa: BLE001 - it is what the test looks at
            found[index] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


def test_all_learn_where_all_are_and_ports_stay_reserved_until_they_are_released(endpoint):
    host = leader(endpoint)
    members = [member(endpoint, name) for name in NAMES]
    seen = together(*(each.join for each in members))
    assert seen[0] == seen[1] == seen[2]
    assert set(seen[0]) == set(NAMES)
    port = int(seen[0]["ps-0"].address.rpartition(":")[2])
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    members[2].release()
    socket.create_server(("127.0.0.1", port)).close()
    together(*(each.ready for each in members))
    members[0].done()
    assert together(*(each.wait_over for each in members)) == [None, None, None]
    for each in members:
        each.release()
        each.close()
    host.close()


def test_the_order_is_the_gangs_whoever_comes_first(endpoint):
    """A place in ``TF_CONFIG`` says which address is whose; on one host a wrong one works all the same."""
    host = leader(endpoint)
    members = {name: member(endpoint, name) for name in NAMES}
    found, threads = {}, []
    for name in reversed(NAMES):
        thread = threading.Thread(target=lambda name=name: found.update({name: members[name].join()}))
        threads.append(thread)
        thread.start()
        deadline = time.monotonic() + 30
        while name not in host._joined:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    for thread in threads:
        thread.join(60)
    assert [list(seen) for seen in found.values()] == [list(NAMES)] * 3
    for each in members.values():
        each.release()
        each.close()
    host.close()


def test_the_ones_that_do_not_come_are_named_to_those_that_did(endpoint):
    leader(endpoint, timeout=1.0)
    errors = together(*(member(endpoint, name, timeout=1.0).join for name in ("chief-0", "worker-0")))
    assert [type(error) for error in errors] == [JoinTimeoutError] * 2
    assert all(str(error).startswith("ps-0 did not join within 1 s") for error in errors)


def test_a_leader_that_does_not_come_is_named(endpoint):
    with pytest.raises(JoinTimeoutError, match="chief-0 did not open the rendezvous at 127"):
        member(endpoint, "worker-0", timeout=0.5).join()


def test_a_process_of_an_older_attempt_is_refused(endpoint):
    leader(endpoint)
    with pytest.raises(RuntimeError, match=r"refused.*this is the rendezvous of rp-x-a1"):
        member(endpoint, "worker-0", attempt="rp-x-a0").join()


def test_what_is_no_member_at_all_does_no_harm(endpoint):
    leader(endpoint)
    host, _, port = endpoint.rpartition(":")
    with socket.create_connection((host, int(port))) as noise:
        noise.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert noise.recv(100) == b""
    assert all(isinstance(seen, dict) for seen in together(*(member(endpoint, name).join for name in NAMES)))


def test_the_end_of_the_leader_is_no_good_end(endpoint):
    with socket.create_server(("127.0.0.1", int(endpoint.rpartition(":")[2]))) as dying:

        def hang_up():
            dying.accept()[0].close()

        error, _ = together(member(endpoint, "worker-0").join, hang_up)
    assert isinstance(error, LeaderLostError)


@pytest.mark.parametrize(
    ("leader", "addresses", "told"),
    [
        ("127.0.0.1", ["127.0.0.1:1", "127.0.0.1:2"], ["127.0.0.1:1", "127.0.0.1:2"]),
        ("gpu-1", ["127.0.1.1:1", "127.0.1.1:2", "10.0.0.2:3"], ["gpu-1:1", "gpu-1:2", "10.0.0.2:3"]),
        ("10.0.0.1", ["10.0.0.1:1", "10.0.0.2:3"], ["10.0.0.1:1", "10.0.0.2:3"]),
        ("fd00::1", ["[::1]:1", "[fd00::2]:3"], ["[fd00::1]:1", "[fd00::2]:3"]),
    ],
)
def test_who_came_over_the_leaders_loopback_is_known_to_other_hosts_by_the_leaders_name(leader, addresses, told):
    members = {f"worker-{number}": {"host": "h", "address": address} for number, address in enumerate(addresses)}
    assert [each["address"] for each in as_all_reach(members, leader).values()] == told


@pytest.mark.parametrize(
    ("host", "address", "listens"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("localhost", "::1", "localhost"),
        ("gpu-1", "10.0.0.1", "gpu-1"),
        ("gpu-1", "127.0.1.1", ""),
        ("a-service", None, ""),
    ],
)
def test_the_leader_listens_where_the_others_come(host, address, listens):
    assert interface(host, address) == listens


# What ends a gang, and what does not ----------------------------------------------------------------------------------


def judged(*ends):
    view = AttemptView()
    for end in ends:
        if end.exit_code == 0:
            view.apply([Event("opened", end.name, 0.0, {}), Event("closed", end.name, 0.0, {"exit_code": 0})])
    return judge(Status(Phase.ENDED, "completed", ends), view, attempt="a", logs="")


def test_a_loss_that_the_gang_tolerates_is_no_failure_and_any_other_is():
    chief = ProcessEnd("chief-0", 0)
    assert judged(chief, ProcessEnd("worker-0", None, "SIGKILL", tolerated=True)).state is State.SUCCEEDED
    assert judged(chief, ProcessEnd("worker-0", None, "SIGKILL")).state is State.FAILED


@pytest.mark.parametrize(
    ("exception", "kind", "echo"),
    [
        ("tensorflow.python.framework.errors_impl.ResourceExhaustedError", Kind.RETRYABLE, False),
        ("tensorflow.python.framework.errors_impl.UnavailableError", Kind.RETRYABLE, True),
        ("tensorflow.python.framework.errors_impl.AbortedError", Kind.RETRYABLE, True),
        ("tensorflow.python.framework.errors_impl.DeadlineExceededError", Kind.RETRYABLE, False),
        ("tensorflow.python.framework.errors_impl.InvalidArgumentError", Kind.UNKNOWN, False),
        ("rallypoint.frameworks.tensorflow.strategies.NoTPUError", Kind.USER, False),
        ("rallypoint.frameworks.tensorflow.keras_guard.KerasFitError", Kind.USER, False),
        ("rallypoint.frameworks.tensorflow.rendezvous.LeaderLostError", Kind.RETRYABLE, True),
    ],
)
def test_what_tensorflow_raises_is_classified(exception, kind, echo):
    rule = classify(job().rules, exception=exception, message="", signal=None, exit_code=None)
    assert (rule.kind, rule.echo) == (kind, echo)
