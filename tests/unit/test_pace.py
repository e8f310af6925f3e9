"""How long a watcher waits between two looks, and how many look at the same time."""

import asyncio
import time

import pytest

from rallypoint.stages.pace import pause, turn


@pytest.mark.parametrize(
    ("age", "longest"),
    [(0, 0.2), (10, 0.2), (25, 0.5), (50, 1.0), (100_000, 1.0), (-60, 0.2)],
)
def test_a_young_attempt_is_looked_at_more_often_and_none_less_often_than_asked(age, longest):
    waits = [pause(1.0, time.time() - age) for _ in range(200)]
    assert max(waits) <= longest * 1.01
    assert min(waits) >= longest * 0.8


def test_attempts_that_began_together_are_not_looked_at_together():
    began = time.time()
    assert len({pause(1.0, began) for _ in range(100)}) > 90


def test_of_many_watchers_of_one_event_loop_a_few_look_at_the_same_time():
    looking, most = set(), []

    async def look(number):
        async with turn():
            looking.add(number)
            most.append(len(looking))
            await asyncio.sleep(0)
            looking.remove(number)

    async def many():
        await asyncio.gather(*(look(number) for number in range(200)))

    asyncio.run(many())
    assert len(most) == 200
    assert max(most) == 32
    asyncio.run(many())  # another loop has turns of its own


def test_who_begins_does_not_wait_for_those_who_look():
    async def begin():
        looks = [turn() for _ in range(32)]
        for look in looks:
            await look.__aenter__()
        async with asyncio.timeout(30), turn("begin"):
            return turn().locked()

    assert asyncio.run(begin())
