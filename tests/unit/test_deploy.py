"""What every deploy shares: comparing answers, small records, one deploy at a time, and the end on SIGTERM."""

from __future__ import annotations

import threading
import time

import pytest

from rallypoint.frameworks.deploy.comparison import difference
from rallypoint.frameworks.deploy.lease import TTL, Lease, LeaseTimeoutError
from rallypoint.frameworks.deploy.records import open_records
from rallypoint.frameworks.deploy.termination import TerminatedError, Termination

# An answer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "expected", "tolerance", "where"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, 0, ""),
        ({"a": 1}, {"b": 1}, 0, "has no 'b'"),
        ({"a": [1, 2.00001]}, {"a": [1, 2]}, 1e-3, ""),
        ({"a": [1, 2.1]}, {"a": [1, 2]}, 1e-3, "the answer['a'][1] is 2.1, expected 2"),
        ([1, 2], [1], 0, "has 2 items, expected 1"),
        (True, 1, 0, "is true, expected 1"),
        ("1", 1, 5, 'is "1", expected 1'),
        (1, 1.0, 0, ""),
        (None, None, 0, ""),
    ],
)
def test_an_answer_differs_or_it_does_not(got, expected, tolerance, where):
    found = difference(got, expected, tolerance=tolerance)
    assert where in found
    assert bool(found) == bool(where)


# Records -------------------------------------------------------------------------------------------------------------


def test_records_are_created_once_and_replaced_whole(records):
    assert records.read("serve/x/1.json") is None
    assert records.names("serve/x") == []
    assert records.create("serve/x/1.json", b"one")
    assert not records.create("serve/x/1.json", b"two")
    records.write("serve/x/1.json", b"three")
    assert records.read("serve/x/1.json") == b"three"
    assert records.names("serve/x") == ["1.json"]
    records.delete("serve/x/1.json")
    records.delete("serve/x/1.json")
    assert records.names("serve/x") == []


# Leases --------------------------------------------------------------------------------------------------------------


def test_one_deploy_at_a_time_holds_the_lease(records):
    one, other = Lease(records, "leases/a", "stage 1"), Lease(records, "leases/a", "stage 2")
    told = []
    with one.held(within=5), pytest.raises(LeaseTimeoutError, match="another deploy, stage 1, has held leases/a"):
        other.acquire(within=0, tell=told.append)
    assert told == ["waiting for another deploy of leases/a: stage 1"]
    with other.held(within=0):
        pass


def test_of_many_threads_one_at_a_time_is_in_the_block(tmp_path):
    records, inside, most = open_records(tmp_path.as_uri()), [], []

    def work(owner):
        with Lease(records, "leases/a", owner).held(within=60):
            inside.append(owner)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(owner)

    threads = [threading.Thread(target=work, args=(f"stage {number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 8


def test_a_dead_holders_lease_runs_out_and_a_retry_of_the_same_stage_takes_it_at_once(records):
    now = [1000.0]
    dead = Lease(records, "leases/a", "stage 1", clock=lambda: now[0])
    dead.acquire(within=0, tell=print)
    retry = Lease(records, "leases/a", "stage 1", clock=lambda: now[0])
    retry.acquire(within=0, tell=print)
    now[0] += TTL + 1
    other = Lease(records, "leases/a", "stage 2", clock=lambda: now[0])
    other.acquire(within=0, tell=print)
    with pytest.raises(LeaseTimeoutError, match="another one has taken leases/a over"):
        retry.renew()
    retry.release()  # what another one holds is not given back
    third = Lease(records, "leases/a", "stage 3", clock=lambda: now[0])
    with pytest.raises(LeaseTimeoutError):
        third.acquire(within=0, tell=print)


# Termination ---------------------------------------------------------------------------------------------------------


def test_a_signal_waits_for_the_end_of_a_write():
    termination, done = Termination(), []

    def write():
        with termination.shield():
            termination._on_signal()
            done.append("written")

    with pytest.raises(TerminatedError):
        write()
    write()  # a second signal changes nothing
    assert done == ["written", "written"]


def test_a_signal_during_a_restore_is_remembered_and_not_raised():
    termination = Termination()
    with termination.shield(quietly=True), termination.shield():
        termination._on_signal()
    assert termination.asked
