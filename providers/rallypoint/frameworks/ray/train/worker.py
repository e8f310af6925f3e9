"""In each worker of Ray Train: runs the entry as one rank, which reports its start, failure and end."""

from __future__ import annotations

import importlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rallypoint.worker import context, process
from rallypoint.worker import stage as worker_stage
from rallypoint.worker.entry import run_entry
from rallypoint.worker.stage import Stage


class Rounds:
    """Numbers the worker groups of one attempt, in the order in which they start; an actor beside the driver."""

    def __init__(self) -> None:
        self._groups: list[str | None] = []
        self._answer: dict[str, Any] | None = None

    def number(self, group: str | None) -> int:
        """Return the number of a worker group, from 0.

        Args:
            group: The id of its placement group, which every worker of it knows and no other.
        """
        if group not in self._groups:
            self._groups.append(group)
        return self._groups.index(group)

    def give(self, answer: dict[str, Any]) -> None:
        """Take in what rank 0 returned; a Ray Train before 2.55 keeps it to itself."""
        self._answer = answer

    def answer(self) -> dict[str, Any] | None:
        """Return what rank 0 gave last."""
        return self._answer


class _RankStage(Stage):
    """A rank's stage that knows whether the code has set the result."""

    said = False

    def result(self, value: Any) -> None:
        super().result(value)
        self.said = True


@dataclass(frozen=True)
class Payload:
    """What a worker runs; it travels by value, since a worker may be on a host without the attempt's folder.

    Args:
        entry: The words of `run_entry`.
        function: The file of a pickled function, if the entry is one.
        rounds: The actor that numbers worker groups.
    """

    entry: tuple[str, ...]
    function: bytes | None
    rounds: Any

    @classmethod
    def of(cls, entry: list[str], rounds: Any) -> Payload:
        """Return the payload of an entry; reads the function's file."""
        return cls(tuple(entry), read_function(entry), rounds)

    def run(self) -> Any:
        """Run the entry as this worker's rank.

        Returns:
            On rank 0, what the entry returned (``value``), and whether the code has set the result (``said``).
        """
        ray = importlib.import_module("ray")
        here = importlib.import_module("ray.train").get_context()
        group = ray.get_runtime_context().get_placement_group_id()
        restart = ray.get(self.rounds.number.remote(group))
        os.environ.update({
            "RANK": str(here.get_world_rank()),
            "LOCAL_RANK": str(here.get_local_rank()),
            "WORLD_SIZE": str(here.get_world_size()),
            context.RESTART: str(restart),
        })  # fmt: skip
        stage = _of_rank()
        worker_stage.install(stage)
        answers: list[Any] = []
        raised: list[BaseException] = []

        def body() -> None:
            try:
                answers.append(process.to_json_value(run_entry(entry_words(self.entry, self.function))))
            except BaseException as error:
                raised.append(error)
                raise

        code = process.run(body, name=f"rank-{stage.rank}.r{restart}", kind="rank", primary=False, own_parent=False)
        if code:
            raise _as_exception(raised[0] if raised else None, code)
        if stage.rank != 0:
            return None
        answer = {"value": answers[0] if answers else None, "said": stage.said}
        ray.get(self.rounds.give.remote(answer))
        return answer


def read_function(entry: list[str]) -> bytes | None:
    """Return the file of a pickled function; None if the entry is a script or a module."""
    if entry[0] != "function":
        return None
    return Path(entry[1]).read_bytes()


def entry_words(entry: tuple[str, ...], function: bytes | None) -> list[str]:
    """Return the words of `run_entry` on this host, where the function's file is written if there is one."""
    if function is None:
        return list(entry)
    descriptor, path = tempfile.mkstemp(prefix="rallypoint-", suffix=".pkl")
    with os.fdopen(descriptor, "wb") as file:
        file.write(function)
    return ["function", path]


def _of_rank() -> _RankStage:
    found = context.StageContext.from_environment()
    uri = found.data_uri if found else "file://" + tempfile.mkdtemp(prefix="rallypoint-local-")
    return _RankStage(found, context.Placement.from_environment(), uri)


def _as_exception(error: BaseException | None, code: int) -> Exception:
    """Return what Ray Train takes for a failure of the worker: a script may end it with `sys.exit`."""
    if isinstance(error, Exception):
        return error
    return RuntimeError(f"the code ended with exit code {code}")
