"""Which store and launcher a stage uses: what it is given, the environment's, Prefect's variables', or a folder."""

from __future__ import annotations

import os
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings
from prefect.variables import Variable

from rallypoint.errors import LaunchError, StoreError
from rallypoint.launchers.registry import Reopenable, open_launcher
from rallypoint.prefect.blocks import RallypointLauncher, RallypointRayCluster, RallypointSSHHosts, RallypointStore
from rallypoint.stages.place import Place, local_launcher, with_python
from rallypoint.stages.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rallypoint.launchers.base import Launcher

StoreLike: TypeAlias = RallypointStore | str | os.PathLike[str]
LauncherBlock: TypeAlias = RallypointLauncher | RallypointRayCluster | RallypointSSHHosts
LauncherLike: TypeAlias = LauncherBlock | str

STORE_VARIABLE, LAUNCHER_VARIABLE = "RALLYPOINT_STORE", "RALLYPOINT_LAUNCHER"  # the command line reads them too


async def find_place(store: StoreLike | None = None, launcher: LauncherLike | None = None) -> Place:
    """Return the store and the launcher of a stage.

    Each is a block, the name of one (``"prod"`` or ``"rallypoint-store/prod"``), or a URI. What is not given comes from
    the environment (``RALLYPOINT_STORE``, ``RALLYPOINT_LAUNCHER``), then from the Prefect variables
    ``rallypoint_store`` and ``rallypoint_launcher``, then is a folder below ``PREFECT_HOME``.

    Raises:
        StoreError: There is no such store block, or its URI or options are wrong.
        LaunchError: There is no such launcher block.
    """
    found_store = await _store(store if store is not None else await _configured(STORE_VARIABLE))
    options = await found_store.store_options()
    opened = Store.open(found_store.uri, options=options or None)
    found = await _launcher(launcher if launcher is not None else await _configured(LAUNCHER_VARIABLE))
    local = local_launcher(str(opened.local_path or _home()))
    uri = local if found is None else with_python(found.uri, found.python)
    return Place(
        store=opened.uri,
        launcher=uri,
        store_options=options,
        launcher_options=found.launcher_options() if found else {},
    )


async def find_launcher(uri: str, place: Place) -> Launcher:
    """Return the launcher of an attempt's record with the credentials for its host.

    They are those of the place's launcher, or of a saved `RallypointRayCluster` or `RallypointSSHHosts` block of that
    host: what stops a job need not be configured as the task that started it was. Credentials reach no other host than
    their own.

    Args:
        uri: The launcher's URI, as the record has it.
        place: What the one who asks was given.

    Raises:
        LaunchError: There is no launcher of that scheme, or the place's is wrong.
    """
    plain = open_launcher(uri)
    if not isinstance(plain, Reopenable):
        return plain  # it takes no credentials
    own = open_launcher(place.launcher, place.launcher_options or None)
    if isinstance(own, Reopenable) and (found := own.reopen(uri)) is not None:
        return found
    async for block in _with_credentials():
        with suppress(LaunchError):  # a block that is wrong is of no other host's concern
            saved = open_launcher(block.uri, block.launcher_options())
            if isinstance(saved, Reopenable) and (found := saved.reopen(uri)) is not None:
                return found
    return plain


async def _with_credentials() -> AsyncIterator[RallypointRayCluster | RallypointSSHHosts]:
    """Yield the saved blocks of launchers that take credentials."""
    for kind in (RallypointRayCluster, RallypointSSHHosts):
        async with get_client() as client:
            try:
                documents = await client.read_block_documents_by_type(kind.get_block_type_slug(), include_secrets=False)
            except httpx.HTTPStatusError as error:
                if error.response.status_code == HTTPStatus.NOT_FOUND:  # none was ever saved
                    continue
                raise
        for document in documents:
            if document.name and not document.is_anonymous:
                block = await _load(document.name, kind)
                if isinstance(block, RallypointRayCluster | RallypointSSHHosts):
                    yield block


async def _configured(variable: str) -> str | None:
    if given := os.environ.get(variable):
        return given
    value: Any = await Variable.aget(variable.lower(), default="")
    return str(value) or None


def _home() -> Path:
    return get_current_settings().home.expanduser().absolute() / "rallypoint"


async def _store(given: StoreLike | None) -> RallypointStore:
    if isinstance(given, RallypointStore):
        return given
    text = os.fspath(given) if given is not None else str(_home())
    if "://" in text or text.startswith("/"):
        return RallypointStore(uri=text)
    try:
        block = await _load(text, RallypointStore)
    except ValueError as error:
        msg = f"got the store {text!r}, expected a URI or the name of a RallypointStore block: {_first_line(error)}"
        raise StoreError(msg) from error
    if not isinstance(block, RallypointStore):
        msg = f"got the block {text!r}, which is a {type(block).__name__}, expected a RallypointStore"
        raise StoreError(msg)
    return block


async def _launcher(given: LauncherLike | None) -> LauncherBlock | None:
    if given is None or isinstance(given, LauncherBlock):
        return given
    if "://" in given:
        return RallypointLauncher(uri=given)
    try:
        block = await _load(given, RallypointLauncher)
    except ValueError as error:
        others = '"rallypoint-ray-cluster/NAME" or "rallypoint-ssh-hosts/NAME"'
        expected = f"a URI, the name of a RallypointLauncher block, {others}"
        msg = f"got the launcher {given!r}, expected {expected}: {_first_line(error)}"
        raise LaunchError(msg) from error
    if not isinstance(block, LauncherBlock):
        msg = f"got the block {given!r}, which is a {type(block).__name__}, expected a launcher"
        raise LaunchError(msg)
    return block


async def _load(name: str, kind: type[Block]) -> Block:
    """Return a block by its name, of this kind unless the name says another."""
    return await Block.aload(name if "/" in name else f"{kind.get_block_type_slug()}/{name}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
