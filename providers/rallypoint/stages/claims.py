"""Small notes beside a stage, each written once: which step of a pipeline run has a key, and what was announced.

::

    stages/<key>/claims/<run>.json                          the step that the key belongs to, in one run of a pipeline
    stages/<key>/attempts/000001/announced/<what>.json      the world was told of it
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from rallypoint.errors import DuplicateStageError

if TYPE_CHECKING:
    from rallypoint.stages.key import StageKey
    from rallypoint.stages.store import Store


async def claim_key(store: Store, key: StageKey, *, run: str, step: str, advice: str) -> None:
    """Make sure that one run of a pipeline has one step with this key; without it, one would get the other's result.

    Args:
        store: The store.
        key: The stage's key.
        run: Names one execution of the pipeline's code: a retry of the run, or its resumption, is another one.
        step: Names the step in it: the same over all tries of that step.
        advice: How to give the other step a name of its own.

    Raises:
        DuplicateStageError: Another step of the same run has this key.
    """
    path = f"{key.path}/claims/{hashlib.sha256(run.encode()).hexdigest()[:16]}.json"
    if await store.create(path, json.dumps({"v": 1, "run": run, "step": step}).encode()):
        return
    written = json.loads(await store.get(path) or b"{}")
    if written.get("step") != step:
        msg = (
            f"got two stages called {key.parts[-1]!r} in one run ({key.text}), expected a name of its own for each: "
            f"a retry finds a stage by its name; {advice}"
        )
        raise DuplicateStageError(msg)


async def is_announced(store: Store, key: StageKey, number: int, what: str) -> bool:
    """Return whether `announced` was called with the same arguments."""
    return await store.get(_announcement(key, number, what)) is not None


async def announced(store: Store, key: StageKey, number: int, what: str) -> None:
    """Note that something about an attempt was told, so that it is not told again."""
    await store.create(_announcement(key, number, what), json.dumps({"v": 1}).encode())


def _announcement(key: StageKey, number: int, what: str) -> str:
    return f"{key.path}/attempts/{number:06d}/announced/{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
