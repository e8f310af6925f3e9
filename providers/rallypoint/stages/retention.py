"""Decides what of old attempts is no longer kept, and removes it.

What goes: the logs and files of attempts that ended long ago, their events, and old generations (checkpoints,
artifacts, partitions). What stays: everything of a stage whose last attempt is running or unknown, a stage's newest
generation, and the ledger's small records. Only where it was asked for is a stage forgotten as a whole.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from rallypoint.errors import LaunchError, RallypointError, StageNotFoundError
from rallypoint.launchers.base import Cleanable
from rallypoint.launchers.registry import open_launcher, scoped
from rallypoint.stages.ledger import Ledger, list_stages

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from rallypoint.stages.key import StageKey
    from rallypoint.stages.ledger import Entry
    from rallypoint.stages.store import Store

_AT_ONCE = 16  # stages that are looked at at the same time


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is kept.

    Args:
        older_than: How long ago an attempt must have ended.
        keep_generations: How many of a stage's newest generations stay, whatever their age; at least 1.
        forget_stages: Whether a stage goes as a whole, with its result and last checkpoint, once all of it is older.

    Raises:
        ValueError: A number is too small.
    """

    older_than: timedelta
    keep_generations: int = 2
    forget_stages: bool = False

    def __post_init__(self) -> None:
        if self.older_than.total_seconds() < 0:
            raise ValueError(f"older_than: got {self.older_than}, expected no negative time")
        if self.keep_generations < 1:
            raise ValueError(f"keep_generations: got {self.keep_generations}, expected 1 or more")


@dataclass(frozen=True)
class Past:
    """What the decision needs to know of an attempt.

    Args:
        number: Its number.
        generation: Its generation.
        ended: When it ended, in seconds since the epoch; None if nobody knows that it did.
    """

    number: int
    generation: int
    ended: float | None


@dataclass(frozen=True)
class Choice:
    """What of a stage goes.

    Args:
        attempts: The attempts whose logs, files and events go.
        generations: The generations that go.
        whole: Whether the stage is forgotten.
    """

    attempts: tuple[int, ...] = ()
    generations: tuple[int, ...] = ()
    whole: bool = False


def choose(past: Sequence[Past], policy: Policy, now: float) -> Choice:
    """Return what of a stage goes.

    Args:
        past: All of its attempts, in order.
        policy: What is kept.
        now: Seconds since the epoch.
    """
    if not past or past[-1].ended is None:
        return Choice()
    limit = now - policy.older_than.total_seconds()
    old = [each for each in past if each.ended is not None and each.ended < limit]
    generations = sorted({each.generation for each in past})
    if policy.forget_stages and len(old) == len(past):
        return Choice(tuple(each.number for each in old), tuple(generations), whole=True)
    in_use = {each.generation for each in past if each not in old}
    going = [each for each in generations[: -policy.keep_generations] if each not in in_use]
    return Choice(tuple(each.number for each in old), tuple(going))


class What(StrEnum):
    """What a part is."""

    GENERATION = "generation"  # checkpoints, artifacts, partitions
    RUN = "logs and files"
    EVENTS = "events"
    STORED = "stored logs"  # what a bucket keeps of them
    RECORD = "record"  # of all attempts
    VERSIONS = "versions"  # configs of an application
    PACKAGES = "packages"  # code of applications


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing that goes.

    Args:
        what: What it is.
        number: The attempt's, generation's or version's number; of a record, how many attempts it has, and of packages
            how many they are.
        size: Its bytes.
    """

    what: What
    number: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Going:
    """What of one stage goes, as it was found.

    Args:
        key: The stage's key.
        choice: What was decided.
        numbers: The numbers of its attempts.
        launchers: The launcher's URI of every attempt that goes, by its number.
        parts: What there is to remove.
        problem: Why a part of it has to stay; empty if nothing has.
    """

    key: StageKey
    choice: Choice
    numbers: tuple[int, ...] = ()
    launchers: tuple[tuple[int, str], ...] = ()
    parts: tuple[Part, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        """The stage's key as text."""
        return self.key.text

    @property
    def size(self) -> int:
        """The bytes of all parts."""
        return sum(part.size for part in self.parts)


