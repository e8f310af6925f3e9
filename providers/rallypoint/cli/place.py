"""Which store and launcher are meant, and which stage."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import quote

from rallypoint.errors import StageNotFoundError
from rallypoint.stages.engine import Engine
from rallypoint.stages.key import StageKey
from rallypoint.stages.ledger import Ledger
from rallypoint.stages.store import Store

STORE_VARIABLE = "RALLYPOINT_STORE"
LAUNCHER_VARIABLE = "RALLYPOINT_LAUNCHER"
_HOME = Path("~/.rallypoint")


def open_store(given: str | None) -> Store:
    """Return the store that an option, the environment or the default names.

    Raises:
        StoreError: Its URI is wrong.
    """
    uri = given or os.environ.get(STORE_VARIABLE) or _default_store()
    return Store.open(uri if "://" in uri else Path(uri).expanduser().absolute())


def launcher_uri(given: str | None, store: Store) -> str:
    """Return the URI of the launcher that an option, the environment or the default names."""
    runs = (store.local_path or _HOME.expanduser()) / "runs"
    return given or os.environ.get(LAUNCHER_VARIABLE) or f"local://{quote(str(runs))}"


def _default_store() -> str:
    home = os.environ.get("AIRFLOW_HOME")
    return str(Path(home) / "rallypoint") if home else str(_HOME.expanduser() / "store")


async def find_stage(given: str, store: str | None) -> tuple[Engine, int | None]:
    """Return the engine of the stage that somebody means, and the number of the attempt if one was named.

    Args:
        given: A stage's key or its end, an attempt's id, or a run folder.
        store: The store that was asked for; a run folder says itself where its store is.

    Raises:
        StageNotFoundError: There is no such stage or folder, or more than one.
    """
    if folder := _run_folder(given):
        return _of_run_folder(folder, store)
    ledger = await Ledger.find(open_store(store), given)
    prefix, _, number = given.strip("/").rpartition("-a")
    named = number.isdigit() and f"{prefix}-a{number}" == ledger.key.attempt_id(int(number))
    return Engine(ledger.store, ledger.key), int(number) if named else None


async def pick_attempt(engine: Engine, number: int | None) -> int:
    """Return the number of the attempt that is meant, the newest one if none is named.

    Raises:
        StageNotFoundError: There is no such attempt.
    """
    numbers = await engine.ledger.numbers()
    if not numbers:
        msg = f"{engine.key.text} has no attempt in {engine.store.uri}"
        raise StageNotFoundError(msg)
    if number is not None and number not in numbers:
        known = ", ".join(map(str, numbers))
        msg = f"got the attempt {number} of {engine.key.text}, expected one of its attempts: {known}"
        raise StageNotFoundError(msg)
    return numbers[-1] if number is None else number


def _run_folder(given: str) -> Path | None:
    folder = Path(given).expanduser()
    if (folder / "stage.json").is_file():
        return folder
    if folder.is_dir() and given.startswith(("/", ".", "~")):
        msg = f"got the folder {given!r}, which has no stage.json, expected a run folder: <launcher's folder>/<attempt>"
        raise StageNotFoundError(msg)
    return None


def _of_run_folder(folder: Path, store: str | None) -> tuple[Engine, int]:
    try:
        stage = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        key, number = StageKey(tuple(map(str, stage["stage"]))), int(stage["number"])
        data, generation = str(stage["data_uri"]), int(stage["generation"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"got the run folder {str(folder)!r}, whose stage.json cannot be read: {type(error).__name__}: {error}"
        raise StageNotFoundError(msg) from error
    within = Ledger(Store.open("/"), key).data_prefix(generation)  # the same in every store
    return Engine(open_store(store or data.removesuffix(f"/{within}")), key), number
