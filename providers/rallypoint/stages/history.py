"""What a generation of a stage has measured so far, as curves: reported metrics, and TensorBoard's scalars."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from rallypoint.stages.curves import Curves
from rallypoint.stages.events import EventReader
from rallypoint.stages.scalars import ScalarReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rallypoint.stages.events import Event
    from rallypoint.stages.ledger import Ledger

TENSORBOARD = "tensorboard"  # the folder of a generation that `Stage.tensorboard_dir` names
_ATTEMPTS = 20  # of a generation that are read, the newest
_READS = 5  # of event files in one call
_MAX_NAMES = 200  # of metrics that are counted


def tensorboard_prefix(ledger: Ledger, generation: int) -> str:
    """Return where in the store the event files of a generation lie."""
    return f"{ledger.data_prefix(generation)}/{TENSORBOARD}"


class History:
    """The curves of one generation. It reads on from where it stopped.

    Args:
        ledger: The stage's ledger.
        generation: The generation's number.

    Attributes:
        metrics: What its attempts reported, over steps; where they reported no steps, over reports.
        scalars: What they wrote for TensorBoard.
    """

    def __init__(self, ledger: Ledger, generation: int) -> None:
        self.metrics = Curves()
        self.scalars = ScalarReader(ledger.store, tensorboard_prefix(ledger, generation))
        self._ledger = ledger
        self._readers: dict[int, EventReader] = {}
        self._reports: dict[str, int] = {}
        self._reading = asyncio.Lock()

    async def update(self, attempts: Sequence[int]) -> None:
        """Take in what is new.

        Args:
            attempts: The numbers of the generation's attempts, in order.

        Raises:
            StoreError: The store cannot be read.
        """
        async with self._reading:
            for number in attempts[-_ATTEMPTS:]:
                prefix = self._ledger.events_prefix(number)
                reader = self._readers.setdefault(number, EventReader(self._ledger.store, prefix))
                for _ in range(_READS):
                    events = await reader.read()
                    for event in events:
                        self._take(event)
                    if not events:
                        break
            await self.scalars.read()

    def _take(self, event: Event) -> None:
        metrics = event.data.get("metrics")
        if event.kind not in ("progress", "metrics") or not isinstance(metrics, dict):
            return
        step = event.data.get("step")
        for name, value in metrics.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            try:
                number = float(value)
                place = float(step) if isinstance(step, int) and not isinstance(step, bool) else None
            except OverflowError:  # JSON's integers have no limit
                continue
            if name in self.metrics or len(self._reports) < _MAX_NAMES:
                self._reports[name] = self._reports.get(name, 0) + 1
                self.metrics.add(name, self._reports[name] if place is None else place, number)


class Histories:
    """The histories that were asked for last, so that a page that is loaded again reads only what is new.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int = 32) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[str, str, int], History] = OrderedDict()

    async def get(self, ledger: Ledger, generation: int, attempts: Sequence[int]) -> History:
        """Return the history of a generation, with what is new.

        Args:
            ledger: The stage's ledger.
            generation: The generation's number.
            attempts: The numbers of its attempts, in order.

        Raises:
            StoreError: The store cannot be read.
        """
        key = (ledger.store.uri, ledger.key.path, generation)
        history = self._kept.pop(key, None) or History(ledger, generation)
        self._kept[key] = history
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        await history.update(attempts)
        return history