async def survey(store: Store, policy: Policy, *, stage: str = "", now: float | None = None) -> list[Going]:
    """Return what would go, changing nothing.

    Args:
        store: The store.
        policy: What is kept.
        stage: A key, or the end of one: only stages of that name; all by default.
        now: Seconds since the epoch; this moment by default.

    Raises:
        StageNotFoundError: No stage has that name.
        StoreError: The store cannot be read.
    """
    wanted = stage.strip("/")
    keys = [key for key in await list_stages(store) if not wanted or f"/{key.text}".endswith(f"/{wanted}")]
    if wanted and not keys:
        msg = f"got {stage!r}, which names no stage in {store.uri}; rallypoint status lists them"
        raise StageNotFoundError(msg)
    turn, moment = asyncio.Semaphore(_AT_ONCE), time.time() if now is None else now

    async def look(key: StageKey) -> Going:
        async with turn:
            try:
                return await _look(store, key, policy, moment)
            except RallypointError as error:  # one stage's damage is no reason to keep the others
                return Going(key=key, choice=Choice(), problem=str(error))

    found = await asyncio.gather(*map(look, keys))
    return [going for going in found if going.parts or going.problem]


async def remove(store: Store, going: Going) -> int:
    """Remove what `survey` found of a stage, and return how many bytes that were.

    Killed at any point, it leaves a stage that works, and the next call goes on: what goes is no longer used by any
    attempt, and of a stage that is forgotten the record goes after the rest, and its entry in the index last.

    Returns:
        0 if the stage was to be forgotten, and has been started again since.

    Raises:
        StoreError: The store cannot be written.
        LaunchError: An attempt's files cannot be removed.
    """
    ledger = Ledger(store, going.key)
    if going.choice.whole and tuple(await ledger.numbers()) != going.numbers:
        return 0
    there = {(part.what, part.number) for part in going.parts}
    for generation in going.choice.generations:
        if (What.GENERATION, generation) in there:
            await store.remove(ledger.data_prefix(generation))
    for number, uri in going.launchers:
        launcher = scoped(open_launcher(uri), store.uri)
        if isinstance(launcher, Cleanable) and (going.choice.whole or (What.RUN, number) in there):
            await launcher.clean(going.key.attempt_id(number), forget=going.choice.whole)
        if (What.EVENTS, number) in there:
            await store.remove(ledger.events_prefix(number))
        if (What.STORED, number) in there:
            await store.remove(ledger.logs_prefix(number))
    if going.choice.whole:
        await ledger.erase(going.numbers)
    return going.size


async def _look(store: Store, key: StageKey, policy: Policy, now: float) -> Going:
    ledger = Ledger(store, key)
    numbers = await ledger.numbers()
    entries = {number: await ledger.read(number) for number in numbers}
    # Without an intent the newest one is about to be claimed, and an older one was half erased.
    known = [_past(number, entry) for number, entry in entries.items() if entry or number == numbers[-1]]
    choice = choose(known, policy, now)
    if not choice.attempts:
        return Going(key=key, choice=choice)
    sizes = dict(await store.list(key.path))
    parts, launchers, problem = [], [], ""
    for generation in choice.generations:
        parts += _part(What.GENERATION, generation, _below(sizes, ledger.data_prefix(generation)))
    for number in choice.attempts:
        entry = entries[number]
        if entry is None:  # pragma: no cover - what has no intent has no end, and is not chosen
            continue
        try:
            launcher = open_launcher(entry.record.launcher)
            left = await launcher.left(entry.record.id) if isinstance(launcher, Cleanable) else 0
        except LaunchError as error:
            problem = str(error)
            continue
        launchers.append((number, entry.record.launcher))
        parts += _part(What.RUN, number, left)
        parts += _part(What.EVENTS, number, _below(sizes, ledger.events_prefix(number)))
        parts += _part(What.STORED, number, _below(sizes, ledger.logs_prefix(number)))
    if choice.whole and problem:  # the numbers would be used again, and the old runs found by them
        return Going(key=key, choice=Choice(), problem=problem)
    if choice.whole:
        rest = sum(sizes.values()) - sum(part.size for part in parts if part.what is not What.RUN)
        parts.append(Part(what=What.RECORD, number=len(numbers), size=rest))
    return Going(
        key=key,
        choice=choice,
        numbers=tuple(numbers),
        launchers=tuple(launchers),
        parts=tuple(parts),
        problem=problem,
    )


def _past(number: int, entry: Entry | None) -> Past:
    if entry is None:
        return Past(number, 0, None)
    return Past(number, entry.record.generation, entry.outcome.ended if entry.outcome else None)


def _below(sizes: dict[str, int], prefix: str) -> int:
    return sum(size for path, size in sizes.items() if path.startswith(f"{prefix}/"))


def _part(what: What, number: int, size: int) -> list[Part]:
    return [Part(what=what, number=number, size=size)] if size else []
