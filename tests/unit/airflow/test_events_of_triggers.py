"""What a task makes of an event that its trigger, or an older try's, sends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import TaskDeferred

from rallypoint.airflow.operators.base import stage_key
from rallypoint.airflow.operators.torch import TorchElasticOperator
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
