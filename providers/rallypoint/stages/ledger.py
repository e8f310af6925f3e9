"""The durable record of a stage's attempts: small files in the store, each written once.

::

    index/<digest>.json                         the key, part by part, so that stages are listed without their data
    stages/<key>/attempts/000001/intent.json    written before the launch; creating it claims the number
    stages/<key>/attempts/000001/owner.json     who may cancel it: the newest try that launched or reattached
    stages/<key>/attempts/000001/handle.json    how to find the gang, once it was launched
    stages/<key>/attempts/000001/outcome.json   how it ended; the first to write it is believed
    stages/<key>/attempts/000001/cancel.json    its owner, or a person, asked for its end
    stages/<key>/attempts/000001/rerun.json     somebody asked for this stage to run again
    stages/<key>/attempts/000001/events/        what its processes report
    stages/<key>/generations/000001/            checkpoints and artifacts
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rallypoint.errors import StageNotFoundError
from rallypoint.launchers.base import Handle
from rallypoint.stages.key import StageKey
from rallypoint.stages.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

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


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the ledger holds of one attempt."""

    record: Record
    owner: str
    handle: Handle | None = None
    outcome: Outcome | None = None
    cancel_asked: str | None = None
    rerun_asked: bool = False


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
        numbers = await self.numbers()
        return await self.read(numbers[-1]) if numbers else None

    async def numbers(self) -> list[int]:
        """Return the numbers of the attempts, in order."""
        names = await self.store.children(f"{self.key.path}/attempts")
        return sorted(int(name) for name in names if name.isdigit())

    async def read(self, number: int) -> Entry | None:
        """Return one attempt; None if there is none of that number."""
        intent = await self._get(number, "intent")
        if intent is None:
            return None
        intent.pop("v")
        record = Record(**intent)
        owner = await self._get(number, "owner")
        handle = await self._get(number, "handle")
        outcome = await self._get(number, "outcome")
        cancel = await self._get(number, "cancel")
        rerun = await self._get(number, "rerun")
        return Entry(
            record=record,
            owner=owner["owner"] if owner else record.owner,
            handle=Handle.from_json(handle) if handle else None,
            outcome=Outcome.from_json(outcome) if outcome else None,
            cancel_asked=cancel["why"] if cancel else None,
            rerun_asked=rerun is not None,
        )

    async def claim(self, record: Record) -> bool:
        """Write an attempt's intent; False if another try has claimed the number."""
        key = json.dumps({"v": 1, "parts": list(self.key.parts)})
        await self.store.create(f"index/{self.key.digest}.json", key.encode())
        return await self._create(record.number, "intent", asdict(record))

    async def own(self, number: int, owner: str) -> None:
        """Make a new try the owner of an attempt: from now on only it may cancel it."""
        await self.store.put(self._path(number, "owner"), json.dumps({"v": 1, "owner": owner}).encode())

    async def launched(self, number: int, handle: Handle) -> None:
        """Record how to find an attempt's gang."""
        await self._create(number, "handle", handle.to_json())

    async def conclude(self, number: int, outcome: Outcome) -> Outcome:
        """Record how an attempt ended, and return what is recorded: the first word counts."""
        if await self._create(number, "outcome", outcome.to_json()):
            return outcome
        entry = await self.read(number)
        return entry.outcome if entry and entry.outcome else outcome

    async def ask_cancel(self, number: int, why: str) -> None:
        """Record that an attempt is to end, so that no try reattaches to it while it does."""
        await self._create(number, "cancel", {"t": time.time(), "why": why})

    async def ask_rerun(self, number: int) -> None:
        """Have the next try run this stage again, as if a person had cleared it."""
        await self._create(number, "rerun", {"t": time.time()})

    def events_prefix(self, number: int) -> str:
        """Return where an attempt's processes report."""
        return f"{self.key.path}/attempts/{number:06d}/events"

    def data_prefix(self, generation: int) -> str:
        """Return where a generation's checkpoints and artifacts are."""
        return f"{self.key.path}/generations/{generation:06d}"

    def _path(self, number: int, name: str) -> str:
        return f"{self.key.path}/attempts/{number:06d}/{name}.json"

    async def _get(self, number: int, name: str) -> dict[str, Any] | None:
        data = await self.store.get(self._path(number, name))
        return None if data is None else dict(json.loads(data))

    async def _create(self, number: int, name: str, value: Mapping[str, Any]) -> bool:
        return await self.store.create(self._path(number, name), json.dumps({"v": 1, **value}).encode())


async def list_stages(store: Store) -> list[StageKey]:
    """Return the keys of all stages in a store."""
    keys = []
    for path, _ in await store.list("index"):
        data = await store.get(path)
        if data is not None:
            keys.append(StageKey(tuple(json.loads(data)["parts"])))
    return sorted(keys, key=lambda key: key.text)
