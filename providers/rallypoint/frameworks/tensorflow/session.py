"""What this process of a TensorFlow job is and has: ``strategy()`` and ``task()``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rallypoint.frameworks.tensorflow import strategies
from rallypoint.frameworks.tensorflow.cluster import WORKER, Task

if TYPE_CHECKING:
    from collections.abc import Callable


def tensorflow() -> Any:
    """Return the package; nothing of Rallypoint loads it before it is used."""
    return importlib.import_module("tensorflow")


@dataclass
class Session:
    """One process of a TensorFlow job.

    Args:
        settings: The job's settings.
        task: What it is.
        on_connected: Is called when the strategy has been made.
    """

    settings: Mapping[str, Any]
    task: Task
    on_connected: Callable[[], object] = lambda: None
    _strategy: Any = None

    def strategy(self) -> Any:
        """Return the job's strategy, which is made by the first call."""
        if self._strategy is None:
            self._strategy = strategies.build(tensorflow(), self.settings)
            self.on_connected()
        return self._strategy


_current: Session | None = None


def install(session: Session | None) -> None:
    """Say what this process is; the driver does before the user's code runs."""
    global _current  # noqa: PLW0603 - a process is one task
    _current = session


def strategy() -> Any:
    """Return the strategy that the job asks for.

    It is made by the first call, which has to come before any tensor is made, as TensorFlow wants it. Of an evaluator
    it is TensorFlow's default one, and so it is outside of a job: the same code runs alone.

    Raises:
        NoTPUError: The job asks for a TPU, and there is none.
    """
    return _current.strategy() if _current else tensorflow().distribute.get_strategy()


def task() -> Task:
    """Return what this process is, such as ``Task("chief", 0)``; ``Task("worker", 0)`` outside of a job."""
    return _current.task if _current else Task(WORKER, 0)


class Injected(Mapping[str, Any]):
    """What a function of the user gets by the names of its parameters; a strategy is made only if it is asked for."""

    def __getitem__(self, name: str) -> Any:
        if name != "strategy":
            raise KeyError(name)
        return strategy()

    def __iter__(self) -> Iterator[str]:
        return iter(("strategy",))

    def __len__(self) -> int:
        return 1
