"""What a process of a gang knows of its stage: one JSON object, in a file or by value, from an environment variable.

The object holds no secret. The launcher sets the variables; everything else comes from the orchestrator.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, field
from typing import Any

from rallypoint.worker.variables import (
    ADDRESS,
    ATTEMPT_ID,
    EVENTS_URI,
    INCARNATION,
    LEASE_URI,
    LOGS_DIR,
    LOGS_URI,
    PROCESS,
    RESTART,
    ROUNDS,
    RUN_DIR,
    STAGE,
    STAGE_FILE,
)

__all__ = [
    "ADDRESS",
    "ATTEMPT_ID",
    "EVENTS_URI",
    "INCARNATION",
    "LEASE_URI",
    "LOGS_DIR",
    "LOGS_URI",
    "PROCESS",
    "RESTART",
    "ROUNDS",
    "RUN_DIR",
    "STAGE",
    "STAGE_FILE",
    "Placement",
    "StageContext",
    "host",
]


@dataclass(frozen=True)
class Placement:
    """Where this process stands in its world, in PyTorch's terms."""

    rank: int
    local_rank: int
    world_size: int
    restart: int

    @classmethod
    def from_environment(cls) -> Placement:
        """Read the variables that torchrun and Rallypoint's drivers set; a process without them is rank 0 of 1."""

        def number(name: str, default: int) -> int:
            value = os.environ.get(name, "")
            return int(value) if value.isdigit() else default

        return cls(
            rank=number("RANK", 0),
            local_rank=number("LOCAL_RANK", 0),
            world_size=number("WORLD_SIZE", 1),
            restart=number(ROUNDS, 0) + number(RESTART, number("TORCHELASTIC_RESTART_COUNT", 0)),
        )


@dataclass(frozen=True)
class StageContext:
    """The stage, as its processes know it.

    Args:
        stage: The stage's key, part by part.
        attempt: The id of this attempt.
        number: The number of this attempt, from 1.
        generation: The number of the generation whose checkpoints and artifacts are used, from 1.
        resumed: Whether an earlier attempt of the generation may have left checkpoints.
        params: The user's own JSON values.
        data_uri: Where the generation keeps checkpoints and artifacts.
        keep_checkpoints: How many checkpoints to keep.
        store_uri: The root of the store, for what outlives a stage; the empty string from an older orchestrator.
    """

    stage: tuple[str, ...]
    attempt: str
    number: int
    generation: int
    resumed: bool
    data_uri: str
    params: dict[str, Any] = field(default_factory=dict)
    keep_checkpoints: int = 3
    store_uri: str = ""

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps({"v": 1, **self.__dict__, "stage": list(self.stage)}, sort_keys=True)

    @classmethod
    def from_environment(cls) -> StageContext | None:
        """Read the object that the launcher or a driver named; None outside of a stage."""
        text, path = os.environ.get(STAGE), os.environ.get(STAGE_FILE)
        if text:
            values = json.loads(text)
        elif path:
            with open(path, encoding="utf-8") as file:
                values = json.load(file)
        else:
            return None
        values.pop("v")
        return cls(**{**values, "stage": tuple(values["stage"])})


def host() -> str:
    """Return the name of this host."""
    return socket.gethostname()
