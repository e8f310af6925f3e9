"""The durable record of a stage's attempts: small files in the store, each but the lease written once.

::

    index/<digest>.json                         the key, part by part, so that stages are listed without their data
    stages/<key>/attempts/000001/intent.json    written before the launch; creating it claims the number
    stages/<key>/attempts/000001/handle.json    how to find the gang, once it was launched
    stages/<key>/attempts/000001/outcome.json   how it ended; the first to write it is believed
    stages/<key>/attempts/000001/turns/000001.json   a newer try took it over, or somebody asked for its end
    stages/<key>/attempts/000001/rerun.json     somebody asked for this stage to run again
    stages/<key>/attempts/000001/lease.json     a service's lease, written again and again while somebody wants it
    stages/<key>/attempts/000001/events/        what its processes report
    stages/<key>/attempts/000001/logs/          what they print, where the store is a bucket
    stages/<key>/generations/000001/            checkpoints and artifacts

An attempt's turns are one sequence, each claimed by a conditional create: of a try that takes the attempt over and an
old owner that cancels it, one comes first, and the other one sees it.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rallypoint.errors import StageNotFoundError, StoreError
from rallypoint.launchers.base import Handle
from rallypoint.spec.failure import FailureRule
from rallypoint.spec.service import ServiceRef
from rallypoint.stages.key import StageKey
from rallypoint.stages.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rallypoint.stages.store import Store


@dataclass(frozen=True, kw_only=True)
class Record:
    """One attempt's write-ahead intent: what is known of it before it is launched.

    Args:
        number: The attempt's number in its stage, from 1.
        id: The attempt's id, by which every launcher finds it.
        generation: The generation whose checkpoints and artifacts it uses, from 1.
        resumed: Whether it continues an earlier attempt of the generation.
        kind: The job's kind, such as ``torch``.
        fingerprint: What makes it the same work.
        launcher: The launcher's URI.
        owner: Who launched it.
        marker: The orchestrator's count of explicit re-runs (Airflow: ``max_tries``), which tells a clear from a retry.
        created: Seconds since the epoch.
        why: Why it was launched.
        failure_rules: The job's own rules for failures, as JSON: whoever concludes the attempt may not have the job.
        service: Whether it is to stay and report that it is ready.
        lease: Seconds of a service's lease.
        uses: The services that it uses, as JSON: whoever watches it renews their leases.
    """

    number: int
    id: str
    generation: int
    resumed: bool
    kind: str
    fingerprint: Mapping[str, str]
    launcher: str
    owner: str
    marker: int | None = None
    created: float = field(default_factory=time.time)
    why: str = ""
    failure_rules: Sequence[Mapping[str, Any]] = ()
    service: bool = False
    lease: float | None = None
    uses: Sequence[Mapping[str, Any]] = ()


_RECORD_TYPES: Mapping[str, Any] = {
    "generation": int,
    "resumed": bool,
    "kind": str,
    "fingerprint": dict,
    "launcher": str,
    "owner": str,
    "marker": int | None,
    "created": int | float,
    "why": str,
    "failure_rules": list | tuple,
    "service": bool,
    "lease": int | float | None,
    "uses": list | tuple,
}
_NO_RECORD = (AttributeError, KeyError, TypeError, ValueError, RecursionError)  # what reading anything else raises


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the ledger holds of one attempt."""

    record: Record
    owner: str
    handle: Handle | None = None
    outcome: Outcome | None = None
    cancel_asked: str | None = None
    rerun_asked: bool = False


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """Who owns an attempt, and whether its end was asked for, since the turn of this number."""

    number: int
    owner: str
    cancel: str | None = None


