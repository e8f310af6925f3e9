"""One keep-alive HTTP client per event loop and cluster, closed with its loop."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import httpx

from rallypoint.errors import LaunchError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from rallypoint.launchers.ray_jobs.address import Access, Address

_CONNECTIONS = 16  # to one dashboard from one event loop; it serves every stage of a triggerer
_Key = tuple[str, str]
_held: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, AsyncGenerator[httpx.AsyncClient, None]]] = (
    WeakKeyDictionary()
)
_ready: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, httpx.AsyncClient]] = WeakKeyDictionary()


async def client_of(address: Address, access: Access) -> httpx.AsyncClient:
    """Return the running loop's client of a cluster.

    Raises:
        LaunchError: A certificate's file cannot be read.
    """
    loop, key = asyncio.get_running_loop(), (address.url, access.key)
    ready = _ready.setdefault(loop, {})
    if key not in ready:
        trust = await asyncio.to_thread(_trust, address, access)
        if key not in ready:  # another one may have made it meanwhile
            # A loop that is shut down closes its asynchronous generators, and this one then closes the client. No
            # launcher is closed by hand, so nothing else would.
            holder = _hold(loop, key, _client(address, access, trust))
            ready[key] = await anext(holder)
            _held.setdefault(loop, {})[key] = holder
    return ready[key]


async def _hold(
    loop: asyncio.AbstractEventLoop, key: _Key, client: httpx.AsyncClient
) -> AsyncGenerator[httpx.AsyncClient, None]:
    try:
        yield client
    finally:
        _ready.get(loop, {}).pop(key, None)  # its connections refer to the loop, which would never be collected
        _held.get(loop, {}).pop(key, None)
        await client.aclose()


def _client(address: Address, access: Access, trust: ssl.SSLContext) -> httpx.AsyncClient:
    headers = dict(access.headers)
    if access.token:
        headers["Authorization"] = f"Bearer {access.token}"
    return httpx.AsyncClient(
        base_url=address.url,
        headers=headers,
        cookies=dict(access.cookies),
        verify=trust,
        timeout=httpx.Timeout(access.timeout, connect=min(10.0, access.timeout)),
        limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
        follow_redirects=False,  # a redirection is a login page, and no one else is to get the token
    )


def _trust(address: Address, access: Access) -> ssl.SSLContext:
    """Return whom to trust; reading the authorities takes some ten milliseconds, so this runs in a thread."""
    if not address.url.startswith("https://"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody, and nobody is asked
    try:
        if isinstance(access.verify, str):
            folder = access.verify if Path(access.verify).is_dir() else None
            trust = ssl.create_default_context(cafile=None if folder else access.verify, capath=folder)
        else:
            trust = httpx.create_ssl_context(verify=access.verify)
        if access.cert:
            chain = (access.cert,) if isinstance(access.cert, str) else access.cert
            trust.load_cert_chain(*chain)
    except (OSError, ssl.SSLError) as error:
        msg = f"a certificate's file for {address.url} cannot be read ({error}): correct the option verify or cert"
        raise LaunchError(msg) from error
    return trust
