"""The hosts of an SSH launcher: how they are named, which of them a gang uses, and what is compared before."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rallypoint.errors import LaunchError
from rallypoint.launchers.base import HostReport
from rallypoint.launchers.nodes import Shape
from rallypoint.launchers.registry import open_launcher
from rallypoint.launchers.ssh.address import Access, Address
from rallypoint.launchers.ssh.frames import frame, read_frame
from rallypoint.launchers.ssh.plan import Plan, chosen, planned
from rallypoint.launchers.ssh.survey import different
from rallypoint.spec.gang import Gang, Macro, Role
from rallypoint.worker import context

# How hosts are named --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "hosts"),
    [
        ("ssh://h1?root=/runs", [("h1", None, None)]),
        ("ssh://ml@h1,h2:2222?root=/runs", [("h1", "ml", None), ("h2", None, 2222)]),
        ("ssh://10.0.0.1,ml@[fe80::1]:22?root=/runs", [("10.0.0.1", None, None), ("fe80::1", "ml", 22)]),
    ],
)
def test_a_uri_names_hosts_and_is_made_again_from_them(uri, hosts):
    launcher = open_launcher(uri)
    assert [(host.name, host.user, host.port) for host in launcher.address.hosts] == hosts
    assert launcher.uri == uri
    assert open_launcher(launcher.uri).address == launcher.address


def test_a_file_says_more_about_hosts_and_may_name_them(tmp_path):
    file = tmp_path / "hosts.toml"
    file.write_text(
        '[h2]\naddress = "10.0.0.2"\npython = "/opt/py"\nport = 23\n[h2.env]\nNCCL_SOCKET_IFNAME = "eth1"\n[h1]\n'
    )
    named = Address.from_uri(f"ssh://h1,h2:24?root=/runs&hosts={file}")
    assert [host.name for host in named.hosts] == ["h1", "h2"]
    host = named.hosts[1]
    assert (host.address, host.python, host.port, host.env) == (
        "10.0.0.2", "/opt/py", 24, {"NCCL_SOCKET_IFNAME": "eth1"},
    )  # fmt: skip
    every = Address.from_uri(f"ssh://?root=/runs&hosts={file}")
    assert [host.name for host in every.hosts] == ["h2", "h1"]
    assert every.uri == f"ssh://?root=/runs&hosts={file}"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ssh://h1", "got the root '' of an SSH launcher, expected the absolute path"),
        ("ssh://h1?root=runs", "expected the absolute path"),
        ("ssh://?root=/runs", "expected at least one"),
        ("ssh://h1,h1?root=/runs", "expected every host once"),
        ("ssh://h1/folder?root=/runs", "the folder is root="),
        ("ssh://h1?root=/runs&colour=red", "expected one of root, python"),
        ("ssh://h1?root=/runs&lost_after=soon", "expected seconds above 0"),
        ("ssh://h 1?root=/runs", "got a wrong host"),
        ("ssh://h1?root=/runs&hosts=/no/such/file", "the file of hosts /no/such/file cannot be read"),
    ],
)
def test_a_wrong_uri_says_what_is_wrong(uri, words):
    with pytest.raises(LaunchError, match=words):
        Address.from_uri(uri)


def test_a_password_in_the_uri_is_refused_and_not_repeated():
    with pytest.raises(LaunchError, match="a password is an option") as refused:
        Address.from_uri("ssh://me:hunter2@h1?root=/runs")
    assert "hunter2" not in str(refused.value)


def test_an_option_that_is_not_known_is_refused_and_no_secret_is_shown():
    with pytest.raises(LaunchError, match="got the option 'passwort'"):
        Access.from_options({"passwort": "hunter2"})
    assert "hunter2" not in repr(Access.from_options({"password": "hunter2", "passphrase": "hunter2"}))


# Which hosts a gang uses ----------------------------------------------------------------------------------------------


def _gang(replicas, least=None):
    role = Role(
        name="p", argv=(Macro.ADDRESS, Macro.HOST, Macro.PYTHON), replicas=replicas, min_replicas=least, ports=("x",)
    )
    return Gang(name="test", roles=(role,))


@pytest.mark.parametrize(
    ("gang", "hosts", "silent", "used"),
    [
        (_gang(2), "ab", "", "ab"),
        (_gang(2), "abc", "", "ab"),
        (_gang(2), "abc", "a", "bc"),  # another one takes its place
        (_gang(3), "ab", "", "ab"),
        (_gang(1), "abc", "", "a"),
        (_gang(4, 1), "abc", "", "abc"),
        (_gang(4, 1), "abc", "a", "bca"),  # it joins when it comes, and does not hold the rendezvous
        (_gang(2, 1), "abc", "a", "bc"),
        (_gang(4, 1), "ab", "a", "ba"),
    ],
)
def test_a_gang_takes_the_hosts_that_answer_and_an_elastic_one_waits_for_the_others(gang, hosts, silent, used):
    assert chosen(gang, list(hosts), dict.fromkeys(silent, "it is away")) == list(used)


@pytest.mark.parametrize(
    ("gang", "hosts", "silent", "words"),
    [
        (_gang(2), "ab", "b", "1 of 2 hosts answer, expected 2 for this test job: b is away"),
        (_gang(4, 3), "abcd", "cd", "2 of 4 hosts answer, expected 3 for this test job"),
        (_gang(4, 1), "abc", "bc", "1 of 3 hosts answer, expected half of them at the least"),
    ],
)
def test_too_few_hosts_are_an_error_that_names_those_that_do_not_answer(gang, hosts, silent, words):
    with pytest.raises(LaunchError, match=words):
        chosen(gang, list(hosts), {name: f"{name} is away" for name in silent})


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.sets(st.integers(0, 4)))
def test_half_of_the_hosts_launch_and_more_than_half_say_that_nothing_was_launched(replicas, least, count, silent):
    hosts = [f"h{number}" for number in range(count)]
    away = {f"h{number}": "away" for number in silent if number < count}
    try:
        used = chosen(_gang(max(replicas, least), least), hosts, away)
    except LaunchError:
        return
    # Who later sees more than half of the hosts sees one that holds the plan.
    assert 2 * (count - len(away)) >= count
    assert used[0] not in away
    assert len(set(used)) == len(used)


def test_a_plan_says_where_the_logs_of_a_bucket_go():
    hosts = {"first": "10.0.0.1", "ports": {"x": 4000}}
    role = Role(name="r", argv=(), replicas=2, env={context.LOGS_URI: "s3://b/logs"})
    plan = planned(Gang(name="g", roles=(role,)), "rp-x-a1", ["a", "b"], **hosts)
    assert [spec["logs"] for spec in plan.specs] == [{"uri": "s3://b/logs", "python": Macro.PYTHON}] * 2
    assert not any("logs" in spec for spec in planned(_gang(2), "rp-x-a1", ["a", "b"], **hosts).specs)


def test_a_plan_travels_as_json_and_leaves_to_the_hosts_what_only_they_know():
    plan = planned(_gang(2), "rp-x-a1", ["a", "b"], first="10.0.0.1", ports={"x": 4000})
    assert Plan.from_json(plan.to_json()) == plan
    words = [spec["processes"][0]["argv"] for spec in plan.specs]
    assert words == [["10.0.0.1", "10.0.0.1", Macro.PYTHON], [Macro.ADDRESS, "10.0.0.1", Macro.PYTHON]]
    assert plan.shape == Shape.of(_gang(2), 2)


# What is compared -----------------------------------------------------------------------------------------------------


def _report(host, python="3.11", torch="2.13.0", skew=0.0):
    return HostReport(host=host, python=python, versions={"torch": torch}, skew=skew)


@pytest.mark.parametrize(
    ("reports", "words"),
    [
        ([_report("a"), _report("b")], []),
        ([_report("a"), HostReport(host="b", problems=("b does not answer",))], []),
        ([_report("a"), _report("b", python="3.12")], ["Python differs: 3.11 on a, 3.12 on b"]),
        ([_report("a"), _report("b", torch="2.12.0")], ["torch differs: 2.12.0 on b, 2.13.0 on a"]),
        ([_report("a"), _report("b", skew=29)], []),
        ([_report("a", skew=-20), _report("b", skew=20)], ["the clocks of a and b differ by 40 s: have NTP set them"]),
    ],
)
def test_hosts_that_differ_where_they_may_not_are_named(reports, words):
    assert different(reports) == words


# Frames ---------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.dictionaries(st.text(), st.integers()), st.binary())), st.integers(0, 40))
def test_frames_are_read_as_they_were_written_and_a_torn_one_is_the_end(written, cut):
    data = b"".join(frame(value, more) for value, more in written)
    stream = io.BytesIO(data)
    assert [read_frame(stream) for _ in written] == written
    assert read_frame(stream) is None
    torn = io.BytesIO(data[: max(0, len(data) - cut - 1)])
    found = list(iter(lambda: read_frame(torn), None))
    assert found == written[: len(found)]
