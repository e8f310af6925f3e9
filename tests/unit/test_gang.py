"""A gang is pure data: macros are filled where it is placed, and secrets are shown nowhere."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.launchers.placement import Node, place, place_on
from rallypoint.spec.gang import Gang, Macro, Role, Secret, fill, has_macro
from rallypoint.spec.resources import Resources
from rallypoint.worker import context

ROLE = Role(name="agent", argv=(Macro.PYTHON, "-m", "x"))


def _place(*roles, **gang):
    return place(Gang(name="g", roles=roles, **gang), attempt="rp-x-a1", run_dir="/runs/rp-x-a1", python="/py")


# Macros --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("$HOME ${HOME} ${rallypoint}", "$HOME ${HOME} ${rallypoint}"),
        (Macro.RUN_DIR + "/x", "/run/x"),
        (f"{Macro.HOST}:{Macro.port('rdzv')}", "h:1234"),
        ("--nnodes=" + Macro.NODES, "--nnodes=${rallypoint:run_dir}"),  # a value is not filled again
    ],
)
def test_macros_are_filled_once(text, filled):
    values = {"run_dir": "/run", "host": "h", "port.rdzv": "1234", "nodes": "${rallypoint:run_dir}"}
    assert fill(text, values) == filled


def test_a_macro_that_a_launcher_cannot_fill_is_an_error():
    with pytest.raises(KeyError, match=r"port\.rdzv"):
        fill(Macro.port("rdzv"), {"run_dir": "/run"})


@pytest.mark.parametrize("macro", [Macro.PYTHON, Macro.RUN_DIR, Macro.ATTEMPT, Macro.REPLICA, Macro.port("a_1")])
def test_a_macro_is_seen_within_text(macro):
    assert has_macro(f"before{macro}after")


@given(st.text(alphabet="abc${}: rallypoint"))
def test_text_without_macros_stays_as_it_is(text):
    if not has_macro(text):
        assert fill(text, {}) == text


# Placing -------------------------------------------------------------------------------------------------------------


def test_roles_and_replicas_become_processes():
    spec = _place(
        Role(name="head", argv=(Macro.PYTHON, "head.py")),
        Role(name="worker", argv=("worker", Macro.REPLICA, Macro.NODES), replicas=2),
    )
    assert [process["name"] for process in spec["processes"]] == ["head-0", "worker-0", "worker-1"]
    assert [process["argv"] for process in spec["processes"]] == [
        ["/py", "head.py"],
        ["worker", "0", "2"],
        ["worker", "1", "2"],
    ]


def test_one_machine_runs_the_least_of_an_elastic_role():
    spec = _place(Role(name="agent", argv=(Macro.NODES,), replicas=4, min_replicas=2))
    assert [process["argv"] for process in spec["processes"]] == [["2"], ["2"]]


def test_every_process_knows_its_name_and_attempt():
    (process,) = _place(ROLE)["processes"]
    assert process["env"][context.PROCESS] == "agent-0"
    assert process["env"][context.ATTEMPT_ID] == "rp-x-a1"
    assert process["env"][context.LOGS_DIR] == "/runs/rp-x-a1/logs"


def test_ports_are_left_to_the_moment_of_the_start():
    spec = _place(Role(name="agent", argv=(f"{Macro.HOST}:{Macro.port('rdzv')}",), ports=("rdzv",)))
    assert spec["processes"][0]["argv"] == ["127.0.0.1:" + Macro.port("rdzv")]
    assert spec["ports"] == ["rdzv"]


def test_the_supervisor_watches_the_events_of_a_folder_and_of_no_bucket():
    def events_dir(uri):
        return _place(Role(name="a", argv=("x",), env={context.EVENTS_URI: uri}))["events_dir"]

    assert events_dir("file:///store/a%20b/events") == "/store/a b/events"
    assert events_dir("s3://bucket/events") is None


# Secrets -------------------------------------------------------------------------------------------------------------


def test_a_secret_is_shown_nowhere():
    gang = Gang(name="g", roles=(ROLE,), secrets={"TOKEN": Secret("hunter2")}, files={"f": b"hunter2"})
    spec = place(gang, attempt="a", run_dir="/r", python="/py")
    shown = [repr(gang.secrets), str(gang.secrets["TOKEN"]), f"{gang.secrets['TOKEN']}", json.dumps(gang.to_json())]
    assert all("hunter2" not in text for text in [*shown, json.dumps(spec)])
    assert gang.to_json()["secrets"] == ["TOKEN"]
    assert gang.secrets["TOKEN"].reveal() == "hunter2"


def test_more_is_added_to_every_role_and_nothing_is_lost():
    gang = Gang(name="g", roles=(ROLE, Role(name="b", argv=("x",), env={"A": "1", "B": "1"})), files={"f": b"1"})
    more = gang.with_more(files={"g": b"2"}, env={"B": "2"}, secrets={"S": Secret("s")})
    assert [dict(role.env) for role in more.roles] == [{"B": "2"}, {"A": "1", "B": "2"}]
    assert set(more.files) == {"f", "g"}
    assert set(more.secrets) == {"S"}
    assert dict(gang.roles[1].env) == {"A": "1", "B": "1"}


def test_the_plan_is_json():
    role = Role(
        name="agent", argv=("x",), replicas=4, min_replicas=1, resources=Resources(cpus=2, memory="1GiB", gpus=1)
    )
    described = json.loads(json.dumps(Gang(name="torch", roles=(role,), files={"f": b"123"}).to_json()))
    assert described["roles"][0]["resources"] == {"cpus": 2, "memory": "1GiB", "gpus": 1}
    assert (described["roles"][0]["replicas"], described["roles"][0]["min_replicas"]) == (4, 1)
    assert described["files"] == {"f": 3}


# On several nodes ----------------------------------------------------------------------------------------------------


def _place_on(count, *roles, ports=None, **node):
    nodes = [Node(run_dir=f"/runs/{n}", python="/py", **{"address": f"10.0.0.{n}", **node}) for n in range(count)]
    return place_on(Gang(name="g", roles=roles), attempt="rp-x-a1", nodes=nodes, ports=ports)


def _names(specs):
    return [[process["name"] for process in spec["processes"]] for spec in specs]


@pytest.mark.parametrize(
    ("nodes", "role", "names", "placed"),
    [
        (2, {"replicas": 2}, [["r-0"], ["r-1"]], "2"),
        (2, {"replicas": 3}, [["r-0", "r-2"], ["r-1"]], "3"),
        (3, {"replicas": 2}, [["r-0"], ["r-1"], []], "2"),
        (1, {"replicas": 4, "min_replicas": 1}, [["r-0"]], "1"),
        (3, {"replicas": 4, "min_replicas": 1}, [["r-0"], ["r-1"], ["r-2"]], "1:3"),
        (5, {"replicas": 3, "min_replicas": 2}, [["r-0"], ["r-1"], ["r-2"], [], []], "2:3"),
        (1, {"replicas": 4, "min_replicas": 2}, [["r-0", "r-1"]], "2"),
    ],
)
def test_processes_are_dealt_to_the_nodes_and_an_elastic_role_has_one_on_each(nodes, role, names, placed):
    specs = _place_on(nodes, Role(name="r", argv=(Macro.NODES,), **role))
    assert _names(specs) == names
    assert {process["argv"][0] for spec in specs for process in spec["processes"]} == {placed}


def test_the_first_process_of_the_gang_is_on_the_first_node_and_the_next_ones_follow():
    specs = _place_on(2, Role(name="head", argv=()), Role(name="worker", argv=(), replicas=2))
    assert _names(specs) == [["head-0", "worker-1"], ["worker-0"]]


def test_every_process_knows_the_first_host_its_own_address_and_the_ports_that_were_picked():
    role = Role(name="r", argv=(Macro.HOST, Macro.ADDRESS, Macro.port("p"), Macro.RUN_DIR), replicas=2, ports=("p",))
    specs = _place_on(2, role, ports={"p": 4000})
    words = [spec["processes"][0]["argv"] for spec in specs]
    assert words == [["10.0.0.0", "10.0.0.0", "4000", "/runs/0"], ["10.0.0.0", "10.0.0.1", "4000", "/runs/1"]]
    assert [spec["ports"] for spec in specs] == [[], []]


def test_what_only_the_supervisors_know_stays_a_macro():
    role = Role(name="r", argv=(Macro.HOST, Macro.ADDRESS, Macro.port("p")), replicas=2, ports=("p",))
    specs = _place_on(2, role, address=None)
    assert [spec["processes"][0]["argv"] for spec in specs] == [list(role.argv)] * 2
    assert [spec["ports"] for spec in specs] == [["p"], ["p"]]
