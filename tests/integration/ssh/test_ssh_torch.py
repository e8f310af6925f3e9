"""Elastic PyTorch on two hosts: it loses one and goes on, takes it in when it is back, and a retry does the rest."""

from __future__ import annotations

import pytest
from elastic_training import SLOW, training

from rallypoint.spec.failure import Kind
from rallypoint.stages.rule import State

pytestmark = [pytest.mark.engine, pytest.mark.timeout(480)]


async def test_a_host_dies_comes_back_and_the_host_of_the_rendezvous_dies(engine, tmp_path, hosts, until):
    async with training(engine, tmp_path) as one:
        await until(lambda: one.trains(2), deadline=SLOW)
        hosts[1].kill()
        await until(lambda: one.trains(1), deadline=SLOW)
        before = one.step
        await until(lambda: one.trains(1, beyond=before), deadline=SLOW)
        alone = one.step
        hosts[1].start()
        await until(lambda: one.trains(2, beyond=alone), deadline=SLOW)
        assert one.outcome is None
        await until(lambda: [line for line in one.said if "world size 1 → 2 (round " in line])
        reached = one.step
        hosts[0].kill()
        await until(lambda: one.outcome, deadline=SLOW)
        failure = one.outcome.failure
        assert (one.outcome.state, failure.kind, failure.title) == (State.LOST, Kind.RETRYABLE, "a host was lost")
        assert hosts[0].address in failure.message
        assert failure.retry_after == 0
    async with training(engine, tmp_path, "try-2") as two:
        assert two.decision.from_checkpoint
        await until(lambda: two.trains(1), deadline=SLOW)
        two.enough()
        await until(lambda: two.outcome, deadline=SLOW)
        assert two.outcome.state is State.SUCCEEDED, two.outcome.failure.render()
        assert (two.outcome.result["world"], two.outcome.result["from"] >= reached) == (1, True)


async def test_a_link_is_cut_and_healed(engine, tmp_path, hosts, until):
    async with training(engine, tmp_path) as one:
        await until(lambda: one.trains(2), deadline=SLOW)
        hosts[1].link_down()
        await until(lambda: one.trains(1), deadline=SLOW)
        alone = one.step
        hosts[1].link_up()
        await until(lambda: one.trains(2, beyond=alone), deadline=SLOW)
        one.enough()
        await until(lambda: one.outcome, deadline=SLOW)
        assert one.outcome.state is State.SUCCEEDED, one.outcome.failure.render()
        assert one.outcome.result["world"] == 2
