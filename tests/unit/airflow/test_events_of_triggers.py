"""What a task makes of an event that its trigger, or an older try's, sends."""

from __future__ import annotations

import asyncio
import json
import socket
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import TaskDeferred

from rallypoint.airflow.operators.base import stage_key
from rallypoint.airflow.operators.torch import TorchElasticOperator
from rallypoint.airflow.triggers import StageTrigger
from rallypoint.launchers.base import Handle
from rallypoint.stages.ledger import Ledger, Record
from rallypoint.stages.outcome import Outcome
from rallypoint.stages.place import Place, local_launcher
from rallypoint.stages.rule import State

TI = SimpleNamespace(id="try-2", dag_id="d", run_id="r", task_id="t", map_index=-1)


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A task whose second try owns attempt 2; attempt 1 was stopped for it."""
    place = Place(store=f"file://{tmp_path}/store", launcher=local_launcher(str(tmp_path)))
    ledger = Ledger(place.open_store(), stage_key(TI))

    async def prepare():
        for number, owner in enumerate(("try-1", "try-2"), 1):
            record = Record(
                number=number,
                id=ledger.key.attempt_id(number),
                generation=1,
                resumed=number > 1,
                kind="torch",
                fingerprint={},
                launcher=place.launcher,
                owner=owner,
            )
            await ledger.claim(record)
            await ledger.launched(number, Handle(record.launcher, record.id))
        await ledger.conclude(1, Outcome(state=State.CANCELLED))

    asyncio.run(prepare())
    with DAG("d"):
        task = TorchElasticOperator(task_id="t", script="/a.py")
    monkeypatch.setattr(type(task), "_place", lambda _: place)
    return SimpleNamespace(operator=task, ledger=ledger)


@pytest.mark.parametrize("what", ["ended", "timeout", "unreachable"])
def test_an_event_of_an_older_try_is_not_taken_for_this_one(task, what):
    with pytest.raises(TaskDeferred) as deferred:
        task.operator.execute_complete({"ti": TI}, {"what": what, "attempt": 1, "message": "of the other try"})
    assert (deferred.value.trigger.attempt, deferred.value.trigger.owner) == (2, "try-2")


def test_the_event_of_its_own_attempt_delivers_the_result(task):
    asyncio.run(task.ledger.conclude(2, Outcome(state=State.SUCCEEDED, result={"auc": 0.7})))
    event = {"what": "ended", "attempt": 2, "message": ""}
    assert task.operator.execute_complete({"ti": TI, "outlet_events": {}}, event) == {"auc": 0.7}


async def test_a_triggerer_that_does_not_see_the_store_names_the_setting(tmp_path, monkeypatch):
    extra = {"store": f"{tmp_path}/only-on-this-host"}
    monkeypatch.setenv("AIRFLOW_CONN_ALONE", json.dumps({"conn_type": "rallypoint", "extra": extra}))
    trigger = StageTrigger(
        stage=["d", "r", "t"],
        attempt=1,
        owner="try-1",
        store="file:///the/workers/store",
        rallypoint_conn_id="alone",
        poll_interval=0.1,
        deadline=None,
    )
    (event,) = [event async for event in trigger.run()]
    assert event.payload["what"] == "unreachable"
    message = event.payload["message"]
    assert f"d/r/t has no attempt 1 in file://{tmp_path}/only-on-this-host" in message
    assert f"as the triggerer on {socket.gethostname()} sees it, and the worker recorded it in" in message
    assert "file:///the/workers/store: set [rallypoint] store" in message
    assert "'alone', to one that workers and triggerers share" in message
