"""A lease on a name in the store: of all deploys through one store, one at a time has it.

The holders of a name are numbered, and each number is created once: who creates the next one holds the lease, and two
cannot. A holder that died stops renewing, and after `TTL` seconds the next number may be created.
"""

from __future__ import annotations

import json
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rallypoint.frameworks.deploy.records import Records

TTL = 150.0  # seconds: longer than any single request of a deploy
RENEWAL = 30.0  # seconds
_LOOK = 0.5  # seconds between two looks at another one's lease


class LeaseTimeoutError(TimeoutError):
    """Another deploy holds the lease for too long."""


class Lease:
    """A lease.

    Args:
        records: The store.
        folder: The name, as a folder of the store.
        owner: Who wants it. What the same owner left behind when it died is taken over at once: the engine runs one
            attempt of a stage at a time.
        clock: Seconds since the epoch, as the other holders count them.
    """

    def __init__(self, records: Records, folder: str, owner: str, *, clock: Callable[[], float] = time.time) -> None:
        self._records = records
        self._folder = folder
        self._owner = owner
        self._clock = clock
        self._number = 0
        self._renewed = 0.0
        self._id = uuid.uuid4().hex  # two attempts never write the same bytes

    @contextmanager
    def held(self, *, within: float, tell: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Hold the lease for a block.

        Args:
            within: Seconds to wait for it.
            tell: Is called with a line, once, if another one has it.

        Raises:
            LeaseTimeoutError: Another one kept it for so long.
        """
        self.acquire(within=within, tell=tell)
        try:
            yield
        finally:
            self.release()

    def acquire(self, *, within: float, tell: Callable[[str], None]) -> None:
        """Wait for the lease and take it; see `held`."""
        deadline, told = time.monotonic() + within, False
        while True:
            numbers = self._numbers()
            last = numbers[-1] if numbers else 0
            holder = self._read(last) if last else None
            if last and holder is None:
                continue  # removed by a newer holder
            if holder is None or self._is_over(holder):
                if self._take(last + 1):
                    return
                continue
            if not told:
                tell(f"waiting for another deploy of {self._folder}: {holder.get('owner')}")
                told = True
            if time.monotonic() > deadline:
                msg = (
                    f"another deploy, {holder.get('owner')}, has held {self._folder} for more than {within:g} s; let "
                    "it end, or cancel its stage"
                )
                raise LeaseTimeoutError(msg)
            time.sleep(_LOOK)

    def _take(self, number: int) -> bool:
        if not self._records.create(self._path(number), self._content()):
            return False
        numbers = self._numbers()
        if numbers[-1] != number:  # it was a holder's before, who is gone, and so is their number
            self._records.delete(self._path(number))
            return False
        self._number, self._renewed = number, self._clock()
        for old in numbers[:-1]:
            self._records.delete(self._path(old))
        return True

    def renew(self) -> None:
        """Say that the holder lives, as often as is needed.

        Raises:
            LeaseTimeoutError: It did not say so for too long, and another one has taken the lease.
        """
        if self._clock() - self._renewed < RENEWAL:
            return
        numbers = self._numbers()
        if numbers and numbers[-1] != self._number:
            msg = f"this deploy was suspended for more than {TTL:g} s, and another one has taken {self._folder} over"
            raise LeaseTimeoutError(msg)
        self._records.write(self._path(self._number), self._content())
        self._renewed = self._clock()

    def release(self) -> None:
        """Give the lease back; the number stays, so that the next one is another."""
        if self._numbers()[-1:] == [self._number]:
            self._records.write(self._path(self._number), self._content(released=True))

    def _is_over(self, holder: dict[str, Any]) -> bool:
        expires = holder.get("expires")
        over = not isinstance(expires, int | float) or expires < self._clock()
        return over or bool(holder.get("released")) or holder.get("owner") == self._owner

    def _content(self, *, released: bool = False) -> bytes:
        content = {"v": 1, "owner": self._owner, "id": self._id, "expires": self._clock() + TTL, "released": released}
        return json.dumps(content).encode()

    def _numbers(self) -> list[int]:
        names = (name.removesuffix(".json") for name in self._records.names(self._folder))
        return sorted(int(name) for name in names if name.isdigit())

    def _read(self, number: int) -> dict[str, Any] | None:
        data = self._records.read(self._path(number))
        if data is None:
            return None
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        return value if isinstance(value, dict) else {}

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number}.json"