class Ledger:
    """The attempts of one stage.

    Args:
        store: The store.
        key: The stage's key.
    """

    def __init__(self, store: Store, key: StageKey) -> None:
        self.store = store
        self.key = key

    @classmethod
    async def find(cls, store: Store, text: str) -> Ledger:
        """Return the ledger of the stage whose key, or whose key's end, is `text`.

        Raises:
            StageNotFoundError: No stage, or more than one, has that name.
        """
        keys = await list_stages(store)
        wanted = text.strip("/")
        found = [key for key in keys if key.text == wanted] or [
            key for key in keys if key.text.endswith(f"/{wanted}") or wanted.startswith(key.attempt_id(1)[:-1])
        ]
        if len(found) == 1:
            return cls(store, found[0])
        known = "\n  ".join(key.text for key in (found or keys)[:20]) or "(none)"
        problem = "no stage" if not found else f"{len(found)} stages"
        msg = f"got {text!r}, which names {problem} in {store.uri}; name one of:\n  {known}"
        raise StageNotFoundError(msg)

    async def last(self) -> Entry | None:
        """Return the newest attempt; None before the first."""
        for number in reversed(await self.numbers()):
            if entry := await self.read(number):
                return entry
            # Its folder is there and its intent is not: a try is about to claim it, or died in that moment.
        return None

    async def numbers(self) -> list[int]:
        """Return the numbers of the attempts, in order."""
        names = await self.store.children(f"{self.key.path}/attempts")
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    async def read(self, number: int) -> Entry | None:
        """Return one attempt; None if there is none of that number.

        Raises:
            StoreError: What is there was not written by Rallypoint, or is another attempt's.
        """
        try:
            return await self._read(number)
        except _NO_RECORD as error:
            raise StoreError(
                f"got attempt {number} of {self.key.text}, whose record in {self.store.uri} is none "
                f"({type(error).__name__}: {error}), expected what Rallypoint writes: look who else can write there, "
                f"then delete {self.key.path}/attempts/{number:06d}"
            ) from error

    async def _read(self, number: int) -> Entry | None:
        intent = await self._get(number, "intent")
        if intent is None:
            return None
        intent.pop("v")
        lists = {name: tuple(intent.get(name, ())) for name in ("failure_rules", "uses")}
        record = Record(**{**intent, **lists})
        _check_record(record, number, self.key)
        turn = await self._turn(number) or _Turn(number=0, owner=record.owner)
        handle = await self._get(number, "handle")
        if handle and (handle["attempt"] != record.id or not isinstance(handle["launcher"], str)):
            msg = "its handle is that of another one"
            raise ValueError(msg)
        outcome = await self._get(number, "outcome")
        rerun = await self._get(number, "rerun")
        return Entry(
            record=record,
            owner=turn.owner,
            handle=Handle.from_json(handle) if handle else None,
            outcome=Outcome.from_json(outcome) if outcome else None,
            cancel_asked=turn.cancel,
            rerun_asked=rerun is not None,
        )

    async def claim(self, record: Record) -> bool:
        """Write an attempt's intent; False if another try has claimed the number."""
        key = json.dumps({"v": 1, "parts": list(self.key.parts)})
        await self.store.create(self._index, key.encode())
        return await self._create(record.number, "intent", asdict(record))

    async def own(self, number: int, owner: str) -> bool:
        """Make a new try the owner of an attempt: from now on only it may cancel it.

        Returns:
            False if the attempt's end was asked for before, or there is no such attempt: it cannot be taken over.
        """
        while turn := await self._turn(number):
            if turn.cancel is not None:
                return False
            if turn.owner == owner or await self._take(number, replace(turn, number=turn.number + 1, owner=owner)):
                return True
        return False

    async def launched(self, number: int, handle: Handle) -> None:
        """Record how to find an attempt's gang."""
        await self._create(number, "handle", handle.to_json())

    async def conclude(self, number: int, outcome: Outcome) -> Outcome:
        """Record how an attempt ended, and return what is recorded: the first word counts."""
        if await self._create(number, "outcome", outcome.to_json()):
            return outcome
        entry = await self.read(number)
        return entry.outcome if entry and entry.outcome else outcome

    async def ask_cancel(self, number: int, why: str, *, owner: str | None = None) -> bool:
        """Record that an attempt is to end, so that no try reattaches to it while it does.

        Args:
            number: The attempt's number.
            why: One line; the first one counts.
            owner: Who asks; None may end any attempt.

        Returns:
            False if another try owns the attempt, or there is none of that number.
        """
        while turn := await self._turn(number):
            if owner is not None and turn.owner != owner:
                return False
            if turn.cancel is not None or await self._take(number, replace(turn, number=turn.number + 1, cancel=why)):
                return True
        return False

    async def ask_rerun(self, number: int) -> None:
        """Have the next try run this stage again, as if a person had cleared it."""
        await self._create(number, "rerun", {"t": time.time()})

    async def renew(self, number: int) -> bool:
        """Renew the lease of a service's attempt.

        Returns:
            False if it has ended, or there is no such attempt: nothing is written then.
        """
        intent = await self._get(number, "intent")
        if intent is None or await self._get(number, "outcome") is not None:
            return False
        # What is in it is for people. The supervisor looks whether it changes, so that no two clocks are compared.
        lease = json.dumps({"v": 1, "t": time.time()}).encode()
        await self.store.put(self.lease_path(number), lease)
        return True

    async def renewed(self, number: int) -> float | None:
        """Return when an attempt's lease was last renewed, in seconds since the epoch; None if it never was."""
        time_of = (await self._get(number, "lease") or {}).get("t")
        return float(time_of) if isinstance(time_of, int | float) else None

    async def erase(self, numbers: Sequence[int]) -> None:
        """Delete the record of a stage, and last the entry by which it is listed, unless there are other attempts.

        The newest attempt stays the newest to the end, and of it the intent goes last: half deleted, it is one that
        was never launched, and its number is not free while its old outcome lies there.

        Args:
            numbers: The numbers of all its attempts, in order.
        """
        folders = [f"{self.key.path}/attempts/{number:06d}" for number in numbers]
        for number, folder in zip(numbers[:-1], folders, strict=False):
            await self.store.delete(self._path(number, "intent"))
            await self.store.remove(folder)
        last = [self._path(numbers[-1], name) for name in ("outcome", "intent")]
        others = [path for path, _ in await self.store.list(folders[-1]) if path not in last]
        for path in (*others, *last):
            await self.store.delete(path)
        await self.store.remove(folders[-1])
        if not await self.numbers():
            await self.store.remove(self.key.path)
            await self.store.delete(self._index)

    def events_prefix(self, number: int) -> str:
        """Return where an attempt's processes report."""
        return f"{self.key.path}/attempts/{number:06d}/events"

    def logs_prefix(self, number: int) -> str:
        """Return where a bucket keeps an attempt's logs."""
        return f"{self.key.path}/attempts/{number:06d}/logs"

    def lease_path(self, number: int) -> str:
        """Return where an attempt's lease is renewed."""
        return self._path(number, "lease")

    def data_prefix(self, generation: int) -> str:
        """Return where a generation's checkpoints and artifacts are."""
        return f"{self.key.path}/generations/{generation:06d}"

    async def _turn(self, number: int) -> _Turn | None:
        """Return the last turn of an attempt; the intent is its first one. None if there is no such attempt."""
        intent = await self._get(number, "intent")
        if intent is None:
            return None
        names = [name for name in await self.store.children(self._turns(number)) if name.endswith(".json")]
        if not names:
            return _Turn(number=0, owner=intent["owner"])
        last = names[-1].removesuffix(".json")
        value = await self._get(number, f"turns/{last}") or {}
        return _Turn(number=int(last), owner=value["owner"], cancel=value["cancel"])

    async def _take(self, number: int, turn: _Turn) -> bool:
        value = {"t": time.time(), "owner": turn.owner, "cancel": turn.cancel}
        return await self._create(number, f"turns/{turn.number:06d}", value)

    def _turns(self, number: int) -> str:
        return f"{self.key.path}/attempts/{number:06d}/turns"

    @property
    def _index(self) -> str:
        return f"index/{self.key.digest}.json"

    def _path(self, number: int, name: str) -> str:
        return f"{self.key.path}/attempts/{number:06d}/{name}.json"

    async def _get(self, number: int, name: str) -> dict[str, Any] | None:
        data = await self.store.get(self._path(number, name))
        return None if data is None else dict(json.loads(data))

    async def _create(self, number: int, name: str, value: Mapping[str, Any]) -> bool:
        return await self.store.create(self._path(number, name), json.dumps({"v": 1, **value}).encode())


def _check_record(record: Record, number: int, key: StageKey) -> None:
    """Raise for an intent of another attempt: its id names a folder, and processes that are ended by it."""
    if (record.number, record.id) != (number, key.attempt_id(number)):
        msg = f"its intent says {str(record.id)[:80]!r}, which is not {key.attempt_id(number)!r}"
        raise ValueError(msg)
    for name, kinds in _RECORD_TYPES.items():
        if not isinstance(getattr(record, name), kinds):
            msg = f"its intent has the {name} {str(getattr(record, name))[:80]!r}"
            raise TypeError(msg)
    for rule in record.failure_rules:
        FailureRule.from_json(rule)
    for ref in record.uses:
        ServiceRef.from_json(ref)


async def list_stages(store: Store) -> list[StageKey]:
    """Return the keys of all stages in a store."""
    keys = []
    for path, _ in await store.list("index"):
        data = await store.get(path)
        if data is not None:
            try:
                keys.append(StageKey(tuple(map(str, json.loads(data)["parts"]))))
            except _NO_RECORD as error:
                msg = f"got {store.uri}/{path}, which is no stage's key, expected what Rallypoint writes: delete it"
                raise StoreError(msg) from error
    return sorted(keys, key=lambda key: key.text)
